import pytest
from experiment_runs import FakePrimezero

from launch import model_recipe
from launch.experiments import models
from shared.errors import ModelFolderError


def test_a_model_is_made_anew_when_its_recipe_has_changed(tmp_path, monkeypatch):
    fake = FakePrimezero()
    first = models.ensure_model(tmp_path, 0, fake)
    assert models.ensure_model(tmp_path, 0, fake) == first
    assert fake.calls == ["tiny-0"]
    monkeypatch.setattr(model_recipe, "recipe_digest", lambda: "another")
    assert models.ensure_model(tmp_path, 0, fake) == first
    assert fake.calls == ["tiny-0", "tiny-0"]
    assert models.ensure_model(tmp_path, 1, fake) != first


def test_a_model_that_cannot_be_made_ends_the_plan(tmp_path):
    with pytest.raises(ModelFolderError, match=r"seed 0 was not made: see .*tiny-0\.log"):
        models.ensure_model(tmp_path, 0, lambda arguments, log: 1)
