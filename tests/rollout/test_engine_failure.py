"""The engine's own reason reaches the message, and what no restart can mend is told from what may pass."""

import logging
from pathlib import Path

import pytest

from rollout import engine_failure
from rollout.engine_vllm import failure
from shared.errors import EngineError, ModelFolderError

MODEL = Path("models/mine")
FRONT = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("PRIMEZERO_ENGINE_FAILURE", raising=False)
    engine_failure.expect()
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def core_fails(error: Exception) -> None:
    """As vLLM logs it."""
    logger = logging.getLogger("vllm.v1.engine.core")
    engine_failure.report()
    try:
        raise error
    except Exception:
        logger.exception("EngineCore failed to start.")
    finally:
        logger.removeHandler(logger.handlers[-1])


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (KeyError("base_model.model.lora_A"), ModelFolderError),
        (ValueError("There is no module or parameter named 'lora'"), ModelFolderError),
        (AssertionError("heads"), ModelFolderError),
        (NotImplementedError("rope"), ModelFolderError),
        (ValueError("No available memory for the cache blocks."), EngineError),
        (RuntimeError("CUDA error"), EngineError),
        (OSError("No space left on device"), EngineError),
    ],
)
def test_the_cause_in_the_engine_s_own_process_is_what_is_told(cause, kind):
    core_fails(cause)
    refused = engine_failure.refusal(MODEL, FRONT)
    assert type(refused) is kind
    assert f"{type(cause).__name__}: {cause}" in str(refused)
    assert "above" not in str(refused)


def test_without_one_it_is_what_was_raised_here():
    assert isinstance(engine_failure.refusal(MODEL, FRONT), EngineError)
    refused = engine_failure.refusal(MODEL, ValueError("block_size must be\na multiple of 32"))
    assert str(refused).endswith("with these settings: ValueError: block_size must be a multiple of 32")
    assert isinstance(refused, ModelFolderError)


def test_what_a_running_engine_dies_of_is_told_with_each_request_that_fails():
    from vllm.v1.engine.exceptions import EngineDeadError

    assert failure(EngineDeadError()) == "EngineCore has died, and the log says of what"
    core_fails(RuntimeError("Unsupported CPU attention configuration"))
    for _ in range(2):
        assert (
            failure(EngineDeadError()) == "EngineCore has died: RuntimeError: Unsupported CPU attention configuration"
        )
    assert failure(ValueError("n")) == "ValueError: n"
    engine_failure.forget()


def test_the_cause_of_an_earlier_start_is_forgotten():
    core_fails(KeyError("lora"))
    engine_failure.expect()
    assert "lora" not in str(engine_failure.refusal(MODEL, FRONT))
