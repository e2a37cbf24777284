"""What PyTorch's allocator is told, and what is said when it has nothing left."""

import os

import pytest
import torch

from learner.device_memory import ALLOCATOR_SETTINGS, explain_full_memory, keep_large_blocks_whole
from learner.trainer import run_learner
from learner.weight_ipc import refuse_expandable_segments
from shared.config import Config
from shared.config_placement import PlacementConfig
from shared.errors import DeviceMemoryError, InstallationError


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ALLOCATOR_SETTINGS:
        monkeypatch.setenv(name, "")  # so that what is set is taken back


def settings() -> list[str]:
    return [value for name in ALLOCATOR_SETTINGS if (value := os.environ.get(name))]


def test_large_blocks_stay_whole_and_can_be_shared_with_the_engine():
    keep_large_blocks_whole()
    assert settings() == ["max_split_size_mb:1024"]
    refuse_expandable_segments(os.environ.get)  # does not raise


@pytest.mark.parametrize("name", ALLOCATOR_SETTINGS)
def test_a_user_s_own_settings_stay(monkeypatch, name):
    monkeypatch.setenv(name, "max_split_size_mb:64")
    keep_large_blocks_whole()
    assert settings() == ["max_split_size_mb:64"]


@pytest.mark.parametrize(("share", "named"), [(0.74, "learner.gpu_memory_share=0.74"), (None, "is full")])
def test_full_memory_is_explained(share, named):
    with pytest.raises(DeviceMemoryError, match="Tried to allocate") as raised, explain_full_memory(share):
        raise torch.OutOfMemoryError(
            "Tried to allocate 1 GiB. If reserved but unallocated memory is large try another."
        )
    assert named in str(raised.value)
    assert "learner.max_tokens" in str(raised.value)
    assert "try another" not in str(raised.value)


def test_other_errors_pass():
    with pytest.raises(ValueError, match="other"), explain_full_memory(None):
        raise ValueError("other")


def test_a_run_on_gpus_does_not_train_on_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InstallationError, match="cannot use the GPU"):
        run_learner(Config(placement=PlacementConfig(device="cuda")), None)
