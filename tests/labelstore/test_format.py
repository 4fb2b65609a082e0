"""Formats, as documented and as they were first written."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from labelstore import BlockIndex, LabelStore, check
from labelstore.format.arrays import StoreLayout
from labelstore.format.columns import CROP_COLUMNS, CUTMIX_COLUMNS, MIXUP_COLUMNS
from labelstore.operations.export import export
from labelstore.spec import Json
from tests.labelstore.making import GOLDEN, Content, build, calibration, create, make_identity

FORMAT = (Path(__file__).resolve().parents[2] / "docs" / "FORMAT.md").read_text()


def run_snippets(count: int) -> dict:
    """What the first snippets of the document leave behind."""
    found: dict = {}
    for snippet in re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL)[:count]:
        assert len([line for line in snippet.splitlines() if line.strip()]) <= 20
        exec(snippet, found)  # noqa: S102  our own document
    return found


@pytest.mark.parametrize(("encoding", "group"), [("int8", 1), ("float16", 2)])
def test_a_stranger_reads_labels_and_rows_in_twenty_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, group: int
) -> None:
    content = Content(make_identity(10, 3, encoding=encoding, group=group, block=(2, 4)), 2)
    store = build(tmp_path / "STORE", content, 2)
    monkeypatch.chdir(tmp_path)
    found = run_snippets(1)
    batch = store.read(0, slice(0, 256))
    assert np.array_equal(found["logits"], batch.logits)
    assert np.array_equal(found["image"], content.order[0])
    assert np.array_equal(found["target"], batch.targets)
    assert np.array_equal(found["boxes"], batch.rows.boxes())
    assert np.array_equal(found["flipped"], batch.rows.flip)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
@pytest.mark.parametrize("options", [{"codec": "pcodec"}, {"codec": "zstd"}, {"mean_steps": 8}, {"keep_top1": True}])
@pytest.mark.parametrize("columns", [CROP_COLUMNS, CROP_COLUMNS + CUTMIX_COLUMNS, CROP_COLUMNS + MIXUP_COLUMNS])
def test_a_stranger_decodes_a_transform_in_twenty_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Json], columns: tuple[str, ...]
) -> None:
    encoding = {"name": "transform", "step": 0.3, **options}
    group = 1 if columns == CROP_COLUMNS else 5
    identity = make_identity(22, 70, encoding=encoding, group=group, block=(2, 10), size=8, crop_columns=columns)
    content = Content(identity, 2)
    if "share" in columns:
        content.rows[:, columns.index("share")] *= 8000
    store = create(tmp_path / "STORE", content, 2)
    plain = calibration(content)
    means = np.rint(3 * np.random.default_rng(0).standard_normal(plain.means.shape)).astype(np.int16)
    with store.lease() as writer:
        writer.calibrate(replace(plain, means=means))
    store = build(tmp_path / "STORE", content, 2)
    monkeypatch.chdir(tmp_path)
    found = run_snippets(2)
    batch = store.read(0, slice(0, 256))
    assert np.abs(content.logits[0] - found["logits"]).max() < 1
    assert np.allclose(found["logits"], batch.logits, rtol=1e-5, atol=1e-5)
    assert (group == 1) == (len(np.unique(store.pairs(0, slice(None)).weights)) == 1)


@pytest.mark.parametrize(("encoding", "group"), [("int8", 1), ("float16", 2)])
def test_numpy_and_numcodecs_read_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, group: int
) -> None:
    content = Content(make_identity(10, 300, encoding=encoding, group=group, block=(2, 4)), 4)
    store = build(tmp_path / "STORE", content, 4)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    snippet = re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL)[2]
    exec(snippet, found)  # noqa: S102  our own document
    for block in store.sealed_blocks():
        (first, stop), (start, end) = store.block_views(block), store.positions(block)
        codes = found["shard"]("labels", block.i, block.j, 0)
        rows = found["shard"]("rows", block.i, 0, block.j)
        for view in range(first, stop):
            wanted = store.codes(view, slice(start, end))
            assert np.array_equal(codes[view - first, : end - start], wanted["labels"])
            assert np.array_equal(rows[view - first, :, : end - start], content.rows[view, :, start:end])
            if encoding == "int8":
                scales = found["shard"]("scales", block.i, block.j, 0)[view - first, : end - start]
                assert np.array_equal(scales, wanted["scales"])


def test_a_row_lies_where_the_document_says(tmp_path: Path) -> None:
    content = Content(make_identity(300, 9000, encoding="int8", block=(2, 200)), 2)
    store = build(tmp_path / "s", content, 2)
    u, r, C = StoreLayout.of(content.identity).codes[0].chunk
    assert (u, r) == (1, 50)
    data = (tmp_path / "s/labels/c.0.1.0").read_bytes()
    for v, p in ((0, 0), (0, 99), (1, 50)):
        start = ((v // u) * -(-100 // r) + p // r) * (u * r * C + 4) + (v % u * r + p % r) * C
        codes = np.frombuffer(data[start : start + C], np.int8)
        assert np.array_equal(codes, store.codes(v, [200 + p])["labels"][0])


def test_stamps_are_what_the_document_says(tmp_path: Path) -> None:
    build(tmp_path / "s", Content(make_identity(), 2), 2)
    root = json.loads((tmp_path / "s/zarr.json").read_bytes())["attributes"]
    assert list(root) == ["giftwrap_format", "identity", "files", "notes", "state", "crc32c"]
    for name in ("markers/0.1.json", "seals/2.json", "zarr.json"):
        text = (tmp_path / "s" / name).read_bytes()
        value = root if name == "zarr.json" else json.loads(text)
        stamp = value.pop("crc32c")
        assert stamp == google_crc32c.value(json.dumps(value, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    "path", sorted(GOLDEN.glob("format-*/*.zip")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_the_first_stores_of_each_format_are_still_read(tmp_path: Path, path: Path) -> None:
    """Written once, by `python -m tests.labelstore.golden`; every later version must read them to the same numbers."""
    name = path.stem
    zipfile.ZipFile(path).extractall(tmp_path)
    expected = np.load(path.with_suffix(".npz"))
    store = LabelStore.open(tmp_path / name)
    assert f"format-{store.identity.format}" == path.parent.name
    assert check(store.path).ok
    assert (store.state.views_target, store.state.views_sealed) == (6, 6)
    for view in range(6):
        batch = store.read(view, slice(None))
        # a matrix product rounds as its library likes
        tolerance = 1e-5 if name.startswith("transform") else 0
        np.testing.assert_allclose(batch.logits, expected["logits"][view], rtol=0, atol=tolerance)
        assert np.array_equal(batch.rows.values, expected["rows"][view])
        assert np.array_equal(batch.targets, expected["targets"][batch.rows.image])
    assert np.array_equal(store.image_digests, expected["digests"])
    assert np.array_equal(store.audit().crops, expected["crops"])
    assert store.pixels_digest(BlockIndex(2, 1)) == str(expected["pixels"])
    export(store, tmp_path / "labels.npy", order="stored")
    np.testing.assert_allclose(np.load(tmp_path / "labels.npy"), expected["logits"], rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
@pytest.mark.parametrize("name", ["transform-mixed", "transform-top1"])
def test_a_stranger_reads_the_first_transforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    golden = GOLDEN / "format-2" / name
    zipfile.ZipFile(golden.with_suffix(".zip")).extractall(tmp_path)
    (tmp_path / name).rename(tmp_path / "STORE")
    monkeypatch.chdir(tmp_path)
    expected = np.load(golden.with_suffix(".npz"))["logits"][0]
    np.testing.assert_allclose(run_snippets(2)["logits"], expected, rtol=0, atol=1e-5)
