"""From rows to micro-batches: what rows have in common is computed once, nothing is padded, ranks get equal work.

Equal rows are one sequence, and the responses to one prompt share its tokens: each goes on from the prompt's end as if
it stood alone there. Of a response the last token is not computed, since nothing is predicted from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learner.attention import PackedLayout, ranges, to_device
from learner.batch import TrainingBatch
from learner.objective import mean_weights

Ids = npt.NDArray[np.int64]
# Parts that each rank's share consists of, at least, where prompts have enough responses to be split.
_PARTS_PER_RANK = 8


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Sequences packed into one row of T tokens, and the N response tokens of the rows that they stand for.

    token_ids, position_ids: int64 [1, T]; a position counts from the beginning of its sequence
    layout: which tokens attend to which
    predicting: int64 [P], positions in the row at which a response token is predicted
    targets: int64 [P], those response tokens
    source: int64 [N], which of the P predictions a row's response token is: equal rows share theirs
    rows: int64 [N], the batch's row that a response token is of; a row's tokens are all in one micro-batch
    behaviour_logprobs, advantages, token_weights: float32 [N], what the loss needs of each row's token
    staleness: int64 [N], of each row's token
    """

    token_ids: Tensor
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


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """Distinct response ids, and the rows that have them. No rows: work without weight, to keep ranks in step."""

    ids: Ids
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PromptGroup:
    """A prompt, and distinct responses to it."""

    prompt: Ids
    responses: tuple[Response, ...]

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return len(self.prompt) + sum(len(response.ids) - 1 for response in self.responses)


