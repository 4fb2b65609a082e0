from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from labelstore.encodings import ENCODINGS, Pairs, make_encoding
from labelstore.encodings.int8 import ROWS_AT_ONCE
from labelstore.errors import InputError


def unmixed(rows: np.ndarray) -> Pairs:
    """Pairs that no encoding of single rows looks at."""
    return Pairs.unmixed(np.zeros(rows.shape[:-1], np.int64))


def logits(limit: float) -> st.SearchStrategy[np.ndarray]:
    largest = float(np.nextafter(np.float32(limit), np.float32(0)))
    values = st.floats(-largest, largest, width=32)
    return hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=values)


def test_the_table_and_the_names_agree() -> None:
    for name in ENCODINGS:
        encoding = make_encoding({"name": name}, 64)
        named = encoding.to_json()
        assert named.pop("fidelity", 0.98) == 0.98
        assert named == {"name": name}
        assert encoding.arrays[0].name == "labels"
        assert encoding.arrays[0].width
    with pytest.raises(InputError, match=r"expected one of int8, float16, transform, found 'zip'"):
        make_encoding({"name": "zip"}, 5)


@pytest.mark.parametrize("name", ["int8", "float16"])
def test_codes_have_the_declared_shapes_and_are_never_the_fill(name: str) -> None:
    encoding = make_encoding({"name": name}, 7)
    x = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)
    codes = encoding.encode(x, unmixed(x))
    assert list(codes) == [array.name for array in encoding.arrays]
    for array in encoding.arrays:
        assert codes[array.name].dtype == array.dtype
        assert codes[array.name].shape == (x.shape if array.width else x.shape[:-1])
        if array.fill == "NaN":
            assert np.isfinite(codes[array.name]).all()
        else:
            assert not np.any(codes[array.name] == array.fill)
    assert encoding.decode(codes, unmixed(codes["labels"])).dtype == np.float32


@given(logits(make_encoding({"name": "float16"}, 4).limit))
def test_float16_rounds_to_nearest(x: np.ndarray) -> None:
    encoding = make_encoding({"name": "float16"}, 4)
    assert np.array_equal(
        encoding.decode(encoding.encode(x, unmixed(x)), unmixed(x)), x.astype(np.float16).astype(np.float32)
    )


@given(logits(make_encoding({"name": "int8"}, 4).limit))
def test_int8_is_within_half_a_step_and_finite(x: np.ndarray) -> None:
    encoding = make_encoding({"name": "int8"}, 4)
    codes = encoding.encode(x, unmixed(x))
    decoded = encoding.decode(codes, unmixed(codes["labels"]))
    top = np.abs(x).max(axis=-1, keepdims=True).astype(np.float64)
    # One part in 2**20 for the roundings in float32; below the normal numbers a step is itself rounded.
    tolerance = top / 127 * 0.5 * (1 + 2**-15) + 127 * float(np.finfo(np.float32).smallest_subnormal)
    assert np.all(np.abs(decoded.astype(np.float64) - x) <= tolerance)
    assert np.array_equal(codes["scales"], (np.abs(x).max(axis=-1) / np.float32(127)).astype(np.float32))
    assert codes["labels"].min() >= -127


def test_int8_by_hand() -> None:
    x = np.array([[-127, 63.4, 63.6, 0], [0, 0, 0, 0], [2.54, 0.01, -0.011, 1]], np.float32)
    codes = make_encoding({"name": "int8"}, 4).encode(x, unmixed(x))
    assert codes["labels"].tolist() == [[-127, 63, 64, 0], [0, 0, 0, 0], [127, 0, -1, 50]]
    assert codes["scales"].tolist() == [1, 0, np.float32(2.54) / np.float32(127)]


def test_int8_does_not_depend_on_how_many_rows_come_at_once() -> None:
    x = np.random.default_rng(1).standard_normal((2 * ROWS_AT_ONCE + 3, 5)).astype(np.float32)
    encoding = make_encoding({"name": "int8"}, 4)
    whole = encoding.encode(x, unmixed(x))
    for row in (0, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 2):
        assert np.array_equal(encoding.encode(x[row : row + 1], unmixed(x[:1]))["labels"][0], whole["labels"][row])
