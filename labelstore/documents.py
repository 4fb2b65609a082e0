"""JSON files that prove themselves: canonical text that ends with the CRC-32C of all before it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labelstore import disk
from labelstore.errors import DamagedError
from labelstore.spec import Json

MAX_BYTES = 256 << 20


def compact(value: Mapping[str, Any]) -> bytes:
    """The canonical text: keys in the given order, no spaces, ASCII."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def stamp(value: Mapping[str, Json]) -> dict[str, Json]:
    """``value`` with a last key ``crc32c``: the CRC-32C of the canonical text of the keys before it."""
    plain = {key: item for key, item in value.items() if key != "crc32c"}
    return {**plain, "crc32c": disk.crc32c(compact(plain))}


def encode(value: Mapping[str, Json]) -> bytes:
    """The bytes of a stamped document."""
    return compact(stamp(value)) + b"\n"


def require_stamp(path: Path, value: Mapping[str, Any]) -> None:
    """Raise DamagedError unless ``value`` carries the stamp that belongs to it."""
    if value.get("crc32c") != stamp(value)["crc32c"]:
        raise DamagedError.of(path, "was changed or damaged: the CRC-32C of its content is not the one written in it")


def parse(path: Path, data: bytes) -> dict[str, Any]:
    """A JSON object; raises DamagedError when it is not one."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError.of(path, f"expected JSON, found {data[:40]!r} ({error})") from error
    if not isinstance(value, dict):
        raise DamagedError.of(path, f"expected a JSON object, found {type(value).__name__}")
    return value


def read(path: Path) -> dict[str, Any]:
    """Read a stamped document.

    Raises:
        FileNotFoundError: when it is not there.
        DamagedError: when a byte of it is not the byte that was published.
    """
    data = disk.read_file(path, MAX_BYTES)
    value = parse(path, data)
    require_stamp(path, value)
    if compact(value) + b"\n" != data:
        raise DamagedError.of(path, "is not in canonical form")
    return value
