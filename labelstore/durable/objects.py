"""A store in a bucket: ``s3://``, ``gs://`` and ``az://``, through obstore, which makes requests and repeats them.

Credentials come from the environment, as the clouds' own programs take them. They are in no message: of obstore's
errors, which may quote whole requests, only what is known to be harmless is shown.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from importlib import import_module
from itertools import islice
from typing import Any, NamedTuple

from labelstore.durable.at_once import at_once
from labelstore.durable.pieces import fetched
from labelstore.durable.storage import Mapped, Range
from labelstore.errors import AddressError, InputError
from labelstore.storage_table import Address

TIMEOUT = timedelta(seconds=30)  # of a request
CONNECT_TIMEOUT = timedelta(seconds=5)
RETRIES, RETRY_TIMEOUT = 8, timedelta(seconds=60)
FIRST_WAIT, LONGEST_WAIT = timedelta(milliseconds=100), timedelta(seconds=5)
NOT_SATISFIABLE = "416 Range Not Satisfiable"  # the range begins after the end

_STATUS = re.compile(r"status code: (\d{3}(?: [A-Za-z]+)+)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_CUT = ("Incomplete", "ConnectionReset")  # in what the library reports of an answer that is cut off
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|bucket does not exist")
_ENDPOINT = re.compile(r"https?://[^/\s]+")
_NO_CREDENTIALS = re.compile(r"169\.254\.169\.254|/computeMetadata/|/latest/api/token|Missing[A-Z]\w+,")
_UNUSABLE = {
    "Unable to open service account file": "their file cannot be opened",
    "Unable to decode service account file": "their file is not that of a service account",
    "Invalid RSA key": "their private key cannot be read",
    "Invalid Access Key": "the account key is not in base64",
}
_FAULTS = {
    "ConnectionRefused": "connection refused",
    "TimedOut": "no answer in time",
    "dns error": "no such host",
    "Incomplete": "the connection was dropped",
    "ConnectionReset": "the connection was dropped",
    "ertificate": "the certificate of the server is not trusted",
}


class Cloud(NamedTuple):
    """Whose buckets a scheme names.

    Attributes:
        variables: environment variables, one of which is set if there are credentials, or none are needed.
        advice: what to set.
        endpoints: variables that may name another server.
        sent: variables whose values are sent with requests.
    """

    variables: tuple[str, ...]
    advice: str
    endpoints: tuple[str, ...]
    sent: tuple[str, ...] = ()


CLOUDS = {
    "s3": Cloud(
        (
            "AWS_ACCESS_KEY_ID",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_SKIP_SIGNATURE",
        ),
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
        ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
    ),
    "gs": Cloud(
        (
            "GOOGLE_APPLICATION_CREDENTIALS",
            "GOOGLE_SERVICE_ACCOUNT",
            "GOOGLE_SERVICE_ACCOUNT_KEY",
            "GOOGLE_SKIP_SIGNATURE",
        ),
        "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
        ("GOOGLE_BASE_URL",),
    ),
    "az": Cloud(
        ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_CLIENT_ID", "AZURE_SKIP_SIGNATURE"),
        "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
        ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "AZURITE_BLOB_STORAGE_URL"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY"),
    ),
}


@dataclass(frozen=True)
class ObjectStorage:
    """A store in a bucket.

    Args:
        root: the address of its folder, ``s3://bucket/folder``.

    Raises:
        InputError: obstore is not installed; the address names no bucket, or has credentials.
    """

    root: Address

    def __post_init__(self) -> None:
        rest = self.root.complete.partition("://")[2]
        bucket = rest.partition("/")[0]
        if not bucket or {":", "@"} & {*bucket} or {"?", "#"} & {*rest}:
            raise InputError(
                f"{re.split('[?#]', str(self.root))[0]}: expected {self.root.scheme}://BUCKET/FOLDER; credentials are "
                f"taken from the environment"
            )
        _obstore(self.root.scheme)

    @cached_property
    def store(self) -> Any:
        """The store of the library, whose paths are relative to the root.

        Raises:
            AddressError: there are no credentials.
        """
        cloud = CLOUDS[self.root.scheme]
        if not any(map(os.environ.get, cloud.variables)):
            # The machine itself may have an identity. Where it has none, a few attempts are enough.
            with suppress(FileNotFoundError), _naming(self.root):
                _obstore().head(self._opened(retries=1), "zarr.json")
        return self._opened(RETRIES)

    def size(self, name: str) -> int:
        """As of :class:`ReadStorage`; AddressError when the bucket cannot be read, and so for all methods."""
        with _naming(self.root / name):
            return int(_obstore().head(self.store, name)["size"])

    def read(self, name: str, start: int, stop: int) -> bytes:
        """As of :class:`ReadStorage`, by one request."""
        return self.tagged(name, start, stop)[0]

    def tagged(self, name: str, start: int, stop: int) -> tuple[bytes, str]:
        """The result of :meth:`read`, and the ETag of the object, which changes when its bytes do."""
        if stop <= start:
            with _naming(self.root / name):
                return b"", _tag(_obstore().head(self.store, name)["e_tag"])
        with _naming(self.root / name):
            try:
                answer = _obstore().get(self.store, name, options={"range": (start, stop)})
                data = answer.bytes().to_bytes()
            except _obstore().exceptions.GenericError as error:
                if NOT_SATISFIABLE in str(error):
                    return b"", ""
                raise
        expected = min(stop, answer.meta["size"]) - start
        if len(data) != expected:
            raise AddressError(f"{self.root / name}: expected {expected} bytes from {start} on, found {len(data)}")
        return bytes(data), _tag(answer.meta["e_tag"])

    def read_many(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        """As of :class:`ReadStorage`, by one request a range, many at a time."""
        return at_once(lambda each: self.read(name, *each), ranges)

    def map(self, name: str, size: int, digest: str | None = None) -> Mapped:  # noqa: ARG002  of the protocol
        """See :class:`ReadStorage`: a copy in memory, filled on demand."""
        return fetched(self, name, size)

    def list(self, folder: str) -> list[str]:
        """As of :class:`ReadStorage`; nothing of a folder that is not there, since buckets have no folders."""
        with _naming(self.root / folder):
            found = _listed(lambda: _obstore().list_with_delimiter(self.store, folder or None))
        paths = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        return [path.rstrip("/").rpartition("/")[2] for path in paths]

    def read_ahead(self, name: str) -> bool:  # noqa: ARG002  of the protocol
        """Nothing is prepared."""
        return False

    def tags(self, most: int | None = None) -> dict[str, tuple[int, str]]:
        """Bytes and ETag of every object below the root, by its path; the first ``most`` of them."""
        with _naming(self.root):
            found = _listed(
                lambda: [*islice((each for some in _obstore().list(self.store) for each in some), most)],
            )
        return {each["path"]: (each["size"], _tag(each["e_tag"])) for each in found}

    def put(self, name: str, data: bytes) -> None:
        """Put an object, in place of one that is there; it is there whole or not at all."""
        with _naming(self.root / name):
            # In one part: one of several that is stopped would leave parts that are paid for and seen nowhere.
            _obstore().put(self.store, name, data, use_multipart=False)

    def _require_environment(self) -> None:
        """Refuse values of the environment that the library ends the process for."""
        for name in CLOUDS[self.root.scheme].sent:
            sent = os.environ.get(name, "")
            if not (sent.isascii() and sent.isprintable()):
                raise InputError(f"{name}: expected a word, found a line break or another character; set it again")
        for name in CLOUDS[self.root.scheme].endpoints:
            value = os.environ.get(name)
            if value and not _ENDPOINT.match(value):
                raise InputError(f"{name}: expected the address of a server, http://HOST or https://HOST; set it so")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root,)  # another process finds its own credentials

    def _opened(self, retries: int) -> Any:
        self._require_environment()
        with _naming(self.root):
            return _obstore().store.from_url(
                self.root.complete,
                client_options={
                    "timeout": TIMEOUT,
                    "connect_timeout": CONNECT_TIMEOUT,
                    "allow_http": True,  # of an endpoint that the environment names with http://; others are https
                },
                retry_config={
                    "max_retries": retries,
                    "retry_timeout": RETRY_TIMEOUT,
                    "backoff": {"init_backoff": FIRST_WAIT, "max_backoff": LONGEST_WAIT, "base": 2},
                },
            )


def _listed(ask: Callable[[], Any]) -> Any:
    """A listing, repeated if its response is cut off, since the library only retries the beginning of a response."""
    for _ in range(RETRIES):
        try:
            return ask()
        except _obstore().exceptions.BaseError as error:
            if not any(mark in str(error) for mark in _CUT):
                raise
    return ask()


def _tag(etag: str | None) -> str:
    """An ETag without its quotes, which Azure's listings leave out and its answers have."""
    return (etag or "").removeprefix("W/").strip('"')


