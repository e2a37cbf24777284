"""What EngineCore failed of. vLLM's front end only says that the cause stands "above", in another process's log.

`report` runs in EngineCore's process, the others in that of the adapter.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from pathlib import Path

from shared.errors import EngineError, ModelFolderError, PrimezeroError, described

# Of the file that the cause is left in; read when it is written, for EngineCore's process may be older than its engine.
_VARIABLE = "PRIMEZERO_ENGINE_FAILURE"
_LOGGER = "vllm.v1.engine.core"


class _Reporter(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        error, file = record.exc_info and record.exc_info[1], os.environ.get(_VARIABLE)
        if isinstance(error, BaseException) and file:
            content = {"reason": described(error), "lasting": lasting(error)}
            with contextlib.suppress(OSError):
                Path(file).write_text(json.dumps(content), encoding="utf-8")


def report() -> None:
    """Leave the cause where the adapter looks for it."""
    logging.getLogger(_LOGGER).addHandler(_Reporter(logging.ERROR))


def expect() -> None:
    """Before an engine is started: have EngineCore leave its cause in a file of this process."""
    os.environ[_VARIABLE] = f"{tempfile.gettempdir()}/primezero-engine-{os.getpid()}.json"
    forget()


def forget() -> None:
    """Once the engine has ended: remove the file."""
    if _VARIABLE in os.environ:
        Path(os.environ[_VARIABLE]).unlink(missing_ok=True)


def cause() -> tuple[str, bool] | None:
    """What EngineCore has failed of, in one line, and whether that is `lasting`; None where it has left nothing."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        left = json.loads(Path(os.environ[_VARIABLE]).read_text(encoding="utf-8"))
        return " ".join(left["reason"].split()), bool(left["lasting"])
    return None


def lasting(error: BaseException) -> bool:
    """Whether another start would meet it again: it is about what was read, not about what the machine has left."""
    if isinstance(error, NotImplementedError):
        return True
    return not isinstance(error, OSError | MemoryError | RuntimeError) and "memory" not in str(error).lower()


def refusal(model: Path, error: Exception) -> PrimezeroError:
    """What to raise where vLLM raised `error` at its start: ModelFolderError where no restart helps, or EngineError."""
    reason, stays = cause() or (" ".join(described(error).split()), lasting(error))
    forget()
    if stays:
        return ModelFolderError(f"the engine does not take the model in {model} with these settings: {reason}")
    return EngineError(f"the engine did not start with {model}: {reason}")
