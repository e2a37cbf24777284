"""The shared-memory segment that a version's weights lie in."""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import secrets
import weakref
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

import torch
from isal.isal_zlib import crc32  # the same as zlib.crc32, at ten times its speed

from learner.weight_source import WeightSource, dtype_name, is_finite, one_pass, refuse_not_finite
from shared.errors import WeightSyncError
from shared.weight_checksum import total_sums
from shared.weight_manifest import Manifest, WireParameter
from shared.weight_wire import FORMAT, Sums, nbytes_of

_FOLDER = Path("/dev/shm")
_ALIGNMENT = 64


class WeightSegment:
    """A private file in shared memory, written again for each version.

    It is locked while its owner lives, so that the next run can tell and remove what a killed one left.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        """Reserve room for the parameters `shapes`, all of `dtype`; WeightSyncError if there is none."""
        self._dtype, self._dtype_name = dtype, dtype_name(dtype)
        self._shapes = dict(shapes)
        self._offsets: dict[str, int] = {}
        end = 0
        for name, shape in shapes.items():
            self._offsets[name] = end
            end += -(-nbytes_of(shape, self._dtype_name) // _ALIGNMENT) * _ALIGNMENT
        self.nbytes = max(end, _ALIGNMENT)
        _remove_abandoned()
        fd, self.path = _create()
        self._close = weakref.finalize(self, _remove, fd, self.path)
        try:
            os.posix_fallocate(fd, 0, self.nbytes)
        except OSError as error:
            self.close()
            raise WeightSyncError(
                f"no room for {self.nbytes / 2**20:.0f} MiB of weights in {_FOLDER}: {error.strerror}"
            ) from error
        self._memory = mmap.mmap(fd, self.nbytes)

    def write(self, source: WeightSource, version: int) -> Manifest:
        """Cast and copy all parameters in; returns what the engines need to read them as `version`.

        Raises WeightSyncError for a value that is not finite in the wire dtype.
        """
        rows: list[WireParameter] = []
        with closing(one_pass(source, self._shapes)) as parameters:
            for name, tensor in parameters:
                shape, offset, wire = self._shapes[name], self._offsets[name], self._wire(name)
                wire.view(shape).copy_(tensor.detach())
                if not is_finite(wire):
                    refuse_not_finite(name, self._dtype)
                crc = crc32(memoryview(wire.view(torch.uint8).numpy()))
                rows.append(WireParameter(name, self._dtype_name, shape, offset, crc))
        return Manifest(FORMAT, str(self.path), self.nbytes, version, tuple(rows))

    def sums(self) -> dict[str, Sums]:
        """Of each parameter, what lies in the segment."""
        return {name: total_sums(self._wire(name)) for name in self._shapes}

    def _wire(self, name: str) -> torch.Tensor:
        """One parameter's place, flat."""
        count = math.prod(self._shapes[name])
        return torch.frombuffer(self._memory, dtype=self._dtype, count=count, offset=self._offsets[name])

    def close(self) -> None:
        """Remove the segment; readers that have it open keep its bytes."""
        self._close()


def _create() -> tuple[int, Path]:
    while True:
        path = _FOLDER / f"primezero-{os.getpid()}-{secrets.token_hex(16)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return fd, path
        os.close(fd)  # another learner, starting just now, took it for abandoned before the lock


def _remove(fd: int, path: Path) -> None:
    path.unlink(missing_ok=True)
    os.close(fd)


def _remove_abandoned() -> None:
    """Remove segments whose owner was killed: ours, and locked by nobody."""
    for path in _FOLDER.glob("primezero-*-*"):
        with suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
            finally:
                os.close(fd)
