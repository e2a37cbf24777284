"""The plain loop in a process of its own, which does nothing between its steps."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from shared.errors import PrimezeroError
from shared.processes import signal_at_parents_death

_LEAVE_S = 10.0


class PlainProcess:
    """Use as a context manager: entering it waits until the loop is ready and its micro-batches are chosen.

    prompts: token ids; of each, `completions` samples of `response_tokens` tokens are taken in a step
    threads: CPU threads, on all cores. Raises PrimezeroError when a step takes more than `timeout_s`, or it dies.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str,
        prompts: Sequence[Sequence[int]],
        completions: int,
        response_tokens: int,
        threads: int,
        timeout_s: float,
    ) -> None:
        self._timeout_s = timeout_s
        context = multiprocessing.get_context("spawn")
        self._asking, asked = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(folder, dtype, prompts, completions, response_tokens, threads, asked), name="plain"
        )
        self._process.start()
        asked.close()

    def __enter__(self) -> Self:
        try:
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._asking.close()  # it ends then
        self._process.join(_LEAVE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def step(self) -> tuple[float, float]:
        """Do one step; seconds of sampling and of the update."""
        self._asking.send("step")
        return self._answer()

    def _answer(self) -> tuple[float, float]:
        if not self._asking.poll(self._timeout_s):
            raise PrimezeroError(f"the plain loop took more than {self._timeout_s:g} s")
        try:
            answer: tuple[float, float] = self._asking.recv()
        except EOFError as error:
            raise PrimezeroError("the plain loop died; its error stands above") from error
        return answer


def _serve(
    folder: Path,
    dtype: str,
    prompts: Sequence[Sequence[int]],
    completions: int,
    response_tokens: int,
    threads: int,
    asked: Connection,
) -> None:
    signal_at_parents_death(signal.SIGKILL)
    import torch
    from transformers.utils import logging

    from launch.bench.plain_loop import PlainLoop

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    loop = PlainLoop(folder, dtype=dtype, prompts=prompts, completions=completions, response_tokens=response_tokens)
    loop.tune()
    asked.send((0.0, 0.0))
    while True:
        try:
            asked.recv()
        except EOFError:
            return
        begin = time.perf_counter()
        tokens = loop.generate()
        sampled = time.perf_counter()
        loop.update(tokens)
        asked.send((sampled - begin, time.perf_counter() - sampled))
