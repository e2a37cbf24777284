"""The stream's sockets: a ROUTER for the learner, a DEALER for each rollout worker.

The only package that knows zmq, but for what a benchmark compares it with (launch/bench/raw_zmq.py). Neither side
blocks for ever: the server runs its own I/O thread, the client is asyncio; closing drops what could not be sent within
a second. Over `ipc` the socket file is the user's alone; over `tcp` both ends prove who they are with the keys of
`security`, and everything is encrypted.
"""

from shared.transport.client import StreamClient
from shared.transport.security import ClientKeys, ServerKeys, check_address, make_keys
from shared.transport.server import StreamServer

__all__ = ["ClientKeys", "ServerKeys", "StreamClient", "StreamServer", "check_address", "make_keys"]
