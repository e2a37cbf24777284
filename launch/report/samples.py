"""A few episodes of a run as a reader sees them, from the beginning, the middle and the end."""

from __future__ import annotations

from dataclasses import dataclass

from launch.printable import printable
from launch.recorded_episodes import RecordedEpisode, RecordedRun
from launch.run_records import RunRecords, known_config
from launch.token_text import TokenText
from shared.episodes import Task
from shared.errors import PrimezeroError

_LONGEST = 4000


@dataclass(frozen=True, slots=True)
class Sample:
    """An episode as text, safe to show; logprob: mean log-probability of the response's tokens, nats."""

    name: str
    role: str
    task: str
    verdict: str
    reward: float
    reason: str
    prompt: str
    response: str
    tokens: int
    logprob: float


@dataclass(frozen=True, slots=True)
class SampledStep:
    """moment: start, middle or end"""

    moment: str
    step: int
    samples: list[Sample]


def sampled_steps(run: RunRecords) -> list[SampledStep]:
    """Of the first, the middle and the last trained step the first proposal of each task, and an attempt on it.

    Nothing is selected by its outcome. Raises PrimezeroError when the journal, the configuration or the tokenizer
    cannot be read.
    """
    recorded, text = RecordedRun(run.folder, known_config(run)), TokenText.of_run(run)
    steps = recorded.steps
    moments = {"start": steps[:1], "middle": steps[len(steps) // 2 :][:1], "end": steps[-1:]}
    chosen = {step: moment for moment, found in reversed(moments.items()) for step in found}
    return [
        SampledStep(moment, step, [_sample(each, text) for each in _chosen(recorded.trained(step))])
        for step, moment in sorted(chosen.items())
    ]


def samples_or_reason(run: RunRecords) -> tuple[list[SampledStep], str]:
    """The samples, or none and the reason why not."""
    try:
        samples = sampled_steps(run)
    except PrimezeroError as error:
        return [], str(error)
    return samples, "" if samples else "the journal holds no trained step"


def _chosen(episodes: list[RecordedEpisode]) -> list[RecordedEpisode]:
    chosen = []
    for task in Task:
        of_task = [each for each in episodes if each.task is task]
        begins = next((i for i, each in enumerate(of_task) if each.attempt is None), 0)
        chosen += of_task[begins : begins + 2]
    return chosen


def _sample(recorded: RecordedEpisode, text: TokenText) -> Sample:
    episode = recorded.episode
    return Sample(
        name=recorded.name,
        role=str(episode.role),
        task=str(episode.task),
        verdict=str(episode.verdict),
        reward=episode.reward,
        reason=printable(recorded.reason),
        prompt=_cut(printable(text.text(episode.prompt_ids.tolist()))),
        response=_cut(printable(text.text(episode.response_ids.tolist()))),
        tokens=len(episode.response_ids),
        logprob=float(episode.behaviour_logprobs.mean()),
    )


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters …]\n{text[-half:]}"
