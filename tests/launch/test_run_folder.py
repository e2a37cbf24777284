import errno
import os
import re
import shutil
import signal
import stat
import subprocess
from dataclasses import asdict

import pytest
from model_files import make_model_folder

from launch.leftovers import Leftovers
from launch.run_folder import open_run_folder, remove_what_is_left, with_choices_kept
from learner.checkpoint import CheckpointStore, TrainerState
from learner.journal import Began, Journal
from learner.progress import Summary
from shared.config_file import load_config
from shared.errors import CheckpointError, ConfigError, JournalError
from shared.metrics import write_json


def config_for(folder, **overrides):
    return load_config(
        None, [f"--run.folder={folder}", "--run.name=mine", *[f"--{k}={v}" for k, v in overrides.items()]]
    )


def enter(config):
    with open_run_folder(config):
        pass


def checkpoint(folder, version, journal_end=0):
    store = CheckpointStore(folder / "checkpoints", keep=2)
    store.commit(store.begin(version), TrainerState(version, {}, {}, {}, {}, {}, journal_end))
    return folder / f"checkpoints/step-{version:06}"


def test_the_folder_is_private_and_holds_the_resolved_configuration(tmp_path):
    config = config_for(tmp_path / "runs", **{"learner.lr": 0.5})
    with open_run_folder(config) as run:
        folder = run.path
        assert folder == tmp_path / "runs/mine"
        assert run.resume_from is None
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert load_config(folder / "config.toml") == config


def test_a_run_without_a_checkpoint_is_refused_unless_it_may_be_replaced(tmp_path):
    with open_run_folder(config_for(tmp_path)) as run:
        (run.path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"without a checkpoint or a journal.*--run\.overwrite true"):
        enter(config_for(tmp_path))
    assert (run.path / "metrics.jsonl").exists()
    with open_run_folder(config_for(tmp_path, **{"run.overwrite": "true"})) as again:
        assert again.resume_from is None
        assert not (run.path / "metrics.jsonl").exists()


def test_a_run_that_never_got_to_a_step_begins_again_with_whatever_settings(tmp_path):
    enter(config_for(tmp_path))
    with open_run_folder(config_for(tmp_path, **{"learner.lr": 7})) as again:
        assert (again.resume_from, again.lineage) == (None, 1)
        assert load_config(again.path / "config.toml").learner.lr == 7


def test_before_its_first_checkpoint_a_run_goes_on_from_its_journal(tmp_path):
    with open_run_folder(config_for(tmp_path)) as run:
        Journal(run.path / "journal").append(Began(0, 0))
        (run.path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"learner\.lr"):
        enter(config_for(tmp_path, **{"learner.lr": 7}))
    with open_run_folder(config_for(tmp_path)) as again:
        assert (again.resume_from, again.lineage) == (None, 1)
        assert (run.path / "journal").stat().st_size > 0


def test_the_same_command_again_resumes_from_the_newest_checkpoint(tmp_path):
    with open_run_folder(config_for(tmp_path)) as run:
        newest = [checkpoint(run.path, version) for version in (20, 40)][-1]
        (run.path / "STOP").touch()
    with open_run_folder(config_for(tmp_path, **{"rollout.workers": 2, "run.steps": 300})) as again:
        assert again.resume_from == newest
        assert not (run.path / "STOP").exists()
        assert load_config(run.path / "config.toml").run.steps == 300


@pytest.mark.parametrize("key", ["learner.lr", "run.seed", "environment.max_prime", "rewards.wrong", "learner.ranks"])
def test_other_settings_than_the_runs_own_are_refused_by_name(tmp_path, key):
    with open_run_folder(config_for(tmp_path)) as run:
        checkpoint(run.path, 20)
    with pytest.raises(ConfigError, match=re.escape(key)):
        enter(config_for(tmp_path, **{key: 7}))


def test_a_run_goes_on_in_another_placement_its_weights_by_another_way(tmp_path):
    here = {"placement.kind": "colocated", "placement.device": "cuda", "sync.transport": "ipc"}
    with open_run_folder(config_for(tmp_path, **here)) as run:
        newest = checkpoint(run.path, 20)
    there = {"placement.kind": "split", "placement.device": "cuda", "sync.transport": "nccl", "rollout.workers": 3}
    with open_run_folder(config_for(tmp_path, **there)) as again:
        assert again.resume_from == newest


