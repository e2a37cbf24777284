"""Made-up batches to train on, whose lengths vary as those of real rollouts do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from launch.bench.models import FIRST_TOKEN
from learner.batch import TrainingBatch

_DIGITS = 64  # ids that prompts are numbered with, two for each
_LONGEST = 4  # times the median: the limit that cuts a response off


def made_batch(
    *, rows: int, distinct: int, prompt_tokens: int, response_tokens: int, spread: float, vocabulary: int, seed: int = 0
) -> TrainingBatch:
    """Random rows, of which `distinct` are different from each other; the others repeat these.

    prompt_tokens, response_tokens: medians; spread: standard deviation of the logarithm of a response's length, and
    twice that of a prompt's. The lengths are the distribution's own quantiles in a random order, so that they do not
    depend on luck, and no more than four times the median.
    """
    random = np.random.default_rng(seed)
    prompts = random.permutation(_lengths(distinct, prompt_tokens, spread / 2))
    responses = random.permutation(_lengths(distinct, response_tokens, spread))
    pairs = [
        tuple(random.integers(FIRST_TOKEN, vocabulary, size) for size in sizes)
        for sizes in zip(prompts, responses, strict=True)
    ]
    pairs = [pairs[i] for i in random.permutation(np.arange(rows) % distinct)]
    response_lengths = torch.tensor([len(response) for _, response in pairs])
    tokens = int(response_lengths.sum())
    return TrainingBatch(
        prompt_lengths=torch.tensor([len(prompt) for prompt, _ in pairs]),
        response_lengths=response_lengths,
        token_ids=torch.from_numpy(np.concatenate([part for pair in pairs for part in pair])),
        behaviour_logprobs=_float32(random.normal(-np.log(vocabulary), 0.1, tokens)),
        staleness=torch.from_numpy(random.integers(0, 2, tokens)),
        advantages=_float32(random.normal(size=rows)),
        row_weights=torch.ones(rows),
    )


def shared_batch(
    *, prompts: int, attempts: int, prompt_tokens: int, response_tokens: int, spread: float, vocabulary: int
) -> TrainingBatch:
    """`attempts` random responses to each of `prompts` random prompts; lengths as in `made_batch`."""
    batch = made_batch(
        rows=prompts * attempts,
        distinct=prompts * attempts,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
        spread=spread,
        vocabulary=vocabulary,
    )
    asked = [prompt for prompt, _ in batch.rows()]
    return _with_prompts(batch, [asked[row - row % attempts] for row in range(len(asked))])


def with_own_prompts(batch: TrainingBatch) -> TrainingBatch:
    """The same rows, but that each prompt, if of two tokens at least, differs from all others in its first two."""
    prompts = []
    for row, (prompt, _) in enumerate(batch.rows()):
        number = torch.tensor([row // _DIGITS, row % _DIGITS])
        prompts.append(torch.cat([number, prompt[2:]])[: len(prompt)])
    return _with_prompts(batch, prompts)


def with_common_beginnings(batch: TrainingBatch, own_tokens: int) -> TrainingBatch:
    """The same rows, but that all prompts begin alike, up to their last `own_tokens` tokens."""
    prompts = [prompt for prompt, _ in batch.rows()]
    longest = max(prompts, key=len)
    ends = [prompt[-own_tokens:] for prompt in prompts]
    beginnings = [longest[: len(prompt) - len(end)] for prompt, end in zip(prompts, ends, strict=True)]
    return _with_prompts(batch, [torch.cat(parts) for parts in zip(beginnings, ends, strict=True)])


def _with_prompts(batch: TrainingBatch, prompts: Sequence[Tensor]) -> TrainingBatch:
    responses = [response for _, response in batch.rows()]
    pieces = [part for pair in zip(prompts, responses, strict=True) for part in pair]
    return replace(
        batch,
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
        token_ids=torch.cat(pieces),
    )


def _lengths(count: int, median: int, spread: float) -> list[int]:
    normal = NormalDist()
    quantiles = ((i + 0.5) / count for i in range(count))
    lengths = (round(median * np.exp(spread * normal.inv_cdf(q))) for q in quantiles)
    return [int(np.clip(length, 1, _LONGEST * median)) for length in lengths]


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
