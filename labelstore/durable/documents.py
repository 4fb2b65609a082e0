"""JSON files that prove themselves: canonical text that ends with the CRC-32C of all before it.

What is read is held against a schema, field by field: a document with a right CRC-32C may still be hostile.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from labelstore.durable import disk
from labelstore.durable.storage import ReadStorage, read_whole
from labelstore.errors import DamagedError
from labelstore.spec import Json

MAX_BYTES = 256 << 20
MAX_INTEGER = 2**53  # what every JSON reader keeps exactly


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
        value = json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise DamagedError.of(path, f"expected JSON, found {data[:40]!r} ({error})") from error
    if not isinstance(value, dict):
        raise DamagedError.of(path, f"expected a JSON object, found {type(value).__name__}")
    return value


def read(path: Path, xxh3: str | None = None) -> dict[str, Any]:
    """Read a stamped document.

    Args:
        path: its file.
        xxh3: XXH3-64 of the file, hex, where that is known from elsewhere.

    Raises:
        FileNotFoundError: when it is not there.
        DamagedError: when a byte of it is not the byte that was published.
    """
    return load(path, disk.read_file(path, MAX_BYTES), xxh3)


def load(path: Path, data: bytes, xxh3: str | None = None) -> dict[str, Any]:
    """A stamped document of the bytes of its file; arguments and DamagedError as of :func:`read`."""
    if xxh3 is not None and (found := xxhash.xxh3_64(data).hexdigest()) != xxh3:
        raise DamagedError.of(path, f"expected a file of digest {xxh3}, found {found}")
    value = parse(path, data)
    require_stamp(path, value)
    if compact(value) + b"\n" != data:
        raise DamagedError.of(path, "is not in canonical form")
    return value


class Fields:
    """A JSON object that is read field by field; every violation is a DamagedError that names the file and the field.

    Args:
        path: file that it was read from.
        value: what was parsed.
        place: dotted path of the object within the file.

    Raises:
        DamagedError: when it is not an object.
    """

    def __init__(self, path: Path, value: object, place: str = "") -> None:
        self._path, self._place = path, place
        if not isinstance(value, dict):
            raise DamagedError.of(path, f"{place or 'document'}: expected an object, found {_shorten(value)}")
        self._value: dict[str, Any] = value
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def names(self) -> list[str]:
        """The names of all fields."""
        return list(self._value)

    def any(self, name: str) -> Any:
        """A field of any type."""
        self._read.add(name)
        if name not in self._value:
            raise self.wrong(name, "a value", "nothing")
        return self._value[name]

    def integer(self, name: str, low: int = 0, high: int = MAX_INTEGER) -> int:
        """An integer from ``low`` to ``high``."""
        value = self.any(name)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"an integer from {low} to {high}", value)
        return value

    def number(self, name: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number from ``low`` to ``high``."""
        value = self.any(name)
        if type(value) not in (int, float) or not low <= value <= high or abs(value) > 1e300:
            raise self.wrong(name, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def numbers(self, name: str, count: int) -> list[float]:
        """A list of ``count`` finite numbers."""
        value = self._list(name, count)
        if any(type(item) not in (int, float) or abs(item) > 1e300 for item in value):
            raise self.wrong(name, "numbers", value)
        return list(map(float, value))

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.any(name)
        if type(value) is not bool:
            raise self.wrong(name, "true or false", value)
        return value

    def text(self, name: str, pattern: re.Pattern[str] | None = None) -> str:
        """A string that ``pattern`` matches whole."""
        value = self.any(name)
        if not isinstance(value, str) or (pattern and not pattern.fullmatch(value)):
            raise self.wrong(name, f"a string like {pattern.pattern}" if pattern else "a string", value)
        return value

    def integers(self, name: str, low: int = 0, high: int = MAX_INTEGER, count: int | None = None) -> list[int]:
        """A list of integers from ``low`` to ``high``, ``count`` of them where that is given."""
        value = self._list(name, count)
        if any(type(item) is not int or not low <= item <= high for item in value):
            raise self.wrong(name, f"integers from {low} to {high}", value)
        return value

    def texts(self, name: str, pattern: re.Pattern[str] | None = None, count: int | None = None) -> list[str]:
        """A list of strings that ``pattern`` matches whole, ``count`` of them where that is given."""
        value = self._list(name, count)
        if any(not isinstance(item, str) or (pattern and not pattern.fullmatch(item)) for item in value):
            raise self.wrong(name, f"strings like {pattern.pattern}" if pattern else "strings", value)
        return value

    def objects(self, name: str, count: int | None = None) -> list[Fields]:
        """A list of objects, ``count`` of them where that is given."""
        value = self._list(name, count)
        return [Fields(self._path, item, f"{self._at(name)}[{place}]") for place, item in enumerate(value)]

    def fields(self, name: str) -> Fields:
        """An object."""
        return Fields(self._path, self.any(name), self._at(name))

    def plain(self, name: str) -> dict[str, Json]:
        """An object whose fields may be anything."""
        value = self.any(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object", value)
        return value

    def end(self) -> None:
        """Refuse fields that were not read."""
        for name in self._value:
            if name not in self._read:
                raise self.wrong(name, "no such field", self._value[name])

    def wrong(self, name: str, expected: str, found: object) -> DamagedError:
        """The error about a field."""
        shown = found if found == "nothing" else _shorten(found)
        return DamagedError.of(self._path, f"{self._at(name)}: expected {expected}, found {shown}")

    def _at(self, name: str) -> str:
        return f"{self._place}.{name}" if self._place else name

    def _list(self, name: str, count: int | None) -> list[Any]:
        value = self.any(name)
        if not isinstance(value, list) or (count is not None and len(value) != count):
            raise self.wrong(name, "a list" if count is None else f"a list of {count}", value)
        return value


def load_fields(path: Path, data: bytes, xxh3: str | None = None) -> Fields:
    """The fields of a stamped document, without its stamp; arguments and errors as of :func:`load`."""
    value = load(path, data, xxh3)
    del value["crc32c"]
    return Fields(path, value)


def read_fields(storage: ReadStorage, name: str, xxh3: str | None = None) -> Fields:
    """The fields of a stamped document of a store; errors as of :func:`read`."""
    return load_fields(storage.root / name, read_whole(storage, name, MAX_BYTES), xxh3)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value
