"""The nccl transport over gloo, between this process's ends and, for a death, another process."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
import torch
from plain_engine import DictSource, PlainClient, PlainEngine, expect_error, same, some_weights

from launch.plan.memory_plan import CHUNKS_ON_THE_WAY
from learner.weight_broadcast import BroadcastTransport, GlooRoot
from learner.weight_transport import Settings
from rollout.receiving import Batch, bounded
from rollout.staging import StagedWeights
from rollout.weight_broadcast import BroadcastReceiver, GlooPeer
from shared.errors import WeightSyncError

CPU = torch.device("cpu")


def engine() -> PlainEngine:
    return PlainEngine(
        DictSource(some_weights()).shapes,
        lambda expected, dtype: BroadcastReceiver(expected, dtype, CPU, {"gloo": GlooPeer}),
    )


def transport(
    client: PlainClient, source: DictSource, timeout_s: float = 30.0, address: str = "127.0.0.1"
) -> BroadcastTransport:
    settings = Settings(torch.float32, 1000, timeout_s, address)
    return BroadcastTransport(client, source, settings, device=CPU, make_root=GlooRoot)


def lose_patience(monkeypatch: pytest.MonkeyPatch, sender: BroadcastTransport) -> None:
    """Give up soon what hangs from here on. Until a group is complete a busy machine may need all the time there is."""
    monkeypatch.setattr(sender._root, "_limit", timedelta(seconds=1))
    for end in ("learner", "rollout"):
        monkeypatch.setattr(f"{end}.weight_broadcast._MARGIN_S", 0.5 - sender._settings.timeout_s)


def listening() -> set[tuple[str, int]]:
    connections = psutil.Process().net_connections("tcp")
    return {tuple(c.laddr) for c in connections if c.status == psutil.CONN_LISTEN}


def test_the_group_meets_at_the_address_that_is_configured_and_at_no_other() -> None:
    source, before = DictSource(some_weights()), listening()
    client = PlainClient([engine()])
    sender = transport(client, source, address="127.0.0.2")
    sender.connect()
    sender.send(1)
    assert same(client.members[0], source.weights)
    opened = {host.removeprefix("::ffff:") for host, _ in listening() - before}
    # The member, which is this process here, listens at its own address on the way there.
    assert opened == {"127.0.0.2", "127.0.0.1"}
    sender.close()


def test_every_member_gets_every_version_and_the_group_follows_the_members() -> None:
    source = DictSource(some_weights())
    client = PlainClient([engine(), engine()])
    sender = transport(client, source)
    sender.connect()
    for version in (1, 2, 3):
        if version == 3:
            gone, newcomer = client.members[0], engine()
            client.members = [client.members[1], newcomer]
            with pytest.raises(WeightSyncError, match="connect again"):
                sender.send(version)
            sender.connect()
        source.weights = some_weights(version)
        stats = sender.send(version)
        assert all(same(member, source.weights) for member in client.members)
        assert stats.calls == 3
        assert stats.nbytes == sum(tensor.nbytes for tensor in source.weights.values())
    assert not same(gone, source.weights)
    assert source.passes == 6, "one to check, one to send"
    sender.close()
    with pytest.raises(WeightSyncError, match="closed"):
        sender.send(4)


def test_nan_is_refused_before_the_engines_hear_of_it() -> None:
    source, client = DictSource(some_weights()), PlainClient([engine()])
    sender = transport(client, source)
    sender.connect()
    source.weights["layer.7.weight"][2, 2] = float("nan")
    with pytest.raises(WeightSyncError, match=r"layer\.7\.weight holds NaN"):
        sender.send(1)
    assert client.calls == ["init"]
    source.weights["layer.7.weight"][2, 2] = 0
    sender.send(1)
    assert same(client.members[0], source.weights)


@pytest.mark.parametrize(
    ("where", "message"), [(2, "do not match their checksum"), (-8, "do not match"), (-32, "came where chunk")]
)
def test_damaged_bytes_are_refused_and_the_old_weights_go_on(
    monkeypatch: pytest.MonkeyPatch, where: int, message: str
) -> None:
    """In the weights, in the checksum, and in the version that they are said to be."""
    source, client = DictSource(some_weights(1)), PlainClient([engine(), engine()])
    sender = transport(client, source)
    sender.connect()
    sender.send(1)
    weights, sound = source.weights, GlooRoot.broadcast

    def damaging(self: GlooRoot, buffer: torch.Tensor) -> None:
        buffer[where] ^= 1
        sound(self, buffer)

    source.weights = some_weights(2)
    monkeypatch.setattr(GlooRoot, "broadcast", damaging)
    with pytest.raises(WeightSyncError, match=message):
        sender.send(2)
    for member in client.members:
        assert expect_error(member) is not None
        assert same(member, weights)
    with pytest.raises(WeightSyncError, match="connect first"):
        sender.send(2)
    monkeypatch.undo()
    sender.connect()
    sender.send(3)
    assert all(same(member, source.weights) for member in client.members)


class SlowSource(DictSource):
    """A pass takes a while, as where ranks gather each parameter."""

    def __iter__(self) -> Any:
        for item in self.weights.items():
            time.sleep(0.05)
            yield item
        self.passes += 1


def test_an_update_that_fails_leaves_no_pass_over_the_source_behind() -> None:
    source, client = SlowSource(some_weights()), PlainClient([engine()])
    sender = transport(client, source)
    sender.connect()

    def lose_the_member(info: dict[str, Any]) -> None:
        raise WeightSyncError("no rollout worker is left")

    client.change_info = lose_the_member
    with pytest.raises(WeightSyncError, match="did not reach the engines: no rollout worker is left"):
        sender.begin(1)
    assert source.passes == 2, "one to check, and one to send, run to its end"
    sender.close()


class DyingPeer(PlainEngine):
    """Stands in a client for dying_peer.py."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__(shapes, lambda *_: self)  # type: ignore[arg-type, return-value]
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("dying_peer.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(root)},
        )
        self.tell(shapes)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def tell(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(base64.b64encode(msgspec.msgpack.encode(message)) + b"\n")
        self.process.stdin.flush()

    def join(self, init_info: Any) -> None:
        self.tell(init_info)

    def begin(self) -> None:
        pass

    def update(self, info: dict[str, Any]) -> None:
        self.tell(info)


@pytest.mark.integration  # it starts a process, which imports torch
def test_death_in_the_middle_of_a_broadcast_ends_every_wait() -> None:
    """Learner and surviving engine have an error at once, and go on without the dead one."""
    source = DictSource(some_weights(1))
    survivor, dying = engine(), DyingPeer(DictSource(some_weights()).shapes)
    client = PlainClient([survivor, dying])
    sender = transport(client, source, timeout_s=120.0)
    try:
        sender.connect()
        with pytest.raises(WeightSyncError, match=r"weight sync: version 1 did not reach the engines: .*chunk \d"):
            sender.send(1)
        error = expect_error(survivor)
        assert error is not None
        assert "did not come from the learner" in str(error)
        assert dying.process.wait(60) == -signal.SIGKILL
        client.members = [survivor]
        sender.connect()
        sender.send(2)
        assert same(survivor, source.weights)
    finally:
        dying.process.kill()
        dying.process.wait(60)


def test_member_that_does_not_take_part_is_waited_for_no_longer_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    source = DictSource(some_weights(1))
    client = PlainClient([engine(), engine()])
    sender = transport(client, source)
    sender.connect()
    lose_patience(monkeypatch, sender)
    client.members[1].update = lambda info: None  # type: ignore[method-assign]
    with pytest.raises(WeightSyncError, match="weight sync: version 1 did not reach the engines"):
        sender.send(1)


def test_member_that_does_not_join_is_waited_for_no_longer_than_allowed() -> None:
    client = PlainClient([engine(), engine()])
    client.members[1].receiver.join = lambda init_info: None  # type: ignore[method-assign]
    with pytest.raises(WeightSyncError, match=r"2 engines and the learner did not all meet .* within 1 s"):
        transport(client, DictSource(some_weights()), timeout_s=1.0).connect()
    with pytest.raises(WeightSyncError, match="no engines"):
        transport(PlainClient([]), DictSource(some_weights())).connect()


INIT = {
    "format": 1,
    "transport": "nccl",
    "group": "0" * 32,
    "kind": "gloo",
    "address": "127.0.0.1",
    "port": 1,
    "unique_id": b"",
    "rank_offset": 1,
    "world_size": 2,
    "timeout_s": 1.0,
}


def test_engine_that_cannot_join_says_so_when_weights_should_come() -> None:
    member = engine()
    member.receiver.join(INIT)
    infos: list[dict[str, Any]] = []
    client = PlainClient([engine()])
    client.change_info = infos.append
    sender = transport(client, DictSource(some_weights()))
    sender.connect()
    sender.send(1)
    member.start()
    with pytest.raises(WeightSyncError, match="not in the group"):
        member.update(infos[0])
    member.update(infos[0] | {"group": INIT["group"]})
    error = expect_error(member)
    assert error is not None
    assert "joining the learner's gloo group failed" in str(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "nccl", "unique_id": bytes(128)}, "needs the engine on a GPU"),
        ({"rank_offset": 2}, "rank 2 is not in a group of 2"),
        ({"rank_offset": 0}, "malformed"),
        ({"world_size": 1}, "malformed"),
        ({"port": 2**16}, "malformed"),
        ({"address": "a b"}, "malformed"),
        ({"timeout_s": 0}, "malformed"),
        ({"group": "x"}, "malformed"),
        ({"extra": 1}, "malformed"),
        ({"format": 9}, "format 9"),
    ],
)
def test_handshake_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightSyncError, match=message):
        engine().receiver.join(INIT | change)


