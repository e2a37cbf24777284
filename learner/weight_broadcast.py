"""The `nccl` transport: weights broadcast to engines elsewhere, over NCCL or, without GPUs, gloo.

The learner is rank 0 of a group that `connect` makes anew for the members there are. The engines receive
while `update_weights` runs, so the broadcasts run beside it, on a thread; the client, whose sockets
belong to its caller, is called from the caller's thread alone.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import closing, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, Literal, Protocol

import torch

from learner.weight_packing import Packer
from learner.weight_source import WeightSource, check_finite
from learner.weight_transport import SendStats, Settings, Transport, Update, WeightSyncClient
from shared.errors import WeightSyncError
from shared.weight_checksum import checksum
from shared.weight_wire import FORMAT, TRAILER_BYTES, BroadcastInit, BroadcastUpdate, to_plain

# The engines may be a little later than their learner in finding that time is up.
_MARGIN_S = 10.0


class Root(Protocol):
    """Rank 0 of a group."""

    kind: Literal["gloo", "nccl"]
    port: int
    unique_id: bytes

    def join(self, world_size: int) -> None:
        """Wait for the others."""

    def broadcast(self, buffer: torch.Tensor) -> None:
        """Send to all others; returns when the buffer may be written again."""

    def close(self) -> None:
        """Leave."""


# token, address, timeout_s
MakeRoot = Callable[[str, str, float], Root]


class BroadcastTransport(Transport):
    """Broadcasts packed chunks, each with its checksum behind it (`Transport`)."""

    point_to_point = False

    def __init__(
        self,
        client: WeightSyncClient,
        source: WeightSource,
        settings: Settings,
        *,
        device: torch.device,
        make_root: MakeRoot,
    ) -> None:
        self._client = client
        self._source = source
        self._settings = settings
        self._make_root = make_root
        self._shapes = dict(source.shapes)
        self._packer: Packer | None = Packer(
            self._shapes, settings.dtype, buffer_bytes=settings.buffer_bytes, device=device, spare=TRAILER_BYTES
        )
        self._root: Root | None = None
        self._token = ""
        self._members: list[object] = []
        self._thread: _Beside | None = None

    def connect(self) -> None:
        """Make a new group with the members there are.

        Raises WeightSyncError when it is not complete within the time limit, or the last broadcast
        still hangs.
        """
        timeout_s = self._settings.timeout_s
        self._check_open()
        self._leave()
        if self._thread is not None and not self._thread.wait(timeout_s + _MARGIN_S):
            raise WeightSyncError("weight sync: the last broadcast still hangs: the learner must be restarted")
        members = list(self._client.members)
        if not members:
            raise WeightSyncError("weight sync: there are no engines to broadcast weights to")
        token = secrets.token_hex(16)
        root = self._make_root(token, self._settings.address, timeout_s)
        self._client.init_weight_transfer_engine(
            to_plain(
                BroadcastInit(
                    format=FORMAT,
                    transport="nccl",
                    group=token,
                    kind=root.kind,
                    address=self._settings.address,
                    port=root.port,
                    unique_id=root.unique_id,
                    rank_offset=1,
                    world_size=1 + len(members),
                    timeout_s=timeout_s,
                )
            )
        )
        joining = _Beside(lambda: root.join(1 + len(members)))
        if not joining.wait(timeout_s + _MARGIN_S) or joining.error is not None:
            raise WeightSyncError(
                f"weight sync: {len(members)} engines and the learner did not all meet at {self._settings.address} "
                f"within {timeout_s:g} s: {joining.error or _hangs(root)}"
            )
        self._root, self._token, self._members = root, token, members

    def begin(self, version: int) -> Callable[[], SendStats]:
        """See `Transport.begin`: the engines have received all chunks.

        After a broadcast that failed, `connect` has to be called first.
        """
        packer = self._check_open()
        root = self._root
        if root is None:
            raise WeightSyncError("weight sync: there is no group to broadcast to: connect first")
        self._check_members()
        update = Update(self._client, version)
        update.write(lambda: check_finite(self._source, self._shapes, self._settings.dtype))
        update.start()
        self._check_members()  # a client may lose some on the way
        info = to_plain(BroadcastUpdate(FORMAT, version, self._token, packer.chunks))
        stream = torch.cuda.stream(torch.cuda.current_stream()) if packer.buffer.is_cuda else nullcontext()
        self._thread = thread = _Beside(lambda: self._broadcast(root, packer, version, stream))
        try:
            update.update(info)
        except Exception as error:
            self._leave()
            # It still passes over the source, to the end. Where ranks gather each parameter for that, whatever else
            # they were asked to do together in the middle of it would end all of them.
            thread.wait(self._settings.timeout_s + _MARGIN_S)
            ours = f"; on the learner's side: {thread.error}" if thread.error is not None else ""
            raise WeightSyncError(f"weight sync: version {version} did not reach the engines: {error}{ours}") from error
        if not thread.wait(self._settings.timeout_s + _MARGIN_S) or thread.error is not None:
            self._leave()
            raise WeightSyncError(
                f"weight sync: broadcasting version {version} failed: {thread.error or _hangs(root)}"
            ) from thread.error
        self.sums = packer.sums()
        return partial(update.finish, packer.nbytes)

    def close(self) -> None:
        """Leave the group."""
        self._leave()
        self._packer = None

    def _broadcast(self, root: Root, packer: Packer, version: int, stream: Any) -> None:
        trailer = packer.buffer[:0].long()
        try:
            with stream, closing(packer.pack(self._source)) as packing:
                for index, end in enumerate(packing):
                    content = packer.buffer[: end + TRAILER_BYTES]
                    sums = checksum(content[:end])
                    content[end:].view(trailer.dtype).copy_(torch.cat([trailer.new_tensor([version, index]), sums]))
                    root.broadcast(content)
        except BaseException:
            root.close()  # so that the engines that still wait hear of it
            raise

    def _check_members(self) -> None:
        if list(self._client.members) != self._members:
            self._leave()
            raise WeightSyncError("weight sync: the engines have changed since the group was made: connect again")

    def _leave(self) -> None:
        root, self._root = self._root, None
        if root is not None:
            root.close()

    def _check_open(self) -> Packer:
        if self._packer is None:
            raise WeightSyncError("the weight sender is closed")
        return self._packer


class GlooRoot:
    """Rank 0 of a gloo group that stands apart from the process's own groups."""

    kind: Literal["gloo", "nccl"] = "gloo"
    unique_id = b""

    def __init__(self, token: str, address: str, timeout_s: float) -> None:
        """Listen at a free port of `address`, and nowhere else."""
        from torch.distributed import TCPStore

        self._token = token
        self._address = address
        self._limit = timedelta(seconds=timeout_s)
        try:
            listener = socket.create_server((address, 0), family=_family(address))
        except OSError as error:
            raise WeightSyncError(f"weight sync: cannot listen at {address}: {error}") from error
        self.port = int(listener.getsockname()[1])
        self._store = TCPStore(
            address,
            self.port,
            is_master=True,
            timeout=self._limit,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        self._group: Any = None

    def join(self, world_size: int) -> None:
        """See `Root.join`; RuntimeError when the others do not come in time."""
        from torch.distributed import PrefixStore
        from torch.distributed.distributed_c10d import ProcessGroupGloo

        options = ProcessGroupGloo._Options()
        options._timeout = self._limit
        options._devices = [ProcessGroupGloo.create_device(hostname=self._address)]
        self._group = ProcessGroupGloo(PrefixStore(self._token, self._store), 0, world_size, options)

    def broadcast(self, buffer: torch.Tensor) -> None:
        """See `Root.broadcast`; RuntimeError when a member is gone or does not take it in time."""
        self._group.broadcast(buffer, 0, self._limit).wait(self._limit)

    def close(self) -> None:
        """Its connections end with the group."""
        self._group = None


class _Beside:
    """Work on a thread of its own, which nobody has to wait for for ever."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="weight-broadcast", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Whether it is over, within the time given."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            with torch.no_grad():
                work()
        except Exception as error:  # for who waits
            self.error = error


def _hangs(root: Root) -> str:
    return f"it hangs in {root.kind}, which nothing can end: the learner must be restarted"


def _family(address: str) -> socket.AddressFamily:
    return socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][0]
