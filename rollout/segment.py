"""Reading a weight update out of a shared-memory segment, trusting nothing about it.

The segment is a file under /dev/shm that the learner owns. It is read, never mapped: whatever the
other side does to it meanwhile, shrinking it included, shows up as an error here and not as a
signal, and what was checked is what is used.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from isal.isal_zlib import crc32  # the same as zlib.crc32, at ten times its speed

from rollout.receiving import DTYPES, Batch
from shared.errors import WeightSyncError
from shared.weight_manifest import Manifest
from shared.weight_wire import PlainInit, Shapes, check_parameters, nbytes_of, parse


def check_manifest(manifest: Manifest, expected: Shapes, dtype: str) -> None:
    """Raise WeightSyncError unless the manifest holds exactly `expected` (name → shape), all of `dtype`."""
    check_parameters(manifest.parameters, expected, dtype)
    for parameter in manifest.parameters:
        if parameter.offset + nbytes_of(parameter.shape, parameter.dtype) > manifest.nbytes:
            raise WeightSyncError(f"{parameter.name} reaches past the end of the segment")


class SegmentReceiver:
    """The `shm` transport's end in the engine (`Receiver`).

    expected: name → shape of everything that the model needs; dtype: what the engine computes in
    """

    def __init__(self, expected: Shapes, dtype: str) -> None:
        self._expected = expected
        self._dtype = dtype

    def join(self, init_info: Mapping[str, Any]) -> None:
        """See `Receiver.join`."""
        if parse(init_info, PlainInit).transport != "shm":
            raise WeightSyncError("the learner sends weights by another transport than shm, which the engine reads")

    def begin(self) -> None:
        """Nothing is kept between calls."""

    def open(self, update_info: Mapping[str, Any]) -> Segment:
        """The segment of this update, checked but for its bytes."""
        manifest = parse(update_info, Manifest)
        check_manifest(manifest, self._expected, self._dtype)
        return Segment(manifest)

    def close(self) -> None:
        """Nothing is kept between calls."""


class Segment:
    """An open segment, all of an update. Raises WeightSyncError when the file is not one that our learner made."""

    last = True

    def __init__(self, manifest: Manifest) -> None:
        self._parameters = {parameter.name: parameter for parameter in manifest.parameters}
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._fd = os.open(manifest.path, flags)
        except OSError as error:
            raise WeightSyncError(f"cannot open the weight segment {manifest.path}: {error.strerror}") from error
        try:
            _check_file(os.fstat(self._fd), manifest)
        except WeightSyncError:
            self.close()
            raise

    def __iter__(self) -> Iterator[Batch]:
        """Each parameter by itself, so that no more is held twice than has to be."""
        for name in self._parameters:
            yield [(name, self.read(name))]

    def read(self, name: str) -> torch.Tensor:
        """A private copy of one parameter, in its wire dtype; its checksum is verified."""
        parameter = self._parameters[name]
        tensor = torch.empty(parameter.shape, dtype=DTYPES[parameter.dtype])
        view = memoryview(tensor.view(-1).view(torch.uint8).numpy())
        done = 0
        while done < len(view):
            count = os.preadv(self._fd, [view[done:]], parameter.offset + done)
            if count == 0:
                raise WeightSyncError(f"the weight segment was cut short inside {name}")
            done += count
        if crc32(view) != parameter.crc32:
            raise WeightSyncError(f"the bytes of {name} do not match their checksum")
        return tensor

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


def _check_file(status: os.stat_result, manifest: Manifest) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise WeightSyncError(f"{manifest.path} is not a private file of this user")
    if status.st_size != manifest.nbytes:
        raise WeightSyncError(f"{manifest.path} is {status.st_size} bytes long, not {manifest.nbytes}")
