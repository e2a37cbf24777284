"""The self-play round with a scripted engine: what is asked, and what becomes of the answers."""

from __future__ import annotations

import asyncio

import pytest
from characters import CharacterChat, answer, make_sample

from rollout.environment import make_environment
from rollout.sample import Sample
from rollout.selfplay import SelfPlay
from shared.config import Config
from shared.config_file import load_config
from shared.episodes import Problem, Role, Task, Ticket, TicketId, Verdict
from shared.errors import PrimezeroError

ATTEMPTS = 4
SEED = 100
PROPOSAL, ATTEMPT, SEPARATE = 0, 1, 1 + ATTEMPTS  # the first of a ticket's samples in each kind of request


class ScriptedEngine:
    """Answers each kind of request with its texts, and keeps what it was asked by kind."""

    version = 0

    def __init__(self, script: dict[int, list[str]]) -> None:
        self.script = dict(script)
        self.asked: dict[int, dict] = {}

    async def generate(self, prompt_ids, **request) -> list[Sample]:
        kind = request["seed"] - SEED
        self.asked[kind] = {"prompt": "".join(map(chr, prompt_ids))} | request
        return [make_sample(text) for text in self.script.pop(kind)]


def configured(*overrides: str) -> Config:
    settings = [f"--selfplay.attempts={ATTEMPTS}", "--sampling.max_response_tokens=20", "--environment.prompts=short"]
    return load_config(None, [*settings, *overrides])


@pytest.fixture
def config() -> Config:
    return configured()


def problem(content: str) -> Problem:
    """A deduction problem by its x and p."""
    proposal = make_environment(configured().environment).judge_proposal(Task.DEDUCTION, answer(content), batch=0)
    assert proposal.problem is not None
    return proposal.problem


def ticket(kind: str = "proposal", **changes) -> Ticket:
    fields = {
        "id": TicketId(0, 3, 7),
        "kind": kind,
        "task": Task.DEDUCTION,
        "references": (problem("3,7"), problem("2,5")) if kind == "proposal" else (),
        "problem": problem("4,11"),
        "min_version": 0,
        "seed": SEED,
    }
    return Ticket(**(fields | changes))


async def play(config, engine, ticket):
    return await SelfPlay(config, engine, make_environment(config.environment), CharacterChat()).play(ticket)


async def test_a_valid_proposal_is_attempted_and_earns_its_failure_share(config):
    answers = [answer("4"), answer("4"), answer("4"), "no idea"]
    closed = await play(config, ScriptedEngine({PROPOSAL: [answer("2, 7")], ATTEMPT: answers}), ticket())
    assert closed.proposed == closed.problem == problem("2,7")
    assert closed.proposal is not None
    assert (closed.proposal.role, closed.proposal.verdict) == (Role.PROPOSER, Verdict.VALID)
    assert closed.solve_rate == 0.75
    assert closed.proposal.reward == 0.25
    assert [a.verdict for a in closed.attempts] == [Verdict.CORRECT] * 3 + [Verdict.UNPARSABLE]
    assert [a.reward for a in closed.attempts] == [1.0, 1.0, 1.0, -1.0]
    assert {a.role for a in closed.attempts} == {Role.SOLVER}


async def test_attempts_are_one_request_with_its_own_seeds_at_the_training_temperature(config):
    engine = ScriptedEngine({PROPOSAL: [answer("2, 7")], ATTEMPT: [answer("4")] * ATTEMPTS})
    closed = await play(config, engine, ticket())
    propose, attempt = engine.asked[PROPOSAL], engine.asked[ATTEMPT]
    assert (propose["n"], attempt["n"]) == (1, ATTEMPTS)
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
    engine = ScriptedEngine({PROPOSAL: [text], ATTEMPT: [answer("3")] * 3 + [answer("4")]})
    closed = await play(config, engine, ticket())
    assert closed.proposed is None
    assert closed.problem == problem("4,11")
    assert closed.proposal is not None
    assert (closed.proposal.verdict, closed.proposal.reward) == (verdict, reward)
    assert [a.verdict for a in closed.attempts] == [Verdict.CORRECT] * 3 + [Verdict.WRONG]
    assert closed.solve_rate == 0.75


async def test_a_held_out_proposal_earns_nothing_and_the_fallback_is_attempted():
    config = configured("--environment.held_out=0.4", "--rewards.length_penalty=0.1")
    environment = make_environment(config.environment)
    verdicts = {
        text: environment.judge_proposal(Task.DEDUCTION, text, batch=3).verdict
        for text in (answer(f"{x}, 13") for x in range(1, 13))
    }
    text = next(text for text, verdict in verdicts.items() if verdict is Verdict.HELD_OUT)
    (fallback,) = environment.evaluation_problems(Task.DEDUCTION, 1, seed=0)
    engine = ScriptedEngine({PROPOSAL: [text], ATTEMPT: [answer(fallback.answer)] * ATTEMPTS})
    closed = await play(config, engine, ticket(problem=fallback, references=()))
    assert (closed.proposed, closed.problem, closed.solve_rate) == (None, fallback, 1.0)
    assert (closed.proposal.verdict, closed.proposal.reward) == (Verdict.HELD_OUT, 0.0)


