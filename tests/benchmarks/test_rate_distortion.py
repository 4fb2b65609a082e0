"""The rate-distortion claim: what is measured, against small oracles."""

from __future__ import annotations

import math
from collections import Counter
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks.drawn import Drawn
from benchmarks.harness import Report
from benchmarks.rivals import (
    CENTROIDS,
    ProductQuantiser,
    agreement,
    divergence,
    entropy,
    int4,
    k_means,
    nearest,
    top_k_logits,
    top_k_probabilities,
)
from benchmarks.studies import rate_distortion as claim
from benchmarks.studies import rate_labels
from labelstore import LabelStore
from labelstore.encodings import make_encoding
from labelstore.errors import InputError
from labelstore.operations.convert import convert

LOGITS = np.random.default_rng(0).normal(0, 3, (50, 101)).astype(np.float32)


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row.astype(np.float64) - row.max())
    return powers / powers.sum()


@settings(deadline=None, max_examples=15)
@given(hnp.arrays(np.int16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(-3, 3)))
def test_the_entropy_is_that_of_the_counts(codes: np.ndarray) -> None:
    bits = 0.0
    for column in codes.T.tolist():
        bits -= sum(n / len(column) * math.log2(n / len(column)) for n in Counter(column).values())
    assert entropy(codes) == pytest.approx(bits / 8, abs=1e-12)


@pytest.mark.parametrize("temperature", [1, 20])
def test_the_divergence_is_that_of_the_softmax(temperature: float) -> None:
    other = LOGITS[::-1]
    rows = []
    for ours, theirs in zip(LOGITS.astype(np.float64), other.astype(np.float64), strict=True):
        p, q = softmax(ours / temperature), softmax(theirs / temperature)
        rows.append((p * np.log(p / q)).sum())
    assert divergence(LOGITS, other, temperature) == pytest.approx(np.mean(rows), rel=1e-9)
    assert divergence(LOGITS, LOGITS + 5, temperature) < 1e-9


def test_agreement_is_of_the_largest_columns() -> None:
    assert agreement(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[0, 1, 3, 2]]) == 0.5


def test_int4_keeps_the_largest_and_rounds_the_rest_to_a_seventh_of_it() -> None:
    rows = np.concatenate([LOGITS, np.zeros((1, 101), np.float32)])
    stored = int4(rows)
    step = np.abs(rows).max(axis=1, keepdims=True) / 7
    assert stored.bytes == 51 + 4
    assert np.all(np.abs(stored.logits - rows) <= step * 0.5001)
    assert len(np.unique(np.rint(stored.logits[0] / step[0]))) <= 15
    assert np.abs(stored.logits).max(axis=1) == pytest.approx(np.abs(rows).max(axis=1), rel=1e-6)


@pytest.mark.parametrize("k", [1, 7, 100])
def test_the_k_largest_are_kept_in_half_precision(k: int) -> None:
    logits, probabilities = top_k_logits(LOGITS, k), top_k_probabilities(LOGITS, k)
    assert logits.bytes == probabilities.bytes == 4 * k
    for row, kept, shared in zip(LOGITS, logits.logits, probabilities.logits, strict=True):
        order = np.argsort(-row)
        assert np.array_equal(kept[order[:k]], row[order[:k]].astype(np.float16))
        assert not kept[order[k:]].any()
        exact, found = softmax(row), softmax(shared)
        assert found[order[:k]] == pytest.approx(exact[order[:k]], rel=2e-3, abs=2e-7)
        assert np.ptp(shared[order[k:]]) < 1e-6
        assert found[order[k:]].sum() == pytest.approx(exact[order[k:]].sum(), abs=2e-3)


def test_a_certain_teacher_has_finite_labels_too() -> None:
    row = np.full((1, 20), -60, np.float32)
    row[0, 3] = 60
    decoded = top_k_probabilities(row, 5).logits
    assert np.isfinite(decoded).all()
    assert decoded.argmax() == 3


