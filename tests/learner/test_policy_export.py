"""What `primezero export` makes of a policy's checkpoint is what the policy itself would have written."""

import pytest
from plain_policy import CONFIG, make_policy
from random_batches import random_batch

from launch.export.weights import save_weights

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero_stage", [1, 2])
def test_an_exported_checkpoint_has_the_policys_bytes(model_folder, tmp_path, zero_stage, dtype):
    policy = make_policy(model_folder, CONFIG.model_copy(update={"zero_stage": zero_stage}), dtype=dtype)
    policy.train(random_batch(rows=14, seed=0))
    (tmp_path / "step/policy").mkdir(parents=True)
    policy.save(tmp_path / "step/policy")
    policy.save_pretrained(tmp_path / "own")
    save_weights(tmp_path / "step", model_folder, tmp_path / "exported")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "exported" / name).read_bytes() == (tmp_path / "own" / name).read_bytes()
    before = (model_folder / "model.safetensors").read_bytes()
    assert (tmp_path / "exported/model.safetensors").read_bytes() != before
