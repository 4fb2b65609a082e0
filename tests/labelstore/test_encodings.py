from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from labelstore.encodings import ENCODINGS, Pairs, make_encoding
from labelstore.encodings.fidelity import quality
from labelstore.encodings.int8 import ROWS_AT_ONCE, Int8Format1, masked_value
from labelstore.errors import FormatError, InputError


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
    with pytest.raises(InputError, match=f"expected one of {', '.join(ENCODINGS)}, found 'no-such'"):
        make_encoding({"name": "no-such"}, 5)


@pytest.mark.parametrize("name", ["int8", "float16"])
def test_codes_have_the_declared_shapes_and_are_never_the_fill(name: str) -> None:
    encoding = make_encoding({"name": name}, 7)
    x = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)
    codes = encoding.encode(x, unmixed(x))
    assert list(codes) == [array.name for array in encoding.arrays]
    for array in encoding.arrays:
        assert codes[array.name].dtype == array.dtype
        assert codes[array.name].shape == ((*x.shape[:-1], array.width) if array.width else x.shape[:-1])
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


MASKED = -1e4
int8_rows = logits(make_encoding({"name": "int8"}, 4).limit)


def written_out(row: np.ndarray, masked: float | None) -> tuple[list[int], list[float]]:
    """Codes, step and offset of a row, one number at a time: the definition in float64, rounded where it says so."""
    kept = [float(value) for value in row if masked is None or value != np.float32(masked)]
    low, high = (min(kept), max(kept)) if kept else (0.0, 0.0)
    largest = max(abs(low), abs(high))
    step, offset = np.float32(largest) / np.float32(127), 0.0
    narrow = np.float32(max((high - low) / 254, largest / (2**23 - 256)))
    if largest > high - low and narrow >= 2.0**-126:
        step, offset = narrow, float(round((high + low) / 2 / float(narrow)))
    codes = []
    for value in row:
        quotient = float(np.float32(value) / step) if step > 0 and float(value) in kept else 0.0
        code = min(max(round(quotient) - int(offset), -127), 127)
        codes.append(code if masked is None or value != np.float32(masked) else -128)
    return codes, [float(step), offset]


@given(int8_rows, st.sampled_from([None, MASKED, 0.0]), st.sampled_from([0.0, -15.0, 3e4, 1e30]), st.booleans())
def test_int8_is_its_definition(x: np.ndarray, masked: float | None, offset: float, some_masked: bool) -> None:
    x = (x / (1 if offset == 0 else 1e30) + np.float32(offset)).astype(np.float32)
    if masked is not None and some_masked:
        x[..., ::2] = masked
    encoding = make_encoding({"name": "int8"} if masked is None else {"name": "int8", "masked": masked}, 4)
    codes = encoding.encode(x, unmixed(x))
    columns = x.shape[-1]
    with np.errstate(all="ignore"):
        found = [written_out(row, masked) for row in x.reshape(-1, columns)]
    assert codes["labels"].reshape(-1, columns).tolist() == [row for row, _ in found]
    assert codes["scales"].reshape(-1, 2).tolist() == [scales for _, scales in found]
    decoded = encoding.decode(codes, unmixed(codes["labels"]))
    for row, (numbers, (step, k)) in zip(decoded.reshape(-1, columns), found, strict=True):
        exact = [masked if code == -128 else np.float32(code + k) * np.float32(step) for code in numbers]
        assert row.tolist() == np.array(exact, np.float32).tolist()


@given(int8_rows, st.sampled_from([0.0, -15.0, 1e3]))
def test_int8_is_within_half_a_step_and_finite(x: np.ndarray, offset: float) -> None:
    x = (x / (1 if offset == 0 else 1e35) + np.float32(offset)).astype(np.float32)
    encoding = make_encoding({"name": "int8"}, 4)
    codes = encoding.encode(x, unmixed(x))
    decoded = encoding.decode(codes, unmixed(codes["labels"]))
    top = np.abs(x).max(axis=-1, keepdims=True).astype(np.float64)
    span = np.ptp(x.astype(np.float64), axis=-1, keepdims=True)
    # Roundings in float32, of steps, quotients and labels; below the normal numbers a step is itself rounded.
    tolerance = np.where(top > span, span / 2, top) / 254 * (1 + 2**-15) + top * 2**-22
    tolerance += 127 * float(np.finfo(np.float32).smallest_subnormal)
    coarse = (top / 254 < 2.0**-126) | (span / 254 < 2.0**-126)
    assert np.all(np.abs(decoded.astype(np.float64) - x) <= np.where(coarse, top / 254 + tolerance, tolerance))
    assert codes["labels"].min() >= -127
    assert np.abs(codes["scales"][..., 1]).max() < 2**23


