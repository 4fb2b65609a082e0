"""Web servers on this machine that run while a test does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar


class Loopback(ThreadingHTTPServer):
    """A server on a free port; many clients may connect at the same time, and none is turned away."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answers: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), answers)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        pass  # a client that has gone


Server = TypeVar("Server", bound=Loopback)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Answer requests in a thread while the body runs."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
