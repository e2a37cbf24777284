import random
import tomllib
from pathlib import Path

import pytest

from launch.experiments.plan import FULL, PROPOSER, VARIANTS, PlannedRun, model_folder, planned_runs
from launch.model_recipe import CONFIG, ROOT
from rollout.environment import make_environment
from shared.config_file import load_config, values_by_key
from shared.errors import ConfigError

OUT = Path("runs/experiments")
CHANGES = {
    "full": {},
    "frozen-proposer": {"selfplay.train_proposer": False},
    "buffer-only": {"selfplay.proposals_per_task": 0, "selfplay.buffer_problems_per_task": 48},
    "uniform": {
        "selfplay.proposals_per_task": 0,
        "selfplay.buffer_problems_per_task": 48,
        "selfplay.seed_problems_per_task": 40,
    },
    "long": {"run.steps": 600},
    "ema": {"learner.advantage.baseline": "ema"},
    "separate": {"selfplay.solver_samples": "separate"},
    "staleness-2": {"selfplay.max_staleness": 2},
    "paper": {
        "selfplay.solver_samples": "separate",
        "selfplay.repeat_in_batch": "allow",
        "rewards.extreme_solve_rate": -0.5,
        "learner.advantage.length_weighted": True,
        "learner.trust_region.clip_high": 0.2,
        "learner.trust_region.correction": "none",
        "learner.optimizer_steps_per_batch": 3,
        "learner.solver_row_weight": None,
    },
}


def differences(config, other):
    before, after = values_by_key(other), values_by_key(config)
    return {key: after[key] for key in after if after[key] != before[key]}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_differs_from_the_demo_in_what_it_is_about_and_nothing_else(variant):
    full, config = PlannedRun(FULL, 1).config(OUT), PlannedRun(variant, 1).config(OUT)
    named = {} if variant == FULL else {"run.name": f"{variant.name}-1"}
    assert differences(config, full) == named | CHANGES[variant.name]


def test_full_is_the_demo_itself_on_a_fixed_number_of_steps():
    run = {"run.name", "run.folder", "run.overwrite", "run.steps", "run.time_limit_s", "model.path"}
    config = PlannedRun(FULL, 0).config(OUT)
    assert set(differences(config, load_config(ROOT / CONFIG))) == run
    assert (config.run.steps, config.run.evaluate_every, config.run.final_evaluations) == (120, 10, 3)
    assert config.run.time_limit_s is None
    assert config.selfplay.max_staleness == 0


def test_the_sources_of_problems_train_equally_many_solver_rows():
    plays = [PlannedRun(variant, 0).config(OUT).selfplay for variant in PROPOSER.variants]
    assert {(p.proposals_per_task + p.buffer_problems_per_task) * p.trained_attempts for p in plays} == {48 * 8}


def test_uniform_starts_with_every_trainable_problem_and_buffer_only_does_not():
    config = load_config(ROOT / CONFIG)
    environment = make_environment(config.environment)
    for task in environment.tasks:
        everything = environment.seed_problems(task, 10**6, random.Random(0), batch=0)
        for variant in PROPOSER.variants[2:]:
            count = PlannedRun(variant, 0).config(OUT).selfplay.seed_problems_per_task
            seeds = {problem.key for problem in environment.seed_problems(task, count, random.Random(0), batch=0)}
            assert (seeds == {problem.key for problem in everything}) == (variant.name == "uniform")


def test_runs_of_a_seed_share_model_and_seed():
    for run in planned_runs():
        config = run.config(OUT)
        assert config.model.path == model_folder(OUT, run.seed)
        assert config.run.seed == run.seed


def test_the_most_valuable_runs_come_first_seed_by_seed():
    names = [run.name for run in planned_runs()]
    assert names[:5] == ["full-0", "frozen-proposer-0", "buffer-only-0", "uniform-0", "full-1"]
    assert names[12:16] == ["long-0", "long-1", "ema-0", "separate-0"]
    assert len(names) == len(set(names)) == 12 + 2 + 8


def test_variants_and_seeds_can_be_chosen_and_unknown_ones_are_refused():
    assert [run.name for run in planned_runs(["ema", "full"], [1])] == ["full-1", "ema-1"]
    with pytest.raises(ConfigError, match=r"no variant emma.*full, frozen-proposer"):
        planned_runs(["emma"])
    with pytest.raises(ConfigError, match="no seed 7"):
        planned_runs(seeds=[7])


def test_the_arguments_are_what_the_configuration_resolves_from():
    run = PlannedRun(VARIANTS[-1], 1)
    command, option, file, *overrides = run.arguments(OUT)
    assert (command, option, file) == ("train", "--config", str(CONFIG))
    assert load_config(ROOT / file, overrides) == run.config(OUT)


def test_matplotlib_is_pinned_for_the_report():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (pin,) = extras["report"]
    for lock in ("cpu", "gpu"):
        assert pin in (ROOT / f"launch/locks/{lock}.txt").read_text().splitlines()
