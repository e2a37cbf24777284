"""What a killed compilation leaves behind is not waited for."""

import os
import subprocess
import sys

import pytest

from learner.compiled import compiling


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return tmp_path / "primezero"


def test_a_dead_process_baton_is_taken_away(folder):
    baton = folder / "py311_cpu/cpu_adam/lock"
    baton.parent.mkdir(parents=True)
    baton.touch()
    built = baton.with_name("cpu_adam.so")
    built.touch()
    with compiling():
        assert not baton.exists()
        assert built.exists()
        assert os.environ["TORCH_EXTENSIONS_DIR"] == str(folder)
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(folder.parent)


def test_others_batons_are_left_alone(folder):
    baton = folder.parent / "py311_cpu/cpu_adam/lock"
    baton.parent.mkdir(parents=True)
    baton.touch()
    with compiling():
        assert baton.exists()


def test_a_baton_of_one_that_compiles_is_not_taken_from_it(folder):
    code = "import learner.compiled as c\nwith c.compiling(): print('entered')"
    baton = folder / "lock"
    with compiling():
        baton.touch()
        outer = os.environ | {"TORCH_EXTENSIONS_DIR": str(folder.parent), "PYTHONPATH": os.pathsep.join(sys.path)}
        other = subprocess.Popen([sys.executable, "-c", code], env=outer, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(2)
        assert baton.exists()
    assert other.communicate(timeout=120)[0] == "entered\n"
    assert not baton.exists()


def test_without_a_folder_of_the_users_it_is_in_the_cache_and_nothing_stays_set(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with compiling():
        assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "torch_extensions/primezero")
    assert "TORCH_EXTENSIONS_DIR" not in os.environ
