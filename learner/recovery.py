"""What a learner that goes on from a checkpoint, or from the beginning, does with what was acknowledged before it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from learner.collector import Collector
from learner.journal import Began, Dropped, Journal, Took
from shared.errors import MessageError

ROLLED_BACK = "rolled_back"
UNUSABLE = "unusable"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """Closed tickets that are used again, and those dropped, on the record."""

    replayed: int
    dropped: int


def recover(journal: Journal, collector: Collector, *, version: int, held: Sequence[int], since: int) -> Recovered:
    """Replay into the collector's open batches what the weights of `version` cover; drop what they do not.

    Covered is what the checkpoint held, recorded at `held`, and what was taken after it (from `since` on) but sampled
    by weights no newer than its own. What is newer belongs to weights that are given up, and is dropped as rolled back.
    Everything else in the journal has been trained on by `version`, or dropped before.
    """
    journal.append(Began(collector.lineage, version))
    dropped_before = {record.position for _, record in journal.records(since) if isinstance(record, Dropped)}
    found = chain(((position, journal.at(position)) for position in held), journal.records(since))
    to_drop: list[Dropped] = []
    replayed = 0
    for position, took in found:
        if not isinstance(took, Took):
            if position in held:
                log.warning("the journal has lost the closed ticket at %d: it is played again", position)
            continue
        if position in dropped_before:
            continue
        if position not in held and took.newest > version:
            to_drop.append(Dropped(position, ROLLED_BACK))
            continue
        try:
            collector.replay(took.closed(collector.vocabulary), seed=took.seed, position=position)
            replayed += 1
        except MessageError as error:
            log.warning("the closed ticket at %d of the journal cannot be used again: %s", position, error)
            to_drop.append(Dropped(position, UNUSABLE))
    for record in to_drop:
        journal.append(record)
    return Recovered(replayed, len(to_drop))
