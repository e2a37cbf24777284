"""The `nccl` transport's end in the engine: weights broadcast by the learner, over NCCL or, on CPUs, gloo.

The group is joined, and gloo's broadcasts are received, on threads: a call of the engine's that waits
would hold up generation.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, Protocol

import torch

from rollout.receiving import Batch, bounded
from rollout.weight_ipc import unpack
from shared.errors import WeightSyncError
from shared.weight_checksum import checksum
from shared.weight_wire import (
    TRAILER_BYTES,
    BroadcastInit,
    BroadcastUpdate,
    Chunk,
    Shapes,
    check_parameters,
    check_sizes,
    padded,
    parse,
)

_MARGIN_S = 5.0


class Group(Protocol):
    """A joined group whose rank 0 is the learner."""

    def receive(self, buffer: torch.Tensor) -> None:
        """Fill the buffer with rank 0's next broadcast, and wait for it."""

    def close(self) -> None:
        """Leave."""


# Joins the group; may block for as long as it likes.
Join = Callable[[BroadcastInit], Group]


class BroadcastReceiver:
    """Receives an update as one row of broadcasts (`Receiver`).

    expected: name → shape of everything that the model needs; dtype: what the engine computes in
    joins: how to join each kind of group that this engine can be in
    """

    def __init__(self, expected: Shapes, dtype: str, device: torch.device, joins: Mapping[str, Join]) -> None:
        self._expected = expected
        self._dtype = dtype
        self._device = device
        self._joins = joins
        self._membership: _Membership | None = None

    def join(self, init_info: Mapping[str, Any]) -> None:
        """Begin to join the learner's group, and leave the one before; how that ends shows in the next update."""
        init = parse(init_info, BroadcastInit)
        if init.kind not in self._joins:
            raise WeightSyncError(f"the learner broadcasts weights over {init.kind}, which needs the engine on a GPU")
        if init.rank_offset >= init.world_size:
            raise WeightSyncError(f"rank {init.rank_offset} is not in a group of {init.world_size}")
        self.close()
        self._membership = _Membership(init, self._joins[init.kind])

    def begin(self) -> None:
        """Nothing is kept between updates but the group."""

    def open(self, update_info: Mapping[str, Any]) -> Broadcasts:
        """The broadcasts of this update, checked but for their bytes."""
        update = parse(update_info, BroadcastUpdate)
        membership = self._membership
        if membership is None or membership.init.group != update.group:
            raise WeightSyncError("the engine is not in the group that the learner broadcasts to: connect again")
        parameters = [parameter for chunk in update.chunks for parameter in chunk]
        check_parameters(parameters, self._expected, self._dtype)
        for chunk in update.chunks:
            check_sizes(chunk)  # each is as large as its shape, which is the model's own
        membership.enter()
        return Broadcasts(update, membership, self._device)

    def close(self) -> None:
        """Leave the group."""
        membership, self._membership = self._membership, None
        if membership is not None:
            membership.close()


