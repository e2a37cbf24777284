"""The transports that a sender makes, as far as a machine without a GPU goes: CUDA and NCCL are played."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from learner import weight_sender
from learner.weight_ipc import IpcTransport
from learner.weight_nccl import NcclRoot
from learner.weight_sender import WeightSender
from rollout.weight_transfer import NcclPeer
from shared.errors import WeightSyncError
from shared.weight_wire import BroadcastInit

UUID = "0f3a51c2-9d2e-7b60-a1b2-c3d4e5f60718"


class NoClient:
    members = ()


def sender(**changes: Any) -> WeightSender:
    return WeightSender(NoClient(), torch.nn.Linear(3, 2), **{"dtype": torch.float32, "transport": "shm"} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transport": "pigeon"}, "unknown weight transport 'pigeon': there are shm, ipc, nccl"),
        ({"dtype": torch.float16}, "weights cannot be sent as torch.float16"),
        ({"transport": "ipc"}, "needs a GPU"),
    ],
)
def test_what_cannot_be_is_said_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightSyncError, match=message):
        sender(**changes)


def test_point_to_point_is_all_but_nccl() -> None:
    for transport, point_to_point in (("shm", True), ("nccl", False)):
        made = sender(transport=transport)
        assert made.point_to_point is point_to_point
        made.close()
        with pytest.raises(WeightSyncError, match="closed"):
            made.send(1)


def test_ipc_is_made_for_the_learners_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    class Played(IpcTransport):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            made.update(settings)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=UUID))
    monkeypatch.setattr(weight_sender, "IpcTransport", Played)
    assert sender(transport="ipc").point_to_point
    assert made == {"gpu_uuid": UUID, "device": torch.device("cuda", 2)}


class Communicator:
    """Plays vLLM's: notes the order of what is asked of it."""

    def __init__(self, *arguments: Any) -> None:
        self.joined = arguments
        self.disabled = False
        self.done: list[Any] = []

    def broadcast(self, buffer: torch.Tensor, src: int, stream: Any) -> None:
        self.done.append((buffer, src, stream))

    def destroy(self) -> None:
        self.done.append("destroyed")


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> list[Communicator]:
    """Every communicator made; streams note that they are waited for."""
    from vllm.distributed.device_communicators import pynccl, pynccl_wrapper

    made: list[Communicator] = []

    def join(*arguments: Any) -> Communicator:
        made.append(Communicator(*arguments))
        return made[-1]

    def unique_id() -> Any:
        id = pynccl_wrapper.ncclUniqueId()
        for place in range(128):
            id.internal[place] = place - 64
        return id

    def stream(device: Any = None) -> Any:
        return SimpleNamespace(synchronize=lambda: made[-1].done.append("waited"))

    monkeypatch.setattr(pynccl.PyNcclCommunicator, "from_unique_id_bytes", join)
    monkeypatch.setattr(pynccl_wrapper, "NCCLLibrary", lambda: SimpleNamespace(ncclGetUniqueId=unique_id))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    return made


def test_nccl_group_is_joined_by_unique_id_and_waited_for(nccl: list[Communicator]) -> None:
    """Learner as rank 0, engine by its offset; a buffer may be used again when broadcast and receive return."""
    root = NcclRoot("0" * 32, "127.0.0.1", 5.0)
    assert root.unique_id == bytes(place % 256 for place in range(-64, 64))
    root.join(3)
    init = BroadcastInit(1, "nccl", "0" * 32, "nccl", "127.0.0.1", 0, root.unique_id, 2, 3, 5.0)
    peer = NcclPeer(init, torch.device("cuda", 4))
    assert nccl[0].joined == (root.unique_id, 0, 3, torch.device("cuda", 1))
    assert nccl[1].joined == (root.unique_id, 2, 3, torch.device("cuda", 4))
    buffer = torch.zeros(8)
    peer.receive(buffer)
    peer.close()
    (received, source, _), *rest = nccl[1].done
    assert received is buffer
    assert source == 0
    assert rest == ["waited", "destroyed"]
    nccl.reverse()
    root.broadcast(buffer)
    root.close()
    assert nccl[1].done[0][:2] == (buffer, 0)
    assert nccl[1].done[1:] == ["waited", "destroyed"]


def test_disabled_nccl_is_an_error(nccl: list[Communicator], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Communicator, "__init__", lambda self, *_: setattr(self, "disabled", True))
    with pytest.raises(WeightSyncError, match="VLLM_DISABLE_PYNCCL"):
        NcclRoot("0" * 32, "127.0.0.1", 5.0).join(2)
