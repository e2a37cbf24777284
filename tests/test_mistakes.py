"""The fourteen mistakes of an earlier reproduction (method.md section 8): what is right passes, each mistake fails.

Every test is one check of a property, made twice: on the real thing, and on the same thing with the mistake planted.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from characters import CharacterChat, answer, make_sample
from factories import make_closed
from loss_tokens import random_tokens
from random_batches import VOCABULARY, random_batch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from launch.run_folder import open_run_folder
from learner.batch_metrics import batch_metrics
from learner.checkpoint import CheckpointStore, TrainerState
from learner.collector import Batch, Collector
from learner.logprobs import token_logprobs
from learner.objective import policy_loss
from learner.packing import plan_step
from learner.problem_buffer import ProblemBuffer
from learner.ticket_check import TokenLimits
from rollout.environment import make_environment
from rollout.evaluation import EVALUATION_SEED
from rollout.selfplay import SelfPlay
from shared.config import Config, EnvironmentConfig, LearnerConfig, RewardConfig, SelfPlayConfig
from shared.config_file import load_config
from shared.episodes import ClosedTicket, Episode, Problem, Role, Task, Ticket, TicketId, Verdict
from shared.errors import MessageError, PrimezeroError
from shared.rewards import proposer_reward
from shared.statistics import wilson_interval

ENVIRONMENT = EnvironmentConfig(prompts="short")
ATTEMPTS = 4


def passes_only_the_real_one(check: Callable[[Any], None], real: object, mistaken: object) -> None:
    check(real)
    with pytest.raises(AssertionError):
        check(mistaken)


# --- the update -----------------------------------------------------------------------------------


def toy_update(loss_of: Callable[..., torch.Tensor], advantage: float) -> float:
    """By how much one step of gradient descent changes the log-probability of a token with this advantage."""
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    before = torch.log_softmax(logits, 0)[2]
    tokens = replace(
        random_tokens((1,)),
        new_logprobs=before[None],
        old_logprobs=before.detach()[None],
        behaviour_logprobs=before.detach()[None],
        advantages=torch.tensor([advantage], dtype=torch.float64),
        token_weights=torch.ones(1, dtype=torch.float64),
    )
    loss_of(tokens, LearnerConfig(), 0.0).backward()
    with torch.no_grad():
        return float(torch.log_softmax(logits - 0.1 * logits.grad, 0)[2] - before)


def real_loss(tokens, config, coefficient):
    return policy_loss(tokens, config, coefficient)[0]


def test_mistake_01_the_objective_was_minimised():
    def check(loss):
        assert toy_update(loss, advantage=1.0) > 0
        assert toy_update(loss, advantage=-1.0) < 0

    passes_only_the_real_one(check, real_loss, lambda *arguments: -real_loss(*arguments))


def test_mistake_02_the_clip_was_applied_to_the_advantage():
    def clipping_the_advantage(tokens, config, coefficient):
        clipped = replace(tokens, advantages=tokens.advantages.clamp(-0.2, 0.2))
        unclipped = config.trust_region.model_copy(update={"clip_low": 1.0, "clip_high": 1e9})
        return real_loss(clipped, config.model_copy(update={"trust_region": unclipped}), coefficient)

    def check(loss):
        assert toy_update(loss, advantage=5.0) > 4 * toy_update(loss, advantage=1.0)
        new = torch.tensor([-1.0 + math.log(1.5)], dtype=torch.float64, requires_grad=True)
        old = torch.tensor([-1.0], dtype=torch.float64)
        one = replace(random_tokens((1,)), new_logprobs=new, old_logprobs=old, advantages=torch.ones(1).double())
        loss(one, LearnerConfig(), 0.0).backward()
        assert new.grad.item() == 0  # already 1.5 times as likely

    passes_only_the_real_one(check, real_loss, clipping_the_advantage)


def test_mistake_03_new_log_probabilities_came_from_freshly_sampled_text():
    logprobs = torch.log_softmax(torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1)), -1)
    stored = random_batch(rows=8)
    own = [logprobs[[*prompt[-1:], *response[:-1]], response] for prompt, response in stored.rows()]
    stored = replace(stored, behaviour_logprobs=torch.cat(own))
    resampled = replace(stored, token_ids=torch.randint_like(stored.token_ids, VOCABULARY))

    def check(batch):
        [[micro_batch]] = plan_step(batch, world_size=1, max_tokens=10_000, averaging="token").ranks
        new = logprobs[micro_batch.token_ids[0, micro_batch.predicting], micro_batch.targets][micro_batch.source]
        assert new.equal(micro_batch.behaviour_logprobs)  # the model has not changed since it sampled

    passes_only_the_real_one(check, stored, resampled)


def test_mistake_04_sampler_and_learner_warped_the_distribution_differently():
    """The sampler's side is tests/rollout/test_engine.py: its log-probabilities are after temperature, of no top-k."""
    g = torch.Generator().manual_seed(0)
    hidden, head, targets = torch.randn(6, 8, generator=g), torch.randn(20, 8, generator=g), torch.arange(6)
    sampled = torch.log_softmax(hidden @ head.T / 0.7, -1)[torch.arange(6), targets]

    def check(temperature):
        ours, _ = token_logprobs(hidden, head, targets, temperature=temperature, chunk_bytes=4 * 20 * 4)
        assert (ours - sampled).abs().max() < 1e-5

    passes_only_the_real_one(check, 0.7, 1.0)
    with pytest.raises(PrimezeroError, match=r"sampling\.top_p: unknown key"):
        load_config(None, ["--sampling.top_p", "0.9"])


