"""What a tiny model is made of: where that has changed, the model is made anew.

python -m launch.model_recipe models/tiny-0 --run.seed 0
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = Path("launch/configs/cpu_demo.toml")
RECIPE_FILE = ".recipe"
_MADE_BY = (
    "launch/tiny_*.py",
    "rollout/answers.py",
    "rollout/chat.py",
    "rollout/environment.py",
    "rollout/prime_*.py",
    "shared/config.py",
    "shared/episodes.py",
)


def ensure_model(folder: Path, make: Callable[[], None]) -> None:
    """Call `make`, which makes the demo's model in `folder`, unless it is there, made by today's recipe."""
    recipe, made_by = recipe_digest(), folder / RECIPE_FILE
    if made_by.is_file() and made_by.read_text(encoding="utf-8") == recipe:
        return
    if folder.exists():
        shutil.rmtree(folder)
    make()
    made_by.write_text(recipe, encoding="utf-8")


def recipe_digest() -> str:
    """SHA-256 of the demo's configuration and of the code. A needless new model is the same to the byte."""
    return digest_of([ROOT / CONFIG, *sorted(path for pattern in _MADE_BY for path in ROOT.glob(pattern))])


def digest_of(paths: Sequence[Path]) -> str:
    """SHA-256 of the files' SHA-256 sums, hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _main(folder: str, *overrides: str) -> None:
    from launch.cli import main

    def make() -> None:
        if code := main(["init-model", folder, "--config", str(ROOT / CONFIG), *overrides]):
            sys.exit(code)

    ensure_model(Path(folder), make)


if __name__ == "__main__":
    _main(*sys.argv[1:])
