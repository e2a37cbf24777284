"""What a check has found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from shared.errors import PrimezeroError


class Status(StrEnum):
    """FAIL: a run would not start, or not last; WARN: some runs would not, or not well; SKIP: nothing to check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """found: what is here; advice: what to do about it, where it is not OK"""

    name: str
    status: Status
    found: str
    advice: str = ""


Check = Callable[[], Iterable[Finding]]


def run_checks(checks: Iterable[tuple[str, Check]]) -> list[Finding]:
    """All findings. A check that fails for a reason that it did not think of is a finding, too."""
    findings: list[Finding] = []
    for name, check in checks:
        try:
            findings += check()
        except PrimezeroError as error:
            findings.append(Finding(name, Status.FAIL, "not usable", str(error)))
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            findings.append(Finding(name, Status.WARN, "could not be checked", said))
    return findings
