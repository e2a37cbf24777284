"""What one update trains on: rows of tokens with their advantages, as plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch import Tensor

from shared.episodes import Episode


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """R rows, one per episode; tensors on the CPU.

    prompt_lengths, response_lengths: int64 [R], tokens; none is 0
    token_ids: int64 [sum of both], row after row, prompt then response
    behaviour_logprobs: float32 [sum of response_lengths], row after row, nats, after temperature
    advantages: float32 [R]
    row_weights: float32 [R], the row's weight in the loss and in the denominator
    """

    prompt_lengths: Tensor
    response_lengths: Tensor
    token_ids: Tensor
    behaviour_logprobs: Tensor
    advantages: Tensor
    row_weights: Tensor

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @classmethod
    def from_episodes(
        cls,
        episodes: Sequence[Episode],
        advantages: npt.NDArray[np.floating],
        row_weights: npt.NDArray[np.floating],
    ) -> TrainingBatch:
        """Row r is `episodes[r]` with `advantages[r]` and `row_weights[r]`."""
        if not episodes:
            raise ValueError("a training batch needs at least one episode")
        if not len(episodes) == len(advantages) == len(row_weights):
            raise ValueError(f"{len(episodes)} episodes, {len(advantages)} advantages, {len(row_weights)} row weights")
        if not all(len(e.prompt_ids) and len(e.response_ids) for e in episodes):
            raise ValueError("an episode without prompt or response tokens cannot be trained on")
        tokens = np.concatenate(list(chain.from_iterable((e.prompt_ids, e.response_ids) for e in episodes)))
        logprobs = np.concatenate([e.behaviour_logprobs for e in episodes])
        return cls(
            prompt_lengths=torch.tensor([len(e.prompt_ids) for e in episodes]),
            response_lengths=torch.tensor([len(e.response_ids) for e in episodes]),
            token_ids=torch.from_numpy(tokens.astype(np.int64)),
            behaviour_logprobs=torch.from_numpy(logprobs.astype(np.float32)),
            advantages=torch.from_numpy(np.array(advantages, np.float32)),
            row_weights=torch.from_numpy(np.array(row_weights, np.float32)),
        )

    def mini_batches(self, count: int) -> list[TrainingBatch]:
        """The rows in `count` parts (fewer when there are fewer rows), equal in size to within one row.

        Rows are sorted by prompt and dealt out in turn, so that the attempts on one problem, and the rows of one
        task and role, whose prompts begin alike, are spread evenly. The order of the rows does not matter.
        """
        by_prompt = sorted(range(len(self)), key=[_sort_key(prompt) for prompt, _ in self.rows()].__getitem__)
        count = min(count, len(self))
        return [self] if count == 1 else [self._select(sorted(by_prompt[i::count])) for i in range(count)]

    def rows(self) -> list[tuple[Tensor, Tensor]]:
        """Each row's prompt ids and response ids: views."""
        lengths = torch.stack([self.prompt_lengths, self.response_lengths], 1).flatten().tolist()
        parts = self.token_ids.split(lengths)
        return list(zip(parts[::2], parts[1::2], strict=True))

    def _select(self, rows: Sequence[int]) -> TrainingBatch:
        tokens = self.token_ids.split((self.prompt_lengths + self.response_lengths).tolist())
        logprobs = self.behaviour_logprobs.split(self.response_lengths.tolist())
        return TrainingBatch(
            prompt_lengths=self.prompt_lengths[rows],
            response_lengths=self.response_lengths[rows],
            token_ids=torch.cat([tokens[r] for r in rows]),
            behaviour_logprobs=torch.cat([logprobs[r] for r in rows]),
            advantages=self.advantages[rows],
            row_weights=self.row_weights[rows],
        )


def broadcast(batch: TrainingBatch | None, rank: int, device: torch.device | str | None = None) -> TrainingBatch | None:
    """Give rank 0's batch to every rank; None, which is sent as zero rows, means stop.

    Every rank calls it; what the others pass is ignored. `device`: where the process group communicates, by default
    the current GPU for NCCL and otherwise the CPU. The batch itself stays on the CPU.
    """
    if device is None:
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    sizes = torch.zeros(3, dtype=torch.int64, device=device)
    if rank == 0 and batch is not None:
        sizes.copy_(torch.tensor([len(batch), len(batch.token_ids), len(batch.behaviour_logprobs)]))
    torch.distributed.broadcast(sizes, src=0)
    rows, tokens, response_tokens = sizes.tolist()
    if rows == 0:
        return None
    received = TrainingBatch(
        prompt_lengths=torch.empty(rows, dtype=torch.int64),
        response_lengths=torch.empty(rows, dtype=torch.int64),
        token_ids=torch.empty(tokens, dtype=torch.int64),
        behaviour_logprobs=torch.empty(response_tokens, dtype=torch.float32),
        advantages=torch.empty(rows, dtype=torch.float32),
        row_weights=torch.empty(rows, dtype=torch.float32),
    )
    for field in fields(TrainingBatch):
        tensor = getattr(batch if rank == 0 else received, field.name).to(device)
        torch.distributed.broadcast(tensor, src=0)
        getattr(received, field.name).copy_(tensor)
    return received


def _sort_key(ids: Tensor) -> bytes:
    return ids.numpy().astype(">i8").tobytes()
