"""What became of every acknowledged ticket of a run, told from its journal alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from learner.journal import JOURNAL, Began, Dropped, Released, Took, records
from shared.episodes import TicketId
from shared.errors import JournalError
from shared.metrics import whole_records


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts of closed tickets, along the surviving lineage: what later starts of the learner did not go back behind.

    acknowledged: all that were taken
    trained: part of a batch that is trained on; dropped: never will be, by reason; open: of a batch that is still open
    lost: acknowledged, of a batch that is trained on without it, and not on record as dropped
    twice: entries of trained batches beyond the first of the same acknowledgement, or of the same ticket, or dropped
    batches: trained on; unrecorded: steps that are either in metrics.jsonl or trained on, but not both
    """

    acknowledged: int
    trained: int
    dropped: dict[str, int]
    open: int
    lost: int
    twice: int
    batches: int
    unrecorded: int

    @property
    def faults(self) -> list[str]:
        """In words, what is lost or twice, and whether other steps are on record than were trained."""
        counted = (
            (self.lost, "acknowledged tickets that are lost"),
            (self.twice, "that were trained on twice"),
            (self.unrecorded, "steps that the journal or metrics.jsonl has, but not both"),
        )
        return [f"{count} {what}" for count, what in counted if count]

    @property
    def sound(self) -> bool:
        """No faults."""
        return not self.faults


def audit(run_folder: Path) -> Audit:
    """Follow the journal of a run that has ended. Raises JournalError when there is none to be read."""
    journal = run_folder / JOURNAL
    if not journal.is_file():
        what = "has no journal" if run_folder.exists() else "does not exist"
        raise JournalError(f"{run_folder} {what}: name the folder of a run, such as runs/cpu_demo")
    taken: dict[int, TicketId] = {}
    dropped: dict[int, str] = {}
    released: dict[int, list[Released]] = {}
    for position, record in records(journal):
        match record:
            case Took():
                taken[position] = record.id
            case Dropped():
                dropped[record.position] = record.reason
            case Released():
                released.setdefault(record.batch, []).append(record)
            case Began():
                released = {batch: batches for batch, batches in released.items() if batch < record.version}

    entries = [position for batches in released.values() for batch in batches for position in batch.positions]
    trained = Counter(entries)
    if unknown := trained.keys() - taken.keys():
        raise JournalError(f"{journal} is not whole: it has no closed ticket at {min(unknown)}, which was trained on")
    names = {(taken[position].batch, taken[position].index) for position in trained}
    twice = len(entries) - len(names) + len(trained.keys() & dropped.keys())
    trained_batches = max(released, default=-1) + 1
    pending = [id for position, id in taken.items() if position not in trained and position not in dropped]
    return Audit(
        acknowledged=len(taken),
        trained=len(trained),
        dropped=dict(Counter(dropped.values())),
        open=sum(id.batch >= trained_batches for id in pending),
        lost=sum(id.batch < trained_batches for id in pending),
        twice=twice,
        batches=len(released),
        unrecorded=len({batch + 1 for batch in released} ^ _steps(run_folder / "metrics.jsonl")),
    )


def _steps(metrics: Path) -> set[int]:
    return {record["step"] for record in whole_records(metrics) if isinstance(record.get("step"), int)}
