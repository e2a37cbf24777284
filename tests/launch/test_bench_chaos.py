"""`primezero bench chaos`, all but the run itself."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from model_files import make_model_folder

from launch.bench import chaos
from launch.bench.chaos import ChaosSettings, Outcome, bench_chaos, find_faults
from launch.bench.chaos_plan import BLOWS, VICTIMS, GoingOn, plan
from launch.cli import main
from learner.audit import Audit
from shared.errors import ConfigError, PrimezeroError

CLEAN = Audit(
    acknowledged=90, trained=80, dropped={"rolled_back": 7}, open=3, lost=0, twice=0, batches=60, unrecorded=0
)
SUMMARY = {"steps": 60, "accuracy_before": 0.1, "accuracy_after": 0.2}


@pytest.fixture(autouse=True)
def _no_prompts(monkeypatch):
    """The model folders of these tests have no tokenizer."""
    monkeypatch.setattr("launch.bench.workplace.with_prompt_room", lambda config: config)


@pytest.mark.parametrize(("steps", "hits", "first"), [(60, 20, 3), (240, 20, 3), (60, 30, 3), (120, 8, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_hits_are_spread_over_the_run_and_of_every_kind(steps, hits, first, seed):
    planned = plan(steps=steps, hits=hits, first=first, seed=seed)
    at = [hit.step for hit in planned]
    assert at == sorted(at)
    assert first <= at[0]
    assert at[-1] < steps - 3
    part = (steps - 3 - first) / hits
    assert all(int(first + i * part) <= step <= first + (i + 1) * part for i, step in enumerate(at))
    kinds = Counter((hit.victim, hit.blow) for hit in planned)
    assert kinds.keys() == {(victim, blow) for victim in VICTIMS for blow in BLOWS}
    assert max(kinds.values()) - min(kinds.values()) <= 1
    assert all(0 <= hit.delay_s <= 1 for hit in planned)


def test_the_seed_alone_decides():
    assert plan(steps=60, hits=20, first=3, seed=1) == plan(steps=60, hits=20, first=3, seed=1)
    assert plan(steps=60, hits=20, first=3, seed=1) != plan(steps=60, hits=20, first=3, seed=2)


def test_a_run_goes_on_once_it_has_made_a_step_since_also_where_it_went_back():
    going_on = GoingOn()
    assert [going_on.has_made(step) for step in (4, 4, 5)] == [False, False, True]
    going_on.hit()
    assert [going_on.has_made(step) for step in (5, 5, 3, 3, 4)] == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("outcome", "audited", "said"),
    [
        ({}, {}, None),
        ({"exit_code": 1}, {}, "did not finish: exit code 1"),
        ({"exit_code": -9}, {}, None),  # its launcher was killed when everything had been done
        ({"exit_code": -9, "summary": None}, {}, "did not finish: exit code -9"),
        ({"summary": None}, {}, "did not finish"),
        ({"summary": SUMMARY | {"steps": 59}}, {}, "did not finish"),
        ({"hits": Counter({("learner", "SIGKILL"): 3})}, {}, "hit only 3 times of 4"),
        ({}, {"lost": 1}, "1 acknowledged tickets were lost"),
        ({}, {"twice": 2}, "2 tickets were trained on twice"),
    ],
)
def test_whatever_should_not_have_come_out_is_a_fault(outcome, audited, said):
    fine = {"hits": Counter({("learner", "SIGKILL"): 4}), "exit_code": 0, "steps": 60, "summary": SUMMARY}
    faults = find_faults(ChaosSettings(steps=60, hits=4), Outcome(**fine | outcome), replace(CLEAN, **audited))
    assert faults == [] if said is None else said in "; ".join(faults)


class Victim:
    """Notes what is done to it."""

    def __init__(self, world: World, kind: str) -> None:
        self._world, self._kind = world, kind

    def kill(self) -> None:
        self._world.blows.append((self._kind, "SIGKILL"))

    def suspend(self) -> None:
        self._world.blows.append((self._kind, "SIGSTOP"))

    def resume(self) -> None:
        self._world.blows.append((self._kind, "SIGCONT"))


class World:
    """A run as the benchmark sees it: it makes a step whenever it is looked at, and goes back with each launcher."""

    def __init__(self) -> None:
        self.blows: list[tuple[str, str]] = []
        self.commands: list[dict] = []
        self.made = 0
        self.lingers = 0

    def start(self, folder: Path, settings: dict, *, temporary: Path, output: object) -> World:
        assert temporary.is_dir()
        self.commands.append(settings)
        self.folder, self.last = folder, settings["run.steps"]
        self.made = max(0, self.made - 2)
        self.process = subprocess.Popen(["sh", "-c", "read _; exit 0"], stdin=subprocess.PIPE)
        self.lingers = 2
        return self

    def step(self) -> int:
        self.made = min(self.made + 1, self.last)
        if self.made == self.last and self.process.stdin:
            self.process.stdin.close()
        return self.made

    def find(self, kind: str) -> list[Victim]:
        return [Victim(self, kind)]

    def processes(self) -> list[Victim]:
        self.lingers -= 1
        return [Victim(self, "left")] if self.lingers > 0 else []

    def summary(self) -> dict | None:
        return SUMMARY | {"steps": self.last} if self.made == self.last else None

    def records(self, name: str) -> list[dict]:
        return [{"process": "learner"}] * 3

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr(chaos, "StartedRun", made.start)
    monkeypatch.setattr(chaos, "_POLL_S", 0.001)
    monkeypatch.setattr("launch.bench.chaos_plan._LONGEST_DELAY_S", 0.01)
    return made


def arguments(tmp_path: Path) -> list[str]:
    model = make_model_folder(tmp_path / "model")
    settings = f"--model {model} --steps 60 --hits 8 --stopped-s 0.01 --folder {tmp_path / 'chaos'}"
    return ["bench", "chaos", *settings.split(), "--json", str(tmp_path / "chaos.json")]


def test_every_hit_is_dealt_and_the_same_command_given_again_after_the_launchers_death(
    world, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("learner.audit.audit", lambda folder: CLEAN)
    assert main(arguments(tmp_path)) == 0
    dealt = Counter(world.blows)
    for kind in ("LearnerProcess", "RolloutWorker", "EngineCore"):
        assert [dealt[kind, blow] for blow in ("SIGKILL", "SIGSTOP", "SIGCONT")] == [1, 1, 1]
    assert len(world.commands) == 2
    assert world.commands[0] == world.commands[1]
    report = json.loads((tmp_path / "chaos.json").read_text())
    values = {result["name"]: result["value"] for result in report["results"]}
    assert (values["hits"], values["hits.launcher.SIGKILL"], values["launches"], values["restarts"]) == (8, 1, 2, 3)
    assert (values["acknowledged"], values["trained"], values["dropped"], values["lost"], values["twice"]) == (
        *(90, 80, 7),
        *(0, 0),
    )
    assert (values["steps"], values["accuracy_before"], values["accuracy_after"]) == (60, 0.1, 0.2)
    assert values["wall_s"] > 0
    assert "accuracy_after" in capsys.readouterr().out


def test_what_was_lost_is_reported_and_the_command_fails(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("learner.audit.audit", lambda folder: replace(CLEAN, lost=2))
    assert main(arguments(tmp_path)) == 1
    assert "2 acknowledged tickets were lost" in capsys.readouterr().err
    results = json.loads((tmp_path / "chaos.json").read_text())["results"]
    assert [r["value"] for r in results if r["name"] == "lost"] == [2]
    assert (tmp_path / "chaos").is_dir()


def test_processes_that_outlive_their_launcher_end_the_benchmark(world, tmp_path, monkeypatch):
    monkeypatch.setattr(World, "processes", lambda self: [self.process])
    settings = ChaosSettings(
        model=str(make_model_folder(tmp_path / "m")),
        steps=60,
        hits=8,
        stopped_s=0.01,
        vanish_s=0.05,
        folder=str(tmp_path / "c"),
    )
    with pytest.raises(PrimezeroError, match=r"after the launcher was killed 1 of its processes are still there"):
        bench_chaos(settings)


@pytest.mark.parametrize("sizes", [{"steps": 59}, {"hits": 0}, {"steps": 60, "hits": 31}])
def test_sizes_that_make_no_sense_are_refused(sizes):
    with pytest.raises(ConfigError, match="--steps must be at least 60"):
        bench_chaos(ChaosSettings(**sizes))
