"""Crops by DALI: a function of file and row, whatever the batch, the order, the history, the threads and the route."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from labelstore.errors import GiftwrapError, InputError
from labelstore.format.columns import CROP_COLUMNS, CropRows
from pipeline.images.manifest import Manifest, scan
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import augmenter_of, dali, dali_crops, dali_pipelines, make_renderer
from pipeline.render.audit import MAX_DIFFERENCE, MAX_MEAN_DIFFERENCE
from pipeline.render.batches import render_batches
from pipeline.render.cache import DamagedImageWarning
from pipeline.render.dali_crops import DaliRenderer
from pipeline.render.dali_errors import RefusedFileError
from pipeline.render.dali_pipelines import Running
from pipeline.render.dali_reading import FileReader

pytestmark = pytest.mark.skipif(dali.load() is None, reason="no DALI here")

SPECS = {
    "resized": PlanSpec(size=24),
    "bicubic": PlanSpec(size=24, interpolation="bicubic"),
    "center": PlanSpec(size=16, crop="center", resize=20),
    "padded": PlanSpec(size=16, crop="padded", pad=3),
    "shuffled": PlanSpec(size=24, augment=("patch-shuffle=3",)),
    "cutmix": PlanSpec(size=24, mix="cutmix", group=6),
}
Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
CPU = torch.device("cpu")


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Waves and noise."""
    y, x = np.mgrid[:height, :width][..., None] / 9 + np.arange(3) * seed
    noise = np.random.default_rng(seed).integers(0, 80, (height, width, 3))
    return Image.fromarray((88 + 87 * np.sin(y) * np.cos(x) + noise).astype(np.uint8))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def draw(folder: Path, square: int | None = None) -> Manifest:
    """18 images of many sides: every kind, every subsampling, progressive, gray, turned, and one left to Pillow."""
    (folder / "a").mkdir(parents=True)
    for index in range(17):
        sides = (square, square) if square else (23 + 7 * (index % 5), 19 + 11 * (index % 4))
        kind: str = ("jpg", "png", "webp")[index % 5 // 2]
        options: dict[str, Any] = {"subsampling": index % 3, "progressive": index % 2 == 1} if kind == "jpg" else {}
        if index >= 9:
            options["exif"] = turned(index - 8)  # 1 to 8
        image = picture(*sides, index)
        (image.convert("L") if index in (3, 10) else image).save(folder / "a" / f"{index:02d}.{kind}", **options)
    picture(square or 30, square or 40, 17).convert("CMYK").save(folder / "a" / "17.jpg")
    return scan(folder, digests=False)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return draw(tmp_path_factory.mktemp("images"))


def by_dali(manifest: Manifest, spec: PlanSpec, threads: int = 2) -> DaliRenderer:
    return DaliRenderer(manifest, spec, CPU, "cpu", threads)


def rows_of(manifest: Manifest, spec: PlanSpec, view: int = 0) -> CropRows:
    return Plan(spec, manifest.heights, manifest.widths).rows(view, 0, len(manifest))


@pytest.mark.parametrize("name", SPECS)
def test_pixels_do_not_depend_on_batch_order_history_or_threads(
    manifest: Manifest, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPECS[name]
    images = draw(tmp_path, 16) if name == "padded" else manifest
    rows = [rows_of(images, spec, view) for view in range(2)]
    step = spec.group if spec.mix != "none" else 1
    with closing(by_dali(images, spec, 1)) as alone:
        parts = range(0, len(images), step)
        expected = [torch.cat([alone.render(some.take(slice(at, at + step))) for at in parts]) for some in rows]
    for threads, chunk, limit in ((3, 5, 1 << 28), (1, 64, 1 << 28), (2, 7, 6000)):
        monkeypatch.setattr(dali_crops, "CHUNK_CROPS", chunk)
        monkeypatch.setattr(dali_crops, "CHUNK_BYTES", limit)
        with closing(by_dali(images, spec, threads)) as renderer:
            for view in (1, 0):
                assert torch.equal(renderer.render(rows[view]), expected[view])
            if spec.mix == "none":
                order = np.random.default_rng(chunk).permutation(len(images))
                assert torch.equal(renderer.render(rows[0].take(order)), expected[0][order])
            assert renderer.render(rows[0].take(slice(0, 0))).shape == (0, spec.size, spec.size, 3)


@st.composite
def some_rows(draw: st.DrawFn, sides: list[tuple[int, int]]) -> CropRows:
    """Boxes of any size anywhere in any image, down to one pixel."""
    rows = []
    for _ in range(draw(st.integers(1, 9))):
        image = draw(st.integers(0, len(sides) - 1))
        ends = [sorted((draw(st.integers(0, side - 1)), draw(st.integers(0, side - 1)))) for side in sides[image]]
        (top, bottom), (left, right) = ends
        rows.append((image, 0, top, left, bottom - top + 1, right - left + 1, draw(st.integers(0, 1))))
    return CropRows(CROP_COLUMNS, np.array(rows, np.uint16).T)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), interpolation=st.sampled_from(["bilinear", "bicubic"]))
