"""However many ranks there are, an update is that of one rank, and all have the same to do."""

from pathlib import Path

import pytest
import torch
from plain_policy import SEQUENCE_MASK, PlainPyTorch, assert_same_update
from rank_processes import Case, metrics_in, named, records_of, run_ranks

from learner.prompt_groups import group_rows

RANKS = (1, 2, 4)
# From 1 to 9 responses to a prompt, each twice in the batch, of 1 to 7 tokens.
UNEVEN = {"rows": 192, "responses": (1, 9, 2, 5)}
CASES = [
    *[Case(zero_stage, 48, **UNEVEN) for zero_stage in range(3)],
    Case(3, 48, **UNEVEN, kept=True),
    Case(1, 1000, **UNEVEN, changes={"averaging": "sequence", "trust_region": SEQUENCE_MASK}),
    Case(3, 64, **UNEVEN, changes={"kl_coefficient": 0.3, "kl_estimator": "k1"}),
]

HALF = [Case(zero_stage, 48, **UNEVEN, dtype="bfloat16") for zero_stage in (1, 2)]


@pytest.fixture(scope="module")
def trained(model_folder, reference_folder, tmp_path_factory) -> dict[int, Path]:
    """By number of ranks, the folder with what they ended with in every case."""
    folders = {count: tmp_path_factory.mktemp(f"ranks-{count}") for count in RANKS}
    for count, out in folders.items():
        run_ranks(count, model_folder, reference_folder, [*HALF, *CASES], out)
    return folders


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_update_does_not_depend_on_the_number_of_ranks(model_folder, reference_folder, trained, case):
    ended = {count: records_of(trained[count], len(HALF) + CASES.index(case), count) for count in RANKS}
    plain = PlainPyTorch(model_folder, case.config(reference_folder))
    plain.train(case.batch)
    for ranks in ended.values():
        for other in ranks[1:]:
            for name in other.keys() - {"tokens"}:
                assert torch.equal(ranks[0][name], other[name]), name
        assert_same_update(named(ranks[0], "gradient"), named(ranks[0], "weight"), plain)

    for count in RANKS[1:]:
        one, several = ended[1][0], ended[count][0]
        gradients = named(one, "gradient")
        largest = max(gradient.abs().max() for gradient in gradients.values())
        for name, gradient in named(several, "gradient").items():
            assert (gradient - gradients[name]).abs().max() <= 1e-6 * largest, name
            # Adam's first step has the size of lr whatever the gradient: rounding decides the sign of one near 0.
            clear = gradients[name].abs() > 1e-5 * largest
            assert (several[f"weight.{name}"] - one[f"weight.{name}"])[clear].abs().max() <= 1e-6, name
        assert metrics_in(several).loss == pytest.approx(metrics_in(one).loss, rel=1e-5)
        if "penalty" in one:
            torch.testing.assert_close(several["penalty"], one["penalty"], rtol=1e-5, atol=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize("case", HALF, ids=str)
def test_in_bfloat16_ranks_add_their_gradients_up_in_float32(model_folder, reference_folder, trained, case):
    plain = PlainPyTorch(model_folder, case.config(reference_folder))
    plain.train(case.batch)
    exact = torch.cat([gradient.flatten() for gradient in plain.gradients.values()])
    for count in RANKS:
        first, *others = records_of(trained[count], HALF.index(case), count)
        for other in others:
            for name in other.keys() - {"tokens"}:
                assert torch.equal(first[name], other[name]), name
        gradients = named(first, "gradient")
        found = torch.cat([gradients[name].flatten() for name in plain.gradients])
        # The weights are rounded too, which the exact gradient's are not.
        assert (found - exact).norm() <= 0.03 * exact.norm(), count
        assert (found == found.bfloat16().float())[found != 0].float().mean() < 0.5, count


@pytest.mark.integration
@pytest.mark.parametrize("count", RANKS)
def test_what_a_sharded_learner_sends_is_what_its_ranks_have(trained, count):
    number, case = next((number, case) for number, case in enumerate(CASES, len(HALF)) if case.kept)
    assert case.zero_stage == 3
    leader = records_of(trained[count], number, count)[0]
    weights, sent = named(leader, "weight"), named(leader, "sent")
    assert weights.keys() == sent.keys()
    for name, weight in weights.items():
        assert torch.equal(sent[name], weight), name


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_rank_has_as_many_micro_batches_and_nearly_as_many_tokens(trained, case):
    groups = group_rows(case.batch)
    rows_alone = int((case.batch.prompt_lengths + case.batch.response_lengths).sum())
    computed = []
    for count in RANKS:
        tokens = [records["tokens"] for records in records_of(trained[count], len(HALF) + CASES.index(case), count)]
        assert len(set(map(len, tokens))) == 1
        assert max(int(own.max()) for own in tokens) <= case.max_tokens
        loads = [int(own.sum()) for own in tokens]
        assert max(loads) <= 1.07 * sum(loads) / count  # all wait for the one with the most
        computed.append(sum(loads))
    # In one piece, each prompt and each distinct response is computed once; a cut repeats what it goes through.
    assert len({bytes(group.prompt) for group in groups}) < sum(len(group.responses) for group in groups)
    in_one_piece = sum(group.tokens for group in groups)
    assert all(tokens >= in_one_piece for tokens in computed)
    assert (computed[0] == in_one_piece) is (in_one_piece <= case.max_tokens)
    assert max(computed) < rows_alone / 2
