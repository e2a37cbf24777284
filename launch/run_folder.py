"""The run folder: private, never two runs in one, and where a run goes on from."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launch.private_folder import remove_leftovers
from launch.trusted import check_trusted
from learner.checkpoint import CheckpointStore, TrainerState
from learner.journal import JOURNAL, check_length
from learner.progress import Summary
from shared.config import Config
from shared.config_file import dump_toml, load_config, values_by_key
from shared.disk import free_bytes, reason, size, writing
from shared.errors import CheckpointError, ConfigError
from shared.metrics import replace_file, write_json
from shared.model_config import read_object
from shared.model_folder import model_fingerprint, tokenizer_fingerprint

CONFIG_FILE = "config.toml"
SUMMARY_FILE = "summary.json"
METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
STOP_FILE = "STOP"
LINEAGE_FILE = "lineage"
# The fingerprints of what it is made with, by the keys of the configuration that name the folders.
MODELS_FILE = "models.json"
RESTARTS_FILE = "restarts.jsonl"
CHECKPOINTS = "checkpoints"
# Marks a folder as a run's; locked while that run lives.
LOCK_FILE = ".primezero-run"
# What may differ from the run that is resumed: nothing that the result depends on.
_FREE_SECTIONS = ("run.", "rollout.", "stream.", "sync.", "placement.", "tracking.", "monitor.")
_FREE_KEYS = {
    "learner.threads",
    "learner.max_tokens",
    "learner.activation_checkpointing",
    "learner.gpu_memory_share",
    "learner.logit_chunk_mib",
    "sampling.max_prompt_tokens",
    "selfplay.buffer_capacity",
}
_FIXED_KEYS = {"run.seed", "sync.every"}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder, locked for this process.

    resume_from: the checkpoint to go on from, if any; version: its weight version, else 0
    lineage: how often the run, or its learner, has been started before
    """

    path: Path
    resume_from: Path | None
    lineage: int
    version: int = 0

    def go_on(self) -> RunFolder:
        """Where a learner that is started in the place of a dead one goes on from, under the next lineage.

        Raises CheckpointError when every checkpoint is broken.
        """
        return _go_on(self.path, _newest(self.path))

    def finished(self) -> Summary | None:
        """The summary, once the run is complete: it is the last that the learner writes."""
        summary = self.path / SUMMARY_FILE
        return msgspec.json.decode(summary.read_bytes(), type=Summary) if summary.exists() else None


@contextlib.contextmanager
def open_run_folder(config: Config, *, resume: bool = False) -> Iterator[RunFolder]:
    """`<run.folder>/<run.name>`: new, or that of an earlier run with the same settings, which goes on.

    The resolved configuration and logs/ are in it. Raises ConfigError when the folder cannot be written, is no run or
    somebody else's, its run still lives or is finished, or had other settings.
    `run.overwrite` replaces a run that has ended. With `resume`, ConfigError where there is nothing to go on with.
    What an earlier start has left on the machine is removed.
    """
    folder = config.run_folder.resolve()
    with contextlib.ExitStack() as opened:
        try:
            if resume and (config.run.overwrite or not _begun(folder)):
                raise ConfigError(_nothing_to_resume(folder, config))
            run_folder = _open(folder, config, opened)
        except OSError as error:
            raise ConfigError(
                f"cannot use the run folder {folder}: {reason(error)}; choose a place that is yours to write and has "
                f"room, with --run.folder ({size(free_bytes(folder))} free here)"
            ) from error
        yield run_folder


