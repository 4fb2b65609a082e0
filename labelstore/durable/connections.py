"""Connections to web servers, kept from one request to the next, since making one can take longer than an answer.

A proxy of the environment, and an answer that leads elsewhere, are left to urllib, which makes a connection a request.
"""

from __future__ import annotations

import atexit
import os
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from io import BytesIO
from string import punctuation
from urllib.error import HTTPError
from urllib.parse import quote, urljoin
from urllib.request import Request, getproxies, proxy_bypass, urlopen

from labelstore.durable.at_once import AT_ONCE

_CONNECTIONS = {"http": HTTPConnection, "https": HTTPSConnection}
_REDIRECTS = (301, 302, 303, 307, 308)
_REST = 1 << 16  # bytes of an answer's rest that are read to keep its connection
# By process, since one that is forked shares the sockets; a deque is changed by one thread at a time.
_kept: defaultdict[tuple[int, str, str], deque[HTTPConnection]] = defaultdict(deque)


@contextmanager
def answered(request: Request, timeout: float) -> Iterator[HTTPResponse]:
    """The answer to a GET request.

    Raises:
        HTTPError: the server answers with an error.
        OSError: it cannot be reached.
        HTTPException: it does not answer as a web server.
    """
    direct = request.host and not (request.type in getproxies() and not proxy_bypass(request.host))
    if not direct:
        with urlopen(request, timeout=timeout) as answer:  # noqa: S310  http or https
            yield answer
        return
    connection, answer = _sent(request, timeout)
    if answer.status in _REDIRECTS and (moved := _moved(request, answer)):
        _keep(request, connection, answer)
        with urlopen(moved, timeout=timeout) as other:  # noqa: S310  http or https
            yield other
    elif answer.status >= 300:
        _keep(request, connection, answer)
        raise HTTPError(request.full_url, answer.status, answer.reason, answer.headers, BytesIO())
    else:
        try:
            yield answer
        except BaseException:
            answer.close()
            connection.close()
            raise
        _keep(request, connection, answer)


def close_all() -> None:
    """Close the connections that are kept."""
    while _kept:
        _, connections = _kept.popitem()
        for connection in connections:
            connection.close()


atexit.register(close_all)


def _moved(request: Request, answer: HTTPResponse) -> Request | None:
    """The request at the place that an answer names, without credentials; None where it names none of a web server."""
    url = urljoin(request.full_url, quote(answer.headers.get("Location", ""), punctuation, "iso-8859-1"))
    known = url.startswith(("http://", "https://")) and url != request.full_url
    return Request(url, headers=request.headers) if known else None  # noqa: S310  http or https


def _place(request: Request) -> tuple[int, str, str]:
    return os.getpid(), str(request.type), request.host


def _sent(request: Request, timeout: float) -> tuple[HTTPConnection, HTTPResponse]:
    """A connection on which a request was sent, and the head of its answer."""
    while True:
        try:
            connection, new = _kept[_place(request)].pop(), False
        except IndexError:
            connection, new = _CONNECTIONS[str(request.type)](request.host, timeout=timeout), True
        try:
            connection.request("GET", request.selector, headers={**request.headers, **request.unredirected_hdrs})
            return connection, connection.getresponse()
        except (OSError, HTTPException) as error:
            connection.close()
            if new or isinstance(error, TimeoutError):  # else the server has closed it since it was last used
                raise


def _keep(request: Request, connection: HTTPConnection, answer: HTTPResponse) -> None:
    """Keep a connection if its answer has been read, or nearly; close it otherwise."""
    with suppress(OSError, HTTPException):
        if not answer.isclosed() and answer.length is not None and answer.length <= _REST:
            answer.read()
    kept = _kept[_place(request)]
    if answer.isclosed() and connection.sock is not None and len(kept) < AT_ONCE:
        kept.append(connection)
    else:
        answer.close()
        connection.close()