def test_both_routes_give_the_same_pixels(
    manifest: Manifest, data: st.DataObject, interpolation: Interpolation
) -> None:
    rows = data.draw(some_rows(list(zip(manifest.heights.tolist(), manifest.widths.tolist(), strict=True))))
    spec = PlanSpec(size=20, interpolation=interpolation)
    with closing(by_dali(manifest, spec)) as regions, closing(by_dali(manifest, spec)) as whole:
        whole._whole = True
        crops = regions.render(rows)
        assert torch.equal(crops, whole.render(rows))
    for row in range(len(rows)):
        if [int(rows.column(name)[row]) for name in ("height", "width")] == [
            20,
            20,
        ]:  # nothing is resized: the pixels are Pillow's
            with closing(make_renderer(manifest, spec, threads=1)) as pillow:
                assert torch.equal(crops[row], pillow.render(rows)[row])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_are_nearly_pillows(tmp_path: Path, interpolation: Interpolation) -> None:
    (tmp_path / "a").mkdir()
    for index in range(6):
        picture(300 + 40 * index, 420, index).save(tmp_path / "a" / f"{index}.jpg", exif=turned(1 + index % 8))
    images = scan(tmp_path, digests=False)
    spec = PlanSpec(size=160, interpolation=interpolation)
    rows = rows_of(images, spec)
    with closing(by_dali(images, spec)) as ours, closing(make_renderer(images, spec, threads=2)) as pillow:
        apart = (ours.render(rows).int() - pillow.render(rows).int()).abs()
    assert float(apart.float().mean()) <= MAX_MEAN_DIFFERENCE
    assert int(apart.max()) <= MAX_DIFFERENCE


