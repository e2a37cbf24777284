"""Reading a weight update out of a shared-memory segment, trusting nothing about it.

The segment is a file under /dev/shm that the learner owns. It is read, never mapped: whatever the
other side does to it meanwhile, shrinking it included, shows up as an error here and not as a
signal, and what was checked is what is used.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Mapping

import torch

from shared.errors import WeightSyncError
from shared.weight_manifest import Manifest, WireParameter

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check_manifest(manifest: Manifest, expected: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """Raise WeightSyncError unless the manifest holds exactly `expected` (name → shape), all of `dtype`."""
    names = [parameter.name for parameter in manifest.parameters]
    if len(set(names)) != len(names):
        raise WeightSyncError("the weight update names a parameter twice")
    if missing := expected.keys() - set(names):
        raise WeightSyncError(f"the weight update lacks {len(missing)} parameters, such as {min(missing)!r}")
    if foreign := set(names) - expected.keys():
        raise WeightSyncError(
            f"the weight update has {len(foreign)} parameters that the engine's model has not, such as {min(foreign)!r}"
        )
    for parameter in manifest.parameters:
        if parameter.shape != expected[parameter.name]:
            raise WeightSyncError(
                f"{parameter.name} has shape {parameter.shape}, the engine's has {expected[parameter.name]}"
            )
        if DTYPES[parameter.dtype] != dtype:
            raise WeightSyncError(f"{parameter.name} is {parameter.dtype}, the engine computes in {dtype}")
        if parameter.offset + _nbytes(parameter) > manifest.nbytes:
            raise WeightSyncError(f"{parameter.name} reaches past the end of the segment")


class Segment:
    """An open segment. Raises WeightSyncError when the file is not one that our learner made."""

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
        if zlib.crc32(view) != parameter.crc32:
            raise WeightSyncError(f"the bytes of {name} do not match their checksum")
        return tensor

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


def _nbytes(parameter: WireParameter) -> int:
    elements = 1
    for size in parameter.shape:
        elements *= size
    return elements * DTYPES[parameter.dtype].itemsize


def _check_file(status: os.stat_result, manifest: Manifest) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise WeightSyncError(f"{manifest.path} is not a private file of this user")
    if status.st_size != manifest.nbytes:
        raise WeightSyncError(f"{manifest.path} is {status.st_size} bytes long, not {manifest.nbytes}")
