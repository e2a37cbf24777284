"""ipc and nccl end to end with a real engine on the CPU: gloo for NCCL, a file for the memory that CUDA would share."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_engine import PlainEngine, expect_error
from switching import digest
from tiny_engine import (
    NEVER_SAMPLED,
    DirectClient,
    LoopThread,
    change_weights,
    reference_logprobs,
    save,
    start_engine,
    text,
    tiny_model,
)
from torch.multiprocessing import reductions

import rollout.engine_vllm
from learner.weight_broadcast import GlooRoot
from learner.weight_ipc import IpcTransport
from learner.weight_sender import ModuleSource, WeightSender
from learner.weight_transport import Settings
from rollout.engine import Engine
from rollout.weight_broadcast import BroadcastReceiver, GlooPeer
from shared.episodes import Float32Array
from shared.errors import WeightSyncError

PROBE = text(0, 120)
TOLERANCE = 1e-4
BUFFER_BYTES = 100_000  # the model's 0.5 MB make several chunks
UUID = "0f3a51c2-9d2e-7b60-a1b2-c3d4e5f60718"

pytestmark = pytest.mark.integration


class Client(DirectClient):
    """The engine, and receivers without an engine that stand in for more of them."""

    def __init__(self, loop: LoopThread, engine: Engine) -> None:
        super().__init__(loop, engine)
        self.plain: list[PlainEngine] = []

    @property
    def members(self) -> list[object]:
        return [self._engine, *self.plain]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        super().init_weight_transfer_engine(init_info)
        for position, plain in enumerate(self.plain, start=1):
            plain.receiver.join(init_info | {"rank_offset": init_info["rank_offset"] + position})

    def start_weight_update(self) -> None:
        super().start_weight_update()
        for plain in self.plain:
            plain.start()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        for plain in self.plain:
            plain.update(update_info)
        super().update_weights(update_info)
        for plain in self.plain:
            if (error := expect_error(plain)) is not None:
                raise error

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        super().finish_weight_update(weight_version)
        for plain in self.plain:
            plain.finish()


class Setup:
    """An engine, the learner's model, and who is between them."""

    def __init__(self, loop: LoopThread, folder: Path) -> None:
        self.loop, self.folder = loop, folder
        self.model = tiny_model(30, eos=NEVER_SAMPLED)
        self.engine = loop.run(start_engine(save(self.model, folder / "start"), transport="nccl"))
        self.client = Client(loop, self.engine)
        self.version = 0

    def rpc(self, method: str, *arguments: Any) -> Any:
        return self.loop.run(self.engine._link.llm.collective_rpc(method, args=arguments))[0]

    def score(self) -> Float32Array:
        return self.loop.run(self.engine.score(PROBE, f"probe-{secrets.token_hex(4)}"))

    def engine_error(self) -> float:
        return float(np.abs(self.score() - reference_logprobs(self.model, PROBE)).max())

    def sender(self) -> WeightSender:
        sender = WeightSender(
            self.client,
            self.model,
            dtype=torch.float32,
            transport="nccl",
            buffer_bytes=BUFFER_BYTES,
            timeout_s=60,
        )
        sender.connect()
        return sender

    def change(self, seed: int) -> int:
        change_weights(self.model, seed)
        self.version += 1
        return self.version


@pytest.fixture(scope="module")
def setup(loop: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout.engine_vllm, "WORKER_EXTENSION", "switching.SwitchingWorkerExtension")
        setup = Setup(loop, tmp_path_factory.mktemp("transports"))
    yield setup
    loop.run(setup.engine.shutdown())


def test_broadcast_weights_are_the_learners(setup: Setup) -> None:
    """To one engine; then, the group made anew, to it and another receiver."""
    sender = setup.sender()
    assert not sender.point_to_point
    before = setup.score()
    stats = sender.send(setup.change(1))
    assert stats.calls == 3
    assert setup.engine.version == setup.version
    assert setup.engine_error() < TOLERANCE
    assert np.abs(setup.score() - before).max() > 0.5, "the weights hardly changed: nothing is shown"

    shapes = dict(ModuleSource(setup.model).shapes)
    device = torch.device("cpu")
    plain = PlainEngine(shapes, lambda *expected: BroadcastReceiver(*expected, device, {"gloo": GlooPeer}))
    setup.client.plain = [plain]
    try:
        with pytest.raises(WeightSyncError, match="connect again"):
            sender.send(setup.version + 1)
        sender.connect()
        for seed in (2, 3):
            sender.send(setup.change(seed))
            assert setup.engine_error() < TOLERANCE
            for name, parameter in setup.model.named_parameters():
                assert torch.equal(plain.weights[name], parameter)
    finally:
        setup.client.plain = []
        sender.close()


def test_weights_that_change_while_they_are_sent_arrive_as_they_were(setup: Setup) -> None:
    sender = setup.sender()
    finish = sender.begin(setup.change(5))
    sent = reference_logprobs(setup.model, PROBE)
    change_weights(setup.model, 6)
    finish()
    assert np.abs(setup.score() - sent).max() < TOLERANCE
    assert setup.engine_error() > 0.5
    sender.close()


