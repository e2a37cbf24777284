import json
import shutil

import pytest

from learner.packed_model import load_model
from shared.errors import ModelFolderError


def test_weights_of_other_shapes_than_config_json_describes_are_named(model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    wider = config["intermediate_size"] + 64
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": wider}))
    with pytest.raises(ModelFolderError, match=rf"down_proj\.weight: .* instead of \[\d+, {wider}\]"):
        load_model(folder, "float32")
