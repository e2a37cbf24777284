"""What a weight sync costs the generation, judged by when tokens arrive."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from shared.errors import EngineError

Arrivals = Sequence[tuple[float, int]]


@dataclass(frozen=True, slots=True)
class SyncTimes:
    """One sync on the clock of `time.monotonic`, seconds: begun, asked to swap, generation resumed."""

    begin: float
    finish: float
    end: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What one sync cost the running requests.

    median_step: seconds between two tokens of a request, before the sync
    rate: tokens a second of all requests, before the sync
    pause: the longest time that any one request waited for its next token, from the beginning of the sync until the
        engine is itself again, less `median_step`
    silence: the same with the tokens of all requests taken together: the longest time without any token at all. Never
        longer than `pause`; shorter where some requests go on before others
    resume: from the engine resuming until every request has its next token, less `median_step`
    tokens_lost: seconds of generation, at `rate`, that are missing over the sync
    context: tokens that the requests held together when the engine resumed, their prompts not counted
    """

    median_step: float
    rate: float
    pause: float
    silence: float
    resume: float
    tokens_lost: float
    context: int


def sync_cost(requests: Sequence[Arrivals], sync: SyncTimes, settle: int) -> Cost:
    """The cost of one sync, from each request's token arrivals (time, tokens), in order of time.

    The engine counts as being itself again once every request has arrivals at `settle` times after it resumed.
    A fixed number of steps, because a threshold on the rate would stop counting at the first quick step; at the steady
    rate more steps cost nothing. Raises EngineError when a request lacks the arrivals for this.
    """
    after = [[time for time, _ in arrivals if time > sync.end] for arrivals in requests]
    before = [[time for time, _ in arrivals if time <= sync.begin] for arrivals in requests]
    if not after or min(map(len, after)) < settle or min(map(len, before)) < 2:
        raise EngineError("a request ended, or had not begun, within the measurement: allow longer responses")
    recovered = max(times[settle - 1] for times in after)

    # From arrival to arrival: a step that is half done on either side would add its tokens, but not its time.
    everything = sorted(arrival for arrivals in requests for arrival in arrivals)
    all_run = max(times[0] for times in before)
    steady = max(time for times in before for time in times)
    rate = _tokens(everything, all_run, steady) / (steady - all_run)
    median_step = statistics.median(gap for times in before for gap in _gaps(times))
    around = (sync.begin, recovered)
    return Cost(
        median_step=median_step,
        rate=rate,
        pause=max(_longest_gap([time for time, _ in arrivals], *around) for arrivals in requests) - median_step,
        silence=_longest_gap([time for time, _ in everything], *around) - median_step,
        resume=max(times[0] for times in after) - sync.end - median_step,
        tokens_lost=(recovered - steady) - _tokens(everything, steady, recovered) / rate,
        context=sum(tokens for time, tokens in everything if time <= sync.end),
    )


def _tokens(arrivals: Arrivals, begin: float, end: float) -> int:
    return sum(tokens for time, tokens in arrivals if begin < time <= end)


def _gaps(times: Sequence[float]) -> Iterable[float]:
    return (after - before for before, after in pairwise(times))


def _longest_gap(times: Sequence[float], begin: float, end: float) -> float:
    """Of the gaps that have a part in [begin, end]."""
    return max(after - before for before, after in pairwise(times) if after > begin and before < end)
