"""A simulated run whose learner is killed, and goes on from its last checkpoint and its journal."""

from __future__ import annotations

import json
from pathlib import Path

from simulated_run import SimulatedRun, mark

from learner.audit import Audit, audit
from learner.journal import JOURNAL, Dropped, Journal
from shared.episodes import ClosedTicket, Ticket


class CrashingRun(SimulatedRun):
    """weights: names of the learner's weights by version, along the surviving line: no two trainings make the same
    sampled_by: of every closed ticket, by its mark: the seed it was issued with, the weights of its spans
    """

    def __init__(self, seeds, folder: Path, *, max_staleness: int, every: int) -> None:
        self.folder = folder
        self.lineage = 0
        self._made = 0
        self.weights = [0]
        self.sampled_by: dict[float, tuple[int, list[int]]] = {}
        self._saved: tuple[int, tuple[dict, dict, int]] | None = None
        super().__init__(seeds, max_staleness=max_staleness, every=every)

    def connect(self, **_: object) -> None:
        version, saved = self._saved or (0, None)
        self.journal = Journal(self.folder / JOURNAL, warn=self._warn)
        super().connect(lineage=self.lineage, journal=self.journal, saved=saved, version=version)

    def _warn(self, what: str) -> None:
        raise AssertionError(what)

    # --- events ---

    def save(self, _: int = 0) -> None:
        """A checkpoint, where a run may have one: after a sync."""
        if self.version % self.every == 0:
            collector, end = self.pool.snapshot()
            state = self.pool._collector._buffer.state(), collector, end
            self._saved = self.version, json.loads(json.dumps(state))

    def crash(self, which: int) -> None:
        """The learner is killed, perhaps while it writes; another goes on. The workers that are there greet it."""
        self.journal.close()
        self.lineage += 1
        self.version = 0 if self._saved is None else self._saved[0]
        del self.batches[self.version :]
        del self.weights[self.version + 1 :]
        names, self.workers = [worker.name for worker in self.workers], []
        self.connect()
        for name in names:
            self.join(int(name[-1]))
        self.sync()

    def train(self, which: int) -> None:
        before = self.version
        if self.pool._collector.is_complete(before):
            self._made += 1
            self.weights.append(self._made)
        super().train(which)

    def _sampled(self, ticket: Ticket, began: int, ended: int) -> ClosedTicket:
        closed = super()._sampled(ticket, began, ended)
        spans = closed.attempts[0].spans
        self.sampled_by[mark(closed)] = ticket.seed, [self.weights[span.version] for span in spans]
        return closed

    # --- what has to hold ---

    def check(self) -> None:
        """Each batch: every ticket once, of weights of the surviving line; nothing lost, nothing twice."""
        for number, batch in enumerate(self.batches):
            assert batch.number == number
            assert len(batch.tickets) == len({ticket.id.index for ticket in batch.tickets}) == len(batch.positions)
            for ticket, issued in zip(batch.tickets, batch.issued, strict=True):
                weights = [self.weights[span.version] for span in ticket.attempts[0].spans]
                assert (issued.seed, weights) == self.sampled_by[mark(ticket)]
        dropped = [r.position for _, r in self.journal.records() if isinstance(r, Dropped)]
        assert len(dropped) == len(set(dropped))
        marks = [mark(ticket) for batch in self.batches for ticket in batch.tickets]
        assert len(marks) == len(set(marks))
        assert max(self.staleness(), default=0) <= self.max_staleness
        assert not self.wire.rejected

    def audit(self) -> Audit:
        steps = "".join(f'{{"step": {batch.number + 1}}}\n' for batch in self.batches)
        (self.folder / "metrics.jsonl").write_text(steps)
        return audit(self.folder)
