"""Weight sync end to end: sender, shared memory, receiver, engine; and a fault that has to be seen."""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from missed_update import FAULTS
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

import rollout.engine_vllm
from learner.parity import check_weights
from learner.weight_sender import WeightSender
from shared.episodes import Float32Array
from shared.errors import EngineError, WeightSyncError

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
PROBE = text(0, 120)

pytestmark = pytest.mark.integration


class Setup:
    """An engine, the learner's model, and the sender between them."""

    def __init__(self, loop: LoopThread, dtype: str, folder: Path, *, tied: bool) -> None:
        self.loop, self.dtype, self.folder = loop, dtype, folder
        self.model = tiny_model(30, getattr(torch, dtype), tied=tied, eos=NEVER_SAMPLED)
        self.engine = loop.run(start_engine(save(self.model, folder / "start"), dtype))
        self.engine._requests.stop_token_ids = []  # so that every request runs to its full length
        self.client = DirectClient(loop, self.engine)
        self.sender = WeightSender(self.client, self.model, dtype=getattr(torch, dtype), transport="shm")
        self.sender.connect()
        self.version = 0
        self._generator = torch.Generator().manual_seed(0)

    def sync(self, seed: int) -> None:
        """New random weights, sent as the next version."""
        change_weights(self.model, seed)
        self.version += 1
        self.sender.send(self.version)

    def engine_error(self) -> float:
        """Largest difference between the engine's and transformers' log-probabilities of the probe."""
        scores = self.loop.run(self.engine.score(PROBE, f"probe-{secrets.token_hex(4)}"))
        return float(np.abs(scores - reference_logprobs(self.model, PROBE)).max())

    def step(self) -> None:
        """The smallest change there is, sent as the next version: of each parameter the last bit of one element."""
        integer = torch.int16 if self.dtype == "bfloat16" else torch.int32
        for parameter in self.model.parameters():
            words = parameter.detach().view(-1).view(integer)
            words[int(torch.randint(len(words), (), generator=self._generator))] ^= 1
        self.version += 1
        self.sender.send(self.version)

    def check(self) -> None:
        """The learner's own check after a sync."""
        assert self.client.timings is not None
        check_weights(self.sender.sums, self.client.timings.live, worker="w", version=self.version)

    def rpc(self, method: str, *arguments: Any) -> None:
        self.loop.run(self.engine._link.llm.collective_rpc(method, args=arguments))

    @contextmanager
    def over(self, transport: str) -> Iterator[None]:
        """Weights travel by another transport for a while."""
        usual = self.sender
        if transport != "shm":
            self.rpc("become", transport, False)
            self.sender = WeightSender(
                self.client, self.model, dtype=getattr(torch, self.dtype), transport=transport, buffer_bytes=100_000
            )
            self.sender.connect()
        try:
            yield
        finally:
            if transport != "shm":
                self.sender.close()
                self.sender = usual
                self.rpc("become", "shm", False)
                self.sender.connect()

    def close(self) -> None:
        self.sender.close()
        self.loop.run(self.engine.shutdown())


CASES = {"float32": ("float32", True), "bfloat16": ("bfloat16", True), "untied": ("float32", False)}


def on(*names: str) -> pytest.MarkDecorator:
    """The engines that a test runs on; in the same order everywhere, so that each is started once."""
    return pytest.mark.parametrize("setup", [CASES[name] for name in names], indirect=True, ids=names)


@pytest.fixture(scope="module")
def setup(
    request: pytest.FixtureRequest, loop: LoopThread, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Setup]:
    dtype, tied = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout.engine_vllm, "WORKER_EXTENSION", "missed_update.ForgetfulWorkerExtension")
        setup = Setup(loop, dtype, tmp_path_factory.mktemp("sync"), tied=tied)
    yield setup
    setup.close()


@on("float32", "bfloat16", "untied")
def test_synced_engine_is_a_freshly_loaded_one(setup: Setup, request: pytest.FixtureRequest) -> None:
    """After 1 and after 20 syncs, against transformers and, when tied, a fresh engine."""
    loop, tolerance = setup.loop, TOLERANCE[setup.dtype]
    assert setup.engine_error() < tolerance
    before = loop.run(setup.engine.score(PROBE, "before"))
    setup.sync(seed=1)
    assert setup.engine_error() < tolerance
    after = loop.run(setup.engine.score(PROBE, "after"))
    assert np.abs(after - before).max() > 0.5, "the weights hardly changed: nothing is shown"
    for seed in [*range(2, 20), 0]:
        setup.sync(seed)
    assert setup.engine.version == setup.version == 20
    assert setup.engine_error() < tolerance
    if setup.model.config.tie_word_embeddings:
        scores = loop.run(setup.engine.score(PROBE, "synced"))
        assert np.abs(scores - fresh_scores(setup, request)).max() < tolerance


