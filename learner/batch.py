"""What one update trains on: rows of tokens with their advantages, as plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.config import MAX_STALENESS
from shared.episodes import Episode


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """R rows, one per episode; tensors on the CPU.

    prompt_lengths, response_lengths: int64 [R], tokens; none is 0
    token_ids: int64 [sum of both], row after row, prompt then response
    behaviour_logprobs: float32 [sum of response_lengths], row after row, nats, after temperature
    staleness: int64 [sum of response_lengths], row after row, versions between the one that sampled the token and the
        one that is trained, 0 to MAX_STALENESS
    advantages: float32 [R]
    row_weights: float32 [R], the row's weight in the loss and in the denominator
    """

    prompt_lengths: Tensor
    response_lengths: Tensor
    token_ids: Tensor
    behaviour_logprobs: Tensor
    staleness: Tensor
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
        *,
        version: int,
    ) -> TrainingBatch:
        """Row r is `episodes[r]` with `advantages[r]` and `row_weights[r]`; `version`: the one that trains on them."""
        if not episodes:
            raise ValueError("a training batch needs at least one episode")
        if not len(episodes) == len(advantages) == len(row_weights):
            raise ValueError(f"{len(episodes)} episodes, {len(advantages)} advantages, {len(row_weights)} row weights")
        if not all(len(e.prompt_ids) and len(e.response_ids) for e in episodes):
            raise ValueError("an episode without prompt or response tokens cannot be trained on")
        tokens = np.concatenate(list(chain.from_iterable((e.prompt_ids, e.response_ids) for e in episodes)))
        logprobs = np.concatenate([e.behaviour_logprobs for e in episodes])
        staleness = np.concatenate([version - _token_versions(e) for e in episodes])
        if staleness.min() < 0 or staleness.max() > MAX_STALENESS:
            raise ValueError(f"tokens of staleness {staleness.min()} to {staleness.max()} cannot be trained on")
        return cls(
            prompt_lengths=torch.tensor([len(e.prompt_ids) for e in episodes]),
            response_lengths=torch.tensor([len(e.response_ids) for e in episodes]),
            token_ids=torch.from_numpy(tokens.astype(np.int64)),
            behaviour_logprobs=torch.from_numpy(logprobs.astype(np.float32)),
            staleness=torch.from_numpy(staleness),
            advantages=torch.from_numpy(np.array(advantages, np.float32)),
            row_weights=torch.from_numpy(np.array(row_weights, np.float32)),
        )

    @classmethod
    def empty(cls, rows: int, tokens: int, response_tokens: int) -> TrainingBatch:
        """Tensors to receive a batch of these sizes into."""
        return cls(
            prompt_lengths=torch.empty(rows, dtype=torch.int64),
            response_lengths=torch.empty(rows, dtype=torch.int64),
            token_ids=torch.empty(tokens, dtype=torch.int64),
            behaviour_logprobs=torch.empty(response_tokens, dtype=torch.float32),
            staleness=torch.empty(response_tokens, dtype=torch.int64),
            advantages=torch.empty(rows, dtype=torch.float32),
            row_weights=torch.empty(rows, dtype=torch.float32),
        )

    def mini_batches(self, count: int) -> list[TrainingBatch]:
        """The rows in as many parts as `dealt` has."""
        dealt = self.dealt(count)
        return [self] if len(dealt) == 1 else [self._select(rows) for rows in dealt]

    def dealt(self, count: int) -> list[Sequence[int]]:
        """The numbers of the rows in `count` parts (fewer when there are fewer rows), equal in size to within one row.

        Rows are sorted by prompt and dealt out in turn, so that the attempts on one problem, and the rows of one
        task and role, whose prompts begin alike, are spread evenly. The order of the rows does not matter.
        """
        count = min(count, len(self))
        if count == 1:
            return [range(len(self))]
        by_prompt = sorted(range(len(self)), key=[_sort_key(prompt) for prompt, _ in self.rows()].__getitem__)
        return [sorted(by_prompt[i::count]) for i in range(count)]

    def rows(self) -> list[tuple[Tensor, Tensor]]:
        """Each row's prompt ids and response ids: views."""
        lengths = torch.stack([self.prompt_lengths, self.response_lengths], 1).flatten().tolist()
        parts = self.token_ids.split(lengths)
        return list(zip(parts[::2], parts[1::2], strict=True))

    def _select(self, rows: Sequence[int]) -> TrainingBatch:
        tokens = self.token_ids.split((self.prompt_lengths + self.response_lengths).tolist())
        logprobs = self.behaviour_logprobs.split(self.response_lengths.tolist())
        staleness = self.staleness.split(self.response_lengths.tolist())
        return TrainingBatch(
            prompt_lengths=self.prompt_lengths[rows],
            response_lengths=self.response_lengths[rows],
            token_ids=torch.cat([tokens[r] for r in rows]),
            behaviour_logprobs=torch.cat([logprobs[r] for r in rows]),
            staleness=torch.cat([staleness[r] for r in rows]),
            advantages=self.advantages[rows],
            row_weights=self.row_weights[rows],
        )


def _token_versions(episode: Episode) -> npt.NDArray[np.int64]:
    """The version that sampled each response token, [response tokens]."""
    versions = np.array([span.version for span in episode.spans], np.int64)
    return versions.repeat([span.end - span.start for span in episode.spans])


def _sort_key(ids: Tensor) -> bytes:
    return ids.numpy().astype(">i8").tobytes()
