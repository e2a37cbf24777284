import dataclasses
from contextlib import contextmanager
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import learner.prompt_groups
from learner.attention import Run
from learner.batch import TrainingBatch
from learner.memory_bounds import KEYS_PER_TOKEN
from learner.packing import plan_step
from learner.prompt_groups import group_rows, pack
from shared.config import MAX_STALENESS
from shared.episodes import Episode, Role, Task, Verdict, VersionSpan


def batch_of(pairs) -> TrainingBatch:
    """Rows of (prompt ids, response ids); advantage r + 1, row weight 1, log-probabilities that name the token."""
    responses = [response for _, response in pairs]
    return TrainingBatch(
        prompt_lengths=torch.tensor([len(prompt) for prompt, _ in pairs]),
        response_lengths=torch.tensor([len(response) for response in responses]),
        token_ids=torch.tensor([token for pair in pairs for part in pair for token in part]),
        behaviour_logprobs=-torch.arange(float(sum(map(len, responses)))),
        advantages=torch.arange(1.0, len(pairs) + 1),
        row_weights=torch.ones(len(pairs)),
        staleness=torch.arange(sum(map(len, responses))) % 5,
    )


rows = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.lists(st.integers(0, 2), min_size=1, max_size=5)),
    min_size=1,
    max_size=25,
)


def contexts(micro_batch) -> list[list[int]]:
    """For every position of the row, the token ids that it attends to, its own last; checks positions on the way."""
    [ids], [positions], layout = micro_batch.token_ids, micro_batch.position_ids, micro_batch.layout
    key_index = torch.arange(len(ids)) if layout.key_index is None else layout.key_index
    sizes = [(run.queries, run.keys) for run in layout.runs for _ in range(run.count)]
    assert [0, *accumulate(queries for queries, _ in sizes)] == layout.query_starts.tolist()
    assert [0, *accumulate(keys for _, keys in sizes)] == layout.key_starts.tolist()
    found: list[list[int]] = []
    for (queries, keys), start in zip(sizes, layout.key_starts.tolist(), strict=False):
        seen = key_index[start : start + keys]
        assert seen[keys - queries :].tolist() == list(range(len(found), len(found) + queries))
        for own in range(keys - queries, keys):
            found.append(ids[seen[: own + 1]].tolist())
    assert positions.tolist() == [len(context) - 1 for context in found]
    return found


