"""From rows to micro-batches: what rows have in common is computed once, nothing is padded, ranks get equal work.

Equal rows are one sequence, the responses to one prompt share its tokens, and prompts share what they begin with: each
goes on from there as if it stood alone. Of a response the last token is not computed, since nothing is predicted from
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from learner.attention import PackedLayout, ranges, to_device
from learner.batch import TrainingBatch
from learner.objective import mean_weights
from learner.prompt_groups import Ids, PromptGroup, group_rows, pack


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Sequences packed into one row of T tokens, and the N response tokens of the rows that they stand for.

    words: int64 [1, W], the token ids that occur in the row, each once; word_index: int64 [T], which of them a token is
    position_ids: int64 [1, T], counted from the beginning of a token's sequence
    layout: which tokens attend to which
    predicting: int64 [P], positions in the row at which a response token is predicted
    targets: int64 [P], those response tokens
    source: int64 [N], which of the P predictions a row's response token is: equal rows share theirs
    rows: int64 [N], the batch's row that a response token is of; a row's tokens are all in one micro-batch
    behaviour_logprobs, advantages, token_weights: float32 [N], what the loss needs of each row's token
    staleness: int64 [N], of each row's token
    """

    words: Tensor
    word_index: Tensor
    position_ids: Tensor
    layout: PackedLayout
    predicting: Tensor
    targets: Tensor
    source: Tensor
    rows: Tensor
    behaviour_logprobs: Tensor
    advantages: Tensor
    token_weights: Tensor
    staleness: Tensor

    @property
    def token_ids(self) -> Tensor:
        """Of the row, int64 [1, T]."""
        return self.words[:, self.word_index]

    def to(self, device: torch.device) -> MicroBatch:
        """The micro-batch on a device; a GPU copies it while it computes something else."""
        if device.type == "cpu":
            return self
        moved = {
            field.name: to_device(getattr(self, field.name), device) for field in fields(self) if field.name != "layout"
        }
        return MicroBatch(layout=self.layout.to(device), **moved)


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """One optimizer step: every rank's micro-batches, the same number for each.

    sequences: distinct sequences; forward_tokens: that go through the model for them, on all ranks together
    """

    ranks: list[list[MicroBatch]]
    sequences: int
    forward_tokens: int


def plan_step(
    batch: TrainingBatch, *, world_size: int, max_tokens: int, averaging: Literal["token", "sequence"]
) -> StepPlan:
    """Everything that one optimizer step runs; every rank computes the same plan and takes its part.

    Micro-batches hold at most `max_tokens` tokens, except that a longer sequence is its own micro-batch, never cut.
    """
    groups = group_rows(batch)
    packs = pack(groups, parts=world_size, max_tokens=max_tokens)
    shortest = min(groups, key=lambda group: len(group.prompt) + len(group.responses[-1].ids))
    filler = PromptGroup(shortest.prompt, (replace(shortest.responses[-1], rows=()),))
    packs.extend([[filler]] * (-len(packs) % world_size))
    # Ranks wait for each other at every micro-batch, and which is larger in turn evens out.
    packs.sort(key=lambda groups: -sum(group.tokens for group in groups))
    turns = [packs[start : start + world_size] for start in range(0, len(packs), world_size)]

    weights = mean_weights(batch.response_lengths, batch.row_weights, averaging)
    made = [[_micro_batch(groups, batch, weights) for groups in turn[:: (-1) ** n]] for n, turn in enumerate(turns)]
    return StepPlan(
        ranks=[list(own) for own in zip(*made, strict=True)],
        sequences=sum(len(group.responses) for group in groups),
        forward_tokens=sum(group.tokens for own in packs for group in own),
    )


@dataclass(slots=True, eq=False)
class _Stretch:
    """Neighbouring tokens of the row, which begin at `position` of their sequences, behind the stretch `prefix`."""

    ids: Ids
    position: int = 0
    prefix: _Stretch | None = None
    start: int = 0

    @property
    def end(self) -> int:
        """The position behind it."""
        return self.position + len(self.ids)

    def cut(self, position: int) -> _Stretch:
        """Leave what comes from there on; what comes before is another stretch, its prefix."""
        before = _Stretch(self.ids[: position - self.position], self.position, self.prefix)
        self.ids, self.position, self.prefix = self.ids[position - self.position :], position, before
        return before

    def at(self, position: int) -> int:
        """Where in the row the token is that its sequences have at a position up to its end."""
        stretch = self
        while position < stretch.position and stretch.prefix is not None:
            stretch = stretch.prefix
        return stretch.start + position - stretch.position