@pytest.mark.parametrize("chosen", [False, True])
def test_what_a_run_chose_by_itself_it_keeps_to(tmp_path, chosen):
    """A checkpoint has the optimizer's states as one of the two keeps them."""
    offload = "learner.offload_optimizer"
    asked = config_for(tmp_path)
    assert with_choices_kept(asked) == asked
    with open_run_folder(config_for(tmp_path, **{offload: chosen})) as run:
        assert with_choices_kept(asked) == asked  # it has got nowhere yet
        newest = checkpoint(run.path, 20)
    kept = with_choices_kept(asked)
    assert kept.learner.offload_optimizer is chosen
    with open_run_folder(kept) as again:
        assert again.resume_from == newest
    for free in (config_for(tmp_path, **{offload: not chosen}), config_for(tmp_path, **{"run.overwrite": True})):
        assert with_choices_kept(free) == free
    (run.path / "config.toml").write_text("[learner]\nno_such_key = 1\n")
    assert with_choices_kept(asked) == asked


def test_every_start_of_a_run_is_another_lineage(tmp_path):
    lineages = []
    for _ in range(3):  # the same checkpoint each time: the runs die before the next
        with open_run_folder(config_for(tmp_path)) as run:
            checkpoint(run.path, 20)
            lineages.append(run.lineage)
    assert lineages == [0, 1, 2]


def test_a_learner_that_died_goes_on_from_the_newest_intact_checkpoint_under_the_next_lineage(tmp_path, capsys):
    with open_run_folder(config_for(tmp_path)) as run:
        (run.path / "STOP").touch()
        again = run.go_on()
        assert (again.resume_from, again.version, again.lineage) == (None, 0, 1)
        older, newest = (checkpoint(run.path, version) for version in (20, 40))
        again = run.go_on()
        assert (again.resume_from, again.version, again.lineage) == (newest, 40, 2)
        (newest / "state.json").write_text("{}")
        again = again.go_on()
        assert (again.resume_from, again.version, again.lineage) == (older, 20, 3)
        assert str(newest) in capsys.readouterr().out
        assert (run.path / "STOP").exists()
        (older / "state.json").write_text("{}")
        with pytest.raises(CheckpointError, match="every checkpoint"):
            again.go_on()
    for path in (older, newest):
        shutil.rmtree(path)
    newest = checkpoint(run.path, 60)
    with open_run_folder(config_for(tmp_path)) as next_start:
        assert next_start.lineage == 4  # a failed start has none of its own
        assert next_start.version == 60


def test_a_journal_that_the_checkpoint_says_was_longer_is_refused_before_anything_starts(tmp_path):
    with open_run_folder(config_for(tmp_path)) as run:
        checkpoint(run.path, 20, journal_end=100)
    with pytest.raises(JournalError, match="after 0 bytes, and the checkpoint accounts for 100"):
        enter(config_for(tmp_path))
    (run.path / "journal").write_bytes(bytes(99))
    with pytest.raises(JournalError, match="after 99 bytes"):
        enter(config_for(tmp_path))


def test_a_damaged_count_of_the_starts_is_a_clear_error(tmp_path):
    with open_run_folder(config_for(tmp_path)) as run:
        checkpoint(run.path, 20)
    (run.path / "lineage").write_text("one\n")
    with pytest.raises(CheckpointError, match="lineage, which counts the starts of the run, is damaged"):
        enter(config_for(tmp_path))


def test_a_run_is_finished_once_its_summary_is_on_record(tmp_path):
    with open_run_folder(config_for(tmp_path)) as run:
        assert run.finished() is None
        accuracy = {"deduction": {"before": 0.1, "after": 0.2}}
        summary = Summary(0.1, 0.2, 0.3, accuracy, None, 0.5, 5, 1.5, 10, 100, 6, 0)
        write_json(run.path / "summary.json", asdict(summary))
        assert run.finished() == summary


