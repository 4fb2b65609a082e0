"""Unpack changed bodies of inner chunks, as many as asked for: run as a program by its test.

What reads beyond its memory, or takes too much of it, ends the process; so this is a process of its own.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labelstore.encodings import Codec
from labelstore.format.codecs import compress, decompress

MEMORY = 1 << 30  # that the changed bodies may take, all that is not given back included
rng = np.random.default_rng(0)


def numbers(dtype: str, count: int, spread: float) -> np.ndarray:
    """Numbers that compress, or, with a large spread, do not."""
    return np.clip(np.rint(rng.normal(0, spread, count)), -30000, 30000).astype(dtype)


VALUES = {
    "few": numbers("<i2", 24, 3),
    "small": numbers("<i2", 4096, 3),
    "any": numbers("<i2", 3000, 1e4),
    "bytes": numbers("<i1", 1000, 5),
    "wide": numbers("<u4", 600, 0) + np.arange(600, dtype="<u4") // 7,
    "zeros": np.zeros(5000, "<i2"),
    "runs": numbers("<i2", (1 << 18) + 7, 0.5),  # PCodec writes them in two
}
CODECS: tuple[Codec, ...] = ("shuffle", "bitshuffle", "pcodec")
BODIES = [
    (codec, values, bytes(compress(codec, values)))
    for codec in CODECS
    for name, values in VALUES.items()
    if not (codec == "pcodec" and values.dtype.itemsize == 1) and not (codec != "pcodec" and name == "runs")
]
HOSTILE = [
    0,
    1,
    2,
    3,
    15,
    16,
    17,
    19,
    20,
    21,
    255,
    0x7FFF,
    0x10000,
    0x7FFFFFF0,
    0x7FFFFFFF,
    2**31,
    2**32 - 17,
    2**32 - 1,
]


@st.composite
def changes(draw: st.DrawFn, size: int) -> Callable[[bytes], bytes]:
    """A change to a body of ``size`` bytes: of bytes anywhere, of the fields at its beginning, of its end."""
    kind = draw(st.sampled_from(["bytes", "head", "number", "numbers", "cut", "longer", "drop"]))
    if kind in ("bytes", "head"):
        last = size - 1 if kind == "bytes" else min(size, 48) - 1
        edits = draw(st.lists(st.tuples(st.integers(0, last), st.integers(0, 255)), min_size=1, max_size=6))

        def edit(body: bytes) -> bytes:
            changed = bytearray(body)
            for at, value in edits:
                changed[at] = value
            return bytes(changed)

        return edit
    if kind in ("number", "numbers"):
        number = st.one_of(st.sampled_from([*HOSTILE, size, size - 1, size + 1, size - 20]), st.integers(0, 2**32 - 1))
        fields = {
            draw(st.sampled_from([4, 8, 12, 16, 20, 24])): draw(number) for _ in range(1 + 2 * (kind == "numbers"))
        }

        def put(body: bytes) -> bytes:
            changed = bytearray(body.ljust(28, b"\0"))
            for at, value in fields.items():
                changed[at : at + 4] = struct.pack("<I", value)
            return bytes(changed)

        return put
    at = draw(st.integers(0, size))
    more = draw(st.binary(max_size=40))
    return {
        "cut": lambda body: body[:at],
        "longer": lambda body: body[:at] + more + body[at:],
        "drop": lambda body: body[:at] + body[at + len(more) :],
    }[kind]


@given(st.data())
def unpacks_or_refuses(data: st.DataObject) -> None:
    """Whatever a body holds, what comes of it is an array of the shape that was asked for, or a ValueError."""
    codec, values, body = data.draw(st.sampled_from(BODIES))
    changed = data.draw(changes(len(body)))(body)
    try:
        found = decompress(codec, np.frombuffer(changed, np.uint8), values.dtype, values.shape)
    except ValueError:
        return
    assert found.shape == values.shape
    assert found.dtype.itemsize == values.dtype.itemsize
    if changed == body:
        assert np.array_equal(found, values)


if __name__ == "__main__":
    for codec, values, body in BODIES:
        assert np.array_equal(decompress(codec, np.frombuffer(body, np.uint8), values.dtype, values.shape), values)
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115, PTH123
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    unpack = settings(
        max_examples=int(sys.argv[1]),
        deadline=None,
        database=None,
        derandomize=len(sys.argv) < 3,
        suppress_health_check=list(HealthCheck),
    )(unpacks_or_refuses)
    unpack()
