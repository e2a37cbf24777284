"""From rows to micro-batches: equal rows merged, sequences packed without padding, dealt out to the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from learner.attention import PackedLayout
from learner.batch import TrainingBatch
from learner.objective import mean_weights


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Sequences packed into one row of T tokens, and the N response tokens of the rows that they stand for.

    token_ids, position_ids: int64 [1, T]; positions start again at 0 with each sequence
    layout: where one sequence ends and the next begins
    predicting: int64 [P], positions in the row whose next token is a response token
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

    def to(self, device: torch.device | str) -> MicroBatch:
        """The micro-batch on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return MicroBatch(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in values.items()})


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """One optimizer step: every rank's micro-batches, the same number for each.

    sequences: distinct sequences, of which forward_tokens tokens go through the model, on all ranks together
    """

    ranks: list[list[MicroBatch]]
    sequences: int
    forward_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class DistinctSequence:
    """A (prompt, response) and the rows that equal it. No rows: work without weight, to keep ranks in step."""

    prompt: Tensor
    response: Tensor
    rows: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.response)


def plan_step(
    batch: TrainingBatch, *, world_size: int, max_tokens: int, averaging: Literal["token", "sequence"]
) -> StepPlan:
    """Everything that one optimizer step runs; every rank computes the same plan and takes its part.

    Micro-batches hold at most `max_tokens` tokens, except that a longer sequence is its own micro-batch, never cut.
    """
    sequences = merge_rows(batch)
    packs = [pack(part, max_tokens) for part in deal_out(sequences, world_size)]
    filler = DistinctSequence(sequences[-1].prompt, sequences[-1].response, ())
    most = max(map(len, packs))
    for own in packs:
        own.extend([[filler]] * (most - len(own)))

    row_tokens = _RowTokens.of(batch, averaging)
    return StepPlan(
        ranks=[[_micro_batch(sequences, row_tokens) for sequences in own] for own in packs],
        sequences=len(sequences),
        forward_tokens=sum(s.tokens for own in packs for sequences in own for s in sequences),
    )


def merge_rows(batch: TrainingBatch) -> list[DistinctSequence]:
    """The distinct (prompt, response) pairs, longest first."""
    pairs = batch.rows()
    same: dict[tuple[bytes, bytes], list[int]] = {}
    for row, (prompt, response) in enumerate(pairs):
        same.setdefault((prompt.numpy().tobytes(), response.numpy().tobytes()), []).append(row)
    merged = [DistinctSequence(*pairs[rows[0]], tuple(rows)) for rows in same.values()]
    return sorted(merged, key=lambda s: -s.tokens)


def deal_out(sequences: Sequence[DistinctSequence], parts: int) -> list[list[DistinctSequence]]:
    """Parts of nearly equal numbers of tokens: each sequence, longest first, to the part with the fewest so far."""
    dealt: list[list[DistinctSequence]] = [[] for _ in range(parts)]
    tokens = [0] * parts
    for sequence in sequences:
        part = tokens.index(min(tokens))
        dealt[part].append(sequence)
        tokens[part] += sequence.tokens
    return dealt


def pack(sequences: Sequence[DistinctSequence], max_tokens: int) -> list[list[DistinctSequence]]:
    """Neighbours together, up to max_tokens: sorted sequences stay sorted, so equal lengths stay together."""
    packs: list[list[DistinctSequence]] = []
    room = 0
    for sequence in sequences:
        if sequence.tokens > room or not packs:
            packs.append([])
            room = max_tokens
        packs[-1].append(sequence)
        room -= sequence.tokens
    return packs


@dataclass(frozen=True, slots=True, eq=False)
class _RowTokens:
    """Per row, one entry per response token."""

    behaviour_logprobs: Sequence[Tensor]
    advantages: Sequence[Tensor]
    weights: Sequence[Tensor]
    staleness: Sequence[Tensor]

    @classmethod
    def of(cls, batch: TrainingBatch, averaging: Literal["token", "sequence"]) -> _RowTokens:
        lengths = batch.response_lengths.tolist()
        return cls(
            behaviour_logprobs=batch.behaviour_logprobs.split(lengths),
            advantages=batch.advantages.repeat_interleave(batch.response_lengths).split(lengths),
            weights=mean_weights(batch.response_lengths, batch.row_weights, averaging).split(lengths),
            staleness=batch.staleness.split(lengths),
        )


def _micro_batch(sequences: Sequence[DistinctSequence], row_tokens: _RowTokens) -> MicroBatch:
    no_tokens = torch.empty(0, dtype=torch.int64)
    predicting, source, rows = [], [no_tokens], [no_tokens]
    start = predictions = 0
    for s in sequences:
        # The token at position i is predicted at position i − 1: the prompt's last position predicts the first.
        predicting.append(torch.arange(start + len(s.prompt) - 1, start + s.tokens - 1))
        source += [torch.arange(predictions, predictions + len(s.response))] * len(s.rows)
        rows += [torch.full_like(s.response, row) for row in s.rows]
        start += s.tokens
        predictions += len(s.response)

    def of_rows(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([values[0][:0], *(values[row] for s in sequences for row in s.rows)])

    return MicroBatch(
        token_ids=torch.cat([part for s in sequences for part in (s.prompt, s.response)])[None],
        position_ids=torch.cat([torch.arange(s.tokens) for s in sequences])[None],
        layout=PackedLayout.of([s.tokens for s in sequences]),
        predicting=torch.cat(predicting),
        targets=torch.cat([s.response for s in sequences]),
        source=torch.cat(source),
        rows=torch.cat(rows),
        behaviour_logprobs=of_rows(row_tokens.behaviour_logprobs),
        advantages=of_rows(row_tokens.advantages),
        token_weights=of_rows(row_tokens.weights),
        staleness=of_rows(row_tokens.staleness),
    )