def test_a_folder_of_another_version_of_the_configuration_says_so(tmp_path):
    with open_run_folder(config_for(tmp_path)) as run:
        checkpoint(run.path, 20)
    with (run.path / "config.toml").open("a") as file:
        file.write("\n[forgotten]\nkey = 1\n")
    with pytest.raises(ConfigError, match=r"another version of primezero.*\n.*forgotten: unknown key"):
        enter(config_for(tmp_path))


def test_what_a_replacement_that_was_cut_short_left_is_not_resumed(tmp_path):
    with open_run_folder(config_for(tmp_path)) as run:
        checkpoint(run.path, 20)
    (run.path / "config.toml").unlink()
    with open_run_folder(config_for(tmp_path)) as again:
        assert (again.resume_from, again.lineage) == (None, 0)
        assert not (run.path / "checkpoints").exists()


def test_a_finished_run_says_so(tmp_path):
    with open_run_folder(config_for(tmp_path, **{"run.steps": 20})) as run:
        checkpoint(run.path, 20)
    enter(config_for(tmp_path, **{"run.steps": 20}))  # killed before it had written its summary
    (run.path / "summary.json").touch()
    with pytest.raises(ConfigError, match=r"finished its 20 steps: raise --run\.steps"):
        enter(config_for(tmp_path, **{"run.steps": 20}))
    enter(config_for(tmp_path, **{"run.steps": 21}))
    assert not (run.path / "summary.json").exists()


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_can_write_is_not_resumed(tmp_path, mode):
    with open_run_folder(config_for(tmp_path)) as run:
        checkpoint(run.path, 20)
    run.path.chmod(mode)
    with pytest.raises(ConfigError, match="not to be trusted"):
        enter(config_for(tmp_path))


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/step-000020", "checkpoints/step-000020/state.json"])
def test_what_lies_elsewhere_or_others_can_write_is_not_resumed(tmp_path, name):
    with open_run_folder(config_for(tmp_path)) as run:
        checkpoint(run.path, 20)
    path = run.path / name
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode | 0o020)
    with pytest.raises(ConfigError, match=rf"{name} belongs to.*not to be trusted.*chmod"):
        enter(config_for(tmp_path))
    path.chmod(mode)
    moved = path.rename(tmp_path / "elsewhere")
    path.symlink_to(moved)
    with pytest.raises(ConfigError, match=rf"{name} is a symbolic link"):
        enter(config_for(tmp_path))
    path.unlink()
    moved.rename(path)
    enter(config_for(tmp_path))


def test_a_disk_that_has_become_read_only_is_a_clear_error_before_anything_starts(tmp_path, monkeypatch):
    with open_run_folder(config_for(tmp_path)) as run:
        checkpoint(run.path, 20)

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("shared.metrics.os.replace", refuse)
    with pytest.raises(ConfigError, match=r"cannot use the run folder .*Read-only file system; choose.*--run\.folder"):
        enter(config_for(tmp_path))


def test_a_run_that_is_still_going_is_neither_overwritten_nor_joined(tmp_path):
    with open_run_folder(config_for(tmp_path)) as run:
        for settings in ({"run.overwrite": "true"}, {}):
            with pytest.raises(ConfigError, match=r"still going.*STOP.*another --run\.name"):
                enter(config_for(tmp_path, **settings))
    assert (run.path / "config.toml").exists()


def test_a_folder_that_is_no_run_is_never_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.toml").write_text("years = 7")
    overwriting = config_for(tmp_path, **{"run.overwrite": "true"})
    with pytest.raises(ConfigError, match="not a run"):
        enter(overwriting)
    assert (tmp_path / "mine/config.toml").read_text() == "years = 7"


@pytest.mark.parametrize("resume", [False, True])
def test_a_name_that_is_too_long_for_a_file_is_a_clear_error(tmp_path, resume):
    config = config_for(tmp_path / ("x" * 300))
    with (
        pytest.raises(ConfigError, match=r"cannot use the run folder .*File name too long"),
        open_run_folder(config, resume=resume),
    ):
        pass


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use the run folder"):
        enter(config_for(tmp_path / "file"))


