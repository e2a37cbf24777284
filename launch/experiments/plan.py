"""The plan: which variants of the demo are trained, with which seeds, in which order."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.model_recipe import CONFIG, ROOT
from shared.config import Config
from shared.config_file import load_config
from shared.errors import ConfigError

DEFAULT_OUT = Path("runs/experiments")
EVALUATE_EVERY = 10


@dataclass(frozen=True, slots=True)
class Variant:
    """The demo's configuration with `overrides` (`--section.key=value`), trained for `steps` with each of `seeds`."""

    name: str
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    steps: int = 120


@dataclass(frozen=True, slots=True)
class Comparison:
    """Variants that are read side by side, each against `baseline` where there is one."""

    name: str
    variants: tuple[Variant, ...]
    baseline: Variant | None


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One variant with one seed. All runs of a seed start from the same model."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and its data."""
        return f"{self.variant.name}-{self.seed}"

    def arguments(self, out: Path) -> list[str]:
        """Of `primezero`, in the repository's root; `out` is where runs are kept."""
        return ["train", "--config", str(CONFIG), *self._overrides(out)]

    def config(self, out: Path) -> Config:
        """What these arguments resolve to; raises ConfigError where they are not usable."""
        return load_config(ROOT / CONFIG, self._overrides(out))

    def _overrides(self, out: Path) -> list[str]:
        return [
            f"--model.path={model_folder(out, self.seed)}",
            f"--run.name={self.name}",
            f"--run.folder={out}",
            "--run.overwrite=true",
            f"--run.seed={self.seed}",
            f"--run.steps={self.variant.steps}",
            "--run.time_limit_s=none",
            f"--run.evaluate_every={EVALUATE_EVERY}",
            "--run.final_evaluations=3",
            *self.variant.overrides,
        ]


def model_folder(out: Path, seed: int) -> Path:
    """The warm-started model that every run of a seed begins with."""
    return out / "models" / f"tiny-{seed}"


_THREE, _TWO = (0, 1, 2), (0, 1)
FULL = Variant("full", _THREE)
PROPOSER = Comparison(
    "proposer",
    (
        FULL,
        Variant("frozen-proposer", _THREE, ("--selfplay.train_proposer=false",)),
        Variant("buffer-only", _THREE, ("--selfplay.proposals_per_task=0", "--selfplay.buffer_problems_per_task=48")),
        Variant(
            "uniform",
            _THREE,
            (
                "--selfplay.proposals_per_task=0",
                "--selfplay.buffer_problems_per_task=48",
                # More than there are: seeds are drawn without replacement, so it is every trainable problem once.
                "--selfplay.seed_problems_per_task=40",
            ),
        ),
    ),
    FULL,
)
LONG = Comparison("long", (Variant("long", _TWO, steps=600),), None)
SWITCHES = Comparison(
    "switches",
    (
        Variant("ema", _TWO, ("--learner.advantage.baseline=ema",)),
        Variant("separate", _TWO, ("--selfplay.solver_samples=separate",)),
        Variant("staleness-2", _TWO, ("--selfplay.max_staleness=2",)),
        Variant(
            "paper",
            _TWO,
            (
                "--selfplay.solver_samples=separate",
                "--selfplay.repeat_in_batch=allow",
                "--rewards.extreme_solve_rate=-0.5",
                "--learner.advantage.length_weighted=true",
                "--learner.trust_region.clip_high=0.2",
                "--learner.trust_region.correction=none",
                "--learner.optimizer_steps_per_batch=3",
                "--learner.solver_row_weight=none",
            ),
        ),
    ),
    FULL,
)
# The most valuable first: a plan that is cut short still answers something.
COMPARISONS = (PROPOSER, LONG, SWITCHES)
VARIANTS = tuple(variant for comparison in COMPARISONS for variant in comparison.variants)


def planned_runs(only: Collection[str] = (), seeds: Collection[int] = ()) -> list[PlannedRun]:
    """The runs in order, each comparison seed by seed; `only` and `seeds`, where given, choose among them.

    Raises ConfigError for a variant or seed that the plan does not have.
    """
    _check_known("variant", only, [variant.name for variant in VARIANTS])
    _check_known("seed", seeds, sorted({seed for variant in VARIANTS for seed in variant.seeds}))
    return [run for run in _all_runs() if (not only or run.variant.name in only) and (not seeds or run.seed in seeds)]


def _all_runs() -> Iterator[PlannedRun]:
    for comparison in COMPARISONS:
        for seed in sorted({seed for variant in comparison.variants for seed in variant.seeds}):
            yield from (PlannedRun(variant, seed) for variant in comparison.variants if seed in variant.seeds)


def _check_known(kind: str, asked: Collection[object], known: Collection[object]) -> None:
    for unknown in [each for each in asked if each not in known]:
        raise ConfigError(f"the plan has no {kind} {unknown}; it has {', '.join(map(str, known))}")
