"""The report of `primezero eval` as plain text of at most 80 columns, but for names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from launch.evaluation_report import BandReport, Estimate, Group, ProblemSet, Report, Result, Row

_LABEL = 18
_COLUMN = 11


def table(report: Report) -> str:
    """Everything that the report says, band by band."""
    lines = [f"model           {report.model}"]
    if report.baseline_model is not None:
        lines.append(f"baseline model  {report.baseline_model}")
    for band in report.bands:
        lines += ["", *_band(report, band)]
    return "\n".join(lines)


def _band(report: Report, band: BandReport) -> Iterator[str]:
    sections = dict(_sections("", band.trainable)) | dict(_sections("held out", band.held_out))
    title = f"primes {band.min_prime}..{band.max_prime}"
    compared = report.baseline_model is not None
    yield f"{title}, greedy" + (", model" if compared else "")
    yield from _greedy(sections, lambda row: row.model)
    if compared:
        yield from ("", f"{title}, greedy, baseline model")
        yield from _greedy(sections, lambda row: row.baseline_model)
        yield from ("", f"{title}, model less baseline model, problem by problem")
        yield from _differences(sections)
    for name, group in sections.items():
        yield from ("", f"{title}{name and ', '}{name}")
        yield from _by_task(report, group)


def _sections(name: str, problems: ProblemSet | None) -> Iterator[tuple[str, Group]]:
    """The set itself, then its slices, each under its name."""
    if problems is not None:
        yield name, problems.all
        for part, group in problems.slices.items():
            yield f"{name}, {part}" if name else part, group


def _greedy(sections: Mapping[str, Group], of: Callable[[Row], Result | None]) -> Iterator[str]:
    yield _line("", "n", "accuracy", "95% interval", "unparsable", "truncated", "tokens")
    for label, row in _rows(sections):
        if row is None:
            yield label
        elif (result := of(row)) is not None:
            yield _line(
                label,
                str(row.problems),
                _share(result.accuracy.value),
                _interval(result.accuracy),
                _share(result.unparsable),
                _share(result.truncated),
                f"{result.response_tokens:.1f}",
            )


def _differences(sections: Mapping[str, Group]) -> Iterator[str]:
    yield _line("", "n", "difference", "95% interval")
    for label, row in _rows(sections):
        if row is None:
            yield label
        elif row.difference is not None:
            yield _line(label, str(row.problems), f"{row.difference.value:+.3f}", _interval(row.difference, "+"))


def _rows(sections: Mapping[str, Group]) -> Iterator[tuple[str, Row | None]]:
    """Labelled rows; a section's name stands alone, without a row."""
    for name, group in sections.items():
        if name:
            yield name, None
        indent = "  " if name else ""
        yield from ((indent + task, row) for task, row in group.tasks.items())
        if len(group.tasks) > 1:
            yield f"{indent}mean", group.mean


def _by_task(report: Report, group: Group) -> Iterator[str]:
    """What has a column for each task: pass@k, and the tricks that need no skill."""
    columns = group.tasks | ({"mean": group.mean} if len(group.tasks) > 1 else {})
    yield _cells("", list(columns))
    of_models: list[tuple[str, Callable[[Row], Result | None]]] = [("", lambda row: row.model)]
    if report.baseline_model is not None:
        of_models.append((" baseline model", lambda row: row.baseline_model))
    for suffix, of in of_models:
        for k in group.mean.model.pass_at:
            yield _cells(f"pass@{k}{suffix}", [_pass_at(of(row), k) for row in columns.values()])
    for trick in dict.fromkeys(trick for row in group.tasks.values() for trick in row.baselines):
        shares = [row.baselines.get(trick) for row in columns.values()]
        yield _cells(trick, ["" if share is None else _share(share) for share in shares])


def _pass_at(result: Result | None, k: int) -> str:
    return "" if result is None else _share(result.pass_at[k])


def _cells(label: str, cells: Sequence[str]) -> str:
    width = 80 - _COLUMN * 4
    return (f"{label:<{width}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)).rstrip()


def _line(label: str, count: str, value: str, interval: str, *shares: str) -> str:
    return (
        f"{label:<{_LABEL}}{count:>5}{value:>11}{interval:>18}"
        + "".join(f"{share:>{w}}" for share, w in zip(shares, (11, 10, 7), strict=False))
    ).rstrip()


def _interval(estimate: Estimate, sign: str = "") -> str:
    return f"{estimate.low:{sign}.3f} .. {estimate.high:{sign}.3f}"


def _share(value: float) -> str:
    return f"{value:.3f}"
