"""Whole runs of self-play, tickets to released batches, with a random model in place of engine and learner."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from characters import CharacterChat, answer, make_sample

from launch.beginnings import seed_stages
from learner.collector import Batch, Collector
from learner.problem_buffer import ProblemBuffer
from learner.ticket_check import TokenLimits
from rollout.environment import Environment, make_environment
from rollout.sample import Sample
from rollout.selfplay import SelfPlay
from shared.config import Config
from shared.config_file import load_config
from shared.episodes import ClosedTicket, Task, Ticket

Delay = Callable[[str], float]

LARGEST = 31
PRIMES = [p for p in range(2, LARGEST + 1) if all(p % d for d in range(2, p))]
TRIPLES = [(x, y, p) for p in PRIMES for x in range(1, p) for y in range(1, p) if x * y % p == 1]


def configured(overrides: Mapping[str, object]) -> Config:
    settings = {
        "run.steps": 6,
        "environment.max_prime": LARGEST,
        "environment.prompts": "short",
        "selfplay.proposals_per_task": 8,
        "selfplay.buffer_problems_per_task": 2,
        "selfplay.attempts": 4,
        "selfplay.references": 2,
        "rollout.max_open_tickets": 20,
    } | dict(overrides)
    return load_config(None, [f"--{key}={value}" for key, value in settings.items()])


def universe(proposal: str) -> dict[Task, list[str]]:
    """Every problem up to LARGEST, held out or not, as a proposer states it; by brute force."""
    if proposal == "full":
        return {task: [f"{x}, {y}, {p}" for x, y, p in TRIPLES] for task in Task}
    return {
        Task.DEDUCTION: [f"{x}, {p}" for x, _, p in TRIPLES],
        Task.ABDUCTION: [f"{y}, {p}" for _, y, p in TRIPLES],
        Task.INDUCTION: [f"{x}, {y}" for x, y, _ in TRIPLES if x * y > 1],
    }


class RandomModel:
    """An engine whose text depends on the sample's seed alone; how long it takes is `delay` of the text, seconds.

    Proposals: garbage, at once; numbers that make no problem; or any problem of the universe, held out or not.
    Attempts: garbage, or a guess. The more is said, the longer it takes, and the likelier it is to be worth it.
    """

    version = 0

    def __init__(self, config: Config, delay: Delay) -> None:
        self._universe = universe(config.environment.proposal)
        self._delay = delay
        self.tickets: dict[str, Ticket] = {}

    async def generate(self, prompt_ids: Sequence[int], **request) -> list[Sample]:
        ticket_name, _, first = request["request_id"].rpartition("-")
        task = self.tickets[ticket_name].task if first == "0" else None
        texts = [self._text(random.Random(request["seed"] + i), task) for i in range(request["n"])]
        await asyncio.sleep(max(map(self._delay, texts)))
        return [make_sample(text, self.version) for text in texts]

    def _text(self, rng: random.Random, proposed: Task | None) -> str:
        if rng.random() < 0.3:
            return "?"
        reasoning = "." * rng.randrange(60)
        if proposed is None:
            return reasoning + answer(str(rng.randint(1, LARGEST)))
        if rng.random() < 0.2:
            return answer("0, 0")
        favourites = rng.choice((6, None))  # so that there are repeats
        return reasoning + answer(rng.choice(self._universe[proposed][:favourites]))


@dataclass(repr=False)
class PlayedRun:
    """batches: released, in order; arrived: all closed tickets in the order in which they closed"""

    environment: Environment
    buffer: ProblemBuffer
    batches: list[Batch] = field(default_factory=list)
    arrived: list[ClosedTicket] = field(default_factory=list)


async def play_run(config: Config, delay: Delay) -> PlayedRun:
    """Play `run.steps` batches; a version is a batch, and the model stays the same."""
    environment = make_environment(config.environment)
    stages = seed_stages(environment, config)
    buffer = ProblemBuffer(stages[0].problems, capacity=config.selfplay.buffer_capacity, seed=config.run.seed)
    limits = TokenLimits(prompt=1000, response=1000, vocabulary=256)
    collector = Collector(
        buffer,
        tasks=environment.tasks,
        selfplay=config.selfplay,
        rewards=config.rewards,
        limits=limits,
        seed=config.run.seed,
        stages=stages,
    )
    model = RandomModel(config, delay)
    selfplay = SelfPlay(config, model, environment, CharacterChat())
    run = PlayedRun(environment, buffer)
    waiting: deque[Ticket] = deque()
    running: set[asyncio.Task[ClosedTicket]] = set()
    for version in range(config.run.steps):
        model.version = version
        for ticket in collector.open_through(version, config.run.steps - 1):
            model.tickets[f"{ticket.id.lineage}-{ticket.id.batch}-{ticket.id.index}"] = ticket
            waiting.append(ticket)
        while not collector.is_complete(version):
            while waiting and len(running) < config.rollout.max_open_tickets:
                running.add(asyncio.create_task(selfplay.play(waiting.popleft())))
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for closed in sorted((task.result() for task in done), key=lambda closed: closed.id):
                collector.close(closed)
                run.arrived.append(closed)
        run.batches.append(collector.release(version))
    return run