def test_resume_demands_a_run_to_go_on_with(tmp_path):
    def resume(**overrides):
        with open_run_folder(config_for(tmp_path, **overrides), resume=True) as run:
            return run

    with pytest.raises(ConfigError, match=r"no run in .*mine to resume: check --run\.folder"):
        resume()
    assert list(tmp_path.iterdir()) == []
    with open_run_folder(config_for(tmp_path)) as run:
        newest = checkpoint(run.path, 20)
    with pytest.raises(ConfigError, match=r"--run\.overwrite"):
        resume(**{"run.overwrite": "true"})
    assert newest.exists()
    assert resume().resume_from == newest


@pytest.mark.parametrize("overwrite", ["true", "false"])
def test_what_an_earlier_start_left_on_the_machine_is_removed_by_the_next(tmp_path, overwrite):
    with open_run_folder(config_for(tmp_path)) as run:
        checkpoint(run.path, 20)
    folder = tmp_path / "primezero-left"
    folder.mkdir(mode=0o700)
    sleeper = subprocess.Popen(["sleep", "100"], env=os.environ | {"PRIMEZERO_PROCESS": f"{folder}/rollout-0"})
    try:
        Leftovers.of(folder).write(run.path / "leftovers.json")
        with open_run_folder(config_for(tmp_path, **{"run.overwrite": overwrite})):
            assert sleeper.wait(60) == -signal.SIGKILL
            assert not folder.exists()
            assert not (run.path / "leftovers.json").exists()
    finally:
        sleeper.kill()


def test_a_run_that_still_lives_loses_nothing_to_a_second_start(tmp_path):
    with open_run_folder(config_for(tmp_path)) as run:
        folder = tmp_path / "primezero-used"
        folder.mkdir(mode=0o700)
        Leftovers.of(folder).write(run.path / "leftovers.json")
        with pytest.raises(ConfigError, match="still going"):
            enter(config_for(tmp_path))
        remove_what_is_left(config_for(tmp_path))
        assert folder.exists()
    remove_what_is_left(config_for(tmp_path))
    assert not folder.exists()


def test_what_is_left_is_removed_of_a_run_alone(tmp_path):
    remove_what_is_left(config_for(tmp_path))
    assert list(tmp_path.iterdir()) == []
    remove_what_is_left(config_for(tmp_path / ("x" * 300)))
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="not a run"):
        remove_what_is_left(config_for(tmp_path))


def test_a_run_s_models_are_what_they_are_made_of_wherever_they_lie(tmp_path):
    model, reference = make_model_folder(tmp_path / "model"), make_model_folder(tmp_path / "reference")

    def made_with(model, reference):
        return config_for(tmp_path, **{"model.path": model, "learner.reference_model": reference})

    with open_run_folder(made_with(model, reference)) as run:
        newest = checkpoint(run.path, 20)
    moved, reference_moved = model.rename(tmp_path / "moved"), reference.rename(tmp_path / "reference moved")
    with open_run_folder(made_with(moved, reference_moved)) as run:
        assert run.resume_from == newest
    assert load_config(run.path / "config.toml").model.path == moved
    # Another of the same family: of its files only the numbers differ.
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    other = shutil.copytree(moved, tmp_path / "other")
    (other / "model.safetensors").write_bytes(weights)
    for models, key in (((other, reference_moved), r"model\.path"), ((moved, other), r"learner\.reference_model")):
        with pytest.raises(ConfigError, match=rf"made with another model than that in .*other \({key}\)"):
            enter(made_with(*models))
    (reference_moved / "model.safetensors").write_bytes(weights)  # in its place
    with pytest.raises(ConfigError, match=r"another model than that in .*reference moved"):
        enter(made_with(moved, reference_moved))
    (moved / "tokenizer.json").write_text("{ }")
    with pytest.raises(ConfigError, match=r"another model than that in .*moved \(model\.path\)"):
        enter(made_with(moved, reference_moved))


def test_a_run_of_which_no_fingerprints_are_on_record_is_resumed_with_the_same_folder(tmp_path):
    with open_run_folder(config_for(tmp_path)) as run:
        checkpoint(run.path, 20)
    (run.path / "models.json").unlink()
    with pytest.raises(ConfigError, match=r"model\.path \(models/tiny before"):
        enter(config_for(tmp_path, **{"model.path": make_model_folder(tmp_path / "model")}))
    enter(config_for(tmp_path))
