"""A folder that is served as a bucket of S3, each answer late and all of them together at a limited rate."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

BUCKET = "bench"
PIECE = 256 << 10  # bytes that are sent together


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, latency: float, rate: float) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder, self.latency, self.rate = folder, latency, rate
        self._free, self._lock = 0.0, threading.Lock()  # when the link is free again

    def wait(self, count: int) -> None:
        """Until ``count`` bytes have passed the link."""
        with self._lock:
            self._free = max(self._free, time.perf_counter()) + count / self.rate
            until = self._free
        time.sleep(max(until - time.perf_counter(), 0))


class _Answers(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self.answer(whole=True)

    def do_GET(self) -> None:
        self.answer(whole=False)

    def answer(self, *, whole: bool) -> None:
        time.sleep(self.server.latency)
        path = self.server.folder / unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")
        if not path.is_file():
            self.send_response_only(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        asked = None if whole else self.headers["Range"]
        first, last = asked.removeprefix("bytes=").split("-") if asked else ("0", "")
        start, stop = int(first), min(int(last) + 1 if last else size, size)
        self.send_response_only(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        for name, value in (
            ("Content-Length", stop - start),
            ("ETag", '"0"'),
            ("Accept-Ranges", "bytes"),
            ("Last-Modified", self.date_time_string(path.stat().st_mtime)),
        ):
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            with path.open("rb") as file:
                self.send(file, start, stop)

    def send(self, file: BinaryIO, start: int, stop: int) -> None:
        file.seek(start)
        for at in range(start, stop, PIECE):
            data = file.read(min(PIECE, stop - at))
            self.server.wait(len(data))
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def slow_bucket(folder: Path, latency: float, rate: float) -> Iterator[None]:
    """Serve a folder as the bucket `BUCKET` from a separate process; the environment names it.

    Args:
        folder: what the bucket holds.
        latency: seconds before each answer.
        rate: bytes a second, of all answers together.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(folder, latency, rate, theirs), daemon=True)
    process.start()
    address = f"http://127.0.0.1:{ours.recv()}"
    wanted = {
        "AWS_ENDPOINT_URL": address,
        "S3_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "*",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        process.terminate()
        process.join()


def _serve(folder: Path, latency: float, rate: float, told: Connection) -> None:
    server = _Server(folder, latency, rate)
    told.send(server.server_address[1])
    server.serve_forever()
