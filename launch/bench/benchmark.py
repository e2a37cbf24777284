"""What `primezero bench` needs to know of a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launch.bench.models import SHAPES
from launch.bench.report import Report

MODELS = f"--model is a model folder, or a shape with random weights:\n  {', '.join(SHAPES)}"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """name, explained: in the list of benchmarks; description, examples: in its own `--help`

    settings: the dataclass of its arguments (`launch/bench/settings.py`)
    run: given the settings and who is told what is being done; the report, and what should not have come out
    """

    name: str
    explained: str
    settings: type
    run: Callable[[Any, Callable[[str], None]], tuple[Report, list[str]]]
    description: str
    examples: str


def faultless(bench: Callable[..., Report]) -> Callable[..., tuple[Report, list[str]]]:
    """`run` of a benchmark that measures, and has nothing to find fault with."""
    return lambda settings, say: (bench(settings, say), [])