def _obstore(scheme: str = "s3") -> Any:
    """The library.

    Raises:
        InputError: it is not installed.
    """
    try:
        library = import_module("obstore")
        import_module("obstore.store")
    except ImportError:
        raise InputError(
            f"{scheme}:// is read by obstore, which is not installed: pip install 'giftwrap[cloud]'"
        ) from None
    return library


@contextmanager
def _naming(place: Address) -> Iterator[None]:
    """Raise errors of the library as our own, which name the address and quote no request.

    Raises:
        FileNotFoundError: the object is not there.
        AddressError: whatever else is wrong.
    """
    try:
        yield
    except FileNotFoundError as error:
        if _NO_BUCKET.search(str(error)):
            raise _no_bucket(place) from None
        raise FileNotFoundError(errno.ENOENT, "is not there", str(place)) from None
    except _obstore().exceptions.BaseError as error:
        raise _as_ours(place, str(error)) from None


def _as_ours(place: Address, text: str) -> AddressError:
    """The error for what the library reports."""
    cloud = CLOUDS[place.scheme]
    if _NO_CREDENTIALS.search(text):
        return AddressError(f"{place}: expected credentials in the environment, found none; set {cloud.advice}")
    if unusable := next((why for mark, why in _UNUSABLE.items() if mark in text), None):
        return AddressError(
            f"{place}: the credentials of the environment cannot be used: {unusable}; look at {cloud.advice}"
        )
    if _NO_BUCKET.search(text):
        return _no_bucket(place)
    status, code = _STATUS.search(text), _CODE.search(text)
    if status and status[1][:3] in ("401", "403"):
        why = f" ({code[1]})" if code else ""
        return AddressError(
            f"{place}: the credentials of the environment are refused: {status[1]}{why}; look at {cloud.advice}"
        )
    if status is None and "redirect" in text:
        return AddressError(f"{place}: the bucket is in another region; set AWS_REGION to it")
    fault = next((word for mark, word in _FAULTS.items() if mark in text), "no answer that can be used")
    why = f"the server answers {status[1]}{f' ({code[1]})' if code else ''}" if status else fault
    return AddressError(
        f"{place}: cannot be reached after retries ({why}); look at the address and the network, then type the same "
        f"command again"
    )


def _no_bucket(place: Address) -> AddressError:
    bucket = place.complete.partition("://")[2].partition("/")[0]
    return AddressError(f"{place}: there is no bucket {bucket}; check its name, its region and the endpoint")