@pytest.mark.parametrize(
    "damage",
    [
        lambda info: info["chunks"].pop(),
        lambda info: info["chunks"].append(info["chunks"][0]),
        lambda info: info["chunks"][0][0].__setitem__(0, "other"),
        lambda info: info["chunks"][0][0].__setitem__(2, [7, 5]),
        lambda info: info["chunks"][0][0].__setitem__(1, "bfloat16"),
        lambda info: info["chunks"][0][0].__setitem__(3, 2**40),
        lambda info: info.update(version=-1),
        lambda info: info.update(chunks=[]),
    ],
)
def test_update_that_is_not_the_models_is_refused_before_anything_is_received(
    monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    source = DictSource(some_weights(1))
    client = PlainClient([engine()])
    client.change_info = damage
    sender = transport(client, source)
    sender.connect()
    lose_patience(monkeypatch, sender)
    with pytest.raises(WeightSyncError, match=r"malformed|lacks|twice|has not|has shape|computes in|not 1099511627776"):
        sender.send(1)
    assert client.members[0].receiving is None


def test_source_that_is_not_what_it_said_is_an_error() -> None:
    source = DictSource(some_weights(1))
    sender = transport(PlainClient([engine()]), source)
    source.weights["layer.3.weight"] = torch.zeros(1)
    sender.connect()
    with pytest.raises(WeightSyncError, match=r"gave layer\.3\.weight \(1,\) where layer\.3\.weight \(25, 39\) was"):
        sender.send(1)
    assert source.passes == 1


class AsNccl(GlooRoot):
    """What only NCCL has: waits that do not end by themselves."""

    kind = "nccl"


def nccl_engine(stuck: threading.Event | None = None) -> PlainEngine:
    class Peer(GlooPeer):
        def receive(self, buffer: torch.Tensor) -> None:
            if stuck is not None:
                stuck.wait(200)
            super().receive(buffer)

    return PlainEngine(
        DictSource(some_weights()).shapes,
        lambda expected, dtype: BroadcastReceiver(expected, dtype, CPU, {"nccl": Peer}),
    )


def test_engine_stuck_in_nccl_says_that_it_must_be_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    source, stuck = DictSource(some_weights(1)), threading.Event()
    client = PlainClient([nccl_engine()])
    settings = Settings(torch.float32, 1000, 30.0, "127.0.0.1")
    sender = BroadcastTransport(client, source, settings, device=CPU, make_root=AsNccl)
    sender.connect()
    sender.send(1)
    assert same(client.members[0], source.weights)
    client.members = [nccl_engine(stuck)]
    sender.connect()
    lose_patience(monkeypatch, sender)
    with pytest.raises(WeightSyncError, match=r"within 30 s; .* NCCL cannot be ended, so the engine must be restarted"):
        sender.send(2)
    stuck.set()


class Holding(StagedWeights):
    """Keeps the last parameter of each chunk until the next, as vLLM does with a layer that lacks the rest."""

    def take(self, batch: Batch) -> None:
        self.held = batch[-1]
        self.taken = getattr(self, "taken", 0) + 1


@pytest.mark.parametrize("kind", [GlooRoot, AsNccl])
def test_of_an_update_two_chunks_are_in_memory_at_most(monkeypatch: pytest.MonkeyPatch, kind: type[GlooRoot]) -> None:
    source = DictSource({f"layer.{i}.weight": torch.full((64,), float(i)) for i in range(10)})
    made: list[weakref.ref[Any]] = []
    most: list[int] = []
    monkeypatch.setattr("plain_engine.StagedWeights", Holding)
    monkeypatch.setattr(Holding, "check_complete", lambda self: None)
    monkeypatch.setattr(Holding, "commit", lambda self: None)
    monkeypatch.setitem(globals(), "some_weights", lambda: source.weights)
    member = engine() if kind is GlooRoot else nccl_engine()
    settings = Settings(torch.float32, 600, 30.0, "127.0.0.1")
    sender = BroadcastTransport(PlainClient([member]), source, settings, device=CPU, make_root=kind)
    sender.connect()

    def empty(size: int, **_: object) -> torch.Tensor:
        array = np.empty(size, np.uint8)
        made.append(weakref.ref(array))
        most.append(sum(each() is not None for each in made))
        return torch.from_numpy(array)

    monkeypatch.setattr(torch, "empty", empty)
    sender.send(1)
    assert len(made) == len(sender._check_open().chunks) > 4
    assert max(most) == CHUNKS_ON_THE_WAY


def test_learner_stuck_in_nccl_says_that_it_must_be_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    source, stuck = DictSource(some_weights(1)), threading.Event()

    class Stuck(AsNccl):
        def broadcast(self, buffer: torch.Tensor) -> None:
            super().broadcast(buffer)
            stuck.wait(200)

    client = PlainClient([nccl_engine()])
    settings = Settings(torch.float32, 10**6, 30.0, "127.0.0.1")
    sender = BroadcastTransport(client, source, settings, device=CPU, make_root=Stuck)
    sender.connect()
    lose_patience(monkeypatch, sender)
    with pytest.raises(WeightSyncError, match="hangs in nccl, which nothing can end: the learner must be restarted"):
        sender.send(1)
    with pytest.raises(WeightSyncError, match="last broadcast still hangs: the learner must be restarted"):
        sender.connect()
    stuck.set()


def test_what_nothing_can_end_is_left() -> None:
    """NCCL's waits: the item that does not come is given up, and others are not held up."""

    stuck = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        stuck.wait(200)
        yield 2

    given = bounded(items(), 1.0, lambda: WeightSyncError("too late"))
    assert next(given) == 1
    with pytest.raises(WeightSyncError, match="too late"):
        next(given)
    stuck.set()
    assert list(bounded(iter(range(100)), 30, AssertionError)) == list(range(100))

    def failing() -> Iterator[int]:
        yield 1
        raise WeightSyncError("broken")

    with pytest.raises(WeightSyncError, match="broken"):
        list(bounded(failing(), 30, AssertionError))
