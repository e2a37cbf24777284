"""Random batches and process groups for the learner's tests."""

from collections.abc import Sequence
from itertools import cycle

import torch

from learner.batch import TrainingBatch

VOCABULARY = 50


def random_batch(
    rows: int = 12,
    copies: int = 1,
    seed: int = 0,
    lengths: Sequence[int] = (1, 2, 3, 5, 7),
    responses: Sequence[int] = (1,),
    template: int = 0,
) -> TrainingBatch:
    """`rows` rows, of which each sequence occurs `copies` times with its own advantage and weights.

    responses: to each prompt, in turn; each drawn by itself
    template: tokens that every prompt begins with
    """
    g = torch.Generator().manual_seed(seed)

    def draw(choices: Sequence[int]) -> int:
        return choices[int(torch.randint(0, len(choices), (), generator=g))]

    def ids(count: int) -> torch.Tensor:
        return torch.randint(0, VOCABULARY, (count,), generator=g)

    beginning = ids(template)
    distinct: list[tuple[torch.Tensor, torch.Tensor]] = []
    for count in cycle(responses):
        prompt = torch.cat([beginning, ids(draw((3, 4, 6)))])
        distinct += [(prompt, ids(draw(lengths))) for _ in range(count)]
        if len(distinct) * copies >= rows:
            break
    pairs = [distinct[i % len(distinct)] for i in range(rows)]
    response_tokens = sum(len(response) for _, response in pairs)
    return TrainingBatch(
        prompt_lengths=torch.tensor([len(prompt) for prompt, _ in pairs]),
        response_lengths=torch.tensor([len(response) for _, response in pairs]),
        token_ids=torch.cat([part for pair in pairs for part in pair]),
        behaviour_logprobs=-4 + torch.randn(response_tokens, generator=g),
        advantages=torch.randn(rows, generator=g),
        row_weights=torch.where(torch.rand(rows, generator=g) < 0.5, 1.0, 0.125),
        staleness=torch.randint(0, 3, (response_tokens,), generator=g),
    )