@on("float32")
def test_weights_that_change_while_they_are_sent_arrive_as_they_were(setup: Setup) -> None:
    setup.sync(seed=50)
    change_weights(setup.model, 51)
    sent = reference_logprobs(setup.model, PROBE)
    setup.version += 1
    finish = setup.sender.begin(setup.version)
    change_weights(setup.model, 52)
    finish()
    scores = setup.loop.run(setup.engine.score(PROBE, f"probe-{secrets.token_hex(4)}"))
    assert np.abs(scores - sent).max() < TOLERANCE["float32"]
    assert setup.engine_error() > 0.5


def fresh_scores(setup: Setup, request: pytest.FixtureRequest) -> Float32Array:
    """The probe's scores by an engine that loaded the weights of seed 0 from a folder."""
    if setup.dtype == "float32":
        return setup.loop.run(request.getfixturevalue("engine").score(PROBE, "fresh"))
    fresh = setup.loop.run(start_engine(save(setup.model, setup.folder / "fresh"), setup.dtype))
    try:
        return setup.loop.run(fresh.score(PROBE, "fresh"))
    finally:
        setup.loop.run(fresh.shutdown())


@on("float32", "bfloat16")
@pytest.mark.parametrize("transport", ["shm", "nccl"])
def test_one_missed_update_is_found_however_small_it_is(setup: Setup, transport: str) -> None:
    """Of the whole model, or of any kind of its layers; the probe cannot tell."""
    with setup.over(transport):
        for fault in FAULTS:
            setup.step()
            setup.check()
            before = setup.loop.run(setup.engine.score(PROBE, f"before-{fault}"))
            setup.rpc("plant", fault)
            setup.step()
            with pytest.raises(WeightSyncError, match="other weights than the learner at version"):
                setup.check()
            after = setup.loop.run(setup.engine.score(PROBE, f"after-{fault}"))
            assert np.abs(after - before).mean() < TOLERANCE[setup.dtype] / 10, "the change was not small"
            setup.rpc("remove_fault")
        setup.step()
        setup.check()
    assert setup.engine_error() < TOLERANCE[setup.dtype]


@on("untied")
def test_the_weights_of_an_untied_head_are_accounted_for(setup: Setup) -> None:
    setup.step()
    setup.check()
    setup.rpc("plant", "linear")
    setup.step()
    with pytest.raises(WeightSyncError, match=r"1 of \d+ layers, among them .*do not have the bits that were sent"):
        setup.check()
    setup.rpc("remove_fault")
    setup.step()
    setup.check()


@on("float32")
def test_cached_prefixes_do_not_survive_a_sync(setup: Setup) -> None:
    prompt = text(3000, 130)
    for seed in (300, 301):
        setup.sync(seed)
        for repeat in range(2):
            call = setup.engine.generate(
                prompt, n=1, temperature=1.0, max_tokens=8, seed=seed, request_id=f"cache-{seed}-{repeat}"
            )
            [sample] = setup.loop.run(call)
            reference = reference_logprobs(setup.model, prompt + sample.token_ids.tolist())[len(prompt) - 1 :]
            assert np.abs(sample.logprobs - reference).max() < 1e-4


def _without_a_parameter(info: dict[str, Any]) -> None:
    del info["parameters"][3]


def _wrong_shape(info: dict[str, Any]) -> None:
    row = info["parameters"][0]
    row[2] = row[2][::-1]


def _foreign_name(info: dict[str, Any]) -> None:
    info["parameters"][0][0] = "model.foreign.weight"


def _bad_checksum(info: dict[str, Any]) -> None:
    info["parameters"][-1][4] ^= 1


def _out_of_bounds(info: dict[str, Any]) -> None:
    info["parameters"][0][3] = info["nbytes"]


def _other_dtype(info: dict[str, Any]) -> None:
    info["parameters"][0][1] = "bfloat16"


