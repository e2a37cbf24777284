import json

import numpy as np
import pytest
from factories import make_episode, make_problem
from msgspec.structs import replace

from learner.collector import Batch
from learner.normalise import Normaliser, permute_within_cells
from learner.packing import plan_step
from shared.config_file import load_config
from shared.episodes import ClosedTicket, Episode, Role, Task, TicketId, Verdict, VersionSpan
from shared.errors import CheckpointError, PrimezeroError

PROBLEM = make_problem("k")


def ticket_of(index: int, attempts: list[Episode], proposal: Episode | None = None) -> ClosedTicket:
    return ClosedTicket(TicketId(0, 0, index), proposal, None, PROBLEM, tuple(attempts), solve_rate=0.5)


def batch_of(*tickets: ClosedTicket, number: int = 0) -> Batch:
    return Batch(number, tickets, ())


def attempts(*rewards: float, task: Task = Task.DEDUCTION) -> list[Episode]:
    return [make_episode(Role.SOLVER, task, reward=reward) for reward in rewards]


def proposal(reward: float, verdict: Verdict = Verdict.VALID) -> Episode:
    return make_episode(Role.PROPOSER, reward=reward, verdict=verdict)


def normaliser(*overrides: str) -> Normaliser:
    return Normaliser(load_config(None, overrides))


def normalised(batch: Batch, *overrides: str):
    trained = normaliser(*overrides)
    return trained.training_batch(trained.select(batch))


def test_each_task_and_role_is_normalised_by_itself():
    batch = batch_of(
        ticket_of(0, attempts(1.0, 0.0), proposal(100.0)),
        ticket_of(1, attempts(-5.0, -4.0, task=Task.ABDUCTION), proposal(300.0)),
    )
    rows = normaliser().select(batch)
    assert rows.cells == [
        *["proposer/deduction", "solver/deduction", "solver/deduction"],
        *["proposer/deduction", "solver/abduction", "solver/abduction"],
    ]
    assert rows.groups == [None, 0, 0, None, 1, 1]
    high = 0.5**0.5  # two values lie half their distance from the mean; ddof 1 makes the deviation √½ of it
    assert normalised(batch).advantages.tolist() == pytest.approx([-high, high, -high, high, -high, high], rel=1e-4)


def test_staleness_is_counted_from_the_version_that_the_batch_is_trained_at():
    fresh, stale = make_episode(version=3), replace(make_episode(), spans=(VersionSpan(2, 0, 1), VersionSpan(3, 1, 2)))
    batch = batch_of(ticket_of(0, [fresh, stale], make_episode(Role.PROPOSER, version=1)), number=3)
    assert normalised(batch).staleness.tolist() == [2, 2, 0, 0, 1, 0]


def test_solver_rows_weigh_their_configured_share():
    batch = batch_of(ticket_of(0, attempts(1.0, 0.0), proposal(1.0)))
    assert normalised(batch).row_weights.tolist() == [1, 1 / 8, 1 / 8]
    assert normalised(batch, "--learner.solver_row_weight", "1").row_weights.tolist() == [1, 1, 1]
    assert normalised(batch, "--selfplay.solver_samples", "separate").row_weights.tolist() == [1, 1, 1]


def test_std_floor_is_reached_from_the_configuration():
    batch = batch_of(ticket_of(0, attempts(1.0, 0.0)))
    found = normalised(batch, "--learner.advantage.std_floor", "5").advantages
    assert found.tolist() == pytest.approx([0.1, -0.1], rel=1e-5)


def test_length_weighting_is_reached_from_the_configuration():
    short, long = make_episode(reward=0.0, response=[4]), make_episode(reward=1.0, response=[4, 5, 6])
    found = normalised(batch_of(ticket_of(0, [long, short])), "--learner.advantage.length_weighted", "true").advantages
    assert found.tolist() == pytest.approx([0.5, -1.5], rel=1e-6)


