"""A port of this machine for the servers that benchmarks and tests start."""

from __future__ import annotations

import socket
from functools import lru_cache


@lru_cache
def own_port() -> int:
    """A port that is this process's until it ends, for one server at a time.

    It is bound and never listened on: no other program is given it when it asks for a free port, and a server that
    reuses addresses, as those of torch and of Python's library do, can listen on it.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    port: int = held.getsockname()[1]
    held.detach()
    return port