@pytest.mark.parametrize(("batch", "largest", "verdict"), [(2, 7, Verdict.INVALID), (3, 13, Verdict.VALID)])
async def test_the_batch_of_a_ticket_decides_which_problems_are_open(batch, largest, verdict):
    config = configured("--environment.curriculum=[[3, 7]]")
    engine = ScriptedEngine({PROPOSAL: [answer("2, 11")], ATTEMPT: [answer("3")] * ATTEMPTS})
    closed = await play(config, engine, ticket(id=TicketId(0, batch, 0)))
    assert closed.proposal.verdict is verdict
    assert f"from 2 to {largest}" in engine.asked[PROPOSAL]["prompt"]


async def test_a_buffer_ticket_is_attempts_alone(config):
    closed = await play(config, ScriptedEngine({ATTEMPT: [answer("3")] * ATTEMPTS}), ticket("buffer"))
    assert closed.proposal is None
    assert len(closed.episodes) == ATTEMPTS


async def test_tokens_log_probabilities_and_spans_are_the_samplers_own(config):
    closed = await play(config, ScriptedEngine({ATTEMPT: [answer("3")] * ATTEMPTS}), ticket("buffer"))
    expected = make_sample(answer("3"))
    for attempt in closed.attempts:
        assert attempt.response_ids.tolist() == expected.token_ids.tolist()
        assert attempt.behaviour_logprobs.tolist() == expected.logprobs.tolist()
        assert attempt.spans == expected.spans


@pytest.fixture
def separate() -> Config:
    return configured("--selfplay.solver_samples=separate")


async def test_separate_a_valid_proposal_is_judged_by_its_attempts_and_one_more_sample_trains(separate):
    estimates = [answer("4"), answer("1"), answer("1"), answer("1")]
    engine = ScriptedEngine({PROPOSAL: [answer("2, 7")], ATTEMPT: estimates, SEPARATE: ["hm"]})
    closed = await play(separate, engine, ticket())
    assert (closed.solve_rate, closed.proposal.reward) == (0.25, 0.75)
    assert closed.untrained_episodes == ATTEMPTS
    assert closed.untrained_tokens == sum(len(text) + 1 for text in estimates)
    assert closed.problem == closed.proposed == problem("2,7")
    assert [(a.verdict, a.reward) for a in closed.attempts] == [(Verdict.UNPARSABLE, -1.0)]
    assert (engine.asked[ATTEMPT]["n"], engine.asked[SEPARATE]["n"]) == (ATTEMPTS, 1)
    assert engine.asked[ATTEMPT]["prompt"] == engine.asked[SEPARATE]["prompt"]


async def test_separate_no_two_samples_of_a_ticket_are_drawn_from_one_seed(separate):
    engine = ScriptedEngine({PROPOSAL: [answer("2, 7")], ATTEMPT: [answer("4")] * ATTEMPTS, SEPARATE: [answer("4")]})
    await play(separate, engine, ticket())
    drawn = [request["seed"] + i for request in engine.asked.values() for i in range(request["n"])]
    assert len(drawn) == 1 + ATTEMPTS + 1
    assert len(set(drawn)) == len(drawn)
    assert len({request["request_id"] for request in engine.asked.values()}) == 3


async def test_separate_attempts_and_sample_run_at_the_same_time(separate):
    both = asyncio.Barrier(2)

    class WaitingEngine(ScriptedEngine):
        async def generate(self, prompt_ids, **request):
            if request["seed"] != SEED + PROPOSAL:
                await both.wait()
            return await super().generate(prompt_ids, **request)

    engine = WaitingEngine({PROPOSAL: [answer("2, 7")], ATTEMPT: [answer("4")] * ATTEMPTS, SEPARATE: [answer("4")]})
    closed = await asyncio.wait_for(play(separate, engine, ticket()), timeout=60)
    assert closed.solve_rate == 1.0


@pytest.mark.parametrize("text", [answer("2, 8"), answer("2, 5"), "a fine problem"])
async def test_separate_a_fallback_gets_its_one_sample_and_no_others(separate, text):
    engine = ScriptedEngine({PROPOSAL: [text], SEPARATE: [answer("3")]})
    closed = await play(separate, engine, ticket())
    assert (closed.problem, closed.solve_rate) == (problem("4,11"), 1.0)
    assert [a.verdict for a in closed.attempts] == [Verdict.CORRECT]
    assert engine.asked.keys() == {PROPOSAL, SEPARATE}


async def test_separate_a_buffer_ticket_is_one_sample(separate):
    closed = await play(separate, ScriptedEngine({SEPARATE: [answer("4")]}), ticket("buffer"))
    assert [a.verdict for a in closed.episodes] == [Verdict.WRONG]
    assert closed.solve_rate == 0.0


async def test_a_prompt_that_does_not_fit_is_refused_never_cut(config):
    small = config.model_copy(update={"sampling": config.sampling.model_copy(update={"max_prompt_tokens": 10})})
    with pytest.raises(PrimezeroError, match=r"sampling\.max_prompt_tokens=10; it is not cut"):
        await play(small, ScriptedEngine({ATTEMPT: [answer("3")]}), ticket("buffer"))


async def test_a_ticket_for_newer_weights_than_the_engines_is_an_error(config):
    with pytest.raises(PrimezeroError, match="needs weights of version 2"):
        await play(config, ScriptedEngine({ATTEMPT: [answer("3")]}), ticket("buffer", min_version=2))