def damage(path: Path) -> None:
    """Leave out the code of a JPEG's lowest quarter; its end stays."""
    data = path.read_bytes()
    path.write_bytes(data[: -len(data) // 4] + b"\xff\xd9")


def test_a_damaged_file_changes_no_other_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for index in range(40):
        picture(60, 70, index).save(tmp_path / "a" / f"{index:02d}.jpg")
    spec = PlanSpec(size=24, crop="center", resize=28)
    images = scan(tmp_path, digests=False)
    rows = rows_of(images, spec)
    with closing(by_dali(images, spec)) as renderer:
        sound = renderer.render(rows)
    for index in (3, 20, 21):
        damage(tmp_path / "a" / f"{index:02d}.jpg")
    images = scan(tmp_path, digests=False)
    hurt = np.isin(rows.image, [3, 20, 21])
    found = []
    for chunk in (8, 64):
        monkeypatch.setattr(dali_crops, "CHUNK_CROPS", chunk)
        for order in (np.arange(len(rows)), np.arange(len(rows))[::-1]):
            with closing(by_dali(images, spec, 1)) as renderer, warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                found += [renderer.render(rows.take(order))[order.copy()], renderer.render(rows)]
                found += [torch.cat([renderer.render(rows.take(np.array([at]))) for at in range(len(rows))])]
            named = [str(warning.message) for warning in warned if warning.category is DamagedImageWarning]
            assert len(named) == len(set(named)) == 3
    with closing(by_dali(images, spec, 1)) as renderer, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found += [torch.cat([renderer.render(rows.take(np.array([at]))) for at in range(len(rows))])]
    assert all(torch.equal(crops, found[0]) for crops in found)
    assert torch.equal(found[0][~hurt], sound[~hurt])
    with warnings.catch_warnings(), closing(make_renderer(images, spec, threads=1)) as pillow:
        warnings.simplefilter("ignore")
        apart = (pillow.render(rows)[hurt].int() - found[0][hurt].int()).abs()
    assert float(apart.float().mean()) < MAX_MEAN_DIFFERENCE


def test_crops_stream_in_order_and_a_stream_may_be_left(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali_crops, "CHUNK_CROPS", 4)
    spec = SPECS["resized"]
    parts = [rows_of(manifest, spec, view).take(slice(0, 3 + view)) for view in range(9)]
    taken = []

    def ahead() -> Iterator[CropRows]:
        for part in parts:
            taken.append(part)
            yield part

    with closing(by_dali(manifest, spec, 1)) as renderer:
        expected = [renderer.render(part) for part in parts]
        for crops, want in zip(renderer.render_all(parts), expected, strict=True):
            assert torch.equal(crops, want)
        left = renderer.render_all(ahead())
        assert torch.equal(next(left), expected[0])
        assert 1 < len(taken) < len(parts)
        assert torch.equal(renderer.render(parts[5]), expected[5])  # while another stream waits
        assert torch.equal(next(left), expected[1])
        left.close()  # type: ignore[attr-defined]
        assert torch.equal(renderer.render(parts[2]), expected[2])
        batches = [crops for crops, _ in render_batches(renderer, parts, 5, 1)]
    assert torch.equal(torch.cat(batches), torch.cat(expected))


def test_files_are_read_together(tmp_path: Path) -> None:
    contents = {tmp_path / f"{number} ü": bytes(range(number)) * 999 for number in range(1, 8)}
    for path, data in contents.items():
        path.write_bytes(data)
    paths, reader = [str(path) for path in contents], FileReader(2, 16)
    found = [reader.read(paths), reader.read(paths[::-1]), reader.read(paths[:2])]
    assert [list(map(bytes, files or [])) for files in found] == [
        [*contents.values()], [*contents.values()][::-1], [*contents.values()][:2],
    ]  # fmt: skip
    assert reader.read([*paths, str(tmp_path / "none")]) is None
    assert [*map(bytes, reader.read(paths) or [])] == [*contents.values()]
    assert bytes((found[0] or [])[3]) == contents[Path(paths[3])]  # not overwritten


def test_files_that_cannot_be_read_together_are_read_one_by_one(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPECS["resized"]
    rows = rows_of(manifest, spec)
    with closing(by_dali(manifest, spec)) as renderer:
        expected = renderer.render(rows)
    monkeypatch.setattr(FileReader, "read", lambda *_: None)
    with closing(by_dali(manifest, spec)) as renderer:
        assert torch.equal(renderer.render(rows), expected)


@pytest.mark.parametrize("change", ["gone", "other pixels", "other sides"])
def test_an_image_that_is_not_the_one_of_before_is_named(tmp_path: Path, change: str) -> None:
    draw(tmp_path)
    changed, manifest, spec = next((tmp_path / "a").glob("04.*")), scan(tmp_path), SPECS["resized"]
    with closing(by_dali(manifest, spec)) as renderer:
        rows = rows_of(manifest, spec)
        renderer.render(rows)
        with Image.open(changed) as image:
            width, height = image.size
        changed.unlink()
        if change != "gone":
            picture(height + (change == "other sides"), width, 99).save(changed)
        with pytest.raises(InputError, match=rf"{changed.name}: expected"):
            renderer.render(rows)


def test_the_id_names_the_augmenter(manifest: Manifest) -> None:
    with (
        closing(by_dali(manifest, SPECS["resized"])) as ours,
        closing(make_renderer(manifest, SPECS["resized"])) as own,
    ):
        assert (augmenter_of(ours.id), augmenter_of(own.id)) == ("dali", "pillow")
        assert ours.id != own.id
        assert "augmenter" not in own.id  # the ids of stores that exist


def test_what_fails_for_no_file_ends_with_dalis_words(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["resized"]

    def fail(*_: object) -> None:
        raise RuntimeError(
            "Critical error in pipeline:\nError in GPU operator `nvidia.dali.fn.resize`,\nencountered:\n\n"
            "CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory\nCurrent pipeline object is gone."
        )

    with closing(by_dali(manifest, spec)) as renderer:
        expected = renderer.render(rows_of(manifest, spec))  # CMYK comes by way of pixels
        monkeypatch.setattr(renderer._pixels._pipeline, "share_outputs", fail)
        with pytest.raises(GiftwrapError, match=r"cudaErrorMemoryAllocation \(2\): out of memory"):
            renderer.render(rows_of(manifest, spec))
        assert torch.equal(renderer.render(rows_of(manifest, spec)), expected)
    monkeypatch.setattr(dali_pipelines, "_empty", fail)
    with closing(by_dali(manifest, spec)) as renderer, pytest.raises(GiftwrapError, match="out of memory"):
        renderer.render(rows_of(manifest, spec))


def test_a_gpu_that_fails_on_a_sound_file_is_no_bad_file(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["resized"]

    def fail(*_: object) -> None:
        raise RefusedFileError("Failed to decode sample #0")

    with closing(by_dali(manifest, spec)) as renderer:
        monkeypatch.setattr(Running, "take", fail)
        object.__setattr__(renderer._making, "on_gpu", True)
        monkeypatch.setattr(Running, "start", lambda *_, **__: None)
        with pytest.raises(GiftwrapError, match="sound image"):
            renderer.render(rows_of(manifest, spec))


def test_a_decoder_whose_pixels_depend_on_the_batch_is_refused(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(by_dali(manifest, SPECS["bicubic"])) as renderer:
        renderer._require_steady(manifest, "gpu")
        made = renderer.render
        monkeypatch.setattr(renderer, "render", lambda rows: made(rows) ^ (len(rows) == 1))
        with pytest.raises(GiftwrapError, match=r"decoder gpu: expected the same pixels of .*/a/17.jpg alone"):
            renderer._require_steady(manifest, "gpu")


def test_what_it_cannot_do_is_refused_in_a_line(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    make = partial(make_renderer, manifest, SPECS["resized"], augmenter="dali")
    with pytest.raises(InputError, match="works on a GPU"):
        make(decoder="gpu")
    with pytest.raises(InputError, match="expected one of pillow, dali"):
        make_renderer(manifest, SPECS["resized"], augmenter="torchvision")
    monkeypatch.setattr("pipeline.render.choose_device", lambda _: torch.device("cuda", 0))
    with pytest.raises(InputError, match="padded crops"):
        make_renderer(manifest, SPECS["padded"], augmenter="dali", device="cuda", decoder="gpu")
    monkeypatch.undo()
    monkeypatch.setattr(dali_crops, "load", lambda: None)
    with pytest.raises(InputError, match="nvidia-dali-cuda130"):
        make()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("decoder", ["cpu", "gpu"])
def test_a_gpu_gives_crops_of_the_cpus_within_the_band(manifest: Manifest, decoder: str) -> None:
    spec = SPECS["resized"]
    rows = rows_of(manifest, spec)
    with (
        closing(by_dali(manifest, spec)) as cpu,
        closing(make_renderer(manifest, spec, device="cuda", decoder=decoder, augmenter="dali")) as gpu,
    ):
        crops = gpu.render(rows)
        assert torch.equal(crops, torch.cat([gpu.render(rows.take(np.array([at]))) for at in range(len(rows))]))
        apart = (crops.cpu().int() - cpu.render(rows).int()).abs().float()
    assert float(apart.mean()) <= MAX_MEAN_DIFFERENCE
