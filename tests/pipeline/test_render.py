"""Pixels are a function of image and row: held against torchvision on Pillow images, bit for bit."""

from __future__ import annotations

import itertools
import json
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import crop, hflip, pad, resized_crop

from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from pipeline.images.class_folder import ClassFolder
from pipeline.images.manifest import Manifest, scan
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import crops, dali, make_renderer
from pipeline.render.cache import Room
from pipeline.render.device import DeviceRenderer

MEMORY, REGIONS = 1 << 30, 0
SPECS = {
    "resized": PlanSpec(size=24),
    "bicubic": PlanSpec(size=24, interpolation="bicubic"),
    "center": PlanSpec(size=16, crop="center", resize=20),
    "factor": PlanSpec(size=24, crop="factor", factor=2),
    "shuffled": PlanSpec(size=24, augment=("patch-shuffle=3",)),
    "cutmix": PlanSpec(size=24, mix="cutmix", group=8),
    "mixup": PlanSpec(size=24, mix="mixup", group=8),
}


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Waves and noise: edges, gradients and detail in every channel."""
    y, x = np.mgrid[:height, :width][..., None] / 9 + np.arange(3) * seed
    noise = np.random.default_rng(seed).integers(0, 80, (height, width, 3))
    return Image.fromarray((88 + 87 * np.sin(y) * np.cos(x) + noise).astype(np.uint8))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """19 images of all three kinds and of many sides, one of them left to Pillow."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("a", "b"):
        (folder / name).mkdir()
    for index in range(18):
        height, width = 20 + 7 * (index % 5), 18 + 11 * (index % 4)
        options: dict[str, dict[str, Any]] = {
            "jpg": {"subsampling": index % 3, "progressive": index % 2 == 1},
            "png": {},
            "webp": {},
        }
        suffix = ("jpg", "png", "webp")[index // 2 % 3]
        picture(height, width, index).save(folder / "ab"[index % 2] / f"{index:02d}.{suffix}", **options[suffix])
    picture(30, 40, 18).convert("CMYK").save(folder / "b" / "18.jpg")
    return scan(folder, digests=False)


def render(manifest: Manifest, spec: PlanSpec, rows: CropRows, cache: int = MEMORY, threads: int = 2) -> torch.Tensor:
    renderer = make_renderer(manifest, spec, threads=threads, cache_bytes=cache)
    try:
        return renderer.render(rows)
    finally:
        renderer.close()


def shuffled(image: Image.Image, strips: int, across: int, down: int) -> Image.Image:
    """RDED's ShufflePatches: strips of columns, then of rows, the last one with the remainder."""
    pixels = np.asarray(image)
    for axis, ranked in ((1, across), (0, down)):
        order = list(itertools.permutations(range(strips)))[ranked]
        parts = np.split(pixels, [pixels.shape[axis] // strips * at for at in range(1, strips)], axis)
        pixels = np.concatenate([parts[at] for at in order], axis)
    return Image.fromarray(pixels)


def by_torchvision(manifest: Manifest, spec: PlanSpec, rows: CropRows, row: int) -> np.ndarray:
    """One crop before mixing."""
    image = Image.open(manifest.place(int(rows.image[row]))).convert("RGB")
    top, left, height, width = (int(rows.column(name)[row]) for name in ("top", "left", "height", "width"))
    if "strips" in rows:
        image = shuffled(image, *(int(rows.column(name)[row]) for name in ("strips", "strip_columns", "strip_rows")))
    if spec.crop == "padded":
        done = crop(pad(image, spec.pad), top, left, height, width)
    else:
        mode = InterpolationMode(spec.interpolation)
        done = resized_crop(image, top, left, height, width, [spec.size, spec.size], mode, antialias=True)
    return np.asarray(hflip(done) if rows.flip[row] else done)


@pytest.mark.parametrize("cache", [MEMORY, REGIONS])
@pytest.mark.parametrize("name", ["resized", "bicubic", "center", "factor", "shuffled"])
def test_crops_are_torchvisions(manifest: Manifest, name: str, cache: int) -> None:
    spec = SPECS[name]
    rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, len(manifest))
    found = render(manifest, spec, rows, cache).numpy()
    for row in range(len(rows)):
        np.testing.assert_array_equal(found[row], by_torchvision(manifest, spec, rows, row))


@pytest.mark.parametrize("name", SPECS)
def test_pixels_do_not_depend_on_how_they_are_made(
    manifest: Manifest, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPECS[name]
    plan = Plan(spec, manifest.heights, manifest.widths)
    rows = [plan.rows(view, 0, len(manifest)) for view in range(3)]
    expected = [render(manifest, spec, some, threads=1) for some in rows]
    for cache, threads, chunk, limit in (
        (MEMORY, 3, 5, 1 << 28),
        (REGIONS, 1, 64, 1 << 28),
        (REGIONS, 3, 7, 6000),
        (MEMORY, 2, 64, 1),
    ):
        monkeypatch.setattr(crops, "CHUNK_CROPS", chunk)
        monkeypatch.setattr(crops, "CHUNK_BYTES", limit)
        renderer = make_renderer(manifest, spec, threads=threads, cache_bytes=cache)
        for view in (2, 0, 1):  # the order of the calls
            assert torch.equal(renderer.render(rows[view]), expected[view])
        size = spec.group if spec.mix != "none" else 3  # the rows of a call
        for start in reversed(range(0, len(manifest), size)):
            part = slice(start, start + size)
            assert torch.equal(renderer.render(rows[0].take(part)), expected[0][part])
        renderer.close()


def test_pixels_do_not_depend_on_the_order_of_rows(manifest: Manifest) -> None:
    spec = SPECS["resized"]
    rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, len(manifest))
    order = np.random.default_rng(0).integers(0, len(manifest), 50)  # some images many times, some never
    expected = render(manifest, spec, rows)
    for cache in (MEMORY, REGIONS):
        assert torch.equal(render(manifest, spec, rows.take(order), cache), expected[order])


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
def test_mixing_is_integer_arithmetic_within_groups(manifest: Manifest, name: str) -> None:
    spec = SPECS[name]
    rows = Plan(spec, manifest.heights, manifest.widths).rows(1, 0, len(manifest))
    own = np.stack([by_torchvision(manifest, spec, rows, row) for row in range(len(rows))])
    expected = own.copy()
    for row in range(len(rows)):
        other = own[row // spec.group * spec.group + int(rows.column("partner")[row])]
        if name == "mixup":
            share = int(rows.column("share")[row])
            mixed = share * own[row].astype(np.int64) + (65536 - share) * other.astype(np.int64)
            expected[row] = (mixed + 32768) // 65536
        else:
            top, left, height, width = rows.mix_boxes()[row]
            box = (slice(top, top + height), slice(left, left + width))
            expected[row][box] = other[box]
    assert not np.array_equal(own, expected)
    np.testing.assert_array_equal(render(manifest, spec, rows).numpy(), expected)


@pytest.mark.parametrize("padding", [4, 32])
@pytest.mark.parametrize("cache", [MEMORY, REGIONS])
def test_padded_crops_are_torchvisions(tmp_path: Path, cache: int, padding: int) -> None:
    (tmp_path / "a").mkdir()
    for index in range(12):
        picture(32, 32, index).save(tmp_path / "a" / f"{index:02d}.png")
    manifest = scan(tmp_path, digests=False)
    spec = PlanSpec(size=32, crop="padded", pad=padding)
    rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, 12)
    rows.values[2:4, :2] = [[0, 2 * padding], [2 * padding, 0]]  # the corners too
    found = render(manifest, spec, rows, cache).numpy()
    for row in range(12):
        np.testing.assert_array_equal(found[row], by_torchvision(manifest, spec, rows, row))


def test_images_of_the_right_side_pass_unchanged(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for index in range(4):
        picture(32, 32, index).save(tmp_path / "a" / f"{index}.png")
    manifest = scan(tmp_path, digests=False)
    for interpolation in ("bilinear", "bicubic"):
        spec = PlanSpec(size=32, crop="center", flip=0.0, interpolation=interpolation)
        rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, 4)
        for cache in (MEMORY, REGIONS):
            found = render(manifest, spec, rows, cache).numpy()
            for row, image in enumerate(rows.image.tolist()):
                np.testing.assert_array_equal(found[row], np.asarray(Image.open(manifest.place(image))))


@pytest.mark.parametrize(("size", "interpolation"), [(224, "bilinear"), (64, "bilinear"), (224, "bicubic")])
def test_crops_of_photographs_are_torchvisions(data: Path, size: int, interpolation: Any) -> None:
    manifest = scan(data / "imagenet-samples", digests=False)
    manifest = manifest.subset(np.arange(0, len(manifest), 25))
    spec = PlanSpec(size=size, interpolation=interpolation)
    rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, len(manifest))
    found = {cache: render(manifest, spec, rows, cache) for cache in (MEMORY, REGIONS)}
    assert torch.equal(found[MEMORY], found[REGIONS])
    for row in range(len(rows)):
        expected = by_torchvision(manifest, spec, rows, row)
        apart = np.abs(found[REGIONS][row].numpy().astype(int) - expected)
        assert apart[1:-1, 1:-1].max() <= 1, "promised with any renderer"
        assert apart.max() <= 12
        assert apart.mean() <= 0.2
        assert apart.max() == 0, "promised with this one"


def test_memory_and_files_are_used_as_told(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["resized"]
    rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, len(manifest))
    decoded = int((3 * manifest.heights.astype(np.int64) * manifest.widths).sum())
    read: list[str] = []
    original = ClassFolder.read

    def counted(source: ClassFolder, image: int) -> bytes:
        read.append(source.place(image))
        return original(source, image)

    monkeypatch.setattr(ClassFolder, "read", counted)
    small = int(np.sort(3 * manifest.heights.astype(np.int64) * manifest.widths)[0])
    for budget, twice in ((decoded, 0), (decoded - 1, 1), (small - 1, len(manifest))):
        renderer = make_renderer(manifest, spec, threads=1, cache_bytes=budget)
        read.clear()
        assert not read, "nothing is read before its first use"
        for _ in range(2):
            renderer.render(rows)
        assert len(set(read)) == len(manifest)
        pngs = [name for name in read if name.endswith(".png")]
        assert len(pngs) - len({*pngs}) <= min(twice, len({*pngs}))
        assert len(read) - len(manifest) >= twice, "what does not fit is read again"
        renderer.close()


@given(st.integers(0, 2**32), st.lists(st.integers(1, 8), min_size=1, max_size=20), st.integers(0, 120))
def test_the_first_images_that_are_needed_stay_while_there_is_room(seed: int, sizes: list[int], budget: int) -> None:
    rng = np.random.default_rng(seed)
    room, kept, dropped = Room(np.array(sizes), budget), set[int](), set[int]()
    for _ in range(4):
        images = rng.integers(0, len(sizes), rng.integers(0, 12))
        stays = room.admit(images)
        kept |= {*images[stays].tolist()}
        dropped |= {*images[~stays].tolist()}
        assert not kept & {*images[~stays].tolist()}, "what stays once stays"
        assert sum(sizes[image] for image in kept) <= room.bytes <= budget
    if sum(sizes) <= budget:
        assert not dropped
    first = room.admit(np.array([], np.int64))
    assert first.shape == (0,)


@pytest.mark.parametrize("name", ["resized", "shuffled", "mixup"])
def test_no_size_of_the_cache_changes_pixels(manifest: Manifest, name: str) -> None:
    spec = SPECS[name]
    plan = Plan(spec, manifest.heights, manifest.widths)
    rows = [plan.rows(view, 0, len(manifest)) for view in range(2)]
    expected = [render(manifest, spec, some) for some in rows]
    decoded = int((3 * manifest.heights.astype(np.int64) * manifest.widths).sum())
    for share in np.linspace(0, 1, 7):
        cache = int(share * decoded)
        for renderer in (
            make_renderer(manifest, spec, threads=2, cache_bytes=cache),
            DeviceRenderer(manifest, spec, torch.device("cpu"), "cpu", 2, cache),
        ):
            with closing(renderer):
                for some, crops in zip((*rows, rows[0]), (*expected, expected[0]), strict=True):
                    assert torch.equal(renderer.render(some), crops)


def test_the_id_says_what_pixels_depend_on_and_no_more(manifest: Manifest) -> None:
    ids = [
        make_renderer(manifest, spec, threads=threads, cache_bytes=cache).id
        for spec, threads, cache in ((SPECS["resized"], 1, MEMORY), (SPECS["mixup"], 3, REGIONS))
    ]
    assert ids[0] == ids[1]
    assert json.loads(json.dumps(ids[0])) == ids[0]
    assert ids[0]["device"] == "cpu"
    assert ids[0]["model"] == torch.backends.cpu.get_cpu_capability()
    assert {"nvidia-dali-cuda130", "nvidia-dali-cuda120"} & ids[0]["versions"].keys()


def test_no_rows_are_no_crops(manifest: Manifest) -> None:
    spec = SPECS["resized"]
    rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, 0)
    assert render(manifest, spec, rows).shape == (0, 24, 24, 3)