@contextmanager
def shared_block(tokens):
    """Prompts share blocks of so many tokens: they are short here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.prompt_groups, "SHARED_BLOCK", tokens)
        yield


@pytest.mark.parametrize("block", [1, 2, 16])
@given(pairs=rows, world_size=st.integers(1, 3), max_tokens=st.integers(1, 40))
@settings(deadline=None)
def test_every_row_is_trained_once_with_its_own_tokens(block, pairs, world_size, max_tokens):
    with shared_block(block):
        plan = plan_step(batch_of(pairs), world_size=world_size, max_tokens=max_tokens, averaging="token")
    assert len({len(own) for own in plan.ranks}) == 1

    tokens = [(row, index) for row, (_, response) in enumerate(pairs) for index in range(len(response))]
    seen, seen_rows, computed = [], [], 0
    for micro_batch in (m for own in plan.ranks for m in own):
        read = contexts(micro_batch)
        computed += len(read)
        assert len(read) <= max_tokens or len(set(map(len, read))) == len(read), "several sequences are over the limit"
        for source, row, logprob, advantage, staleness in zip(
            micro_batch.source,
            micro_batch.rows,
            micro_batch.behaviour_logprobs,
            micro_batch.advantages,
            micro_batch.staleness,
            strict=True,
        ):
            token = int(-logprob)
            of_row, index = tokens[token]
            prompt, response = pairs[of_row]
            assert (row, advantage, staleness) == (of_row, of_row + 1, token % 5)
            assert micro_batch.targets[source] == response[index]
            assert read[micro_batch.predicting[source]] == [*prompt, *response[:index]]
            seen.append(token)
        seen_rows.append(set(micro_batch.rows.tolist()))
    assert sorted(seen) == list(range(len(tokens)))
    assert sorted(row for own in seen_rows for row in own) == list(range(len(pairs)))  # none in two micro-batches
    assert computed == plan.forward_tokens
    weights = torch.cat([m.token_weights for own in plan.ranks for m in own])
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("block", [1, 2])
@given(pairs=rows, keys_per_token=st.integers(1, 4), max_tokens=st.integers(1, 60))
@settings(deadline=None)
def test_a_pack_of_several_sequences_gathers_no_more_keys_than_it_may(block, pairs, keys_per_token, max_tokens):
    with shared_block(block), pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.prompt_groups, "KEYS_PER_TOKEN", keys_per_token)
        plan = plan_step(batch_of(pairs), world_size=1, max_tokens=max_tokens, averaging="token")
    for micro_batch in plan.ranks[0]:
        read = contexts(micro_batch)
        several = len(set(map(len, read))) < len(read)
        assert not several or micro_batch.layout.key_starts[-1] <= keys_per_token * max_tokens


@given(pairs=rows)
@settings(deadline=None)
def test_nothing_that_rows_have_in_common_is_computed_twice(pairs):
    with shared_block(1):
        plan = plan_step(batch_of(pairs), world_size=1, max_tokens=999, averaging="token")
    prompts = {tuple(prompt[:end]) for prompt, _ in pairs for end in range(1, len(prompt) + 1)}
    responses = {(tuple(prompt), tuple(response)) for prompt, response in pairs}
    assert plan.forward_tokens == len(prompts) + sum(len(response) - 1 for _, response in responses)


def test_equal_rows_share_one_sequence_and_keep_their_terms():
    plan = plan_step(
        batch_of([([1, 2], [3, 4]), ([1], [2, 3, 4]), ([1, 2], [3, 4])]), world_size=1, max_tokens=99, averaging="token"
    )
    [[micro_batch]] = plan.ranks
    assert plan.sequences == 2
    assert plan.forward_tokens == 6
    assert micro_batch.token_ids.tolist() == [[1, 2, 3, 1, 2, 3]]
    assert micro_batch.layout.runs == (Run(2, 3, 3),)
    assert micro_batch.layout.key_index is None
    assert micro_batch.predicting.tolist() == [1, 2, 3, 4, 5]
    assert micro_batch.targets.tolist() == [3, 4, 2, 3, 4]
    assert micro_batch.source.tolist() == [0, 1, 0, 1, 2, 3, 4]
    assert micro_batch.advantages.tolist() == [1, 1, 3, 3, 2, 2, 2]
    assert micro_batch.rows.tolist() == [0, 0, 2, 2, 1, 1, 1]
    assert micro_batch.staleness.tolist() == [0, 1, 5 % 5, 6 % 5, 2, 3, 4]


def test_responses_share_their_prompt():
    pairs = [([1, 2, 3], [4, 5]), ([1, 2, 3], [6, 7, 8]), ([1, 2, 3], [4, 5]), ([1, 2, 3], [9])]
    plan = plan_step(batch_of(pairs), world_size=1, max_tokens=99, averaging="token")
    [[micro_batch]] = plan.ranks
    assert (plan.sequences, plan.forward_tokens) == (3, 6)
    assert micro_batch.token_ids.tolist() == [[1, 2, 3, 6, 7, 4]]
    assert micro_batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert micro_batch.layout.runs == (Run(1, 3, 3), Run(1, 2, 5), Run(1, 1, 4))
    assert micro_batch.layout.key_index.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5]
    assert micro_batch.targets.tolist() == [6, 7, 8, 4, 5, 9]
    assert micro_batch.predicting.tolist() == [2, 3, 4, 2, 5, 2]


def test_a_prompt_and_response_cut_elsewhere_is_another_sequence():
    assert len(group_rows(batch_of([([1, 2], [3]), ([1], [2, 3])]))) == 2


def test_prompts_share_the_blocks_that_they_begin_with():
    """A template of 5, of which two prompts share 4 tokens and one 2; the block's end cuts the others' last token."""
    pairs = [
        ([1, 2, 3, 4, 5, 6], [10, 11]),
        ([1, 2, 3, 4, 5, 7], [12, 13]),
        ([1, 2, 9], [14, 15]),
        ([1, 2, 9], [16]),
        ([8], [17]),
    ]
    with shared_block(2):
        plan = plan_step(batch_of(pairs), world_size=1, max_tokens=99, averaging="token")
    [[micro_batch]] = plan.ranks
    assert micro_batch.token_ids.tolist() == [[1, 2, 8, 3, 4, 9, 14, 5, 6, 10, 5, 7, 12]]
    assert micro_batch.position_ids.tolist() == [[0, 1, 0, 2, 3, 2, 3, 4, 5, 6, 4, 5, 6]]
    assert micro_batch.layout.runs == (
        Run(1, 2, 2),
        Run(1, 1, 1),
        Run(1, 2, 4),
        Run(1, 1, 3),
        Run(1, 1, 4),
        Run(2, 3, 7),
    )
    assert micro_batch.targets.tolist() == [10, 11, 12, 13, 14, 15, 16, 17]
    assert micro_batch.predicting.tolist() == [8, 9, 11, 12, 5, 6, 5, 2]


def test_a_prompt_that_another_goes_on_from_is_shared_whole():
    pairs = [([1, 2], [3]), ([1, 2, 4], [5, 6])]
    with shared_block(2):
        [[micro_batch]] = plan_step(batch_of(pairs), world_size=1, max_tokens=99, averaging="token").ranks
    assert micro_batch.token_ids.tolist() == [[1, 2, 4, 5]]
    assert micro_batch.predicting.tolist() == [1, 2, 3]


def test_a_prompt_with_more_responses_than_fit_is_repeated():
    groups = group_rows(batch_of([([0] * 10, [n] * 4) for n in range(5)]))
    packs = pack(groups, parts=1, max_tokens=17)
    assert [[group.tokens for group in groups] for groups in packs] == [[16], [16], [13]]
    assert [response.rows for [group] in packs for response in group.responses] == [(0,), (1,), (2,), (3,), (4,)]
    assert [[group.tokens for group in groups] for groups in pack(groups, parts=1, max_tokens=5)] == [[13]] * 5


def test_what_a_pack_begins_with_is_shared_with_none_before_it():
    pairs = [([*range(16), n, *[5] * 9], [1]) for n in range(4)]
    groups = group_rows(batch_of(pairs))
    assert [group.shared for group in groups] == [0, 16, 16, 16]
    packs = pack(groups, parts=1, max_tokens=40)
    assert [[group.tokens for group in groups] for groups in packs] == [[26, 10], [26, 10]]
    assert [group.shared for groups in packs for group in groups] == [0, 16, 0, 16]


def test_a_pack_of_short_sequences_behind_a_long_beginning_gathers_a_bounded_number_of_keys():
    pairs = [([*range(160), n], [5, 6, 7]) for n in range(100)]
    plan = plan_step(batch_of(pairs), world_size=1, max_tokens=200, averaging="token")
    keys = [int(m.layout.key_starts[-1]) for own in plan.ranks for m in own]
    assert sum(keys) > 100 * 160
    assert max(keys) <= KEYS_PER_TOKEN * 200


def test_one_long_sequence_does_not_keep_others_from_being_dealt_out_evenly():
    pairs = [([0] * 900, [1]), *[([n] * 15, [2] * 16) for n in range(1, 61)]]
    packs = pack(group_rows(batch_of(pairs)), parts=4, max_tokens=500)
    tokens = sorted(sum(group.tokens for group in groups) for groups in packs)
    assert len(packs) == 8
    assert tokens[-1] == 900
    assert tokens[-2] <= 1.1 * sum(tokens[:-1]) / 7


def test_packs_are_as_many_as_asked_for_and_nearly_equal():
    g = np.random.default_rng(0)
    pairs = [(g.integers(0, 9, 10), g.integers(0, 9, g.integers(1, 90))) for _ in range(200)]
    packs = pack(group_rows(batch_of(pairs)), parts=8, max_tokens=1000)
    tokens = [sum(group.tokens for group in groups) for groups in packs]
    assert len(packs) == 16
    assert max(tokens) - min(tokens) <= 100
    plan = plan_step(batch_of(pairs), world_size=4, max_tokens=1000, averaging="token")
    loads = [sum(m.token_ids.shape[1] for m in own) for own in plan.ranks]
    assert max(loads) - min(loads) <= 0.05 * sum(tokens) / 4


def test_ranks_get_equal_work_of_a_single_prompt():
    pairs = [([1] * 10, [2, n, *[3] * 30]) for n in range(256)]
    plan = plan_step(batch_of(pairs), world_size=4, max_tokens=9999, averaging="token")
    loads = [sum(m.token_ids.shape[1] for m in own) for own in plan.ranks]
    assert max(loads) < 1.1 * min(loads)


def test_a_rank_without_work_runs_one_without_weight():
    plan = plan_step(batch_of([([1], [2]), ([3], [4, 5])]), world_size=3, max_tokens=99, averaging="token")
    idle = plan.ranks[2][0]
    assert [len(own) for own in plan.ranks] == [1, 1, 1]
    assert len(idle.token_weights) == len(idle.source) == len(idle.rows) == 0
    assert idle.token_ids.shape == (1, 1)
    assert len(idle.predicting) == 1


def test_packs_hold_at_most_max_tokens_and_never_cut():
    groups = group_rows(batch_of([([n] * 10, [1] * (n + 1)) for n in (30, 10, 9, 1)]))
    assert [[group.tokens for group in p] for p in pack(groups, parts=1, max_tokens=31)] == [[40], [20], [19, 11]]


def test_mini_batches_spread_every_prompt_and_lose_no_row():
    pairs = [([7, problem], [attempt]) for problem in range(6) for attempt in range(9)]
    parts = batch_of(pairs).mini_batches(3)
    assert [len(part) for part in parts] == [18, 18, 18]
    assert sorted(a for part in parts for a in part.advantages.tolist()) == list(range(1, 55))
    for part in parts:
        problems = [int(prompt[1]) for prompt, _ in part.rows()]
        assert [problems.count(p) for p in range(6)] == [3] * 6
        for (prompt, response), logprob in zip(part.rows(), part.behaviour_logprobs, strict=True):
            assert pairs[int(-logprob)] == (prompt.tolist(), response.tolist())
        assert part.staleness.tolist() == [int(-logprob) % 5 for logprob in part.behaviour_logprobs]


def test_mini_batches_are_as_equal_as_possible_and_never_empty():
    batch = batch_of([([i], [1]) for i in range(5)])
    assert sorted(len(part) for part in batch.mini_batches(3)) == [1, 2, 2]
    assert [len(part) for part in batch.mini_batches(9)] == [1] * 5
    assert batch.mini_batches(1) == [batch]


def episode(prompt, response, logprobs, *, version=0, spans=None):
    return Episode(
        role=Role.SOLVER,
        task=Task.DEDUCTION,
        prompt_ids=np.array(prompt, np.int32),
        response_ids=np.array(response, np.int32),
        behaviour_logprobs=np.array(logprobs, np.float32),
        spans=spans or (VersionSpan(version, 0, len(response)),),
        truncated=False,
        verdict=Verdict.CORRECT,
        reward=1.0,
    )


def test_a_batch_holds_the_stored_completions():
    crossing = (VersionSpan(5, 0, 1), VersionSpan(7, 1, 2))
    episodes = [episode([1, 2], [3], [-0.5], version=6), episode([4], [5, 6], [-1.0, -2.0], spans=crossing)]
    batch = TrainingBatch.from_episodes(episodes, np.array([1.0, -1.0]), np.array([1.0, 0.125]), version=7)
    assert batch.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.prompt_lengths.tolist() == [2, 1]
    assert batch.response_lengths.tolist() == [1, 2]
    assert batch.behaviour_logprobs.tolist() == [-0.5, -1.0, -2.0]
    assert batch.advantages.tolist() == [1.0, -1.0]
    assert batch.row_weights.tolist() == [1.0, 0.125]
    dtypes = [getattr(batch, f.name).dtype for f in dataclasses.fields(batch)]
    assert batch.staleness.tolist() == [1, 2, 0]
    assert dtypes == [torch.int64] * 3 + [torch.float32, torch.int64] + [torch.float32] * 2


@pytest.mark.parametrize("episodes", [[], [episode([1], [], [])], [episode([], [1], [0.0])]])
def test_a_batch_without_tokens_is_refused(episodes):
    with pytest.raises(ValueError, match="episode"):
        TrainingBatch.from_episodes(episodes, np.ones(len(episodes)), np.ones(len(episodes)), version=0)


def test_a_batch_needs_an_advantage_for_each_episode():
    with pytest.raises(ValueError, match="2 advantages"):
        TrainingBatch.from_episodes([episode([1], [1], [0.0])], np.ones(2), np.ones(1), version=0)


@pytest.mark.parametrize(("sampled", "trained"), [(1, 0), (0, MAX_STALENESS + 1)])
def test_tokens_of_no_admitted_staleness_are_refused(sampled, trained):
    with pytest.raises(ValueError, match=f"staleness {trained - sampled}"):
        TrainingBatch.from_episodes(
            [episode([1], [1], [0.0], version=sampled)], np.ones(1), np.ones(1), version=trained
        )
