"""Text files are UTF-8, whatever the locale: a POSIX one would have them ASCII, and a model's JSON is not."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TEXT = {"read_text", "write_text"}
_OPEN = {"open", "fdopen"}


def opens_text_without_encoding(call: ast.Call) -> bool:
    """Whether it reads or writes text in the locale's encoding; `open` methods of other things take no mode."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if any(keyword.arg == "encoding" for keyword in call.keywords) or name not in _TEXT | _OPEN:
        return False
    if name in _TEXT:
        return True
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    modes = [each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return not any("b" in mode for mode in modes) if modes else isinstance(call.func, ast.Name) or not call.args


def test_no_text_file_is_opened_in_the_locale_s_encoding():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("shared", "rollout", "learner", "launch")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and opens_text_without_encoding(node)
    ]
    assert [place for place in found if not place.startswith("launch/ray_cluster.py")] == []  # its machines' own `open`


def test_a_model_and_a_run_s_settings_are_read_as_utf_8_in_a_posix_locale(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "Straße"}', encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from shared.metrics import replace_file;"
        "from shared.model_config import read_object; folder = Path(sys.argv[1]);"
        "replace_file(folder / 'copy', read_object(folder / 'config.json')['name'])"
    )
    posix = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    subprocess.run([sys.executable, "-c", code, tmp_path], env=posix, cwd=ROOT, check=True)
    assert (tmp_path / "copy").read_text(encoding="utf-8") == "Straße"
