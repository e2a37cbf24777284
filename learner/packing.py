"""From rows to micro-batches: equal rows merged, sequences packed without padding, dealt out to the ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learner.attention import PackedLayout
from learner.batch import TrainingBatch
from learner.objective import mean_weights

Int64Array = npt.NDArray[np.int64]


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

    def to(self, device: torch.device) -> MicroBatch:
        """The micro-batch on a device; a GPU copies it while it computes something else."""
        if device.type == "cpu":
            return self
        return self._with(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))

    def _with(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, layout=self.layout.with_offsets(change(self.layout.offsets)), **changed)


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """One optimizer step: every rank's micro-batches, the same number for each.

    sequences: distinct sequences, of which forward_tokens tokens go through the model, on all ranks together
    """

    ranks: list[list[MicroBatch]]
    sequences: int
    forward_tokens: int


@dataclass(frozen=True, slots=True)
class DistinctSequence:
    """A (prompt, response) and the rows that equal it. No rows: work without weight, to keep ranks in step.

    row: one that it equals; prompt, response: tokens of each
    """

    row: int
    prompt: int
    response: int
    rows: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.prompt + self.response


def plan_step(
    batch: TrainingBatch, *, world_size: int, max_tokens: int, averaging: Literal["token", "sequence"]
) -> StepPlan:
    """Everything that one optimizer step runs; every rank computes the same plan and takes its part.

    Micro-batches hold at most `max_tokens` tokens, except that a longer sequence is its own micro-batch, never cut.
    """
    sequences = merge_rows(batch)
    packs = [pack(part, max_tokens) for part in deal_out(sequences, world_size)]
    filler = replace(sequences[-1], rows=())
    most = max(map(len, packs))
    for own in packs:
        own.extend([[filler]] * (most - len(own)))

    tokens = _BatchTokens.of(batch, averaging)
    return StepPlan(
        ranks=[[tokens.micro_batch(sequences) for sequences in own] for own in packs],
        sequences=len(sequences),
        forward_tokens=sum(s.tokens for own in packs for sequences in own for s in sequences),
    )


def merge_rows(batch: TrainingBatch) -> list[DistinctSequence]:
    """The distinct (prompt, response) pairs, longest first."""
    prompts, responses = batch.prompt_lengths.tolist(), batch.response_lengths.tolist()
    ids, end = batch.token_ids.numpy(), 0
    same: dict[tuple[int, bytes], list[int]] = {}
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        begin, end = end, end + prompt + response
        same.setdefault((prompt, ids[begin:end].tobytes()), []).append(row)
    merged = [DistinctSequence(rows[0], prompts[rows[0]], responses[rows[0]], tuple(rows)) for rows in same.values()]
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
class _BatchTokens:
    """The batch's tokens, from which micro-batches are cut.

    first, first_response: where each row begins in token_ids, and in the others
    token_ids: all tokens; behaviour_logprobs, advantages, weights, staleness: of all response tokens
    """

    first: Int64Array
    first_response: Int64Array
    token_ids: Tensor
    behaviour_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    staleness: Tensor

    @classmethod
    def of(cls, batch: TrainingBatch, averaging: Literal["token", "sequence"]) -> _BatchTokens:
        return cls(
            first=_starts((batch.prompt_lengths + batch.response_lengths).numpy()),
            first_response=_starts(batch.response_lengths.numpy()),
            token_ids=batch.token_ids,
            behaviour_logprobs=batch.behaviour_logprobs,
            advantages=batch.advantages.repeat_interleave(batch.response_lengths),
            weights=mean_weights(batch.response_lengths, batch.row_weights, averaging),
            staleness=batch.staleness,
        )

    def micro_batch(self, sequences: Sequence[DistinctSequence]) -> MicroBatch:
        """The sequences, in this order."""
        prompts = np.array([s.prompt for s in sequences])
        responses = np.array([s.response for s in sequences])
        tokens = prompts + responses
        token_ids = self.token_ids[_ranges(self.first[[s.row for s in sequences]], tokens)]
        # The token at position i is predicted at position i − 1: the prompt's last position predicts the first.
        predicting = torch.from_numpy(_ranges(_starts(tokens) + prompts - 1, responses))

        # One entry for each row that a sequence stands for, sequence after sequence.
        rows = np.array([row for s in sequences for row in s.rows], np.int64)
        of_sequence = np.repeat(np.arange(len(sequences)), [len(s.rows) for s in sequences])
        row_tokens = responses[of_sequence]
        of_rows = torch.from_numpy(_ranges(self.first_response[rows], row_tokens))
        return MicroBatch(
            token_ids=token_ids[None],
            position_ids=torch.from_numpy(_ranges(np.zeros_like(tokens), tokens))[None],
            layout=PackedLayout.of(tokens.tolist()),
            predicting=predicting,
            targets=token_ids[predicting + 1],
            source=torch.from_numpy(_ranges(_starts(responses)[of_sequence], row_tokens)),
            rows=torch.from_numpy(np.repeat(rows, row_tokens)),
            behaviour_logprobs=self.behaviour_logprobs[of_rows],
            advantages=self.advantages[of_rows],
            token_weights=self.weights[of_rows],
            staleness=self.staleness[of_rows],
        )


def _starts(lengths: Int64Array) -> Int64Array:
    """Where each of several parts begins when they stand one after the other."""
    return np.cumsum(lengths) - lengths


def _ranges(begins: Int64Array, lengths: Int64Array) -> Int64Array:
    """begin, begin + 1, … of each, one after the other: [Σ lengths]."""
    return np.repeat(begins - _starts(lengths), lengths) + np.arange(lengths.sum())