def test_the_nearest_centroid_is_the_nearest() -> None:
    centroids = LOGITS[:9]
    distances = np.square(LOGITS[:, None].astype(np.float64) - centroids).sum(axis=2)
    assert np.array_equal(nearest(LOGITS, centroids), distances.argmin(axis=1))


def test_k_means_finds_what_lies_apart() -> None:
    apart = np.array([[0, 0], [100, 0], [0, 100]], np.float32)
    places = np.random.default_rng(1).integers(0, 3, 600)
    rows = apart[places] + np.random.default_rng(2).normal(0, 1, (600, 2)).astype(np.float32)
    found = k_means(rows, 40)  # more than there are: each lies in one of the three
    assert np.all(np.linalg.norm(found[:, None] - apart, axis=2).min(axis=1) < 5)
    assert np.isfinite(k_means(np.zeros((5, 2), np.float32), 4)).all()


def test_a_product_quantiser_is_exact_where_centroids_suffice() -> None:
    few = LOGITS[np.random.default_rng(3).permutation(500) % 40]  # 40 different rows
    stored = ProductQuantiser(few[: CENTROIDS * 2], 7).stored(few)
    assert stored.bytes == 7
    np.testing.assert_allclose(stored.logits, few, rtol=1e-5, atol=1e-5)
    finer, coarser = (ProductQuantiser(LOGITS[:20], parts).stored(LOGITS[20:]).logits for parts in (20, 2))
    assert np.square(finer - LOGITS[20:]).sum() < np.square(coarser - LOGITS[20:]).sum()
    with pytest.raises(ValueError, match="expected 1 to 101 parts, found 102"):
        ProductQuantiser(LOGITS, 102)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelStore, LabelStore]:
    """A store of drawn CutMix crops, one block a view, and what it converts to."""
    folder = tmp_path_factory.mktemp("drawn")
    source = Drawn(4_096, 64, 4, group=100, spread=0.8).store(folder / "float16", {"name": "float16"})
    return source, convert(source, folder / "transform", {"name": "transform", "fidelity": 0.9})


