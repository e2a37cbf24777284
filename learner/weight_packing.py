"""Parameters packed into one buffer, chunk after chunk, which is allocated once."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing

import torch

from learner.weight_source import WeightSource, dtype_name, one_pass
from shared.weight_checksum import content_sums
from shared.weight_wire import Sums, nbytes_of, padded, plan_chunks


class Packer:
    """A buffer, and which parameters lie in it together.

    chunks: the parameters of each chunk, in order, without gaps
    buffer: uint8 [capacity + spare]; as large as `buffer_bytes`, or as the largest parameter if that is
        larger, and no larger than all of them together
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        *,
        buffer_bytes: int,
        device: torch.device,
        spare: int = 0,
    ) -> None:
        """spare: bytes behind what is packed, for whoever sends the buffer; a multiple of 8."""
        name = dtype_name(dtype)
        sizes = [nbytes_of(shape, name) for shape in shapes.values()]
        self.capacity = padded(min(max(buffer_bytes, *sizes), sum(sizes)))
        self.chunks = plan_chunks(shapes, name, self.capacity)
        self.nbytes = sum(sizes)
        self.buffer = torch.empty(self.capacity + spare, dtype=torch.uint8, device=device)
        self._shapes = dict(shapes)
        self._dtype = dtype
        self._sums: list[torch.Tensor] = []

    def pack(self, source: WeightSource) -> Generator[int, None, None]:
        """Cast and copy each chunk to the start of the buffer, then yield how long it is: a multiple of 8 bytes.

        The copies may still be under way on the device. Raises WeightSyncError unless the source yields
        what it said.
        """
        self._sums = []
        with closing(one_pass(source, self._shapes)) as parameters:
            for chunk in self.chunks:
                end = 0
                for parameter, (_, tensor) in zip(chunk, parameters, strict=False):
                    begin, end = end, end + parameter.nbytes
                    place = self.buffer[begin:end].view(self._dtype).view(parameter.shape)
                    place.copy_(tensor.detach())
                    self._sums.append(content_sums(place))
                self.buffer[end : padded(end)].zero_()
                yield padded(end)
            next(parameters, None)  # so that one parameter too many is seen

    def sums(self) -> dict[str, Sums]:
        """Of each parameter, as the last pass packed it; waits for the device."""
        read: list[list[int]] = torch.stack(self._sums).tolist()
        return {name: (first, second) for name, (first, second) in zip(self._shapes, read, strict=True)}
