"""Check from its markers whether the scans of a JPEG file are complete and in order.

libjpeg accepts nearly anything: it warns on standard error and fills in what is missing. What it shows then can
depend on how the file is read, and of a progressive image without its last scans it smooths the blocks, whose pixels
then depend on the region that is decoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from pipeline.images.file_formats import (
    JPEG_END,
    JPEG_FRAMES,
    JPEG_METADATA,
    JPEG_QUANTISERS,
    JPEG_RESTARTS,
    JPEG_SCAN,
    JPEG_TABLES,
)

_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_BETWEEN = JPEG_METADATA | {JPEG_TABLES, JPEG_QUANTISERS, JPEG_RESTARTS}
_SAMPLINGS = tuple((luma, 0x11, 0x11) for luma in (0x11, 0x12, 0x21, 0x22, 0x41))  # 4:4:4, 4:4:0, 4:2:2, 4:2:0, 4:1:1


class Scans(Enum):
    """The result of a walk along the markers."""

    WHOLE = "whole"
    OTHER = "of a kind that is left to Pillow"
    DAMAGED = "damaged"


class _FoundError(Exception):
    """The walk has its result."""

    def __init__(self, found: Scans) -> None:
        super().__init__(found)
        self.found = found


@dataclass
class _Walk:
    """The state of a walk.

    Attributes:
        data: the file.
        markers: places of 0xFF that no zero follows, int64 ``[M]``, in order.
        components: (identifier, horizontal, vertical sampling factor) of each component.
        bits: lowest bit that has been read of each coefficient of each component, -1 for none, int8 ``[C, 64]``.
        interval: MCUs between two restart markers; 0 for no such markers.
    """

    data: bytes
    markers: npt.NDArray[np.int64]
    progressive: bool = False
    height: int = 0
    width: int = 0
    components: list[tuple[int, int, int]] = field(default_factory=list)
    bits: npt.NDArray[np.int8] = field(default_factory=lambda: np.full((0, 64), -1, np.int8))
    interval: int = 0


def scans_of(data: bytes) -> Scans:
    """Walk along the markers of a JPEG file up to its end.

    Args:
        data: the file, whose header has been read without error.

    Returns:
        ``WHOLE``: one ordinary frame of one or three components, every bit of every coefficient in exactly one scan,
        restart markers where they belong, nothing between segments. ``OTHER``: another coding or number of components,
        other sampling factors, or a progressive image without its last scans. ``DAMAGED``: anything else.
    """
    values = np.frombuffer(data, np.uint8)
    markers = np.flatnonzero((values[:-1] == 0xFF) & (values[1:] != 0))
    walk = _Walk(data, markers)
    try:
        return _walk(walk)
    except _FoundError as error:
        return error.found
    except IndexError:  # the file ends within a segment
        return Scans.DAMAGED


def _walk(walk: _Walk) -> Scans:
    """Segment by segment; the result, returned or raised."""
    data, position = walk.data, 2
    while (marker := _marker(data, position)) != JPEG_END:
        start, position = position + 4, position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if position < start or position > len(data):
            raise _FoundError(Scans.DAMAGED)
        if marker in JPEG_FRAMES:
            _frame(walk, marker, data[start:position])
        elif marker == JPEG_SCAN:
            mcus = _scan(walk, data[start:position])
            position = _entropy_coded(walk, position, mcus)
        elif marker == JPEG_RESTARTS:
            walk.interval = int.from_bytes(data[start : start + 2])
        elif marker not in _BETWEEN:
            raise _FoundError(Scans.OTHER if marker == 0xCC else Scans.DAMAGED)
    if not walk.components or (walk.bits[:, 0] < 0).any():
        return Scans.DAMAGED
    return Scans.OTHER if walk.bits.any() else Scans.WHOLE


def _marker(data: bytes, position: int) -> int:
    """The marker at a place where one must be."""
    if data[position] != 0xFF:
        raise _FoundError(Scans.DAMAGED)
    if data[position + 1] == 0xFF:  # a fill byte, which is legal and rare
        raise _FoundError(Scans.OTHER)
    return data[position + 1]


def _frame(walk: _Walk, marker: int, body: bytes) -> None:
    """Note the frame's size and components."""
    if walk.components or len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise _FoundError(Scans.DAMAGED)
    if marker not in _SEQUENTIAL and marker != _PROGRESSIVE:
        raise _FoundError(Scans.OTHER)
    factors = tuple(body[7::3])
    if factors[1:] and factors not in _SAMPLINGS:
        raise _FoundError(Scans.OTHER)
    walk.progressive = marker == _PROGRESSIVE
    walk.height, walk.width = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
    walk.components = [(name, factor >> 4, factor & 15) for name, factor in zip(body[6::3], factors, strict=True)]
    if len(factors) == 1:
        walk.components = [(body[6], 1, 1)]  # blocks of a single component come in rows, whatever its sampling factors
    walk.bits = np.full((len(factors), 64), -1, np.int8)


def _scan(walk: _Walk, body: bytes) -> int:
    """Note what a scan brings; its number of MCUs."""
    names = [name for name, _, _ in walk.components]
    count = body[0]
    chosen = [names.index(name) if name in names else -1 for name in body[1 : 1 + 2 * count : 2]]
    if len(body) != 4 + 2 * count or not chosen or -1 in chosen or len({*chosen}) < count:
        raise _FoundError(Scans.DAMAGED)
    first, last, high, low = body[-3], body[-2], body[-1] >> 4, body[-1] & 15
    if walk.progressive:
        in_order = first <= last < 64 and (last == 0 if first == 0 else count == 1) and low < 14
    else:
        in_order = (first, last, high, low) == (0, 63, 0, 0)
    before = walk.bits[chosen, first : last + 1]
    begun = (walk.bits[chosen, 0] >= 0).all() or first == 0
    expected = high if high else -1
    if not in_order or not begun or (before != expected).any() or (high and low != high - 1):
        raise _FoundError(Scans.DAMAGED)
    walk.bits[chosen, first : last + 1] = low
    return _mcus(walk, chosen)


def _mcus(walk: _Walk, chosen: list[int]) -> int:
    """The number of MCUs of a scan; for a single component, its number of blocks."""
    wide, tall = walk.width, walk.height
    across = max(h for _, h, _ in walk.components)
    down = max(v for _, _, v in walk.components)
    if len(chosen) > 1:
        return math.ceil(wide / (8 * across)) * math.ceil(tall / (8 * down))
    _, h, v = walk.components[chosen[0]]
    return math.ceil(math.ceil(wide * h / across) / 8) * math.ceil(math.ceil(tall * v / down) / 8)


def _entropy_coded(walk: _Walk, position: int, mcus: int) -> int:
    """Where the data of a scan end; its restart markers must be those that belong there."""
    at = int(np.searchsorted(walk.markers, position))
    expected = -(-mcus // walk.interval) - 1 if walk.interval else 0
    places = walk.markers[at : at + expected + 1]
    if len(places) <= expected:
        raise _FoundError(Scans.DAMAGED)
    found = np.frombuffer(walk.data, np.uint8)[places + 1]
    if (found[:-1] != 0xD0 + np.arange(expected) % 8).any() or 0xD0 <= found[-1] <= 0xD7:
        raise _FoundError(Scans.DAMAGED)
    return int(places[-1])
