"""What the rows of a batch have in common, and how they are cut into parts of nearly equal work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from learner.batch import TrainingBatch
from learner.memory_bounds import KEYS_PER_TOKEN

Ids = npt.NDArray[np.int64]
# Different prompts share whole blocks of this many tokens at their beginning: less would not be worth a cut.
SHARED_BLOCK = 16
# Parts are equal enough once the largest could be smaller by no more than this share of it.
_EVENNESS = 1 / 64


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """Distinct response ids, and the rows that have them. No rows: work without weight, to keep ranks in step."""

    ids: Ids
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PromptGroup:
    """A prompt, and distinct responses to it, among others in an order.

    shared: tokens at the prompt's beginning that the group before has too, and that are computed there
    """

    prompt: Ids
    responses: tuple[Response, ...]
    shared: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that are computed here."""
        return len(self.prompt) - self.shared + sum(len(response.ids) - 1 for response in self.responses)


def group_rows(batch: TrainingBatch) -> list[PromptGroup]:
    """The distinct prompts, each with its distinct responses, longest first.

    Prompts that begin alike are neighbours, ordered by their ids; of several that do, the family with the largest
    comes first.
    """
    same: dict[bytes, dict[bytes, list[int]]] = {}
    lengths = torch.stack([batch.prompt_lengths, batch.response_lengths], 1).flatten().numpy()
    bounds = list(pairwise([0, *np.cumsum(lengths).tolist()]))
    ids = batch.token_ids.numpy()
    # Of ids with their highest byte first, bytes are ordered as the ids are.
    written = ids.astype(">i8").tobytes()
    pieces = [written[8 * start : 8 * end] for start, end in bounds]
    for row, (asked, answered) in enumerate(zip(pieces[::2], pieces[1::2], strict=True)):
        same.setdefault(asked, {}).setdefault(answered, []).append(row)

    def piece(number: int) -> Ids:
        found: Ids = ids[slice(*bounds[number])]
        return found

    trees: list[list[PromptGroup]] = []
    before = b""
    for asked, distinct in sorted(same.items()):
        responses = [Response(piece(2 * rows[0] + 1), tuple(rows)) for rows in distinct.values()]
        responses.sort(key=lambda response: -len(response.ids))
        shared = _shared_tokens(before, asked)
        if not shared:
            trees.append([])
        trees[-1].append(PromptGroup(piece(2 * responses[0].rows[0]), tuple(responses), shared))
        before = asked
    # Where prompts have nothing in common, neighbours of similar size are computed in fewer, larger calls.
    trees.sort(key=lambda tree: max((group.tokens + group.shared, len(group.prompt)) for group in tree), reverse=True)
    return [group for tree in trees for group in tree]


def pack(groups: Sequence[PromptGroup], *, parts: int, max_tokens: int) -> list[list[PromptGroup]]:
    """Neighbours together, in packs of at most `max_tokens` tokens, or of one sequence; nearly equal.

    parts: packs are no more than the smallest multiple of it that they fit into. A prompt whose responses are in
    several packs is repeated in each, and so is what it shares with the one before. By KEYS_PER_TOKEN, a pack of
    short sequences with a long common beginning ends earlier.
    """
    costs = [cost for group in groups for cost in _costs(group)]
    most_keys = KEYS_PER_TOKEN * max_tokens
    starts = _fill(costs, max_tokens, most_keys)
    count = -(-len(starts) // parts) * parts
    if count > 1:
        least, most = 0, max_tokens
        while most - least > max(1, _EVENNESS * most):
            middle = (least + most) // 2
            tried = _fill(costs, middle, most_keys)
            if len(tried) <= count:
                starts, most = tried, middle
            else:
                least = middle
    sequences = [(group, response) for group in groups for response in group.responses]
    return [_joined(sequences[start:end]) for start, end in pairwise([*starts, len(sequences)])]


class _Cost(NamedTuple):
    """Of a response: tokens, and at most so many keys, behind the response before it, and as the first of a pack."""

    tokens_behind: int
    keys_behind: int
    tokens_first: int
    keys_first: int


def _costs(group: PromptGroup) -> Iterator[_Cost]:
    """Of each response in turn."""
    prompt, shared = len(group.prompt), group.shared
    # A prompt's end is a stretch that is given the whole prompt; where it leaves the one before, that one is cut, and
    # what they share is a stretch by itself.
    new, stretches = prompt - shared, prompt + shared
    for response in group.responses:
        own = len(response.ids) - 1
        yield _Cost(new + own, stretches + prompt + own, prompt + own, prompt + prompt + own)
        new = stretches = 0


def _fill(costs: Sequence[_Cost], capacity: int, most_keys: int) -> list[int]:
    """Where packs start, each as full as it can be."""
    starts: list[int] = []
    room = keys = -1
    for index, cost in enumerate(costs):
        room, keys = room - cost.tokens_behind, keys - cost.keys_behind
        if room < 0 or keys < 0:
            starts.append(index)
            room, keys = capacity - cost.tokens_first, most_keys - cost.keys_first
    return starts


def _joined(sequences: Iterable[tuple[PromptGroup, Response]]) -> list[PromptGroup]:
    """The groups of a pack again, of which the first shares nothing."""
    joined: list[tuple[PromptGroup, list[Response]]] = []
    for group, response in sequences:
        if not joined or joined[-1][0] is not group:
            joined.append((group, []))
        joined[-1][1].append(response)
    return [
        replace(group, responses=tuple(responses), shared=group.shared if index else 0)
        for index, (group, responses) in enumerate(joined)
    ]


def _shared_tokens(one: bytes, other: bytes) -> int:
    """Tokens of the whole blocks that two different prompts both begin with; a token has 8 bytes."""
    block = end = 8 * SHARED_BLOCK
    while end <= min(len(one), len(other)) and one[end - block : end] == other[end - block : end]:
        end += block
    return (end - block) // 8
