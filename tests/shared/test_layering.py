"""Imports go one way, and each heavy library stays behind its adapter."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("shared", "rollout", "learner", "launch")
MAY_IMPORT = {
    "shared": {"shared"},
    "rollout": {"shared", "rollout"},
    "learner": {"shared", "learner"},
    "launch": set(PACKAGES),
}
ADAPTERS = {
    "zmq": {
        *(f"shared/transport/{part}.py" for part in ("client", "security", "server", "sockets")),
        "launch/bench/raw_zmq.py",  # what the stream is measured against
    },
    "deepspeed": {"learner/policy.py"},
    "ray": {"launch/ray_instance.py"},
    "vllm": {
        "rollout/engine_vllm.py",
        "rollout/engine_core.py",
        "rollout/weight_transfer.py",
        "rollout/model_weights.py",
        "rollout/preloaded.py",
        "learner/weight_nccl.py",
    },
}


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        foreign = (imported_packages(path) & set(PACKAGES)) - MAY_IMPORT[package]
        assert not foreign, f"{path} imports {foreign}"


@pytest.mark.parametrize("library", ADAPTERS)
def test_each_library_is_imported_by_its_adapters_alone(library):
    users = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if library in imported_packages(path)
    }
    assert users == ADAPTERS[library]


def test_pickle_and_eval_are_used_nowhere():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert not imported_packages(path) & {"pickle", "cloudpickle", "dill", "marshal"}, path
            calls = {
                node.func.id
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            }
            assert not calls & {"eval", "exec"}, path
