import re
import shutil

import pytest

from learner.checkpoint import POLICY, CheckpointStore, TrainerState
from shared.errors import CheckpointError


def write(store, version, weights=b"weights", model="a"):
    partial = store.begin(version)
    (partial / POLICY / "rank-0.pt").write_bytes(weights)
    state = TrainerState(
        version, {"model": model}, {"problems": [version]}, {"cells": {}}, {"entropy": 0.5}, {"open": {}}, 7
    )
    store.commit(partial, state)
    return state


def latest(folder, keep=2):
    warnings = []
    return CheckpointStore(folder, keep=keep).latest(warnings.append), warnings


def test_what_was_written_is_read_back(tmp_path):
    state = write(CheckpointStore(tmp_path, keep=2), 40)
    (path, read), warnings = latest(tmp_path)
    assert read == state
    assert (path / POLICY / "rank-0.pt").read_bytes() == b"weights"
    assert warnings == []


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert latest(tmp_path / "none") == (None, [])


def test_only_the_last_few_are_kept_in_the_order_of_their_steps(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for version in (5, 90, 1_000_000):
        write(store, version)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000090", "step-1000000"]
    (path, _), _ = latest(tmp_path)
    assert path.name == "step-1000000"


def test_a_checkpoint_that_was_never_finished_does_not_count(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    write(store, 20)
    (store.begin(40) / POLICY / "rank-0.pt").write_bytes(b"half")
    (path, _), warnings = latest(tmp_path)
    assert path.name == "step-000020"
    assert warnings == []
    write(store, 40)
    assert latest(tmp_path)[0][1].version == 40


def flip_a_bit(path):
    weights = path / POLICY / "rank-0.pt"
    weights.write_bytes(b"weighty")


def cut(path):
    (path / POLICY / "rank-0.pt").write_bytes(b"weigh")


def lose_the_weights(path):
    shutil.rmtree(path / POLICY)


def lose_the_manifest(path):
    (path / "manifest.json").unlink()


def spoil_the_state(path):
    (path / "state.json").write_text("{")


@pytest.mark.parametrize("spoil", [flip_a_bit, cut, lose_the_weights, lose_the_manifest, spoil_the_state])
def test_a_broken_checkpoint_is_passed_over_and_said_so(tmp_path, spoil):
    store = CheckpointStore(tmp_path, keep=2)
    write(store, 20)
    write(store, 40)
    spoil(tmp_path / "step-000040")
    (path, state), warnings = latest(tmp_path)
    assert (path.name, state.version) == ("step-000020", 20)
    assert len(warnings) == 1
    assert re.search("step-000040.*: it is passed over$", warnings[0])
    spoil(tmp_path / "step-000020")
    with pytest.raises(CheckpointError, match=r"every checkpoint .* is broken"):
        latest(tmp_path)


def test_going_on_from_an_older_checkpoint_replaces_all_that_is_abandoned(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    for version in (20, 40, 60):
        write(CheckpointStore(tmp_path, keep=3), version)
    flip_a_bit(tmp_path / "step-000060")
    flip_a_bit(tmp_path / "step-000040")
    write(store, 40, weights=b"other", model="b")
    (path, state), warnings = latest(tmp_path)
    assert state.identity == {"model": "b"}
    assert (path / POLICY / "rank-0.pt").read_bytes() == b"other"
    assert warnings == []
    assert [p.name for p in tmp_path.iterdir()] == ["step-000040"]


def test_what_was_never_finished_is_removed_by_the_next(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    store.begin(37)
    write(store, 40)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000040"]


def test_a_run_that_goes_on_is_saved_every_few_versions_but_not_at_its_start(tmp_path):
    store = CheckpointStore(tmp_path, keep=2, every=20)
    assert [version for version in range(50) if store.is_due(version)] == [20, 40]
    assert not any(CheckpointStore(tmp_path, keep=2).is_due(version) for version in range(50))


def test_every_part_of_a_file_that_is_written_or_read_is_a_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr("learner.checkpoint._CHUNK_BYTES", 1000)
    beats: list[None] = []
    store = CheckpointStore(tmp_path, keep=2, beat=lambda: beats.append(None))
    write(store, 20, weights=b"x" * 50_000)
    written = len(beats)
    assert written > 50
    assert store.latest() is not None
    assert len(beats) - written >= 50
