"""Attempts on problem sets with a scripted engine and environment."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from characters import CharacterChat, make_sample
from factories import make_problem

from rollout.evaluation import EVALUATION_SEED, Decoding, attempt, evaluate
from rollout.sample import Sample
from shared.episodes import Problem, Task, Verdict
from shared.errors import EngineError


class Words:
    """Problems are words; the answer to one is the word itself, and "?" is no answer.

    The first problems of each task may be trained on; `held_out` are not.
    """

    tasks = (Task.DEDUCTION, Task.INDUCTION)

    def __init__(self, held_out: tuple[Problem, ...] = ()) -> None:
        self.held_out = held_out
        self.asked: list[tuple[int, int]] = []

    def evaluation_problems(self, task: Task, count: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        self.asked.append((count, seed))
        if held_out:
            return [problem for problem in self.held_out if problem.task is task]
        return [make_problem(f"{task[0]}{i}", task) for i in range(min(count, 4))]

    def solver_prompt(self, problem: Problem) -> str:
        return problem.content

    def grade(self, problem: Problem, text: str) -> Verdict:
        if text == "?":
            return Verdict.UNPARSABLE
        return Verdict.CORRECT if text == problem.content else Verdict.WRONG


class ScriptedEngine:
    """Answers prompt after prompt as `script` says, or with the prompt itself; the later it is asked, the sooner."""

    def __init__(self, script: dict[str, list[str]] | None = None, version: int = 3) -> None:
        self.script = script or {}
        self.version = version
        self.asked: list[dict] = []
        self.running = self.most_running = 0

    async def generate(self, prompt_ids, **request) -> list[Sample]:
        prompt = "".join(map(chr, prompt_ids))
        self.asked.append({"prompt": prompt} | request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0.02 / len(self.asked))
        self.running -= 1
        return [self._sample(text) for text in self.script.get(prompt, [prompt] * request["n"])]

    def _sample(self, text: str) -> Sample:
        return replace(make_sample(text, self.version), truncated=text.endswith("…"))


async def evaluated(engine: ScriptedEngine, environment: Words, problems_per_task: int = 4):
    return await evaluate(
        engine, environment, CharacterChat(), version=3, problems_per_task=problems_per_task, max_response_tokens=9
    )


async def attempted(engine: ScriptedEngine, problems: list[Problem], decoding: Decoding, name: str = "x"):
    return await attempt(engine, Words(), CharacterChat(), problems, decoding, version=3, name=name)


async def test_an_evaluation_is_greedy_and_counts_every_problem_of_every_task():
    engine = ScriptedEngine({"d1": ["?"], "d2": ["wrong"], "i0": ["?"], "i1": ["?"]})
    result = await evaluated(engine, Words())
    deduction, induction = result.tasks[Task.DEDUCTION], result.tasks[Task.INDUCTION]
    assert (result.version, result.held_out) == (3, {})
    assert (deduction.problems, deduction.accuracy, deduction.unparsable) == (4, 0.5, 0.25)
    assert (induction.problems, induction.accuracy, induction.unparsable) == (4, 0.5, 0.5)
    assert deduction.response_tokens == (3 + 2 + 6 + 3) / 4  # stop tokens included
    assert {(r["n"], r["temperature"], r["max_tokens"]) for r in engine.asked} == {(1, 0.0, 9)}
    assert Counter(r["prompt"] for r in engine.asked) == Counter(f"{t}{i}" for t in "di" for i in range(4))


async def test_what_is_held_out_is_evaluated_apart():
    held_out = (make_problem("h0"), make_problem("h1"), make_problem("h2"))
    result = await evaluated(ScriptedEngine({"d0": ["wrong"], "h1": ["wrong"], "h2": ["?"]}), Words(held_out))
    assert result.tasks[Task.DEDUCTION].accuracy == 0.75
    assert set(result.held_out) == {Task.DEDUCTION}
    apart = result.held_out[Task.DEDUCTION]
    assert (apart.problems, apart.accuracy, apart.unparsable) == (3, 1 / 3, 1 / 3)
    assert result.accuracy == (0.75 + 1.0) / 2


async def test_the_set_is_the_same_for_every_run():
    environment = Words()
    await evaluated(ScriptedEngine(), environment, problems_per_task=2)
    assert set(environment.asked) == {(2, EVALUATION_SEED)}


async def test_an_evaluation_across_two_versions_is_an_error():
    with pytest.raises(EngineError, match="version 3"):
        await evaluated(ScriptedEngine(version=4), Words())


async def test_attempts_stay_with_their_problem_in_the_order_asked():
    problems = [make_problem(word) for word in ("ab", "cd", "ef")]
    engine = ScriptedEngine({"ab": ["ab", "?", "cut…"], "cd": ["ab", "cd", "cd"], "ef": ["ef", "ef", "ef"]})
    result = await attempted(engine, problems, Decoding(max_response_tokens=4, attempts=3, temperature=0.7))
    assert [each.problem for each in result] == problems
    assert [[a.correct for a in each.attempts] for each in result] == [
        [True, False, False],
        [False, True, True],
        [True, True, True],
    ]
    first, second, third = result[0].attempts
    assert (first.verdict, first.response_tokens, first.truncated) == (Verdict.CORRECT, 3, False)
    assert second.verdict is Verdict.UNPARSABLE
    assert (third.verdict, third.response_tokens, third.truncated) == (Verdict.WRONG, 5, True)
    assert {(r["n"], r["temperature"], r["max_tokens"]) for r in engine.asked} == {(3, 0.7, 4)}


async def test_every_problem_is_sampled_with_seeds_of_its_own_which_repeat():
    problems = [make_problem("ab"), make_problem("ab", Task.ABDUCTION), make_problem("cd")]

    async def seeds(seed: int) -> list[int]:
        engine = ScriptedEngine()
        await attempted(engine, problems, Decoding(max_response_tokens=4, temperature=1.0, seed=seed))
        return [request["seed"] for request in engine.asked]

    assert await seeds(0) == await seeds(0)
    assert len({*await seeds(0), *await seeds(1)}) == 6


async def test_requests_of_two_sets_never_share_a_name():
    engine = ScriptedEngine()
    for name in ("greedy", "sampled"):
        await attempted(engine, [make_problem("ab"), make_problem("ab")], Decoding(max_response_tokens=4), name)
    assert len({request["request_id"] for request in engine.asked}) == 4


@pytest.mark.parametrize(("at_once", "most"), [(None, 6), (2, 2)])
async def test_the_engine_has_no_more_problems_at_a_time_than_asked(at_once, most):
    engine = ScriptedEngine()
    problems = [make_problem(str(i)) for i in range(6)]
    result = await attempted(engine, problems, Decoding(max_response_tokens=4, at_once=at_once))
    assert engine.most_running == most
    assert [each.attempts[0].correct for each in result] == [True] * 6


async def test_a_set_may_be_empty():
    assert await attempted(ScriptedEngine(), [], Decoding(max_response_tokens=4)) == []
