"""A receiver of broadcast weights, as a process of its own, that is killed by its second chunk.

Reads the handshake and the update from its standard input, each a line of base64 of msgpack.
"""

from __future__ import annotations

import base64
import os
import signal
import sys
from typing import Any

import msgspec
import torch

from rollout.weight_broadcast import BroadcastReceiver, GlooPeer


def message() -> Any:
    return msgspec.msgpack.decode(base64.b64decode(sys.stdin.readline()))


if __name__ == "__main__":
    shapes = {name: tuple(shape) for name, shape in message().items()}
    receiver = BroadcastReceiver(shapes, "float32", torch.device("cpu"), {"gloo": GlooPeer})
    print("ready", flush=True)  # noqa: T201
    receiver.join(message())
    for _ in receiver.open(message()):
        os.kill(os.getpid(), signal.SIGKILL)
