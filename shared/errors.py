"""Errors that a user can act on. Each message says what went wrong and what to look at."""

import traceback


class PrimezeroError(Exception):
    """Base of every error that ends a command with a message instead of a traceback. exit_code: of the command"""

    exit_code = 1


def named(error: PrimezeroError) -> str:
    """An error as it is shown: the name that docs/troubleshooting.md has it by, where it has one, and what it says."""
    return f"{type(error).__name__}: {error}" if type(error) is not PrimezeroError else str(error)


def described(error: BaseException) -> str:
    """Any error as text, in as many lines as it has: `named`, or as Python ends a traceback with it."""
    if isinstance(error, PrimezeroError):
        return named(error)
    return "".join(traceback.format_exception_only(error)).strip()


class ConfigError(PrimezeroError):
    """The configuration names an unknown key or an impossible value."""


class InstallationError(PrimezeroError):
    """A library that a run stands on is missing, or of a version that it does not know; or there is no GPU."""


class DiskError(PrimezeroError):
    """A disk has no room for a run's files, or does not take them."""


class PlanError(PrimezeroError):
    """A GPU, or the memory of a machine, has no room for what a run would put there."""


class DeviceMemoryError(PrimezeroError):
    """A GPU ran out of memory in the middle of a run."""


class PlacementError(PrimezeroError):
    """The machines do not have what a run's placement asks for, or cannot be reached."""


class ModelFolderError(PrimezeroError):
    """A model folder is missing, incomplete, or does not fit the configuration."""


class MessageError(PrimezeroError):
    """A wire message is malformed, too large, or of a foreign protocol."""


class StreamTimeoutError(PrimezeroError):
    """The other side of the stream did not answer within its time."""


class HandshakeError(PrimezeroError):
    """Whoever listens at the stream's address does not take this end in."""


class WorkerFailedError(PrimezeroError):
    """A rollout worker reported an error, or vanished with work open."""


class SentAwayError(WorkerFailedError):
    """The learner gave up a rollout worker that it had welcomed: another start of it may do better."""


class EngineError(PrimezeroError):
    """The inference engine refused or failed an operation."""


class WeightSyncError(PrimezeroError):
    """A weight update failed, or the engine's weights are not the learner's."""


class CheckpointError(PrimezeroError):
    """A checkpoint cannot be written, is broken, or belongs to a run with other settings."""


class JournalError(PrimezeroError):
    """The journal of acknowledged tickets cannot be opened, read or written."""


class RunInterruptedError(PrimezeroError):
    """A run was ended at once, by Ctrl-C a second time or by SIGTERM. exit_code: as a shell has it of that signal."""

    def __init__(self, signum: int) -> None:
        super().__init__("every process of the run has been ended; given again, the same command goes on")
        self.exit_code = 128 + signum
