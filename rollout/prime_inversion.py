"""Prime inversion: x·y ≡ 1 (mod p), p prime, with one part hidden from the solver.

The modulus plays Absolute Zero's program, x its input, y its output (arXiv 2505.03335, section 3.2).

    task        shown             hidden   accepted answers
    deduction   x, p              y        every integer ≡ y (mod p)
    abduction   y, p              x        every integer ≡ x (mod p)
    induction   one or more x, y  p        every prime of the range above all numbers shown, with x·y ≡ 1 (mod p)

A proposer states the parts shown ("partial") or all of them, the pairs and then p ("full").

A problem's content is the numbers shown, in decimal, "12,13", the pairs ascending; its key is the content, or, where
swapped problems are copies, the family. A pair 1·1 is no part of an induction problem: every prime would do. With
that the accepted prime is unique (see Universe.solve), so a true prime also fits every further pair it is checked on.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections.abc import Sequence

from rollout.answers import answer_block, parse_answer
from rollout.environment import Demonstration, Proposal
from rollout.prime_baselines import baselines
from rollout.prime_notation import Notation
from rollout.prime_problems import Equations, Universe
from rollout.prime_prompts import make_prompts
from rollout.prime_sampling import CANDIDATES, ascending, one_of_each_slice, smallest_trainable, trainable
from shared.config import EnvironmentConfig
from shared.episodes import Problem, Role, Task, Verdict
from shared.errors import ConfigError

# Demonstrations are right up to this prime and guess above it.
_DEMONSTRATED_PRIME = 5
_DEMONSTRATED_REFERENCES = 3


class PrimeInversion:
    """The prime-inversion environment over the primes in [min_prime, max_prime]; see Environment."""

    def __init__(self, config: EnvironmentConfig) -> None:
        self._config = config
        self.tasks = tuple(map(Task, config.tasks))
        self._range = (config.min_prime, config.max_prime)
        self.stages = (0, *(batch for batch, _ in config.curriculum))
        self._largest_primes = (*(prime for _, prime in config.curriculum), config.max_prime)
        self._universe = Universe(*self._range, pairs=config.induction_pairs, share=config.held_out)
        self._notation = Notation(self._universe, config)
        self._prompts = make_prompts(config)
        self._examples = {task: self._smallest_trainable(task) for task in self.tasks}
        self._evaluation_sets: dict[tuple[Task, int, int, bool], list[Problem]] = {}
        self.fingerprint = self._fingerprint()

    def proposer_prompt(self, task: Task, references: Sequence[Problem], *, batch: int) -> str:
        """The first reference doubles as the example of the format; without one, the smallest problem does."""
        known = [self._notation.equations(reference) for reference in references]
        if any(reference.task is not task for reference in references):
            raise ValueError(f"the references of a {task} proposal are not all {task} problems")
        if any(map(self._universe.is_held_out, known)):
            raise ValueError(f"a reference of a {task} proposal is held out")
        return self._proposer_prompt(task, known, batch)

    def solver_prompt(self, problem: Problem) -> str:
        return self._prompts.solver(problem.task, self._notation.equations(problem), self._range)

    def judge_proposal(self, task: Task, text: str, *, batch: int) -> Proposal:
        equations, verdict = None, Verdict.UNPARSABLE
        stated = self._parse(text, self._notation.stated_count(task))
        if stated is not None:
            equations, verdict = self._notation.solve(task, stated), Verdict.INVALID
        if equations is None or equations.p > self._largest_prime(batch):
            return Proposal(verdict)
        if self._universe.is_held_out(equations):
            return Proposal(Verdict.HELD_OUT)
        return Proposal(Verdict.VALID, self._notation.problem(task, equations))

    def grade(self, problem: Problem, text: str) -> Verdict:
        equations = self._notation.equations(problem)
        numbers = self._parse(text, 1)
        if numbers is None:
            return Verdict.UNPARSABLE
        return Verdict.CORRECT if self._accepts(problem.task, equations, numbers[0]) else Verdict.WRONG

    def seed_problems(self, task: Task, count: int, rng: random.Random, *, batch: int) -> list[Problem]:
        """Where a held-out share makes problems rare, those that CANDIDATES draws find."""
        return [self._notation.problem(task, equations) for equations in self._seeds(task, count, rng, batch)]

    def evaluation_problems(self, task: Task, count: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """One random problem from each of `count` equal slices of all, ordered by p: every band is covered.

        Both orientations of an equation are asked for, swapped_is_copy or not: they have different answers.
        """
        wanted = (task, count, seed, held_out)
        if wanted not in self._evaluation_sets:  # asked for again and again; with classes held out it takes a second
            rng = random.Random(f"evaluation {seed} {task}")
            numbers = list(ascending(self._universe, task, max(count, CANDIDATES), rng, held_out=held_out))
            places = one_of_each_slice(numbers, count, rng)
            problems = [self._notation.problem(task, self._universe.at(task, place)) for place in places]
            self._evaluation_sets[wanted] = problems
        return list(self._evaluation_sets[wanted])

    def slices(self, problem: Problem) -> tuple[str, ...]:
        """Self-inverse: for one of its pairs x = y, that is, x is 1 or p − 1."""
        return ("self-inverse",) if self._notation.equations(problem).is_self_inverse else ()

    def baselines(self, problems: Sequence[Problem]) -> dict[str, float]:
        if len({problem.task for problem in problems}) > 1:
            raise ValueError("baselines are of problems of one task")
        everything = [self._notation.equations(problem) for problem in problems]
        return baselines(problems[0].task, everything, self._universe.primes) if problems else {}

    def demonstration(self, role: Role, task: Task, rng: random.Random) -> Demonstration:
        """Proposer: a random new problem. Solver: right for p up to 5, a guess of the right kind above.

        Of the first stage's range, so that a warm start sees nothing of what the curriculum keeps for later.
        """
        if role is Role.PROPOSER:
            *references, posed = self._seeds(task, _DEMONSTRATED_REFERENCES + 1, rng, batch=0)
            response = _joined(self._notation.stated(task, posed))
            return Demonstration(self._proposer_prompt(task, references, batch=0), answer_block(response))
        (asked,) = self._seeds(task, 1, rng, batch=0)
        prompt = self._prompts.solver(task, asked, self._range)
        return Demonstration(prompt, answer_block(str(self._demonstrated_answer(task, asked, rng))))

    def _demonstrated_answer(self, task: Task, equations: Equations, rng: random.Random) -> int:
        if equations.p <= _DEMONSTRATED_PRIME:
            return equations.hidden(task)
        if task is not Task.INDUCTION:
            return rng.randrange(1, equations.p)
        primes = self._universe.primes_above(equations.shown(task))
        return rng.choice([p for p in primes if p <= self._largest_prime(0)])

    def _proposer_prompt(self, task: Task, references: Sequence[Equations], batch: int) -> str:
        known = [_joined(self._notation.stated(task, reference)) for reference in references]
        example = _joined(self._notation.stated(task, self._examples[task]))
        return self._prompts.proposer(task, (self._config.min_prime, self._largest_prime(batch)), known, example)

    def _seeds(self, task: Task, count: int, rng: random.Random, batch: int) -> list[Equations]:
        """Distinct by key."""
        total, config = self._universe.total(task, self._largest_prime(batch)), self._config
        if not config.held_out and not config.swapped_is_copy and config.induction_pairs == 1:
            # Every problem serves, and a range() of them has a length: the library's sample is the quicker one.
            return [self._universe.at(task, index) for index in rng.sample(range(total), min(count, total))]
        seeds: dict[str, Equations] = {}
        for equations in trainable(self._universe, task, total, rng):
            seeds.setdefault(self._notation.problem(task, equations).key, equations)
            if len(seeds) >= count:
                break
        return list(seeds.values())[:count]

    def _smallest_trainable(self, task: Task) -> Equations:
        largest = self._largest_primes[0]
        example = smallest_trainable(self._universe, task, self._universe.total(task, largest))
        if example is None:
            raise ConfigError(
                f"environment: no {task} problem to train on exists for primes in {[self._range[0], largest]}: widen "
                "the range or the curriculum's first stage, or lower held_out or induction_pairs"
            )
        return example

    def _largest_prime(self, batch: int) -> int:
        return self._largest_primes[bisect_right(self.stages, batch) - 1]

    def _parse(self, text: str, count: int) -> tuple[int, ...] | None:
        return parse_answer(text, count, must_end_there=self._config.text_after_answer == "unparsable")

    def _accepts(self, task: Task, equations: Equations, answer: int) -> bool:
        shown = equations.shown(task)
        if task is not Task.INDUCTION:
            number, p = shown
            return number * answer % p == 1
        further = self._universe.further_pairs(equations, self._config.induction_held_out_pairs)
        return self._universe.accepts(answer, shown, [*equations.pairs, *further])

    def _fingerprint(self) -> str:
        """The settings, and every prompt of the smallest problem: whatever changes a text changes it."""
        texts = [self._config.model_dump_json()]
        for task, example in self._examples.items():
            texts.append(self._prompts.solver(task, example, self._range))
            texts += [self._proposer_prompt(task, [example] * count, batch=0) for count in range(3)]
        digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        return "prime_inversion {}..{} {}".format(*self._range, digest[:16])


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
