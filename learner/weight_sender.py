"""Sending the learner's weights into running engines: one interface, three transports.

`shm` (learner/weight_shm.py) for engines on the CPU of this machine, `ipc` (learner/weight_ipc.py) on the
same GPU, `nccl` (learner/weight_broadcast.py) elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from learner.weight_broadcast import BroadcastTransport, GlooRoot
from learner.weight_ipc import IpcTransport
from learner.weight_nccl import NcclRoot
from learner.weight_shm import ShmTransport
from learner.weight_source import ModuleSource, WeightSource, dtype_name
from learner.weight_transport import SendStats, Settings, Transport, WeightSyncClient
from shared.errors import WeightSyncError
from shared.weight_wire import Sums

__all__ = ["ModuleSource", "SendStats", "WeightSender", "WeightSource", "WeightSyncClient"]


class WeightSender:
    """Sends the weights of one source, version by version. Only rank 0 has one.

    Any failure is a WeightSyncError. Every wait of the sender's own ends after about `timeout_s`; the
    client's calls have limits of theirs.
    """

    def __init__(
        self,
        client: WeightSyncClient,
        source: WeightSource | torch.nn.Module,
        *,
        dtype: torch.dtype,
        transport: str,
        buffer_bytes: int = 256 * 2**20,
        timeout_s: float = 120.0,
        address: str = "127.0.0.1",
    ) -> None:
        """Reserve what the transport needs; nobody is called yet.

        source: or a module that has all its parameters itself
        dtype: what the engines compute in; the weights are cast to it
        buffer_bytes: ipc, nccl: what is sent at once, if no parameter is larger
        address: nccl without GPUs: this machine's, where the engines can reach it
        """
        dtype_name(dtype)
        settings = Settings(dtype, buffer_bytes, timeout_s, address)
        given = ModuleSource(source) if isinstance(source, torch.nn.Module) else source
        with _as_sync_error(f"weight sync by {transport} could not be prepared"):
            self._transport = _make_transport(transport, client, given, settings)

    @property
    def point_to_point(self) -> bool:
        """Whether a send may go to some of the members only; otherwise all have to take part."""
        return self._transport.point_to_point

    def connect(self) -> None:
        """Shake hands with the client's present members: before the first send, and when they have changed."""
        with _as_sync_error("the weight-sync handshake failed"):
            self._transport.connect()

    def begin(self, version: int) -> Callable[[], SendStats]:
        """Take the source's present weights, to be sent as `version`: afterwards they may change.

        What is returned puts them into the engines, on any thread, before the sender is asked for anything else.
        Both raise as `send` does.
        """
        with _as_sync_error(f"sending weight version {version} failed"):
            finish = self._transport.begin(version)

        def finish_sending() -> SendStats:
            with _as_sync_error(f"sending weight version {version} failed"):
                stats: SendStats = finish()
            return stats

        return finish_sending

    def send(self, version: int) -> SendStats:
        """Put the source's present weights into the engines as `version`.

        Raises WeightSyncError when a weight is NaN or infinite in the wire dtype, before the engines
        hear of anything, or when an engine refuses or fails.
        """
        with _as_sync_error(f"sending weight version {version} failed"):
            return self._transport.send(version)

    @property
    def sums(self) -> Mapping[str, Sums]:
        """Of each parameter by name, `content_sums` of what was last sent; there once the sending is over."""
        sums: Mapping[str, Sums] = self._transport.sums
        return sums

    def close(self) -> None:
        """Give back what the transport has. Nothing can be sent afterwards."""
        self._transport.close()


def _make_transport(name: str, client: WeightSyncClient, source: WeightSource, settings: Settings) -> Transport:
    gpu = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    match name:
        case "shm":
            return ShmTransport(client, source, settings)
        case "ipc":
            if gpu is None:
                raise WeightSyncError("sync.transport=ipc needs a GPU that learner and engines share: use shm")
            uuid = str(torch.cuda.get_device_properties(gpu).uuid)
            return IpcTransport(client, source, settings, gpu_uuid=uuid, device=gpu)
        case "nccl":
            root = GlooRoot if gpu is None else NcclRoot
            return BroadcastTransport(client, source, settings, device=gpu or torch.device("cpu"), make_root=root)
    raise WeightSyncError(f"unknown weight transport {name!r}: there are shm, ipc, nccl")


@contextmanager
def _as_sync_error(what: str) -> Iterator[None]:
    try:
        yield
    except WeightSyncError:
        raise
    except Exception as error:
        raise WeightSyncError(f"{what}: {error}") from error