def test_int8_by_hand() -> None:
    x = np.array([[-127, 63.4, 63.6, 0], [0, 0, 0, 0], [2.54, 0.01, -0.011, 1], [873, 1127, 1000, 999]], np.float32)
    codes = make_encoding({"name": "int8"}, 4).encode(x, unmixed(x))
    assert codes["labels"].tolist() == [[-127, 63, 64, 0], [0, 0, 0, 0], [127, 0, -1, 50], [-127, 127, 0, -1]]
    assert codes["scales"].tolist() == [[1, 0], [0, 0], [np.float32(2.54) / np.float32(127), 0], [1, 1000]]
    x = np.array([[-1e4, 5, 6, 7], [-1e4] * 4, [1, 2, 3, -126]], np.float32)
    encoding = make_encoding({"name": "int8", "masked": -1e4}, 4)
    codes = encoding.encode(x, unmixed(x))
    assert codes["labels"].tolist() == [[-128, -127, 0, 127], [-128] * 4, [1, 2, 3, -127]]
    assert encoding.decode(codes, unmixed(codes["labels"])).tolist()[1] == [-1e4] * 4
    never: dict[str, np.ndarray] = {
        "labels": np.full((1, 4), -128, np.int8),
        "scales": np.full((1, 2), np.nan, np.float32),
    }
    assert np.isnan(encoding.decode(never, unmixed(never["labels"]))).all()


@given(st.integers(0, 2**32), st.sampled_from([-1e6, -300.0, -15.0, 0.7, 40.0]))
def test_an_offset_leaves_int8_as_near_as_it_was(seed: int, offset: float) -> None:
    x = np.random.default_rng(seed).standard_normal((20, 50)).astype(np.float32)
    moved = (x + np.float32(offset)).astype(np.float32)
    for masked in (None, MASKED):
        encoding = make_encoding({"name": "int8"} if masked is None else {"name": "int8", "masked": masked}, 50)
        if masked is not None:
            moved[:, 30:] = masked
        decoded = encoding.decode(encoding.encode(moved, unmixed(moved)), unmixed(moved))
        bound = np.ptp(x, axis=1, keepdims=True) / 254 * 1.01 * (2 if abs(offset) < 1 else 1) + abs(offset) * 2**-22
        assert np.all(np.abs(decoded - moved) <= bound)
        found = quality(moved, decoded, np.zeros(20, int))
        assert found.kl_1.mean() < 1e-3 + offset**2 * 2**-40
        assert np.array_equal(decoded == MASKED, moved == MASKED)


def test_a_masked_value_is_what_labels_show() -> None:
    rng = np.random.default_rng(0)
    x = 4 * rng.standard_normal((100, 20)).astype(np.float32)
    assert masked_value(x) is None
    masked = x.copy()
    masked[:, 5:] = -1e4
    assert masked_value(masked) == -1e4
    for rows, found in ((25, -100.0), (24, None)):  # a quarter of the rows
        some = x.copy()
        some[:rows, 3] = -100
        assert masked_value(some) == found
    masked[7] = -1e4  # wholly
    masked[8, :5] = np.linspace(-9e3, 9e3, 5)  # another row of a wide range
    assert masked_value(masked) == -1e4
    assert masked_value(np.where(x < 0, 0, x)) is None  # zeros that the others come near to
    assert masked_value(np.full((9, 4), 3.0)) is None
    assert masked_value(x[:1]) is None
    assert masked_value(np.array([[-9.0, 1, 2]])) is None  # one logit
    assert masked_value(masked[:1]) == -1e4
    assert masked_value(x[:0]) is None
    for wrong in (float("nan"), float("-inf"), 1e39, "-1", True):
        with pytest.raises(InputError, match="masked value of int8: expected a number of at most"):
            make_encoding({"name": "int8", "masked": wrong}, 4)
    assert make_encoding({"name": "int8", "masked": -0.1}, 4).to_json()["masked"] == float(np.float32(-0.1))


def test_format_1_has_steps_alone() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 7)).astype(np.float32) - 20
    old, new = (make_encoding({"name": "int8", "codec": "zstd"}, 7, number) for number in (1, 2))
    assert isinstance(old, Int8Format1)
    codes = old.encode(x, unmixed(x))
    assert [(array.width, array.codec) for array in old.arrays] == [(7, "shuffle"), (None, "shuffle")]
    assert codes["scales"].shape == (2, 5)
    decoded = old.decode(codes, unmixed(x))
    assert np.array_equal(decoded, codes["labels"] * codes["scales"][..., None])
    assert np.array_equal(new.decode(old.current(codes), unmixed(x)), decoded)
    assert old.to_json() == new.to_json()
    with pytest.raises(FormatError, match="masked"):
        make_encoding({"name": "int8", "masked": 1.0}, 4, 1)


def test_int8_does_not_depend_on_how_many_rows_come_at_once() -> None:
    x = np.random.default_rng(1).standard_normal((2 * ROWS_AT_ONCE + 3, 5)).astype(np.float32)
    encoding = make_encoding({"name": "int8"}, 4)
    whole = encoding.encode(x, unmixed(x))
    for row in (0, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 2):
        assert np.array_equal(encoding.encode(x[row : row + 1], unmixed(x[:1]))["labels"][0], whole["labels"][row])