def test_rows_of_other_images_are_refused(manifest: Manifest) -> None:
    spec = SPECS["resized"]
    rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, len(manifest))
    renderer = make_renderer(manifest, spec, threads=1)
    for column, value, words in (
        ("image_low", 999, "expected images below 19, found 999"),
        ("height", 500, "is not within its"),
        ("left", 40, "is not within its"),
        ("width", 0, "is not within its"),
    ):
        wrong = CropRows(rows.names, rows.values.copy())
        wrong.column(column)[3] = value
        with pytest.raises(InputError, match=words):
            renderer.render(wrong)
    renderer.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, "expected cpu, cuda or cuda:N, found 'tpu'"),
        ({"device": "meta"}, "expected cpu, cuda or cuda:N, found 'meta'"),
        ({"device": "cuda:99"}, r"usable CUDA devices.*; give --device cpu"),
        ({"threads": 0}, "threads: expected at least 1, found 0"),
        ({"cache_bytes": -1}, "expected at least 0 bytes, found -1"),
    ],
)
def test_what_cannot_render_is_refused(manifest: Manifest, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_renderer(manifest, SPECS["resized"], **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("decoder", ["cpu", "gpu", "gpu-hw"])
@pytest.mark.parametrize("name", SPECS)
def test_a_gpu_renders_nearly_the_same(manifest: Manifest, name: str, decoder: str) -> None:
    if decoder != "cpu" and dali.load() is None:
        pytest.skip("needs DALI")
    spec = SPECS[name]
    plan = Plan(spec, manifest.heights, manifest.widths)
    rows = plan.rows(0, 0, len(manifest))
    expected = render(manifest, spec, rows)
    make = partial(make_renderer, manifest, spec, device="cuda", decoder=decoder)
    renderers = [make(cache_bytes=cache) for cache in (MEMORY, REGIONS, 30_000)]
    found = [renderer.render(rows) for renderer in renderers]
    assert found[0].is_cuda
    assert all(torch.equal(crops, found[0]) for crops in found)
    step = spec.group if spec.mix != "none" else 1
    parts = [renderers[1].render(rows.take(slice(at, at + step))) for at in range(0, len(rows), step)]
    assert torch.equal(torch.cat(parts), found[0])
    apart = (found[0].cpu().int() - expected.int()).abs()
    assert apart.max() <= (0 if decoder == "cpu" else 40)
    assert apart.float().mean() <= 1.0
