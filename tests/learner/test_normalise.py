import numpy as np
import pytest
from factories import make_episode

from learner.collector import Batch
from learner.normalise import normalise, permute_within_cells
from shared.config import load_config
from shared.episodes import ClosedTicket, Problem, Role, Task, TicketId

PROBLEM = Problem(Task.DEDUCTION, "c", "k")


def batch_of(rewards_by_cell: dict[tuple[Task, Role], list[float]]) -> Batch:
    episodes = [
        make_episode(role, task, reward=reward)
        for (task, role), rewards in rewards_by_cell.items()
        for reward in rewards
    ]
    return Batch(0, (ClosedTicket(TicketId(0, 0, 0), None, None, PROBLEM, tuple(episodes)),))


def test_each_task_and_role_is_normalised_by_itself():
    rewards = {
        (Task.DEDUCTION, Role.SOLVER): [1.0, 0.0],
        (Task.DEDUCTION, Role.PROPOSER): [100.0, 300.0],
        (Task.ABDUCTION, Role.SOLVER): [-5.0, -4.0],
    }
    rows = normalise(batch_of(rewards), load_config(None))
    high = 0.5**0.5  # two values lie half their distance from the mean; ddof 1 makes the deviation √½ of it
    assert rows.advantages.tolist() == pytest.approx([high, -high, -high, high, -high, high], rel=1e-4)


def test_solver_rows_weigh_their_configured_share():
    rewards = {(Task.DEDUCTION, Role.PROPOSER): [1.0, 0.0], (Task.DEDUCTION, Role.SOLVER): [1.0, 0.0]}
    batch = batch_of(rewards)
    assert normalise(batch, load_config(None)).row_weights.tolist() == [1, 1, 1 / 8, 1 / 8]
    config = load_config(None, ["--learner.solver_row_weight", "1"])
    assert normalise(batch, config).row_weights.tolist() == [1, 1, 1, 1]


def test_the_permutation_control_keeps_each_cells_rewards_and_nothing_else():
    cells = [(Task.DEDUCTION, Role.SOLVER)] * 50 + [(Task.ABDUCTION, Role.SOLVER)] * 50
    rewards = np.arange(100.0)
    permuted = permute_within_cells(rewards, cells, seed=[0, 1])
    assert sorted(permuted[:50]) == sorted(rewards[:50])
    assert sorted(permuted[50:]) == sorted(rewards[50:])
    assert (permuted != rewards).mean() > 0.9
    assert np.array_equal(permuted, permute_within_cells(rewards, cells, seed=[0, 1]))
    assert not np.array_equal(permuted, permute_within_cells(rewards, cells, seed=[0, 2]))


def test_the_permutation_control_is_reached_from_the_configuration():
    rewards = {(Task.DEDUCTION, Role.SOLVER): [float(i) for i in range(40)]}
    plain = normalise(batch_of(rewards), load_config(None)).advantages
    permuted = normalise(batch_of(rewards), load_config(None, ["--rewards.permute_within_cell", "true"])).advantages
    assert sorted(plain.tolist()) == sorted(permuted.tolist())
    assert plain.tolist() != permuted.tolist()