class Broadcasts:
    """The broadcasts of one update (`Incoming`). Left before the last one, the group cannot be used any more."""

    last = True

    def __init__(self, update: BroadcastUpdate, membership: _Membership, device: torch.device) -> None:
        self._update = update
        self._membership = membership
        self._device = device if membership.init.kind == "nccl" else torch.device("cpu")

    def __iter__(self) -> Iterator[Batch]:
        """A batch for each chunk."""
        timeout_s = self._membership.init.timeout_s
        # Freed memory may be used again at once by what comes later in the same stream, and only there.
        stream = torch.cuda.stream(torch.cuda.current_stream(self._device)) if self._device.type == "cuda" else None

        def late() -> WeightSyncError:
            return WeightSyncError(
                f"weight sync: no broadcast came from the learner within {timeout_s:g} s; what waits for it in NCCL "
                "cannot be ended, so the engine must be restarted"
            )

        batches = self._receive(stream)
        # gloo's own waits end by themselves.
        yield from batches if self._membership.init.kind == "gloo" else bounded(batches, timeout_s + _MARGIN_S, late)

    def _receive(self, stream: Any) -> Iterator[Batch]:
        group = self._membership.group()
        try:
            with nullcontext() if stream is None else stream:
                for index, chunk in enumerate(self._update.chunks):
                    yield unpack(self._receive_chunk(group, index, chunk), chunk)
        except BaseException:
            self._membership.close()  # so that the learner does not wait for this engine
            raise
        self._membership.leave()

    def _receive_chunk(self, group: Group, index: int, chunk: Chunk) -> torch.Tensor:
        nbytes = padded(sum(parameter.nbytes for parameter in chunk))
        buffer = torch.empty(nbytes + TRAILER_BYTES, dtype=torch.uint8, device=self._device)
        try:
            group.receive(buffer)
        except Exception as error:
            raise WeightSyncError(
                f"weight sync: chunk {index} of version {self._update.version} did not come from the learner: {error}"
            ) from error
        content, trailer = buffer[:nbytes], buffer[nbytes:].view(torch.int64).tolist()
        if trailer[:2] != [self._update.version, index]:
            raise WeightSyncError(
                f"chunk {trailer[1]} of weight version {trailer[0]} came where chunk {index} of version "
                f"{self._update.version} was due"
            )
        if checksum(content).tolist() != trailer[2:]:
            raise WeightSyncError(
                f"the bytes of chunk {index} ({chunk[0].name} and those after it) do not match their checksum"
            )
        return content

    def close(self) -> None:
        """The group is left by leaving it, or not at all."""


class _Membership:
    """Being in one group, or on the way into it."""

    def __init__(self, init: BroadcastInit, join: Join) -> None:
        self.init = init
        self._group: Group | None = None
        self._error: Exception | None = None
        self._receiving = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, args=(join,), name="weight-group", daemon=True)
        self._thread.start()

    def enter(self) -> None:
        """Begin to receive an update; WeightSyncError if one before was not received to its end."""
        if self._receiving:
            raise WeightSyncError("the engine is out of step with the learner's broadcasts: connect again")
        self._receiving = True

    def leave(self) -> None:
        """The update has been received to its end."""
        self._receiving = False

    def group(self) -> Group:
        """The group, when it is complete; WeightSyncError when it does not become so."""
        self._thread.join(self.init.timeout_s + _MARGIN_S)
        if self._group is None:
            why = self._error or f"not complete within {self.init.timeout_s:g} s"
            raise WeightSyncError(f"weight sync: joining the learner's {self.init.kind} group failed: {why}")
        return self._group

    def close(self) -> None:
        """Leave the group, or do not enter it any more."""
        self._closed = True
        if self._group is not None:
            self._group.close()

    def _run(self, join: Join) -> None:
        try:
            group = join(self.init)
            if self._closed:
                group.close()
            self._group = group
        except Exception as error:  # raised by `group`, when the weights should come
            self._error = error


class GlooPeer:
    """A member of a gloo group that stands apart from the process's own groups."""

    def __init__(self, init: BroadcastInit) -> None:
        """Meet the others at the learner's address; raises RuntimeError if that takes over `init.timeout_s`."""
        from torch.distributed import PrefixStore, TCPStore
        from torch.distributed.distributed_c10d import ProcessGroupGloo

        self._limit = timedelta(seconds=init.timeout_s)
        store = TCPStore(
            init.address, init.port, init.world_size, is_master=False, timeout=self._limit, wait_for_workers=False
        )
        options = ProcessGroupGloo._Options()
        options._timeout = self._limit
        options._devices = [ProcessGroupGloo.create_device(hostname=_address_towards(init.address, init.port))]
        self._group = ProcessGroupGloo(PrefixStore(init.group, store), init.rank_offset, init.world_size, options)

    def receive(self, buffer: torch.Tensor) -> None:
        """Rank 0's next broadcast; RuntimeError when the learner is gone or does not send in time."""
        self._group.broadcast(buffer, 0, self._limit).wait(self._limit)

    def close(self) -> None:
        """Its connections end with the group."""
        self._group = None


def _address_towards(host: str, port: int) -> str:
    """This machine's address on the way to `host`, where the other members can reach it."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        return str(probe.getsockname()[0])