def test_all_that_is_neither_label_nor_column_is_side(
    stores: tuple[LabelStore, LabelStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = stores
    monkeypatch.setattr(claim, "LARGE_IMAGES", 4_096)
    monkeypatch.setattr(claim, "LARGE_VIEWS", 4)

    def size(*patterns: str) -> int:
        return sum(path.stat().st_size for pattern in patterns for path in store.path.glob(pattern) if path.is_file())

    labels, columns = size("labels/c.*", "scales/c.*"), size("rows/c.*")
    assert claim.side_share(store) == pytest.approx((size("**/*") - labels - columns) / labels, rel=1e-9)


def test_bytes_in_memory_are_those_on_disk(
    stores: tuple[LabelStore, LabelStore], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, store = stores
    monkeypatch.setattr(rate_labels, "MEAN_CROPS", 1)
    monkeypatch.setattr(rate_labels, "LEARN_VIEWS", 2)
    case = rate_labels.case_of(source, source, mixed=True)
    assert len(case.rows.logits) == 4_096
    assert (case.rows.pairs.weights < 1).any()
    one_block = sum((store.path / name).stat().st_size for name in ("labels/c.0.0.0", "scales/c.0.0"))
    ready = make_encoding(store.encoding.to_json(), 64)
    assert claim.shard_bytes(case, ready, store.codes(0, slice(None))) == pytest.approx(one_block / 4_096)
    board = claim.Board(Report("rate-distortion", tmp_path))
    found = claim.measure_store(board, case, store, claim.Promise(True, 0.9, 64))
    assert found["fidelity"] == pytest.approx(board.points[0].figures["fidelity"], abs=0.002)
    codes = store.codes(0, slice(None))
    bound = entropy(codes["labels"]) + entropy(codes["scales"][:, None])
    assert found["entropy"] == pytest.approx(bound, abs=0.01)
    shards = sum(path.stat().st_size for name in ("labels", "scales") for path in (store.path / name).glob("c.*"))
    assert found["bytes"] == pytest.approx(shards / (4 * 4_096), abs=0.01)


def test_means_are_those_of_the_views_after_the_measured_ones(
    stores: tuple[LabelStore, LabelStore], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rate_labels, "MEAN_CROPS", 2)
    monkeypatch.setattr(rate_labels, "LEARN_VIEWS", 1)
    source = Drawn(4_096, 64, 4, spread=0.8).store(tmp_path / "float16", {"name": "float16"})
    case = rate_labels.case_of(source, source, mixed=False)
    both = [source.read_images(view, [17]).logits[0] for view in (1, 2)]
    np.testing.assert_allclose(case.means[17], np.mean(both, axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(case.search.logits[-1], source.read(3, [4_095]).logits[0])


def test_a_small_set_is_measured_on_as_many_rows_whatever_its_blocks_hold(tmp_path: Path) -> None:
    maker = rate_labels.Synthetic(tmp_path, quick=True)
    source = maker.source(mixed=False)
    assert source.identity.block.views * 256 < 4_096
    case = rate_labels.case_of(source, source, mixed=False)
    assert len(case.rows.logits) == 4_096
    assert not set(map(bytes, case.rows.logits)) & set(map(bytes, [*case.fitted.logits, *case.search.logits]))
    raw = make_encoding({"name": "float16", "codec": "raw"}, 64)
    size = claim.shard_bytes(case, raw, raw.encode(case.rows.logits, case.rows.pairs))
    assert 128 < size < 128.1  # with the table of chunks


def test_a_promise_is_of_bytes_and_of_fidelity() -> None:
    promise = claim.Promise(False, 0.95, 56)
    assert claim.kept(promise, {"bytes": 56.0, "fidelity": 0.9495})
    assert not claim.kept(promise, {"bytes": 56.1, "fidelity": 0.96})
    assert not claim.kept(promise, {"bytes": 10.0, "fidelity": 0.94})


def test_real_stores_are_built_by_the_command_beside_the_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"expected .*imagenet-samples.* unset it"):
        rate_labels.Real(tmp_path, tmp_path / "out")
    (tmp_path / "imagenet-samples").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "imagenet-mobilenetv2_100.fp16.safetensors").touch()
    said: list[list[str]] = []

    def build(*words: object) -> dict[str, Any]:
        print("$ python -m pipeline build")
        said.append([str(word) for word in words])
        views = int(said[-1][said[-1].index("--views") + 1])
        Drawn(64, 64, views, group=32).create(Path(said[-1][-1]), {"name": "float16"})
        return {}

    monkeypatch.setattr(rate_labels, "command", build)
    real = rate_labels.Real(tmp_path, tmp_path / "out")
    source = real.source(mixed=True)
    assert real.transform(source, 0.95).path == tmp_path / "out" / "CutMix-0.95"
    first, second = (" ".join(words) for words in said)
    assert "--mix cutmix --views 20 --encoding float16" in first
    block = source.identity.block.views
    assert (block, 64 % block) == (10, 4)  # 64 views of 64 images are measured, in whole blocks
    assert "--mix cutmix --views 70 --encoding transform --fidelity 0.95" in second
    assert not capsys.readouterr().out  # which is the summary's


def test_without_matplotlib_figures_come_and_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(util, "find_spec", lambda _name: None)
    for part in ("measure_encodings", "measure_rivals"):
        monkeypatch.setattr(claim, part, lambda *_: None)
    values = claim.run(Report("rate-distortion", tmp_path), quick=True)
    assert values["picture"] == "matplotlib is missing: pip install 'giftwrap[plot]'"
    assert "no picture will be drawn: matplotlib is missing" in capsys.readouterr().err
    assert "kept" not in values  # drawn labels promise nothing
    assert [store["mixed"] for store in values["transform"]] == [False, True]