def test_damaged_broadcast_is_refused_and_the_old_weights_go_on(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = setup.sender()
    sender.send(setup.change(10))
    before, sound = setup.score(), GlooRoot.broadcast

    def damaging(self: GlooRoot, buffer: torch.Tensor) -> None:
        buffer[1000] ^= 64
        sound(self, buffer)

    monkeypatch.setattr(GlooRoot, "broadcast", damaging)
    change_weights(setup.model, 11)
    with pytest.raises(WeightSyncError, match="do not match their checksum"):
        sender.send(setup.version + 1)
    monkeypatch.undo()
    assert setup.engine.version == setup.version
    np.testing.assert_array_equal(setup.score(), before)
    sender.connect()
    sender.send(setup.change(12))
    assert setup.engine_error() < TOLERANCE
    sender.close()


def test_nan_is_not_broadcast(setup: Setup) -> None:
    sender = setup.sender()
    sender.send(setup.change(20))
    calls, before = len(setup.client.calls), setup.score()
    weight = setup.model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[3, 5] = float("nan")
    with pytest.raises(WeightSyncError, match=r"layers\.1\.mlp\.down_proj\.weight"):
        sender.send(setup.version + 1)
    assert len(setup.client.calls) == calls
    np.testing.assert_array_equal(setup.score(), before)
    change_weights(setup.model, 20)
    sender.close()


def ipc(setup: Setup, monkeypatch: pytest.MonkeyPatch, *, in_place: bool) -> tuple[IpcTransport, Path]:
    """Learner's end of ipc, with a file for a buffer, and the engine listening."""
    path = setup.folder / secrets.token_hex(8)

    def reduce_tensor(buffer: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
        path.write_bytes(bytes(buffer.nbytes))
        buffer.set_(torch.from_file(str(path), shared=True, size=buffer.nbytes, dtype=torch.uint8))
        shape = (torch.Tensor, buffer.size(), buffer.stride(), 0, torch.storage.TypedStorage, buffer.dtype)
        handle = b"\x03c" + secrets.token_bytes(64)
        counter = b"/torch_123_4567_8"
        return None, (*shape, 0, handle, buffer.nbytes, 0, False, counter, 9, secrets.token_bytes(64), True)

    monkeypatch.setattr(reductions, "reduce_tensor", reduce_tensor)
    settings = Settings(torch.float32, BUFFER_BYTES, 60.0, "")
    source = ModuleSource(setup.model)
    transport = IpcTransport(setup.client, source, settings, gpu_uuid=UUID, device=torch.device("cpu"))
    setup.rpc("become", "ipc", in_place)
    setup.rpc("listen")
    transport.connect()
    return transport, path


def test_handles_reach_the_worker_unchanged_without_pickle(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through vLLM's own encoding of calls; the worker reads them, and refuses for want of a GPU."""
    assert os.environ.get("VLLM_ALLOW_INSECURE_SERIALIZATION", "0") in ("", "0")
    transport, _ = ipc(setup, monkeypatch, in_place=False)
    before = setup.score()
    with pytest.raises(WeightSyncError, match="need the engine on a GPU"):
        transport.send(setup.version + 1)
    sent = setup.client.update_info
    assert {type(sent["buffer"][handle]) for handle in ("memory_handle", "event_handle")} == {bytes}
    assert setup.rpc("what_was_heard") == [digest(sent)]
    np.testing.assert_array_equal(setup.score(), before)


def test_chunks_in_shared_memory_are_the_learners_weights(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    transport, path = ipc(setup, monkeypatch, in_place=False)
    setup.rpc("share", str(path), UUID)
    for seed in (30, 31):
        stats = transport.send(setup.change(seed))
        assert setup.engine_error() < TOLERANCE
    chunks = stats.calls - 2
    assert chunks > 2
    assert setup.rpc("times_rebuilt") == 2 * chunks


def test_weights_loaded_in_place_are_the_learners(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: vLLM's layerwise reload, chunk by chunk. What was begun and given up leaves no trace."""
    transport, path = ipc(setup, monkeypatch, in_place=True)
    setup.rpc("share", str(path), UUID)
    transport.send(setup.change(40))
    setup.rpc("pack_head")
    assert setup.engine_error() < TOLERANCE

    class Interrupted(Exception):
        pass

    calls = 0

    def interrupted(update_info: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Interrupted
        DirectClient.update_weights(setup.client, update_info)

    change_weights(setup.model, 41)
    monkeypatch.setattr(setup.client, "update_weights", interrupted)
    with pytest.raises(Interrupted):
        transport.send(setup.version + 1)
    monkeypatch.undo()
    with pytest.raises(Exception, match="parameters did not come"):
        setup.rpc("finish_weight_update")
    setup.rpc("primezero_discard_update")
    transport.send(setup.change(42))
    setup.rpc("pack_head")
    assert setup.engine_error() < TOLERANCE


def test_damaged_chunk_is_not_loaded_in_place(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    transport, path = ipc(setup, monkeypatch, in_place=True)
    setup.rpc("share", str(path), UUID)
    transport.send(setup.change(50))
    setup.rpc("pack_head")
    before = setup.score()

    def damaging(update_info: dict[str, Any]) -> None:
        buffer = torch.from_file(str(path), shared=True, size=path.stat().st_size, dtype=torch.uint8)
        buffer[1234] ^= 1
        DirectClient.update_weights(setup.client, update_info)

    monkeypatch.setattr(setup.client, "update_weights", damaging)
    change_weights(setup.model, 51)
    with pytest.raises(WeightSyncError, match=r"chunk 0 .* do not match their checksum"):
        transport.send(setup.version + 1)
    np.testing.assert_array_equal(setup.score(), before)