def plan_step(
    batch: TrainingBatch, *, world_size: int, max_tokens: int, averaging: Literal["token", "sequence"]
) -> StepPlan:
    """Everything that one optimizer step runs; every rank computes the same plan and takes its part.

    Micro-batches hold at most `max_tokens` tokens, except that a longer sequence is its own micro-batch, never cut.
    """
    groups = group_rows(batch)
    most = max_tokens
    if world_size > 1:
        most = min(most, -(-sum(group.tokens for group in groups) // (world_size * _PARTS_PER_RANK)))
    parts = [part for group in groups for part in split(group, most)]
    packs = [pack(part, max_tokens) for part in deal_out(parts, world_size)]
    shortest = parts[-1]
    filler = replace(shortest, responses=(replace(shortest.responses[-1], rows=()),))
    most_packs = max(map(len, packs))
    for own in packs:
        own.extend([[filler]] * (most_packs - len(own)))

    weights = mean_weights(batch.response_lengths, batch.row_weights, averaging)
    return StepPlan(
        ranks=[[_micro_batch(groups, batch, weights) for groups in own] for own in packs],
        sequences=sum(len(group.responses) for group in groups),
        forward_tokens=sum(group.tokens for own in packs for groups in own for group in groups),
    )


def group_rows(batch: TrainingBatch) -> list[PromptGroup]:
    """The distinct prompts with their distinct responses; those that take the most tokens first, and the longest."""
    same: dict[bytes, dict[bytes, list[int]]] = {}
    lengths = torch.stack([batch.prompt_lengths, batch.response_lengths], 1).flatten().numpy()
    pieces = np.split(batch.token_ids.numpy(), np.cumsum(lengths)[:-1])
    for row, (prompt, response) in enumerate(zip(pieces[::2], pieces[1::2], strict=True)):
        same.setdefault(prompt.tobytes(), {}).setdefault(response.tobytes(), []).append(row)
    groups = [
        PromptGroup(
            pieces[2 * next(iter(responses.values()))[0]],
            tuple(
                sorted(
                    (Response(pieces[2 * rows[0] + 1], tuple(rows)) for rows in responses.values()),
                    key=lambda response: -len(response.ids),
                )
            ),
        )
        for responses in same.values()
    ]
    return sorted(groups, key=lambda group: (-group.tokens, -len(group.prompt)))


def split(group: PromptGroup, most_tokens: int) -> list[PromptGroup]:
    """The group in parts of at most `most_tokens` tokens, or of one response each; each part repeats the prompt."""
    parts: list[list[Response]] = []
    room = 0
    for response in group.responses:
        if not parts or len(response.ids) - 1 > room:
            parts.append([])
            room = most_tokens - len(group.prompt)
        parts[-1].append(response)
        room -= len(response.ids) - 1
    return [replace(group, responses=tuple(part)) for part in parts]


def deal_out(groups: Sequence[PromptGroup], parts: int) -> list[list[PromptGroup]]:
    """Parts of nearly equal numbers of tokens: each group, largest first, to the part with the fewest so far."""
    dealt: list[list[PromptGroup]] = [[] for _ in range(parts)]
    tokens = [0] * parts
    for group in sorted(groups, key=lambda group: -group.tokens):
        part = tokens.index(min(tokens))
        dealt[part].append(group)
        tokens[part] += group.tokens
    return dealt


def pack(groups: Sequence[PromptGroup], max_tokens: int) -> list[list[PromptGroup]]:
    """Neighbours together, up to max_tokens: what was sorted stays sorted."""
    packs: list[list[PromptGroup]] = []
    room = 0
    for group in groups:
        if group.tokens > room or not packs:
            packs.append([])
            room = max_tokens
        packs[-1].append(group)
        room -= group.tokens
    return packs


@dataclass(slots=True, eq=False)
class _Stretch:
    """Neighbouring tokens of the row, which begin at `position` of their sequences, behind the stretch `prefix`."""

    ids: Ids
    position: int = 0
    prefix: _Stretch | None = None
    start: int = 0


def _micro_batch(groups: Sequence[PromptGroup], batch: TrainingBatch, weights: Tensor) -> MicroBatch:
    """weights: of each response token of the batch, in the mean."""
    prompts: list[_Stretch] = []
    responses: list[Response] = []
    # Of each response, the stretches that hold the prompt's end and what is computed of the response itself.
    asked: list[_Stretch] = []
    answered: list[_Stretch] = []
    for group in groups:
        alone = len(group.responses) == 1
        # A single response and its prompt are one stretch.
        first = _Stretch(np.concatenate([group.prompt, group.responses[0].ids[:-1]]) if alone else group.prompt)
        prompts.append(first)
        for response in group.responses:
            responses.append(response)
            asked.append(first)
            answered.append(first if alone else _Stretch(response.ids[:-1], len(group.prompt), first))
    # Any order would do. With equal lengths side by side there are the fewest runs.
    prompts.sort(key=lambda stretch: -len(stretch.ids))
    own = [stretch for stretch in answered if stretch.prefix is not None and len(stretch.ids)]
    stretches = [*prompts, *sorted(own, key=lambda stretch: (-stretch.position, -len(stretch.ids)))]
    lengths = [len(stretch.ids) for stretch in stretches]
    number = {id(stretch): index for index, stretch in enumerate(stretches)}
    for stretch, start in zip(stretches, np.cumsum([0, *lengths]).tolist(), strict=False):
        stretch.start = start

    sizes = np.array([len(response.ids) for response in responses])
    first_predictions = np.cumsum(sizes) - sizes
    prompt_lengths = [len(group.prompt) for group in groups for _ in group.responses]
    # The token at position i is predicted at position i − 1, and the first of a response at its prompt's end.
    begins = [
        stretch.start + (length if stretch.prefix is None else 0)
        for stretch, length in zip(answered, prompt_lengths, strict=True)
    ]
    predicting = ranges(np.array(begins) - 1, sizes)
    predicting[first_predictions] = [
        stretch.start + length - 1 for stretch, length in zip(asked, prompt_lengths, strict=True)
    ]

    rows = np.array([row for response in responses for row in response.rows], np.int64)
    copies = [len(response.rows) for response in responses]
    row_lengths = np.repeat(sizes, copies)
    row_starts = (torch.cumsum(batch.response_lengths, 0) - batch.response_lengths).numpy()
    tokens = torch.from_numpy(ranges(row_starts[rows], row_lengths))
    row_of_token = torch.from_numpy(np.repeat(rows, row_lengths))
    return MicroBatch(
        token_ids=torch.from_numpy(np.concatenate([stretch.ids for stretch in stretches]))[None],
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