def test_mistake_12_a_full_vocabulary_score_tensor_was_kept():
    tokens, vocabulary, chunk = 256, 1000, 16
    hidden = torch.randn(tokens, 8, requires_grad=True)
    head, targets = torch.randn(vocabulary, 8), torch.zeros(tokens, dtype=torch.int64)

    class LargestTensor(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            made = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
            self.elements = max([self.elements, *made])
            return result

    def check(logprobs_of):
        with LargestTensor() as largest:
            logprobs_of().sum().backward()
        assert largest.elements <= chunk * vocabulary

    passes_only_the_real_one(
        check,
        lambda: token_logprobs(hidden, head, targets, temperature=1.0, chunk_bytes=4 * chunk * vocabulary)[0],
        lambda: torch.log_softmax(hidden @ head.T, -1).gather(1, targets[:, None]),
    )


# --- self-play ------------------------------------------------------------------------------------


class ScriptedEngine:
    """Proposes `proposal`, then answers with `attempts`; keeps the prompts."""

    version = 0

    def __init__(self, proposal: str, attempts: Sequence[str]) -> None:
        self._script = [[proposal], list(attempts)]
        self.prompts: list[str] = []

    async def generate(self, prompt_ids, *, n, **_):
        self.prompts.append("".join(map(chr, prompt_ids)))
        texts = self._script[0] if n == 1 else self._script[1]
        return [make_sample(text) for text in texts]


def configured(**overrides: object) -> Config:
    settings = {"selfplay.attempts": ATTEMPTS, "environment.prompts": "short"} | overrides
    return load_config(None, [f"--{key}={value}" for key, value in settings.items()])


def make_ticket(task: Task, kind: str = "proposal") -> Ticket:
    references = make_environment(ENVIRONMENT).seed_problems(task, 4, random.Random(0), batch=0)
    return Ticket(TicketId(0, 0, 0), kind, task, tuple(references[:3]), references[3], min_version=0, seed=1)


def play(ticket: Ticket, engine: ScriptedEngine, chat: CharacterChat | None = None, **overrides) -> ClosedTicket:
    config = configured(**overrides)
    selfplay = SelfPlay(config, engine, make_environment(config.environment), chat or CharacterChat())
    return asyncio.run(selfplay.play(ticket))


def fresh_problem(ticket: Ticket) -> Problem:
    problems = make_environment(ENVIRONMENT).evaluation_problems(ticket.task, 1000, 0)
    return next(p for p in problems if p not in ticket.references and p != ticket.problem)


@pytest.mark.parametrize("task", Task)
def test_mistake_05_roles_and_tasks_were_mixed_up(task):
    ticket = make_ticket(task)
    engine = ScriptedEngine(answer(fresh_problem(ticket).content), [answer("1")] * ATTEMPTS)
    closed = play(ticket, engine)
    selfplay = SelfPlayConfig(proposals_per_task=1, attempts=ATTEMPTS, references=3)

    def mixed_up(real: ClosedTicket) -> ClosedTicket:
        return msgspec.structs.replace(real, proposal=msgspec.structs.replace(real.proposal, role=Role.SOLVER))

    def check(closed: ClosedTicket) -> None:
        prompts = ["".join(map(chr, e.prompt_ids)) for e in closed.episodes]
        assert prompts == [engine.prompts[0], *[engine.prompts[1]] * ATTEMPTS]
        assert [(e.role, e.task) for e in closed.episodes] == [(Role.PROPOSER, task), *[(Role.SOLVER, task)] * ATTEMPTS]
        seeds = {task: [*ticket.references, ticket.problem]}
        collector = Collector(
            ProblemBuffer(seeds, capacity=10, seed=0),
            tasks=[task],
            selfplay=selfplay,
            rewards=RewardConfig(),
            limits=TokenLimits(1000, 1000, 256),
            seed=0,
        )
        (issued,) = collector.open_through(0, 0)
        with pytest.raises(MessageError, match="roles"):
            collector.close(mixed_up(make_closed(issued, attempts=ATTEMPTS)))
        cells = batch_metrics(Batch(0, (closed,), (ticket,)), attempts=ATTEMPTS).cells
        assert cells[f"proposer/{task}"].reward == closed.proposal.reward
        assert cells[f"solver/{task}"].reward == np.mean([e.reward for e in closed.attempts])

    passes_only_the_real_one(check, closed, mixed_up(closed))


def test_mistake_06_learnability_was_one_mean_over_the_batch():
    rewards = RewardConfig()

    def over_the_batch(verdict: Verdict, solve_rate: float | None, tokens: int, rewards: RewardConfig) -> float:
        scores = [1.0, -0.5, -1.0, -1.0]  # of all answers in the batch, whatever their problem
        return 1 - sum(scores) / len(scores)

    def check(reward):
        assert reward(Verdict.VALID, 0.0, 5, rewards) == 0  # never solved
        assert reward(Verdict.VALID, 1.0, 5, rewards) == 0
        assert reward(Verdict.VALID, 0.25, 5, rewards) == 0.75
        assert reward(Verdict.UNPARSABLE, None, 5, rewards) == -1

    passes_only_the_real_one(check, proposer_reward, over_the_batch)


@pytest.mark.parametrize("prompts", ["short", "instruct"])
@pytest.mark.parametrize("proposal", ["partial", "full"])
def test_mistake_07_the_format_asked_for_did_not_parse(prompts, proposal):
    environment = make_environment(EnvironmentConfig(prompts=prompts, proposal=proposal))

    def check(asked: Callable[[str], str]) -> None:
        for task in Task:
            references = environment.seed_problems(task, 2, random.Random(0), batch=0)
            stated = asked(environment.proposer_prompt(task, references, batch=0))
            assert environment.judge_proposal(task, stated, batch=0).verdict is not Verdict.UNPARSABLE
            answered = asked(environment.solver_prompt(references[0]))
            assert environment.grade(references[0], answered) is not Verdict.UNPARSABLE

    def in_words(prompt: str) -> str:
        return prompt.replace("<answer>", "<answer>y = ")

    passes_only_the_real_one(check, lambda prompt: prompt, in_words)


def test_mistake_08_prompts_were_cut_silently():
    class CuttingChat(CharacterChat):
        def prompt(self, text):
            return super().prompt(text)[-20:]

    def check(chat):
        engine = ScriptedEngine("", [answer("1")] * ATTEMPTS)
        ticket = make_ticket(Task.DEDUCTION, "buffer")
        with pytest.raises(PrimezeroError, match="it is not cut"):
            play(ticket, engine, chat, **{"sampling.max_prompt_tokens": 20})
        play(ticket, engine, chat)
        assert engine.prompts == [make_environment(ENVIRONMENT).solver_prompt(ticket.problem)]

    def fails(chat):  # pytest.raises reports a missing error as Failed, which is no AssertionError
        try:
            check(chat)
        except pytest.fail.Exception as error:
            raise AssertionError(str(error)) from error

    passes_only_the_real_one(fails, CharacterChat(), CuttingChat())


def test_mistake_09_induction_demanded_the_stored_prime():
    environment = make_environment(ENVIRONMENT)
    primes = [2, 3, 5, 7, 11, 13]

    def demanding_what_was_stored(problem: Problem, text: str) -> Verdict:
        stored = 13  # the prime that the proposer had in mind
        return Verdict.CORRECT if text == answer(str(stored)) else Verdict.WRONG

    def check(grade):
        for problem in environment.evaluation_problems(Task.INDUCTION, 1000, 0):
            x, y = map(int, problem.content.split(","))
            accepted = {p for p in primes if grade(problem, answer(str(p))) is Verdict.CORRECT}
            assert accepted == {p for p in primes if p > max(x, y) and x * y % p == 1}

    passes_only_the_real_one(check, environment.grade, demanding_what_was_stored)


def test_mistake_10_odd_numbers_crashed_the_grader_or_passed_it():
    environment = make_environment(ENVIRONMENT)

    class Careless:
        """Inverts whatever it is given."""

        def judge_proposal(self, task, text, *, batch):
            return environment.judge_proposal(task, text.replace("9", "7"), batch=batch)

        def grade(self, problem, text):
            try:
                pow(int(text.removeprefix("<answer>").removesuffix("</answer>")), -1, 7)
            except ValueError as error:
                raise AssertionError("the grader crashed") from error
            return environment.grade(problem, text)

    def check(judge):
        for composite in ("2, 9", "3, 9", "4, 6", "0, 7", "7, 7", "1, 1000003"):
            for task in (Task.DEDUCTION, Task.ABDUCTION):
                assert judge.judge_proposal(task, answer(composite), batch=0).verdict is Verdict.INVALID
        (problem, *_) = environment.evaluation_problems(Task.DEDUCTION, 1000, 0)
        for text in ("0", "-7", "7", "999999999999"):
            assert judge.grade(problem, answer(text)) in (Verdict.CORRECT, Verdict.WRONG)

    passes_only_the_real_one(check, environment, Careless())


def test_mistake_11_buffer_problems_were_trained_with_zero_reward():
    ticket = make_ticket(Task.DEDUCTION, "buffer")
    right = next(str(y) for y in range(14) if is_right(ticket.problem, y))
    closed = play(ticket, ScriptedEngine("", [answer(right), answer(right), answer("0"), "?"]))

    def zero(episode: Episode) -> Episode:
        return msgspec.structs.replace(episode, reward=0.0)

    def check(closed: ClosedTicket) -> None:
        assert [e.reward for e in closed.attempts] == [1.0, 1.0, -0.5, -1.0]

    zeroed = msgspec.structs.replace(closed, attempts=tuple(map(zero, closed.attempts)))
    passes_only_the_real_one(check, closed, zeroed)


def is_right(problem: Problem, number: int) -> bool:
    return make_environment(ENVIRONMENT).grade(problem, answer(str(number))) is Verdict.CORRECT


# --- the run --------------------------------------------------------------------------------------


def test_mistake_13_no_checkpoint_was_ever_saved(tmp_path):
    """What a checkpoint holds: tests/learner/test_policy.py; a whole run that goes on: tests/launch/test_resume.py."""

    class CommentedOut(CheckpointStore):
        def commit(self, partial, state):
            pass

    def check(kind: type[CheckpointStore]) -> None:
        config = configured(**{"run.folder": tmp_path, "run.name": kind.__name__})
        with open_run_folder(config) as run:
            store = kind(run.path / "checkpoints", keep=2)
            store.commit(store.begin(20), TrainerState(20, {}, {}, {}, {}, {}, 0))
            found = store.latest()
            assert found is not None
        with open_run_folder(config) as again:
            assert again.resume_from == found[0]

    passes_only_the_real_one(check, CheckpointStore, CommentedOut)


def test_mistake_14_evaluation_used_eight_problems():
    environment = make_environment(EnvironmentConfig(min_prime=5, max_prime=617))

    def check(count: int) -> None:
        for task in Task:
            problems = environment.evaluation_problems(task, count, EVALUATION_SEED)
            low, high = wilson_interval(len(problems) // 2, len(problems))
            assert high - low < 0.1

    passes_only_the_real_one(check, EnvironmentConfig().evaluation_problems_per_task, 8)
