"""Stores and images in a data set of the Hugging Face Hub, ``hf://datasets/OWNER/NAME/FOLDER``, by huggingface_hub.

A token comes from the environment (``HF_TOKEN``), or from ``hf auth login``.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from typing import Any
from urllib.parse import quote

from labelstore.durable.at_once import at_once
from labelstore.durable.pieces import fetched
from labelstore.durable.storage import Mapped, Range
from labelstore.errors import AddressError, InputError
from labelstore.storage_table import Address

TIMEOUT_S = 30.0
RETRIES, FIRST_WAIT_S, LONGEST_WAIT_S = 5, 1.0, 8.0
NOT_SATISFIABLE = 416  # the range begins after the end
_PLACE = re.compile(r"hf://datasets/([^/@\s]+/[^/@\s]+)(?:@(refs/(?:convert|pr)/[^/\s]+|[^/\s]+))?(?:/(.*))?")
_TOTAL = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)")


@dataclass(frozen=True, slots=True)
class HubStorage:
    """A store in a data set of the hub.

    Args:
        root: ``hf://datasets/OWNER/NAME/FOLDER``; after the name ``@`` and a branch, tag or commit may follow.
        commit: what is read instead, whatever the branch or tag names later; None reads what it names now.

    Raises:
        InputError: huggingface_hub is not installed, or the address names no data set.
    """

    root: Address
    commit: str | None = None

    def __post_init__(self) -> None:
        if not _PLACE.fullmatch(self.root.complete) or {"?", "#", ":"} & {*self.root.complete.partition("://")[2]}:
            raise InputError(f"{self.root}: expected hf://datasets/OWNER/NAME/FOLDER; a token is taken from HF_TOKEN")
        _hub()

    def size(self, name: str) -> int:
        """As of :class:`ReadStorage`; AddressError when the hub cannot be read, and so for all methods."""
        return self._get(name, 0, 1)[1]

    def read(self, name: str, start: int, stop: int) -> bytes:
        """As of :class:`ReadStorage`, by one request."""
        data, _ = self._get(name, start, max(stop, start + 1))
        return data[: max(stop - start, 0)]

    def read_many(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        """As of :class:`ReadStorage`, by one request a range, many at a time."""
        return at_once(lambda each: self.read(name, *each), ranges)

    def map(self, name: str, size: int, digest: str | None = None) -> Mapped:  # noqa: ARG002  of the protocol
        """See :class:`ReadStorage`: a copy in memory, filled on demand."""
        return fetched(self, name, size)

    def list(self, folder: str) -> list[str]:
        """As of :class:`ReadStorage`."""
        repository, revision, inside = self._parts(folder)
        with _naming(self.root / folder):
            api = _hub().HfApi()
            found = api.list_repo_tree(repository, inside or None, repo_type="dataset", revision=revision)
            return [entry.path.rpartition("/")[2] for entry in found]

    def read_ahead(self, name: str) -> bool:  # noqa: ARG002  of the protocol
        """Nothing is prepared."""
        return False

    def pinned(self) -> HubStorage:
        """The same storage at the current commit of its branch or tag, whose files never change."""
        repository, revision, _ = self._parts("")
        with _naming(self.root):
            url = f"{_hub().HfApi().endpoint}/api/datasets/{repository}/revision/{quote(revision or 'main', safe='')}"
            answer = _requested(url, params={"expand": ["sha"]})
            _hub("utils").hf_raise_for_status(answer)
            return replace(self, commit=str(answer.json()["sha"]))

    def tags(self, most: int | None = None) -> dict[str, tuple[int, str]]:
        """Bytes and digest of every file below the root, by its path; the first ``most`` of them."""
        repository, revision, inside = self._parts("")
        before = f"{inside}/" if inside else ""
        try:
            with _naming(self.root):
                listed = (
                    _hub()
                    .HfApi()
                    .list_repo_tree(repository, inside or None, recursive=True, repo_type="dataset", revision=revision)
                )
                files = (entry for entry in listed if hasattr(entry, "blob_id"))  # the others are folders
                return {
                    file.path.removeprefix(before): (file.size, file.lfs.sha256 if file.lfs else file.blob_id)
                    for file in islice(files, most)
                }
        except FileNotFoundError:
            return {}

    def tagged(self, name: str, start: int, stop: int) -> tuple[bytes, None]:
        """The result of :meth:`read`, with None as tag, since the files of a commit do not change."""
        return self.read(name, start, stop), None

    def _parts(self, name: str) -> tuple[str, str | None, str]:
        """Data set, revision, and path in it of a file."""
        found = _PLACE.fullmatch(self.root.complete)
        assert found  # noqa: S101  checked by the constructor
        return found[1], self.commit or found[2], "/".join(part for part in (found[3] or "", name) if part)

    def _get(self, name: str, start: int, stop: int) -> tuple[bytes, int]:
        """Bytes ``start`` to ``stop`` of a file, fewer where it ends before, and how many it has."""
        repository, revision, inside = self._parts(name)
        place = self.root / name
        with _naming(place):
            url = _hub().hf_hub_url(repository, inside, repo_type="dataset", revision=revision)
            answer = _requested(url, {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"})
            if answer.status_code == NOT_SATISFIABLE:
                return b"", _total(answer.headers, place)
            _hub("utils").hf_raise_for_status(answer)
            there = _total(answer.headers, place)
            data = bytes(answer.content)
        if len(data) != min(stop, there) - start:
            raise AddressError(f"{place}: expected {min(stop, there) - start} bytes from {start} on, found {len(data)}")
        return data, there


def _requested(url: str, headers: Mapping[str, str] | None = None, **words: Any) -> Any:
    """The answer to a request, which is repeated while the hub is busy or cannot be reached."""
    return _hub("utils").http_backoff(
        "GET",
        url,
        headers={**_hub("utils").build_hf_headers(), **(headers or {})},
        timeout=TIMEOUT_S,
        max_retries=RETRIES,
        base_wait_time=FIRST_WAIT_S,
        max_wait_time=LONGEST_WAIT_S,
        **words,
    )


def _total(headers: Mapping[str, str], place: Address) -> int:
    """Bytes of the whole file, by the headers of an answer."""
    found = _TOTAL.fullmatch(headers.get("content-range", ""))
    if not found:
        raise AddressError(f"{place}: expected a range of bytes, found an answer without one")
    return int(found[1])


def _hub(module: str = "") -> Any:
    """The library, or a module of it.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(f"huggingface_hub.{module}" if module else "huggingface_hub")
    except ImportError:
        raise InputError(
            "hf:// is read by huggingface_hub, which is not installed: pip install 'giftwrap[hub]'"
        ) from None


@contextmanager
def _naming(place: Address) -> Iterator[None]:
    """Raise errors of the library as our own, which name the address and quote no request."""
    errors = _hub("errors")
    try:
        yield
    except (errors.EntryNotFoundError, FileNotFoundError):
        raise FileNotFoundError(errno.ENOENT, "is not there", str(place)) from None
    except errors.GatedRepoError:
        raise AddressError(f"{place}: the data set is gated; ask for access on its page, and set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise AddressError(f"{place}: the data set has no such branch, tag or commit") from None
    except errors.RepositoryNotFoundError:
        raise AddressError(
            f"{place}: there is no such data set, or it is private; check its name, or set HF_TOKEN"
        ) from None
    except errors.HFValidationError:
        raise InputError(f"{place}: expected hf://datasets/OWNER/NAME/FOLDER") from None
    except AddressError:
        raise
    except Exception as error:  # of the hub, of its client, of a status: they have no class in common
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = f"the server answers {status}" if status else "no connection, or no answer in time"
        raise AddressError(
            f"{place}: cannot be read after retries ({why}); look at the network, then type the same command again"
        ) from None