def remove_what_is_left(config: Config) -> None:
    """Of an earlier start of the run, on this machine, before it is checked whether there is room for another: nothing
    of a run that is still going.

    Raises ConfigError where the folder is no run or somebody else's.
    """
    folder = config.run_folder.resolve()
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:  # `open_run_folder` says what is wrong
        if folder.exists():
            _check_ours(folder)
            fcntl.flock(opened.enter_context((folder / LOCK_FILE).open("rb")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_leftovers(folder)


def with_choices_kept(config: Config) -> Config:
    """Where this configuration goes on with a run, what that one chose of what is left open and its checkpoints depend
    on: chosen anew, on another GPU or beside others' work, it could come out differently."""
    folder = config.run_folder.resolve()
    if config.learner.offload_optimizer != "auto" or config.run.overwrite or not _begun(folder):
        return config
    try:
        chosen = load_config(folder / CONFIG_FILE).learner.offload_optimizer
    except ConfigError:
        return config  # `open_run_folder` says what is wrong
    learner = config.learner.model_copy(update={"offload_optimizer": chosen})
    return config.model_copy(update={"learner": learner})


def is_going(folder: Path) -> bool:
    """Whether the run in this folder lives."""
    try:
        with (folder / LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # nothing there to be locked
    return False


def _open(folder: Path, config: Config, opened: contextlib.ExitStack) -> RunFolder:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        _check_ours(folder)
    else:
        folder.mkdir(mode=0o700)
        (folder / LOCK_FILE).touch()
    _lock(opened.enter_context((folder / LOCK_FILE).open("rb")).fileno(), folder)
    remove_leftovers(folder)
    found = _resume(folder, config)
    (folder / STOP_FILE).unlink(missing_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    replace_file(folder / CONFIG_FILE, dump_toml(config))
    write_json(folder / MODELS_FILE, _models(config))
    return _go_on(folder, found)


def _newest(folder: Path) -> tuple[Path, TrainerState] | None:
    return CheckpointStore(folder / CHECKPOINTS, keep=1).latest(warn=print)


def _go_on(folder: Path, found: tuple[Path, TrainerState] | None) -> RunFolder:
    checkpoint, version = (None, 0) if found is None else (found[0], found[1].version)
    return RunFolder(folder, checkpoint, _next_lineage(folder / LINEAGE_FILE), version)


def _next_lineage(file: Path) -> int:
    try:
        lineage = int(file.read_text(encoding="utf-8")) + 1 if file.exists() else 0
    except ValueError as error:
        raise CheckpointError(
            f"{file}, which counts the starts of the run, is damaged: put it back as it was, or begin anew with "
            "--run.overwrite true"
        ) from error
    with writing(file):
        replace_file(file, f"{lineage}\n")
    return lineage


def _check_ours(folder: Path) -> None:
    if not (folder / LOCK_FILE).is_file():
        raise ConfigError(f"{folder} exists and is not a run: it is left alone; choose another --run.name")
    check_trusted(folder, CHECKPOINTS)


def _lock(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"{folder} belongs to a run that is still going, which nothing replaces: wait for it, stop it (Ctrl-C, or "
            f"a file named {STOP_FILE} in that folder), or choose another --run.name"
        ) from error


def _nothing_to_resume(folder: Path, config: Config) -> str:
    if config.run.overwrite:
        return "--resume goes on with a run that --run.overwrite true would replace: leave one of the two out"
    return (
        f"there is no run in {folder} to resume: check --run.folder and --run.name, or leave --resume out to begin one"
    )


def _resume(folder: Path, config: Config) -> tuple[Path, TrainerState] | None:
    # Without a configuration no run got as far as that, or replacing one was cut short.
    if config.run.overwrite or not (folder / CONFIG_FILE).exists():
        _empty(folder)
        return None
    found = _newest(folder)
    if found is None and not _has(folder / JOURNAL):
        if not _has(folder / METRICS_FILE):
            return None  # it never got to its first step
        raise ConfigError(
            f"{folder} exists, without a checkpoint or a journal to resume from: choose another --run.name, or pass "
            "--run.overwrite true to replace it"
        )
    _check_same(folder, config)
    if found is None:
        return None  # until its first checkpoint a run goes on from its journal alone
    _, state = found
    check_length(folder / JOURNAL, state.journal_end)
    summary = folder / SUMMARY_FILE
    if state.version > config.run.steps or (state.version == config.run.steps and summary.exists()):
        raise ConfigError(
            f"the run in {folder} has finished its {state.version} steps: raise --run.steps to go on, choose another "
            "--run.name, or pass --run.overwrite true to replace it"
        )
    summary.unlink(missing_ok=True)
    return found


def _begun(folder: Path) -> bool:
    """Whether a run has left anything to go on with."""
    saved = _has(folder / JOURNAL) or any((folder / CHECKPOINTS).glob("step-*"))
    return saved and (folder / CONFIG_FILE).is_file()


def _has(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


def _models(config: Config) -> dict[str, str]:
    """By the keys that name the folders; of a model with its tokenizer."""
    model, reference = config.model.path, config.learner.reference_model
    models = {"model.path": f"{model_fingerprint(model)} {tokenizer_fingerprint(model)}"}
    return models if reference is None else models | {"learner.reference_model": model_fingerprint(reference)}


def _check_same(folder: Path, config: Config) -> None:
    try:
        before, after = values_by_key(load_config(folder / CONFIG_FILE)), values_by_key(config)
    except ConfigError as error:
        raise ConfigError(
            f"the run in {folder} was made with another version of primezero: choose another --run.name, or pass "
            f"--run.overwrite true to replace it. In its {CONFIG_FILE}, {error}"
        ) from error
    # A model is what it is made of, not where it lies: its folder may have moved, or hold another one by now.
    was, now = read_object(folder / MODELS_FILE), _models(config)
    same = {key for key in now if was.get(key) == now[key]}
    others = [key for key in now if key in was and key not in same]
    if others:
        raise ConfigError(
            f"the run in {folder} was made with another model than that in {after[others[0]]} ({others[0]}): name the "
            "folder that has it, choose another --run.name, or pass --run.overwrite true to replace it"
        )
    changed = [
        key
        for key in after
        if before[key] != after[key]
        and key not in same
        and (key in _FIXED_KEYS or not (key.startswith(_FREE_SECTIONS) or key in _FREE_KEYS))
    ]
    if changed:
        listed = ", ".join(f"{key} ({before[key]} before, {after[key]} asked for)" for key in changed)
        raise ConfigError(
            f"the run in {folder} was made with other settings: {listed}. Resume it with the same, choose another "
            "--run.name, or pass --run.overwrite true to replace it"
        )
