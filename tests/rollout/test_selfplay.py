"""The self-play round with a scripted engine: what is asked, and what becomes of the answers."""

from __future__ import annotations

import numpy as np
import pytest

from rollout.environment import make_environment
from rollout.evaluation import evaluate
from rollout.sample import Sample
from rollout.selfplay import SelfPlay
from shared.config import Config, load_config
from shared.episodes import Problem, Role, Task, Ticket, TicketId, Verdict, VersionSpan
from shared.errors import EngineError, PrimezeroError

ATTEMPTS = 4


class CharacterChat:
    """A tokenizer of one token per character; 0 ends the turn."""

    def prompt_ids(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i) for i in ids if i)


class ScriptedEngine:
    """Answers a proposer's prompt with `proposal` and attempts with `answers`, and keeps what it was asked."""

    version = 0

    def __init__(self, proposal: str, answers: list[str]) -> None:
        self.script = [[proposal], answers] if proposal else [answers]
        self.asked: list[dict] = []

    async def generate(self, prompt_ids, **request) -> list[Sample]:
        self.asked.append({"prompt": "".join(map(chr, prompt_ids))} | request)
        return [sample(text) for text in self.script.pop(0)]


def sample(text: str, version: int = 0) -> Sample:
    ids = np.array([*map(ord, text), 0], dtype=np.int32)
    logprobs = np.full(len(ids), -0.25, dtype=np.float32)
    return Sample(ids, logprobs, (VersionSpan(version, 0, len(ids)),), truncated=False)


def answer(content: str) -> str:
    return f"<answer>{content}</answer>"


def problem(content: str, task: Task = Task.DEDUCTION) -> Problem:
    return Problem(task, content, content)


@pytest.fixture
def config() -> Config:
    return load_config(None, [f"--selfplay.attempts={ATTEMPTS}", "--sampling.max_response_tokens=20"])


def ticket(kind: str = "proposal", **changes) -> Ticket:
    fields = {
        "id": TicketId(0, 3, 7),
        "kind": kind,
        "task": Task.DEDUCTION,
        "references": (problem("3,7"), problem("2,5")) if kind == "proposal" else (),
        "problem": problem("4,11"),
        "min_version": 0,
        "seed": 100,
    }
    return Ticket(**(fields | changes))


async def play(config, engine, ticket):
    return await SelfPlay(config, engine, make_environment(config.environment), CharacterChat()).play(ticket)


async def test_a_valid_proposal_is_attempted_and_earns_its_failure_share(config):
    engine = ScriptedEngine(answer("2, 7"), [answer("4"), answer("11"), answer("3"), "no idea"])
    closed = await play(config, engine, ticket())
    assert closed.proposed == closed.problem == problem("2,7")
    assert closed.proposal is not None
    assert (closed.proposal.role, closed.proposal.verdict) == (Role.PROPOSER, Verdict.VALID)
    assert closed.solve_rate == 0.5
    assert closed.proposal.reward == 0.5
    verdicts = [Verdict.CORRECT, Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE]
    assert [a.verdict for a in closed.attempts] == verdicts
    assert [a.reward for a in closed.attempts] == [1.0, 1.0, -0.5, -1.0]
    assert {a.role for a in closed.attempts} == {Role.SOLVER}


async def test_attempts_are_one_request_with_its_own_seed_at_the_training_temperature(config):
    engine = ScriptedEngine(answer("2, 7"), [answer("4")] * ATTEMPTS)
    closed = await play(config, engine, ticket())
    propose, attempt = engine.asked
    assert (propose["n"], attempt["n"]) == (1, ATTEMPTS)
    assert propose["seed"] != attempt["seed"]
    assert propose["request_id"] != attempt["request_id"]
    assert {propose["temperature"], attempt["temperature"]} == {config.sampling.temperature}
    assert "2 * y = 1 (mod 7)" in attempt["prompt"]
    assert "".join(map(chr, closed.attempts[0].prompt_ids)) == attempt["prompt"]
    assert closed.proposal is not None
    assert "".join(map(chr, closed.proposal.prompt_ids)) == propose["prompt"]
    assert "3, 7" in propose["prompt"]  # its references


@pytest.mark.parametrize(
    ("text", "verdict", "reward"),
    [
        (answer("2, 8"), Verdict.INVALID, -0.5),
        (answer("2, 5"), Verdict.COPY, -0.5),  # valid, but one of its references
        ("a fine problem", Verdict.UNPARSABLE, -1.0),
    ],
)
async def test_without_a_usable_proposal_the_fallback_is_attempted(config, text, verdict, reward):
    engine = ScriptedEngine(text, [answer("3")] * ATTEMPTS)
    closed = await play(config, engine, ticket())
    assert closed.proposed is None
    assert closed.problem == problem("4,11")
    assert closed.proposal is not None
    assert (closed.proposal.verdict, closed.proposal.reward) == (verdict, reward)
    assert all(a.verdict is Verdict.CORRECT for a in closed.attempts)


async def test_a_buffer_ticket_is_attempts_alone(config):
    closed = await play(config, ScriptedEngine("", [answer("3")] * ATTEMPTS), ticket("buffer"))
    assert closed.proposal is None
    assert len(closed.episodes) == ATTEMPTS


async def test_tokens_log_probabilities_and_spans_are_the_samplers_own(config):
    closed = await play(config, ScriptedEngine("", [answer("3")] * ATTEMPTS), ticket("buffer"))
    expected = sample(answer("3"))
    for attempt in closed.attempts:
        assert attempt.response_ids.tolist() == expected.token_ids.tolist()
        assert attempt.behaviour_logprobs.tolist() == expected.logprobs.tolist()
        assert attempt.spans == expected.spans


async def test_a_prompt_that_does_not_fit_is_refused_never_cut(config):
    small = config.model_copy(update={"sampling": config.sampling.model_copy(update={"max_prompt_tokens": 10})})
    with pytest.raises(PrimezeroError, match=r"sampling\.max_prompt_tokens=10; it is not cut"):
        await play(small, ScriptedEngine("", [answer("3")]), ticket("buffer"))


async def test_a_ticket_for_newer_weights_than_the_engines_is_an_error(config):
    with pytest.raises(PrimezeroError, match="needs weights of version 2"):
        await play(config, ScriptedEngine("", [answer("3")]), ticket("buffer", min_version=2))


class SolvingEngine:
    """Always answers 1."""

    def __init__(self, version: int) -> None:
        self.version = version

    async def generate(self, prompt_ids, **request) -> list[Sample]:
        assert request["temperature"] == 0.0
        return [sample(answer("1"), self.version)]


async def test_evaluation_counts_every_problem_of_every_task(config):
    environment = make_environment(config.environment)
    result = await evaluate(
        SolvingEngine(4), environment, CharacterChat(), version=4, problems_per_task=99, max_response_tokens=20
    )
    # 1 is right where x (or y) is 1: once for each of the primes 2, 3, 5, 7, 11, 13.
    assert {task: (r.problems, r.accuracy) for task, r in result.tasks.items()} == {
        Task.DEDUCTION: (35, 6 / 35),
        Task.ABDUCTION: (35, 6 / 35),
        Task.INDUCTION: (29, 0.0),
    }
    assert result.accuracy == pytest.approx((6 / 35 + 6 / 35) / 3)


async def test_an_evaluation_across_two_versions_is_an_error(config):
    with pytest.raises(EngineError, match="version 4"):
        await evaluate(
            SolvingEngine(5),
            make_environment(config.environment),
            CharacterChat(),
            version=4,
            problems_per_task=3,
            max_response_tokens=20,
        )