def _truncated_segment(info: dict[str, Any]) -> None:
    whole = Path(info["path"]).read_bytes()
    info["path"] = f"/dev/shm/primezero-{os.getpid()}-{secrets.token_hex(16)}"
    fd = os.open(info["path"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, whole[: len(whole) // 2])
    os.close(fd)


def _path_elsewhere(info: dict[str, Any]) -> None:
    info["path"] = "/etc/passwd"


@on("float32")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_a_parameter, "lacks 1 parameters"),
        (_wrong_shape, "has shape"),
        (_foreign_name, "model.foreign.weight|lacks"),
        (_bad_checksum, "do not match their checksum"),
        (_out_of_bounds, "past the end"),
        (_other_dtype, "computes in"),
        (_truncated_segment, "bytes long"),
        (_path_elsewhere, "malformed"),
    ],
)
def test_bad_update_is_refused_and_the_old_weights_go_on(
    setup: Setup, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    loop, engine = setup.loop, setup.engine
    setup.sync(seed=400)
    before = loop.run(engine.score(PROBE, "before"))
    info = copy.deepcopy(setup.client.update_info)
    info["parameters"] = [list(row) for row in info["parameters"]]
    info["version"] = setup.version + 1
    original = info["path"]
    damage(info)
    try:
        loop.run(engine.start_weight_update())
        with pytest.raises(WeightSyncError, match=message):
            loop.run(engine.update_weights(info))
    finally:
        if info["path"] not in (original, "/etc/passwd"):
            os.unlink(info["path"])
    with pytest.raises(WeightSyncError, match="None is staged"):
        loop.run(engine.finish_weight_update(setup.version + 1))
    assert engine.version == setup.version
    np.testing.assert_array_equal(loop.run(engine.score(PROBE, "after")), before)
    setup.sync(seed=401)
    assert setup.engine_error() < 1e-4


@on("float32")
def test_update_abandoned_half_way_does_not_wedge(setup: Setup) -> None:
    loop, engine = setup.loop, setup.engine
    setup.sync(seed=500)
    loop.run(engine.start_weight_update())
    loop.run(engine.update_weights(setup.client.update_info | {"version": 10_000}))
    with pytest.raises(WeightSyncError, match="10000 is staged"):
        loop.run(engine.finish_weight_update(3))
    loop.run(engine.start_weight_update())
    with pytest.raises(WeightSyncError, match="None is staged"):
        loop.run(engine.finish_weight_update(10_000))
    setup.sync(seed=501)
    assert setup.engine_error() < 1e-4


@on("float32")
def test_learner_of_another_format_is_refused(setup: Setup) -> None:
    with pytest.raises(WeightSyncError, match="format 999"):
        setup.loop.run(setup.engine.init_weight_transfer({"format": 999}))


@on("float32")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_never_leaves(setup: Setup, value: float) -> None:
    setup.sync(seed=600)
    calls = len(setup.client.calls)
    weight = setup.model.model.layers[1].mlp.down_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[3, 5] = value
    with pytest.raises(WeightSyncError, match=r"layers\.1\.mlp\.down_proj\.weight"):
        setup.sender.send(setup.version + 1)
    with torch.no_grad():
        weight.copy_(kept)
    assert len(setup.client.calls) == calls
    assert setup.engine_error() < 1e-4


@on("float32")
def test_failed_swap_leaves_the_engine_paused_for_good(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Last but for the segment's removal: the engine cannot be used afterwards."""

    async def not_reset() -> bool:
        return False

    monkeypatch.setattr(setup.engine._link.llm, "reset_prefix_cache", not_reset)
    with pytest.raises(WeightSyncError, match="prefix cache"):
        setup.sync(seed=700)
    assert setup.loop.run(setup.engine._link.llm.is_paused())
    with pytest.raises(EngineError, match="unusable"):
        setup.loop.run(setup.engine.score(PROBE, "paused"))


@on("float32", "bfloat16", "untied")
def test_segment_and_processes_are_removed(setup: Setup) -> None:
    """Last: it ends the engine and the sender."""
    [path] = list(Path("/dev/shm").glob(f"primezero-{os.getpid()}-*"))
    assert path.stat().st_mode & 0o777 == 0o600
    setup.sender.close()
    assert not path.exists()
    with pytest.raises(WeightSyncError, match="closed"):
        setup.sender.send(setup.version + 1)

    core = setup.engine._processes[0]
    tree = [core, *core.children(recursive=True)]
    assert all(process.is_running() for process in tree)
    setup.loop.run(setup.engine.shutdown())
    setup.loop.run(setup.engine.shutdown())
    assert not any(process.is_running() for process in tree)
    with pytest.raises(EngineError, match="unusable"):
        setup.loop.run(setup.engine.check_alive())
