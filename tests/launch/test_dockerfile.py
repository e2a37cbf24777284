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


def test_every_package_is_in_the_image_and_all_that_is_copied_is_there(request, steps):
    root = request.config.rootpath
    copied = [source for words in steps if words[0] == "COPY" for source in words[2:-1]]
    assert all((root / name).exists() for name in copied)
    assert {"shared", "rollout", "learner", "launch", "pyproject.toml"} <= set(copied)
    allowed = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name.split("/")[0] for name in copied} == allowed


def test_it_runs_the_script_as_a_user_of_its_own_with_runs_on_a_volume(steps):
    names = [words[0] for words in steps]
    assert [words for words in steps if words[0] == "USER"] == [["USER", "1000"]]
    setup = next(i for i, words in enumerate(steps) if words[0] == "RUN" and "launch/setup.sh" in words)
    assert names.index("USER") < setup
    assert "/primezero/runs" in "".join(steps[names.index("VOLUME")])
    assert "".join(steps[-1]) == "ENTRYPOINT[bash,launch/single_a100.sh]"
    assert ":latest" not in steps[names.index("FROM")][1]
