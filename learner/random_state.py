"""The state of a process's global random generators, so that a resumed run draws what an uninterrupted one would."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from shared.errors import CheckpointError


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """python: of `random.getstate`; numpy: of its global Mersenne twister; cuda: of each device"""

    python: tuple[int, tuple[int, ...], float | None]
    numpy: tuple[list[int], int, int, float]
    torch: bytes
    cuda: list[bytes]


def save_random_state(file: Path) -> None:
    """Write the states of Python's, NumPy's and PyTorch's global generators."""
    numpy: Any = np.random.get_state(legacy=False)
    state = _State(
        random.getstate(),
        (numpy["state"]["key"].tolist(), numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]),
        _bytes(torch.get_rng_state()),
        [_bytes(each) for each in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    )
    file.write_bytes(msgspec.msgpack.encode(state))


def load_random_state(file: Path) -> None:
    """Go on from what `save_random_state` wrote. Raises CheckpointError when that is not what the file is.

    The states of devices are left alone where there is another number of them now.
    """
    try:
        state = msgspec.msgpack.decode(file.read_bytes(), type=_State)
        random.setstate(state.python)
        words, position, has_gauss, gauss = state.numpy
        np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, has_gauss, gauss))
        torch.set_rng_state(_tensor(state.torch))
        if torch.cuda.is_available() and len(state.cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([_tensor(each) for each in state.cuda])
    except (OSError, msgspec.MsgspecError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the random states in {file} cannot be restored: {error}") from error


def _bytes(state: torch.Tensor) -> bytes:
    return state.numpy().tobytes()


def _tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
