"""An S3 server on this machine, and a proxy before it that delays, drops, truncates and refuses."""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.labelstore.loopback import Loopback, serving

SECRET = "s3cr3t/of+the=tests"  # noqa: S105  of no account
BUCKET = "shelf"
# Signatures are not looked at, but whether there is one is.
SIGNED = "AWS4-HMAC-SHA256 Credential=tests/20260101/us-east-1/s3/aws4_request"

MOST = 4  # faults of one request in a row; the library tries a request nine times


class Proxy(Loopback):
    """Passes requests on to a server; each request takes the next of `faults`, if there is one.

    A request that failed `MOST` times in a row is passed on, whatever is next: which of several requests at the same
    time takes which fault is chance, and none may take more than the library tries.

    Attributes:
        faults: what to do, by the order of requests: a status to answer, ``drop`` to close the connection, ``truncate``
            to close it within the answer, ``hold`` to send nothing until the client gives up, ``""`` to pass the
            request on.
        always: what to do to all requests after them.
        requests: method and path of each.
    """

    def __init__(self, port: int) -> None:
        super().__init__(_Passing)
        self.port, self.faults, self.always = port, list[str](), ""
        self.requests: list[tuple[str, str]] = []
        self._failed: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()

    def fault(self, method: str, path: str, part: str) -> str:
        with self._lock:
            request = method, path, part
            self.requests.append((method, path))
            fault = self.faults.pop(0) if self.faults else self.always
            if fault and fault != self.always and self._failed[request] == MOST:
                fault = ""
            self._failed[request] = self._failed[request] + 1 if fault else 0
            return fault


class _Passing(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def act(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault(self.command, self.path, self.headers.get("Range") or "")
        if fault in ("drop", "hold"):
            if fault == "hold":
                self.rfile.read(1)  # ends when the client closes the connection
            self.close_connection = True
            return
        if fault.isdecimal():
            self.reply(int(fault), {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.port)) as upstream:
            kept = {name.lower(): value for name, value in self.headers.items() if name.lower() != "connection"}
            headers = kept if kept.get("authorization", "").startswith("AWS") else {**kept, "authorization": SIGNED}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
        self.reply(answer.status, dict(answer.getheaders()), data, cut=fault == "truncate")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = act  # noqa: N815  of the base class

    def reply(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def bucket() -> Iterator[Proxy]:
    """An empty bucket `BUCKET` behind a proxy; the environment has what is needed to reach it."""
    pytest.importorskip("obstore")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with serving(Proxy(port)) as proxy, pytest.MonkeyPatch.context() as patch:
        send("POST", f"127.0.0.1:{port}", "/moto-api/reset")  # of what an earlier server of this process was sent
        for name, value in environment(proxy).items():
            patch.setenv(name, value)
        put("", b"")
        proxy.requests.clear()
        yield proxy
    server.stop()


def environment(proxy: Proxy) -> dict[str, str]:
    """What names the server."""
    return {
        "AWS_ENDPOINT_URL": proxy.address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "NO_PROXY": "*",
    }


def google(proxy: Proxy) -> dict[str, str]:
    """What names the server as one of Google's, whose XML interface it answers too."""
    account = {"gcs_base_url": proxy.address, "disable_oauth": True, "client_email": "", "private_key": ""}
    return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps({**account, "private_key_id": ""})}


def put(key: str, data: bytes) -> None:
    """An object, or with an empty key the bucket."""
    send("PUT", os.environ["AWS_ENDPOINT_URL"].partition("//")[2], f"/{BUCKET}/{key}".rstrip("/"), data)


def send(method: str, host: str, path: str, data: bytes = b"") -> None:
    """A request that is answered with 200."""
    with closing(http.client.HTTPConnection(host)) as connection:
        connection.request(method, path, data)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()


def put_folder(folder: Path, prefix: str) -> str:
    """The files of a folder as objects; the address of the folder there."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"s3://{BUCKET}/{prefix}"


def patience(patch: pytest.MonkeyPatch, **values: Any) -> None:
    """Other waits of `labelstore.durable.objects`."""
    for name, value in values.items():
        patch.setattr(f"labelstore.durable.objects.{name}", value)
