"""What a tiny model is made of: where that has changed, the model is made anew."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "launch/configs/cpu_demo.toml"
_MADE_BY = (
    "launch/tiny_*.py",
    "rollout/answers.py",
    "rollout/chat.py",
    "rollout/environment.py",
    "rollout/prime_*.py",
    "shared/config.py",
    "shared/episodes.py",
)


def recipe_digest() -> str:
    """SHA-256 of the demo's configuration and of the code. A needless new model is the same to the byte."""
    return digest_of([CONFIG, *sorted(path for pattern in _MADE_BY for path in ROOT.glob(pattern))])


def digest_of(paths: Sequence[Path]) -> str:
    """SHA-256 of the files' SHA-256 sums, hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


if __name__ == "__main__":
    print(recipe_digest())
