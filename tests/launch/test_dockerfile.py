"""The image's steps, as far as they can be followed without an engine that builds images."""

import shlex
import shutil
import tomllib

import pytest
from setuptools import find_packages


@pytest.fixture
def steps(request):
    """The instructions, each a list of words; continued lines joined, comments left out."""
    text = (request.config.rootpath / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [shlex.split(line) for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line]


def test_what_is_copied_before_the_installation_is_all_that_it_looks_for(request, steps, tmp_path):
    root = request.config.rootpath
    setup = next(i for i, words in enumerate(steps) if words[0] == "RUN" and "launch/setup.sh" in words)
    for _, owner, *sources, target in (words for words in steps[:setup] if words[0] == "COPY"):
        assert owner == "--chown=primezero"
        for source in sources:
            if (root / source).is_dir():
                shutil.copytree(root / source, tmp_path / target)
            else:
                (tmp_path / target).mkdir(exist_ok=True)
                shutil.copy(root / source, tmp_path / target)
    include = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    top = {name for name in find_packages(str(root), include=include) if "." not in name}
    assert set(find_packages(str(tmp_path), include=include)) == top
    for name in ("pyproject.toml", "README.md", "LICENSE", "launch/setup.sh", "launch/locks/gpu.txt"):
        assert (tmp_path / name).is_file()


def test_every_package_is_in_the_image_and_nothing_runs_as_root(steps):
    copied = {source for words in steps if words[0] == "COPY" for source in words[2:-1]}
    assert {"shared", "rollout", "learner", "launch"} <= copied
    user = next(i for i, words in enumerate(steps) if words[0] == "USER")
    assert steps[user] == ["USER", "1000"]
    assert not [words for words in steps[user + 1 :] if words[0] == "USER"]
    assert steps[-1][0] == "ENTRYPOINT"