def test_the_group_baseline_compares_the_attempts_of_one_ticket():
    hard, easy = (
        ticket_of(0, attempts(0.0, 0.0, 1.0, 1.0), proposal(1.0)),
        ticket_of(1, attempts(3.0, 5.0), proposal(0)),
    )
    found = normalised(batch_of(hard, easy), "--learner.advantage.baseline", "group").advantages.tolist()
    std = np.array([-0.5, -0.5, 0.5, 0.5, -1, 1]).std(ddof=1)
    assert [*found[1:5], *found[6:]] == pytest.approx(np.array([-0.5, -0.5, 0.5, 0.5, -1, 1]) / std, rel=1e-4)
    assert [found[0], found[5]] == pytest.approx([0.5**0.5, -(0.5**0.5)], rel=1e-4)  # proposals: the cell's mean


def test_two_tickets_on_one_problem_are_two_groups():
    found = normalised(
        batch_of(ticket_of(0, attempts(0.0, 1.0)), ticket_of(1, attempts(7.0, 7.0))),
        *("--learner.advantage.baseline", "group"),
    ).advantages.tolist()
    assert found[2:] == [0, 0]
    assert found[0] == -found[1] < 0


def test_ema_goes_on_from_its_saved_state():
    overrides = ("--learner.advantage.baseline", "ema")
    batches = [batch_of(ticket_of(0, attempts(*rewards)), number=i) for i, rewards in enumerate([[0, 1], [1, 1]])]
    first, second = normaliser(*overrides), normaliser(*overrides)
    first.training_batch(first.select(batches[0]))
    assert first.state() == {"cells": {"solver/deduction": {"mean": 0.5, "variance": pytest.approx(0.5)}}}
    second.restore(json.loads(json.dumps(first.state())))
    found = [n.training_batch(n.select(batches[1])).advantages.tolist() for n in (first, second)]
    assert found[0] == found[1] == pytest.approx([0.5**0.5] * 2, rel=1e-5)


@pytest.mark.parametrize("state", [{}, {"cells": {}, "more": 1}, {"cells": {"a": 1}}], ids=str)
def test_a_malformed_state_is_refused(state):
    with pytest.raises(CheckpointError):
        normaliser().restore(state)


@pytest.mark.parametrize("baseline", ["cell", "ema", "group"])
def test_a_reward_penalty_is_taken_off_before_normalising(baseline):
    overrides = ("--learner.advantage.baseline", baseline)
    batch = batch_of(ticket_of(0, attempts(1.0, 0.0, 1.0), proposal(0.5)), ticket_of(1, attempts(2.0), proposal(0.0)))
    penalty = np.array([0.1, -0.3, 0.2, 0.7, 0.0, 0.4], np.float32)
    cheaper = [replace(e, reward=e.reward - float(p)) for e, p in zip(batch.episodes, penalty, strict=True)]
    reduced = batch_of(ticket_of(0, cheaper[1:4], cheaper[0]), ticket_of(1, cheaper[5:], cheaper[4]))
    trained = normaliser(*overrides)
    found = trained.training_batch(trained.select(batch), penalty).advantages
    np.testing.assert_allclose(found, normalised(reduced, *overrides).advantages, rtol=1e-6)
    assert not np.allclose(found, normalised(batch, *overrides).advantages)


def test_the_rows_are_the_same_before_and_after_normalising():
    trained = normaliser()
    rows = trained.select(batch_of(ticket_of(0, attempts(1.0, 0.0), proposal(0.5))))
    before, after = rows.unnormalised(), trained.training_batch(rows)
    assert before.token_ids.tolist() == after.token_ids.tolist()
    assert before.advantages.tolist() == [0, 0, 0]


def with_masked_rows(clean: Batch, masked: list[Episode]) -> Batch:
    """The same batch with masked episodes among its rows: proposals on tickets of their own, the rest first."""
    first, *others = clean.tickets
    solver = [e for e in masked if e.role is Role.SOLVER]
    proposals = [ticket_of(9, [], e) for e in masked if e.role is Role.PROPOSER]
    return batch_of(*proposals, replace(first, attempts=(*solver, *first.attempts)), *others)


