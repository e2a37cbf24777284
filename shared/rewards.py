"""Rewards of both roles (Absolute Zero, arXiv 2505.03335, section 3.1, equations 4 to 6)."""

from __future__ import annotations

from collections.abc import Sequence

from shared.config import RewardConfig
from shared.episodes import Verdict


def solve_rate(verdicts: Sequence[Verdict]) -> float:
    """r̄: mean of 1[correct] over the verdicts on attempts at one problem."""
    return verdicts.count(Verdict.CORRECT) / len(verdicts)


def solver_reward(verdict: Verdict, response_tokens: int, rewards: RewardConfig) -> float:
    """What an attempt earns; ValueError for a verdict that attempts do not get."""
    return _for_answer(verdict, rewards) - rewards.length_penalty * response_tokens


def proposer_reward(verdict: Verdict, solve_rate: float | None, response_tokens: int, rewards: RewardConfig) -> float:
    """What a proposal earns by itself; ValueError for a verdict that proposals do not get.

    A held-out proposal earns nothing at all: it is not trained on, for its equation is true.

    solve_rate: mean of 1[correct] over the attempts at this very problem; needed when VALID, else unused
    """
    if verdict is Verdict.HELD_OUT:
        return 0.0
    return _for_proposal(verdict, solve_rate, rewards) - rewards.length_penalty * response_tokens


def answer_diversity_bonus(share: float, rewards: RewardConfig) -> float:
    """What a valid proposal earns besides, by its answer: 1 − p(answer), times the configured bonus.

    The answer-diversity reward that the paper tried (Absolute Zero, appendix, extra rewards).

    share: p(answer), the share of its batch's and task's valid proposals that have this answer, itself included
    """
    return rewards.answer_diversity_bonus * (1 - share)


def repeat_penalty(copies: int, valid: int, rewards: RewardConfig) -> float:
    """What a valid proposal pays for being one of `copies` alike among its batch's and task's `valid` ones.

    The share of the others that are the same, times the configured penalty; 0 where there are no others.
    """
    return rewards.repeat_penalty * (copies - 1) / max(valid - 1, 1)


def expected_learnability(failure_rate: float, attempts: int) -> float:
    """E[learnability] = q − qⁿ for independent attempts that each fail with probability q.

    Holds for `extreme_solve_rate` 0. Of the mean failure share q, only the case that all n fail earns nothing.
    """
    return failure_rate - failure_rate**attempts


def _learnability(solve_rate: float | None, rewards: RewardConfig) -> float:
    if solve_rate is None or not 0 <= solve_rate <= 1:
        raise ValueError(f"a valid proposal needs a solve rate in [0, 1], not {solve_rate}")
    return rewards.extreme_solve_rate if solve_rate in (0, 1) else 1 - solve_rate


def _for_answer(verdict: Verdict, rewards: RewardConfig) -> float:
    match verdict:
        case Verdict.CORRECT:
            return rewards.correct
        case Verdict.WRONG:
            return rewards.wrong
        case Verdict.UNPARSABLE:
            return rewards.unparsable
    raise ValueError(f"not a verdict on an attempt: {verdict}")


def _for_proposal(verdict: Verdict, solve_rate: float | None, rewards: RewardConfig) -> float:
    match verdict:
        case Verdict.VALID:
            return _learnability(solve_rate, rewards)
        case Verdict.INVALID | Verdict.COPY | Verdict.REPEAT:
            return rewards.invalid
        case Verdict.UNPARSABLE:
            return rewards.unparsable
    raise ValueError(f"not a verdict on a proposal: {verdict}")
