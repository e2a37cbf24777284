"""Taking a weight update in. What receives it and what applies it know nothing of each other.

A `Receiver` is one transport's end in the engine's worker process: it checks what an update says of
itself, and yields tensors whose bytes have been checked. `PendingWeights` are the engine's new weights
in the making: built beside the live ones (rollout/staging.py) or loaded over them (rollout/model_weights.py).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch

from shared.errors import WeightSyncError
from shared.weight_wire import Shapes

T = TypeVar("T")

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "uint8": torch.uint8}

# Parameters by their names in the model folder. Whoever takes them may keep them; they may be views of one chunk.
Batch = list[tuple[str, torch.Tensor]]


class Incoming(Protocol):
    """What one `update_weights` call brings.

    last: nothing belonging to the same update comes after it
    Iterating raises WeightSyncError when bytes are not what they should be, or do not come in time.
    """

    @property
    def last(self) -> bool: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def close(self) -> None:
        """Let go of what it reads from, iterated or not."""


class Receiver(Protocol):
    """One transport's end in the engine."""

    def join(self, init_info: Mapping[str, Any]) -> None:
        """The handshake; WeightSyncError when the learner speaks another format or transport."""

    def begin(self) -> None:
        """Forget what was received of an update before."""

    def open(self, update_info: Mapping[str, Any]) -> Incoming:
        """Check what an update says of itself; WeightSyncError, nothing touched, unless the model needs just that."""

    def close(self) -> None:
        """Let go of everything."""


class PendingWeights(Protocol):
    """The engine's weights of one update, not yet live."""

    def take(self, batch: Batch) -> None:
        """Work in some parameters; WeightSyncError for one that is foreign or came before."""

    def check_complete(self) -> None:
        """WeightSyncError unless everything that the model needs has been taken."""

    def commit(self) -> None:
        """Make them live; WeightSyncError, with nothing done, unless they are complete."""

    def discard(self) -> None:
        """Give them up."""


class Ledger:
    """Which parameters an update has brought: each has to come exactly once, in its shape."""

    def __init__(self, expected: Shapes) -> None:
        self._missing = {name: tuple(shape) for name, shape in expected.items()}
        self._count = len(expected)

    def enter(self, name: str, tensor: torch.Tensor) -> None:
        """Note that `name` has come; WeightSyncError if the model does not need it, or has it already."""
        shape = self._missing.pop(name, None)
        if shape is None:
            raise WeightSyncError(f"{name} came twice, or is no parameter of the engine's model")
        if tuple(tensor.shape) != shape:
            raise WeightSyncError(f"{name} came with shape {tuple(tensor.shape)}, the engine's has {shape}")

    def check_complete(self) -> None:
        """WeightSyncError unless all have come."""
        if self._missing:
            raise WeightSyncError(
                f"{len(self._missing)} of the model's {self._count} parameters did not come, such as "
                f"{min(self._missing)!r}"
            )


class Receiving:
    """One `update_weights` call at work: on a thread of its own, or in the call itself."""

    def __init__(self, incoming: Incoming, pending: PendingWeights) -> None:
        self._incoming = incoming
        self._pending = pending
        self._error: str | None = None
        self._cancelled = threading.Event()
        self._seconds = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, on a thread; `state` says how it goes."""
        self._thread = threading.Thread(target=self._run, name="weight-staging", daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Do it now; WeightSyncError when it fails."""
        self._run()
        self.check()

    @property
    def state(self) -> dict[str, Any]:
        """done: nothing more will happen; error: why it failed, or None; seconds: duration."""
        done = self._thread is None or not self._thread.is_alive()
        return {"done": done, "error": self._error, "seconds": self._seconds}

    def cancel(self) -> None:
        """Stop at the next batch; what this received can be committed no more."""
        self._cancelled.set()

    def check(self) -> None:
        """WeightSyncError unless everything has been received and worked in; waits for it."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None or self._cancelled.is_set():
            raise WeightSyncError(self._error or "the received weights were discarded")

    def _run(self) -> None:
        begin = time.monotonic()
        try:
            with torch.inference_mode(False), torch.no_grad():
                for batch in self._incoming:
                    if self._cancelled.is_set():
                        return
                    self._pending.take(batch)
                    del batch  # of a chunk nothing stays but what `pending` keeps, while the next one is received
                if self._incoming.last:
                    self._pending.check_complete()
        except Exception as error:  # a thread's errors go nowhere: `check` raises them
            self._error = str(error) if isinstance(error, WeightSyncError) else f"{type(error).__name__}: {error}"
        finally:
            self._incoming.close()
            self._seconds = time.monotonic() - begin


def bounded(items: Iterable[T], timeout_s: float, late: Callable[[], Exception]) -> Iterator[T]:
    """The items, made on a thread of its own, each when it is asked for; raises `late()` when one takes longer than
    `timeout_s`.

    For calls that nothing can interrupt: the thread may stay in one for as long as the process lives. It is never ahead
    of who takes the items, and keeps none of them, since each may be large.
    """
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
    made: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def make() -> None:
        iterator = iter(items)
        while asked.get():
            try:
                made.put((next(iterator), None))
            except BaseException as error:  # it is raised where the items are used
                made.put((None, error))
                return

    threading.Thread(target=make, name="weight-receiver", daemon=True).start()
    try:
        while True:
            asked.put(True)
            try:
                item, error = made.get(timeout=timeout_s)
            except queue.Empty:
                raise late() from None
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
            del item
    finally:
        asked.put(False)