HELD_OUT = make_episode(Role.PROPOSER, reward=-77.0, response=[4] * 9, verdict=Verdict.HELD_OUT)
TRUNCATED = replace(make_episode(reward=-77.0, response=[4] * 9), truncated=True)


@pytest.mark.parametrize("baseline", ["cell", "ema", "group"])
@pytest.mark.parametrize("length_weighted", ["false", "true"])
@pytest.mark.parametrize(
    ("overrides", "masked"),
    [
        ((), [HELD_OUT]),
        (("--learner.mask_truncated", "true"), [TRUNCATED, replace(TRUNCATED, role=Role.PROPOSER)]),
        (("--selfplay.train_proposer", "false"), [proposal(-77.0), HELD_OUT]),
    ],
    ids=["held out", "truncated", "proposer"],
)
def test_masked_episodes_leave_everything_of_the_others_as_if_they_had_not_been(
    baseline, length_weighted, overrides, masked
):
    overrides = (
        *("--learner.advantage.baseline", baseline, "--learner.advantage.length_weighted", length_weighted),
        *overrides,
    )
    proposals = (None, None) if "--selfplay.train_proposer" in overrides else (proposal(1.0), proposal(0.0))
    tickets = [ticket_of(i, attempts(1.0, -0.5, i), own) for i, own in enumerate(proposals)]
    clean, full = batch_of(*tickets), with_masked_rows(batch_of(*tickets), masked)
    with_masks, without = normaliser(*overrides), normaliser(*overrides)
    for _ in range(2):
        found = with_masks.training_batch(with_masks.select(full))
        expected = without.training_batch(without.select(clean))
        assert found.advantages.tolist() == expected.advantages.tolist()
        assert found.row_weights.tolist() == expected.row_weights.tolist()
        assert found.token_ids.tolist() == expected.token_ids.tolist()
        [[ours]], [[theirs]] = (
            plan_step(batch, world_size=1, max_tokens=999, averaging="token").ranks for batch in (found, expected)
        )
        assert ours.token_weights.tolist() == theirs.token_weights.tolist()
    assert with_masks.state() == without.state()


def test_truncated_responses_and_proposals_train_unless_masked():
    batch = batch_of(ticket_of(0, [*attempts(1.0), TRUNCATED], proposal(0.5)))
    assert len(normaliser().select(batch).episodes) == 3


@pytest.mark.parametrize(
    ("overrides", "episodes", "message"),
    [
        (("--learner.mask_truncated", "true"), [TRUNCATED] * 2, "2 cut responses .*max_response_tokens"),
        ((), [HELD_OUT], "1 held-out proposals"),
        (("--selfplay.train_proposer", "false"), [HELD_OUT], "1 proposals .*buffer_problems_per_task"),
    ],
)
def test_a_batch_of_nothing_but_masked_episodes_says_why(overrides, episodes, message):
    with pytest.raises(PrimezeroError, match=f"batch 3 .*{message}"):
        normaliser(*overrides).select(batch_of(ticket_of(0, episodes), number=3))


def test_the_permutation_control_keeps_each_cells_rewards_and_nothing_else():
    cells = ["solver/deduction"] * 50 + ["solver/abduction"] * 50
    rewards = np.arange(100.0)
    permuted = permute_within_cells(rewards, cells, seed=[0, 1])
    assert sorted(permuted[:50]) == sorted(rewards[:50])
    assert sorted(permuted[50:]) == sorted(rewards[50:])
    assert (permuted != rewards).mean() > 0.9
    assert np.array_equal(permuted, permute_within_cells(rewards, cells, seed=[0, 1]))
    assert not np.array_equal(permuted, permute_within_cells(rewards, cells, seed=[0, 2]))


def test_the_permutation_control_is_reached_from_the_configuration():
    batch = batch_of(ticket_of(0, attempts(*map(float, range(40)))))
    plain = normalised(batch).advantages
    permuted = normalised(batch, "--rewards.permute_within_cell", "true").advantages
    assert sorted(plain.tolist()) == sorted(permuted.tolist())
    assert plain.tolist() != permuted.tolist()