def _stretches(groups: Sequence[PromptGroup]) -> tuple[list[_Stretch], list[_Stretch]]:
    """All stretches, each behind its prefix; and of each response in turn the last one, which has all its tokens."""
    path: list[_Stretch] = []  # of the prompt before
    every: list[_Stretch] = []
    answered: list[_Stretch] = []
    for group in groups:
        while path and path[-1].position >= group.shared:
            path.pop()
        if path and path[-1].end > group.shared:
            path[-1] = path[-1].cut(group.shared)
            every.append(path[-1])
        alone = len(group.responses) == 1  # then its prompt and itself are one stretch
        rest = group.prompt[group.shared :]
        own = np.concatenate([rest, group.responses[0].ids[:-1]]) if alone else rest
        path.append(_Stretch(own, group.shared, path[-1] if path else None))
        every.append(path[-1])
        if alone:
            answered.append(path[-1])
            continue
        for response in group.responses:
            answered.append(_Stretch(response.ids[:-1], len(group.prompt), path[-1]))
            every.append(answered[-1])
    # Any order would do that has a prefix first. With equal lengths side by side there are the fewest runs.
    every = [stretch for stretch in every if len(stretch.ids)]
    return sorted(every, key=lambda stretch: (stretch.position, -len(stretch.ids))), answered


def _micro_batch(groups: Sequence[PromptGroup], batch: TrainingBatch, weights: Tensor) -> MicroBatch:
    """weights: of each response token of the batch, in the mean."""
    stretches, answered = _stretches(groups)
    lengths = [len(stretch.ids) for stretch in stretches]
    number = {id(stretch): index for index, stretch in enumerate(stretches)}
    for stretch, start in zip(stretches, np.cumsum([0, *lengths]).tolist(), strict=False):
        stretch.start = start

    responses = [response for group in groups for response in group.responses]
    sizes = np.array([len(response.ids) for response in responses])
    first_predictions = np.cumsum(sizes) - sizes
    prompt_lengths = [len(group.prompt) for group in groups for _ in group.responses]
    # A token is predicted at the position before it, and the first of a response at its prompt's end.
    begins = [stretch.at(length) for stretch, length in zip(answered, prompt_lengths, strict=True)]
    predicting = ranges(np.array(begins) - 1, sizes)
    predicting[first_predictions] = [
        stretch.at(length - 1) for stretch, length in zip(answered, prompt_lengths, strict=True)
    ]

    rows = np.array([row for response in responses for row in response.rows], np.int64)
    copies = [len(response.rows) for response in responses]
    row_lengths = np.repeat(sizes, copies)
    row_starts = (torch.cumsum(batch.response_lengths, 0) - batch.response_lengths).numpy()
    tokens = torch.from_numpy(ranges(row_starts[rows], row_lengths))
    row_of_token = torch.from_numpy(np.repeat(rows, row_lengths))
    words, word_index = np.unique(np.concatenate([stretch.ids for stretch in stretches]), return_inverse=True)
    return MicroBatch(
        words=torch.from_numpy(words)[None],
        word_index=torch.from_numpy(word_index),
        position_ids=torch.from_numpy(ranges([stretch.position for stretch in stretches], lengths))[None],
        layout=PackedLayout.of(
            lengths, [None if stretch.prefix is None else number[id(stretch.prefix)] for stretch in stretches]
        ),
        predicting=torch.from_numpy(predicting),
        targets=torch.from_numpy(np.concatenate([response.ids for response in responses])),
        source=torch.from_numpy(ranges(np.repeat(first_predictions, copies), row_lengths)),
        rows=row_of_token,
        behaviour_logprobs=batch.behaviour_logprobs[tokens],
        advantages=batch.advantages[row_of_token],
        token_weights=weights[tokens],
        staleness=batch.staleness[tokens],
    )
