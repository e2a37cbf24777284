"""The ipc transport without a GPU: everything but CUDA's own sharing, for which a plain tensor stands in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_engine import DictSource, PlainClient, PlainEngine, same, some_weights
from torch.multiprocessing import reductions

from learner.weight_ipc import IpcTransport, export, refuse_expandable_segments
from learner.weight_transport import Settings
from rollout.weight_ipc import IpcReceiver
from shared.errors import WeightSyncError
from shared.weight_wire import IpcUpdate, parse

UUID = "0f3a51c2-9d2e-7b60-a1b2-c3d4e5f60718"
EXPORTED = (b"\x03c" + bytes(range(64)), b"/torch_123_456_7", 42, bytes(64))


class Cuda:
    """Stands in for what torch shares between processes: the exported buffers, and who rebuilt them with what."""

    def __init__(self) -> None:
        self.exported: list[torch.Tensor] = []
        self.rebuilt: list[list[Any]] = []
        self.handle = EXPORTED[0]

    def reduce_tensor(self, buffer: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
        self.exported.append(buffer)
        _, counter, count, event = EXPORTED
        storage, nbytes = torch.storage.TypedStorage, buffer.nbytes
        shape = (buffer.size(), buffer.stride(), 0)
        shared = (self.handle, nbytes + 512, 512, False, counter, count, event, True)
        return None, (torch.Tensor, *shape, storage, buffer.dtype, 0, *shared)

    def rebuild(self, arguments: list[Any]) -> torch.Tensor:
        self.rebuilt.append(arguments)
        return self.exported[-1]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    monkeypatch.setattr(reductions, "reduce_tensor", fake.reduce_tensor)
    return fake


def receiver_of(cuda: Cuda) -> Callable[[Any, str], IpcReceiver]:
    def make(expected: Any, dtype: str) -> IpcReceiver:
        receiver = IpcReceiver(expected, dtype, torch.device("cuda", 3), cuda.rebuild)
        receiver.gpu_uuid = lambda: UUID  # type: ignore[method-assign]
        return receiver

    return make


class Setup:
    def __init__(self, cuda: Cuda, buffer_bytes: int = 1000, dtype: torch.dtype = torch.float32) -> None:
        self.cuda = cuda
        self.source = DictSource(some_weights())
        self.engine = PlainEngine(self.source.shapes, receiver_of(cuda))
        self.client = PlainClient([self.engine])
        self.transport = IpcTransport(
            self.client,
            self.source,
            Settings(dtype, buffer_bytes, 5.0, ""),
            gpu_uuid=UUID,
            device=torch.device("cpu"),
        )
        self.transport.connect()


def test_chunks_arrive_through_one_export(cuda: Cuda) -> None:
    """The buffer holds the largest parameter, is exported once, and serves every chunk of every send."""
    setup = Setup(cuda)
    [buffer] = cuda.exported
    assert buffer.nbytes == 25 * 39 * 4 + 4  # the largest, in whole words
    for version in (1, 2):
        setup.source.weights = some_weights(version)
        stats = setup.transport.send(version)
        assert same(setup.engine, setup.source.weights)
        updates = setup.client.calls.count("update") // version
        assert updates > 1
        assert stats.calls == updates + 2
        assert stats.nbytes == sum(tensor.nbytes for tensor in setup.source.weights.values())
    assert cuda.exported == [buffer]
    assert setup.source.passes == 4, "one to check, one to send"
    handle, counter, count, event = EXPORTED
    expected = [torch.Tensor, torch.Size([buffer.nbytes]), (1,), 0, torch.storage.TypedStorage, torch.uint8, 3]
    for arguments in cuda.rebuilt:
        assert arguments == [*expected, handle, buffer.nbytes + 512, 512, False, counter, count, event, True]


def test_weights_that_change_once_they_are_read_arrive_as_they_were(cuda: Cuda) -> None:
    setup = Setup(cuda)
    setup.source.weights = sent = some_weights(1)
    finish = setup.transport.begin(1)
    setup.source.weights = some_weights(2)
    assert finish().calls == setup.client.calls.count("update") + 2
    assert same(setup.engine, sent)


def test_weights_are_cast_to_what_the_engine_computes_in(cuda: Cuda) -> None:
    source = DictSource(some_weights())
    received: dict[str, torch.Tensor] = {}
    receiver = IpcReceiver(source.shapes, "bfloat16", torch.device("cuda", 0), cuda.rebuild)
    receiver.gpu_uuid = lambda: UUID  # type: ignore[method-assign]

    class Client(PlainClient):
        def start_weight_update(self) -> None:
            receiver.begin()

        def update_weights(self, update_info: dict[str, Any]) -> None:
            for batch in receiver.open(update_info):
                received.update(batch)

    transport = IpcTransport(
        Client([]),
        source,
        Settings(torch.bfloat16, 600, 5.0, ""),
        gpu_uuid=UUID,
        device=torch.device("cpu"),
    )
    transport.send(1)
    assert list(received) == list(source.weights)
    for name, tensor in received.items():
        assert torch.equal(tensor, source.weights[name].to(torch.bfloat16))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3.4e38])
def test_what_is_not_finite_is_refused_before_the_engines_hear_of_it(cuda: Cuda, value: float) -> None:
    """3.4e38 is finite in float32 and not in bfloat16, which travels."""
    setup = Setup(cuda, dtype=torch.bfloat16)
    setup.source.weights["layer.3.weight"][4, 5] = value
    with pytest.raises(WeightSyncError, match=r"layer\.3\.weight holds NaN or infinity in torch\.bfloat16"):
        setup.transport.send(1)
    assert setup.client.calls == ["init"]
    assert setup.source.passes == 1


@pytest.mark.parametrize("place", [0, 77, 3000])
def test_a_damaged_chunk_is_refused_and_the_old_weights_go_on(cuda: Cuda, place: int) -> None:
    setup = Setup(cuda)
    setup.transport.send(1)
    before = {name: tensor.clone() for name, tensor in setup.engine.weights.items()}

    def flip(info: dict[str, Any]) -> None:
        if info["index"] == 1:  # the one with the large parameter in it
            cuda.exported[0][place] ^= 16

    setup.client.change_info = flip
    setup.source.weights = some_weights(2)
    with pytest.raises(WeightSyncError, match=r"chunk 1 .* do not match their checksum"):
        setup.transport.send(2)
    assert setup.source.passes == 4, "a pass that has begun is run to its end"
    with pytest.raises(WeightSyncError, match=r"did not come|checksum"):
        setup.engine.finish()
    assert same(setup.engine, before)
    setup.client.change_info = lambda info: None
    setup.transport.send(3)
    assert same(setup.engine, setup.source.weights)


def test_chunks_out_of_order_or_left_out_are_refused(cuda: Cuda) -> None:
    setup = Setup(cuda)
    infos: list[dict[str, Any]] = []
    setup.client.change_info = lambda info: infos.append(info)
    setup.transport.send(1)
    receiver, rebuilt = setup.engine.receiver, len(cuda.rebuilt)
    for order in ([1], [0, 0], [0, 2], [0, 1, 1]):
        receiver.begin()
        for index in order[:-1]:
            receiver.open(infos[index])
        with pytest.raises(WeightSyncError, match="was due"):
            receiver.open(infos[order[-1]])
    receiver.begin()
    receiver.open(infos[0])
    for change in ({"version": 2}, {"count": len(infos) + 1}):
        with pytest.raises(WeightSyncError, match="was due"):
            receiver.open(infos[1] | change)
    receiver.begin()
    with pytest.raises(WeightSyncError, match="lacks"):
        receiver.open(infos[0] | {"count": 1})
    assert len(cuda.rebuilt) == rebuilt


def _first(info: dict[str, Any], place: int, value: Any) -> None:
    info["parameters"][0][place] = value


def _in_buffer(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda info: info["buffer"].update(changes)


MALFORMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "foreign name": lambda info: _first(info, 0, "layer.99.weight"),
    "twice": lambda info: info["parameters"].append(info["parameters"][0]),
    "shape": lambda info: _first(info, 2, [7, 5]),
    "negative": lambda info: _first(info, 2, [-5, -7]),
    "dtype": lambda info: _first(info, 1, "bfloat16"),
    "dtype of no list": lambda info: _first(info, 1, "int8"),
    "size": lambda info: _first(info, 3, 8),
    "no parameters": lambda info: info.update(parameters=[]),
    "field": lambda info: info.update(extra=1),
    "no checksum": lambda info: info.pop("checksum"),
    "checksum": lambda info: info.update(checksum=[1, 2**31]),
    "other GPU": _in_buffer(gpu_uuid="1" + UUID[1:]),
    "no GPU": _in_buffer(gpu_uuid="GPU-0"),
    "pickled": _in_buffer(dtype="cos\nsystem\n"),
    "attribute": _in_buffer(dtype="__class__"),
    "two dimensions": _in_buffer(size=[10, 10], stride=[10, 1]),
    "stride": _in_buffer(stride=[2]),
    "zero stride": _in_buffer(stride=[0]),
    "past the storage": _in_buffer(offset=2**40),
    "larger than the storage": _in_buffer(size=[2**40]),
    "too small": _in_buffer(size=[8]),
    "short handle": _in_buffer(memory_handle=bytes(64)),
    "long handle": _in_buffer(memory_handle=bytes(67)),
    "text for a handle": _in_buffer(memory_handle="c" * 66),
    "expandable": _in_buffer(memory_handle=b"\x03e" + bytes(64)),
    "event": _in_buffer(event_handle=b""),
    "counter's name": _in_buffer(ref_counter_handle="/../etc/passwd"),
    "counter past the end": _in_buffer(ref_counter_offset=10_000),
    "counter before": _in_buffer(ref_counter_offset=-1),
    "no number": _in_buffer(storage_offset="0"),
}


@pytest.mark.parametrize("damage", MALFORMED.values(), ids=MALFORMED)
def test_malformed_chunk_never_reaches_torch(cuda: Cuda, damage: Callable[[dict[str, Any]], Any]) -> None:
    setup = Setup(cuda, buffer_bytes=10**6)
    setup.client.change_info = damage
    with pytest.raises(WeightSyncError):
        setup.transport.send(1)
    assert cuda.rebuilt == []


def valid_info() -> dict[str, Any]:
    cuda = Cuda()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reductions, "reduce_tensor", cuda.reduce_tensor)
        setup = Setup(cuda, buffer_bytes=10**6)
    infos: list[dict[str, Any]] = []
    setup.client.change_info = infos.append
    setup.transport.send(1)
    return infos[0]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_comes_is_refused_or_is_what_it_was(cuda: Cuda, data: st.DataObject) -> None:
    """One field anywhere replaced by anything: refused with our error, unless the meaning is still the same."""
    info = msgspec.msgpack.decode(msgspec.msgpack.encode(_VALID))
    place: Any = info
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(anything)
        break
    receiver = receiver_of(cuda)(DictSource(some_weights()).shapes, "float32")
    try:
        receiver.open(info)
    except WeightSyncError:
        return
    # What may be any number within its bounds: the rest has one right value.
    free = {"version", "checksum", "offset", "storage_offset", "storage_nbytes", "size", "ref_counter_offset"}
    free |= {"memory_handle", "event_handle", "event_sync_required", "ref_counter_handle"}
    before, after = msgspec.to_builtins(parse(_VALID, IpcUpdate)), msgspec.to_builtins(parse(info, IpcUpdate))
    changed = {name for name in before if name != "buffer" and before[name] != after[name]}
    changed |= {name for name in before["buffer"] if before["buffer"][name] != after["buffer"][name]}
    assert changed <= free


_VALID = valid_info()


def test_a_chunk_with_all_parameters_is_the_last(cuda: Cuda) -> None:
    receiver = receiver_of(cuda)(DictSource(some_weights()).shapes, "float32")
    with pytest.raises(WeightSyncError, match="is to go on, and has all parameters"):
        receiver.open(valid_info() | {"count": 2})


def test_round_trip_of_the_wire() -> None:
    update = parse(_VALID, IpcUpdate)
    assert update.buffer.memory_handle == EXPORTED[0]
    assert update.buffer.ref_counter_handle == EXPORTED[1].decode()
    assert sum(parameter.nbytes for parameter in update.parameters) <= update.buffer.size[0]


def test_engine_without_a_gpu_says_so(cuda: Cuda) -> None:
    receiver = IpcReceiver(DictSource(some_weights()).shapes, "float32", torch.device("cpu"), cuda.rebuild)
    with pytest.raises(WeightSyncError, match="need the engine on a GPU"):
        receiver.open(_VALID)
    assert cuda.rebuilt == []


def test_a_learner_s_buffer_is_let_go_of_when_it_has_left(cuda: Cuda) -> None:
    released: list[bool] = []
    receiver = IpcReceiver({}, "float32", torch.device("cuda", 0), cuda.rebuild, lambda: released.append(True))
    assert not released
    receiver.close()
    assert released


def test_transports_do_not_mix(cuda: Cuda) -> None:
    receiver = receiver_of(cuda)({}, "float32")
    with pytest.raises(WeightSyncError, match="another transport"):
        receiver.join({"format": 1, "transport": "shm"})
    with pytest.raises(WeightSyncError, match="format 2"):
        receiver.join({"format": 2, "transport": "ipc"})


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", True),
        ("PYTORCH_ALLOC_CONF", "max_split_size_mb:64, expandable_segments : true", True),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False", False),
        ("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64", False),
        ("OTHER", "expandable_segments:True", False),
    ],
)
def test_expandable_segments_are_refused(name: str, value: str, refused: bool) -> None:
    if refused:
        with pytest.raises(WeightSyncError, match="expandable_segments"):
            refuse_expandable_segments({name: value}.get)
    else:
        refuse_expandable_segments({name: value}.get)


def test_buffer_in_expandable_memory_is_not_exported(cuda: Cuda) -> None:
    """However it came to be there."""
    cuda.handle = b"\x03e" + bytes(64)
    with pytest.raises(WeightSyncError, match="expandable_segments"):
        export(torch.zeros(64, dtype=torch.uint8), UUID)
