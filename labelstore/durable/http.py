"""Stores and images that a web server has: read by requests for ranges of bytes, and never written."""

from __future__ import annotations

import errno
import re
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request

from labelstore.durable.at_once import at_once
from labelstore.durable.connections import answered
from labelstore.durable.pieces import fetched
from labelstore.durable.storage import Mapped, Range
from labelstore.errors import AddressError, InputError, reason
from labelstore.storage_table import Address
from labelstore.version import __version__

TIMEOUT_S = 30.0  # of a connection, and of each wait for bytes
WAITS_S = (0.1, 0.5, 2.0, 5.0)  # before further attempts
ABSENT = (404, 410)
BUSY = (429, 500, 502, 503, 504)
NOT_SATISFIABLE = 416  # the range begins after the end
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")


@dataclass(frozen=True, slots=True)
class HttpStorage:
    """A store at ``http://`` or ``https://``; ``user:password@`` in the address is sent as basic authentication.

    Web servers have no listing that all share: blocks that are not sealed yet are not found.

    Args:
        root: the address of its folder.

    Raises:
        InputError: when the address has a query or a fragment, to which no file name can be appended.
    """

    root: Address

    def __post_init__(self) -> None:
        if {"?", "#"} & {*self.root.complete}:
            shown = re.split(r"[?#]", str(self.root))[0]
            raise InputError(f"{shown}: expected the address of a folder, found one with ? or #; leave that out")

    def size(self, name: str) -> int:
        """As of :class:`ReadStorage`; AddressError when the server cannot be read, and so for all methods."""
        return self._get(name, 0, 1)[1]

    def read(self, name: str, start: int, stop: int) -> bytes:
        """As of :class:`ReadStorage`, by one request."""
        return self.tagged(name, start, stop)[0]

    def tagged(self, name: str, start: int, stop: int) -> tuple[bytes, str]:
        """The result of :meth:`read`, and the ETag or the time of the file, which change when its bytes do."""
        data, _, tag = self._get(name, start, max(stop, start + 1))
        return data[: max(stop - start, 0)], tag

    def tags_of(self, names: Sequence[str]) -> dict[str, tuple[int, str]]:
        """Bytes and tag of those of some files that are there, by one request a file, many at a time."""
        found = at_once(self._tag_of, names)
        return {name: tag for name, tag in zip(names, found, strict=True) if tag is not None}

    def _tag_of(self, name: str) -> tuple[int, str] | None:
        try:
            _, size, tag = self._get(name, 0, 1)
        except FileNotFoundError:
            return None
        return size, tag

    def read_many(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        """As of :class:`ReadStorage`, by one request a range."""
        return [self.read(name, *each) for each in ranges]

    def map(self, name: str, size: int, digest: str | None = None) -> Mapped:  # noqa: ARG002  of the protocol
        """See :class:`ReadStorage`: a copy in memory, filled on demand."""
        return fetched(self, name, size)

    def list(self, folder: str) -> list[str]:  # noqa: ARG002  of the protocol
        """Nothing: a web server has no listing."""
        return []

    def read_ahead(self, name: str) -> bool:  # noqa: ARG002  of the protocol
        """Nothing is prepared."""
        return False

    def _get(self, name: str, start: int, stop: int) -> tuple[bytes, int, str]:
        """Bytes ``start`` to ``stop`` of a file, fewer where it ends before, how many it has, and its tag.

        What may pass is tried again: a busy server, an answer that does not come or is cut.
        """
        for wait in WAITS_S:
            try:
                return self._get_once(name, start, stop)
            except AddressError as error:
                if not _may_pass(error):
                    raise
            time.sleep(wait)
        return self._get_once(name, start, stop)

    def _get_once(self, name: str, start: int, stop: int) -> tuple[bytes, int, str]:
        """As :meth:`_get`, by one request."""
        place = self.root / name
        try:
            with answered(self._request(name, start, stop), TIMEOUT_S) as answer:
                return *_content(answer, place, start, stop), _tag(answer.headers)
        except HTTPError as error:
            error.close()
            if error.code in ABSENT:
                raise FileNotFoundError(errno.ENOENT, "is not there", str(place)) from error
            found = _RANGE.fullmatch(error.headers.get("Content-Range", ""))
            if error.code == NOT_SATISFIABLE and found:
                return b"", int(found[2]), _tag(error.headers)
            raise AddressError(
                f"{place}: expected a file, found that the server answers {error.code} {error.reason}{_advice(error)}"
            ) from error
        except (OSError, HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, URLError) else error
            why = cause.strerror or reason(cause) if isinstance(cause, OSError) else str(cause)
            raise AddressError(
                f"{place}: cannot be read ({why or type(cause).__name__}); look at the address and the network, then "
                f"type the same command again"
            ) from error

    def _request(self, name: str, start: int, stop: int) -> Request:
        """A request for a range, with the credentials of the address, which go to no other host."""
        parts = urlsplit((self.root / name).complete)
        credentials, _, host = parts.netloc.rpartition("@")
        url = f"{parts.scheme}://{host}{quote(parts.path, safe='/%~:@!$&()*+,;=')}"
        headers = {"Range": f"bytes={start}-{stop - 1}", "User-Agent": f"giftwrap/{__version__}"}
        request = Request(url, headers=headers)  # noqa: S310  http or https
        if credentials:
            basic = b64encode(unquote(credentials).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {basic}")
        return request


def _content(answer: HTTPResponse, place: Address, start: int, stop: int) -> tuple[bytes, int]:
    """The bytes of an answer, and how many the whole file has.

    Raises:
        AddressError: when they are not those of the range.
    """
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status != 206 or not found or found[1] is None:
        raise AddressError(
            f"{place}: expected a server that answers requests for ranges of bytes, found one that sends whole files "
            f"(status {answer.status}); serve it by one that does (nginx, an object store), or copy it here"
        )
    first, there = int(found[1]), int(found[2])
    data = answer.read(stop - start)
    if (first, len(data)) != (start, min(stop, there) - start):
        raise _CutError(
            f"{place}: expected bytes {start} to {min(stop, there)}, found {len(data)} bytes from {first} on; type "
            f"the same command again"
        )
    return data, there


def _tag(headers: Message) -> str:
    """The ETag of a file, or its time, which change with its bytes; empty if the server sends neither."""
    return str(headers.get("ETag") or headers.get("Last-Modified") or "").removeprefix("W/")


class _CutError(AddressError):
    """The server returned another range than requested."""


def _may_pass(error: AddressError) -> bool:
    """Whether another attempt may succeed."""
    cause = error.__cause__
    if isinstance(cause, HTTPError):
        return cause.code in BUSY
    reasons = (cause, cause.reason) if isinstance(cause, URLError) else (cause,)
    passing = (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError, HTTPException)
    return isinstance(error, _CutError) or any(isinstance(each, passing) for each in reasons)


def _advice(error: HTTPError) -> str:
    """A remedy for a response, for the end of a message."""
    return "; give user:password@ in the address" if error.code == 401 else ""
