"""The policy's weights as the source (`learner/weight_source.py`) that they are sent from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

from torch import Tensor


class PolicyWeights:
    """All parameters in layer order, tied ones once; each iteration is a fresh pass over what they are then.

    One parameter is whole at a time: a tensor holds until the next one, or anything else, is asked of the policy. It
    carries no gradient, and is not to be written to.

    shapes: of every parameter, by its name in the model folder; known without gathering anything
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], whole: Callable[[str], AbstractContextManager[Tensor]]
    ) -> None:
        """whole: a context in which the parameter of that name is whole."""
        self.shapes = shapes
        self._whole = whole

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.shapes:
            with self._whole(name) as tensor:
                yield name, tensor
