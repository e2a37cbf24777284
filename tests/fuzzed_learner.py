"""A process with the learner's end of the stream, which trains batch after batch; asked on stdin, it says how it is."""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import threading

import psutil
from factories import make_problem
from fake_worker import make_pool

from learner.worker_pool import WorkerPool
from shared import messages as msg
from shared.episodes import Task


class PlayedTrainer:
    """Syncs whoever is there, and takes the batch, for ever."""

    def __init__(self, pool: WorkerPool) -> None:
        self.batches = 0
        self.error: str | None = None
        self._pool = pool

    def run(self) -> None:
        try:
            for version in itertools.count():
                self._sync(version)
                self._pool.open_through(version, version)
                assert len(self._pool.wait_for_batch(version).tickets) == 6
                self.batches += 1
        except Exception as error:
            self.error = repr(error)

    def _sync(self, version: int) -> None:
        self._pool.wait_for_workers(1, 60)
        done = self._pool.call(dict.fromkeys(self._pool.members(), msg.FinishUpdate(version, (1, 2, 3))), 60)
        self._pool.prove(done, version)


def main(endpoint: str, log_file: str) -> None:
    logging.basicConfig(filename=log_file)
    pool = make_pool(endpoint, {task: [make_problem(f"key {i}", task) for i in range(5)] for task in Task})
    trainer = PlayedTrainer(pool)
    threading.Thread(target=trainer.run, daemon=True).start()
    process = psutil.Process()
    for _ in sys.stdin:
        state = {
            "rejected": pool.rejected,
            "batches": trainer.batches,
            "error": trainer.error,
            "rss": process.memory_info().rss,
            "fds": process.num_fds(),
            "threads": process.num_threads(),
            "workers": len(pool.members()),
            "last_loss": pool.last_loss(),
            "greeted": len(pool._greeted),
        }
        sys.stdout.write(json.dumps(state) + "\n")
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
