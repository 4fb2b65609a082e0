"""Crops made many at a time, in plain torch and by Triton's kernels, are Pillow's, bit for bit."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from labelstore.errors import InputError
from pipeline.images.manifest import scan
from pipeline.plan.augment import patch_shuffle
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import dali, decoder_of, make_renderer
from pipeline.render.batched import kernels_work, resize_all
from pipeline.render.cache import Images
from pipeline.render.device import DeviceRenderer
from pipeline.render.device_cache import HEADROOM_BYTES, Kept, cache_budget
from pipeline.render.identity import DECODERS
from pipeline.render.jobs import Boxes, prepare, weigh
from pipeline.render.resize import cut
from tests.pipeline.test_render import MEMORY, REGIONS, SPECS, picture, render

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve JPEG and PNG files of several sides, one of which only Pillow decodes right."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "a").mkdir()
    for index in range(11):
        image = picture(20 + 17 * (index % 5), 24 + 19 * (index % 4), index)
        image.save(folder / "a" / f"{index:02d}.{('jpg', 'png')[index % 2]}")
    picture(30, 40, 11).convert("CMYK").save(folder / "a" / "11.jpg")
    return folder


def draw(seed: int, count: int, largest: int) -> tuple[Boxes, list[np.ndarray]]:
    """Images of noise and of hard edges, a box in each, and its pixels."""
    rng = np.random.default_rng(seed)
    sides = rng.integers(1, largest, (count, 2))
    images = [rng.integers(0, 256, (*side, 3)).astype(np.uint8) for side in sides]
    images[::2] = [np.where(image > 127, 255, 0).astype(np.uint8) for image in images[::2]]
    lengths = rng.integers(1, sides + 1)
    places = rng.integers(0, sides - lengths + 1)
    boxes = np.concatenate([places, lengths], axis=1)
    starts = np.cumsum([0, *(image.size for image in images[:-1])])
    data = torch.from_numpy(np.concatenate([image.ravel() for image in images]))
    cuts = [image[t : t + h, le : le + w] for image, (t, le, h, w) in zip(images, boxes.tolist(), strict=True)]
    return Boxes(data, starts, sides, boxes, rng.random(count) < 0.5), cuts


@given(st.integers(0, 2**32), st.integers(1, 80), st.sampled_from(sorted(FILTERS)))
@settings(deadline=None, max_examples=25)
def test_crops_are_pillows(seed: int, size: int, interpolation: str) -> None:
    boxes, cuts = draw(seed, 5, 250)
    found = resize_all(boxes, size, interpolation).numpy()
    for crop, pixels, flip in zip(found, cuts, boxes.flips, strict=True):
        expected = np.asarray(Image.fromarray(pixels).resize((size, size), FILTERS[interpolation]))
        np.testing.assert_array_equal(crop, expected[:, ::-1] if flip else expected)


def shuffle(boxes: Boxes, seed: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Strips of each image in another order, two to four of them, as tables and as values of their columns."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 5, len(boxes.starts))
    values = np.stack([counts, *(rng.integers(0, [math.factorial(count) for count in counts]) for _ in range(2))])
    return patch_shuffle.strips_of(values, boxes.sides), values


@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from(sorted(FILTERS)), st.sampled_from([3, 150]))
@settings(deadline=None, max_examples=20)
def test_strips_that_change_places_make_the_crops_of_the_shuffled_image(
    seed: int, size: int, interpolation: str, largest: int
) -> None:
    boxes, _ = draw(seed, 5, largest)  # images of one or two pixels too: fewer than strips
    boxes.boxes[:2, :2] -= 2  # outside the image
    strips, values = shuffle(boxes, seed)
    found = resize_all(replace(boxes, strips=strips), size, interpolation).numpy()
    for row, (height, width) in enumerate(boxes.sides.tolist()):
        start = int(boxes.starts[row])
        image = boxes.data[start : start + 3 * height * width].view(height, width, 3)
        pixels = cut(patch_shuffle.arrange(image, tuple(values[:, row].tolist())), tuple(boxes.boxes[row].tolist()))
        expected = np.asarray(Image.fromarray(pixels.numpy()).resize((size, size), FILTERS[interpolation]))
        np.testing.assert_array_equal(found[row], expected[:, ::-1] if boxes.flips[row] else expected)


def test_a_crop_does_not_depend_on_its_neighbours() -> None:
    boxes, _ = draw(1, 12, 200)
    whole = resize_all(boxes, 33, "bilinear")
    order = np.random.default_rng(0).permutation(12)
    for at in (order, *order[:, None]):
        some = Boxes(boxes.data, boxes.starts[at], boxes.sides[at], boxes.boxes[at], boxes.flips[at])
        assert torch.equal(resize_all(some, 33, "bilinear"), whole[at])


def test_what_reaches_outside_the_image_is_black() -> None:
    image = np.random.default_rng(0).integers(1, 256, (6, 8, 3)).astype(np.uint8)
    boxes = Boxes(
        torch.from_numpy(image.ravel()),
        np.zeros(1, int),
        np.array([[6, 8]]),
        np.array([[-2, 3, 8, 8]]),
        np.zeros(1, bool),
    )
    padded = np.pad(image, ((2, 2), (0, 3), (0, 0)))[:8, 3:11]
    np.testing.assert_array_equal(resize_all(boxes, 8, "bilinear")[0], padded)


def test_weights_add_up_and_stay_inside() -> None:
    lengths = torch.tensor([1, 7, 40, 333])
    first, weights = weigh(lengths, 24, "bicubic", 60)
    assert (weights.sum(dim=0) - (1 << 22)).abs().max() <= 30
    last = first + (weights != 0).int().mul(torch.arange(1, 61)[:, None, None]).amax(dim=0)
    assert (last <= lengths[:, None]).all()


@needs_triton
def test_kernels_give_the_same(tmp_path: Path) -> None:
    """Triton's interpreter, in a process of its own: it changes Triton for good."""
    program = (
        "import numpy as np, torch\n"
        "from pipeline.render.batched import _compare_kernels, resize_plainly\n"
        "from pipeline.render.jobs import prepare\n"
        "from pipeline.render.kernels import resize_task\n"
        "from tests.pipeline.test_render_batched import draw\n"
        "from dataclasses import replace\n"
        "_compare_kernels(torch.device('cpu'))\n"  # rows first and columns first, flipped or not
        "from pipeline.render.normalise import _compare_kernel\n"
        "_compare_kernel(torch.device('cpu'), (torch.float32, torch.float16))\n"  # the interpreter cuts bfloat16 off
        "from tests.pipeline.test_render_batched import shuffle\n"
        "for seed, size, name in ((0, 20, 'bilinear'), (1, 24, 'bicubic')):\n"
        "    boxes, _ = draw(seed, 4, 90)\n"
        "    boxes.boxes[0, :2] -= 3\n"
        "    for strips in (None, shuffle(boxes, seed)[0]):\n"
        "        task = prepare(replace(boxes, strips=strips), size, name)\n"
        "        assert torch.equal(resize_task(task), resize_plainly(task))\n"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("cache", [MEMORY, REGIONS])
@pytest.mark.parametrize("name", SPECS)
def test_the_device_renders_as_the_cpu_does(
    folder: Path, name: str, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, spec = scan(folder, digests=False), SPECS[name]
    plan = Plan(spec, manifest.heights, manifest.widths)
    views = [plan.rows(view, 0, 12) for view in range(2)]
    expected = [render(manifest, spec, rows) for rows in views]
    for chunk in (1 << 28, 1):
        monkeypatch.setattr("pipeline.render.device.LINE_BYTES", chunk)
        monkeypatch.setattr("pipeline.render.device.CHUNK_BYTES", chunk)
        with closing(DeviceRenderer(manifest, spec, CPU, "cpu", 2, cache)) as renderer:
            for rows, crops in zip(views, expected, strict=True):
                assert torch.equal(renderer.render(rows), crops)
                assert renderer.render(rows.take(slice(0, 0))).shape == (0, spec.size, spec.size, 3)


def test_padded_crops_are_the_cpus_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for index in range(4):
        picture(24, 24, index).save(tmp_path / "a" / f"{index}.png")
    manifest, spec = scan(tmp_path, digests=False), PlanSpec(size=24, crop="padded")
    rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, 4)
    for cache in (MEMORY, REGIONS):
        with closing(DeviceRenderer(manifest, spec, CPU, "cpu", 1, cache)) as renderer:
            assert torch.equal(renderer.render(rows), render(manifest, spec, rows))


@pytest.mark.parametrize("cache", [MEMORY, REGIONS])
def test_without_dali_pillow_decodes_the_same(folder: Path, cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, spec = scan(folder, digests=False), SPECS["resized"]
    rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, 12)
    expected = render(manifest, spec, rows)
    monkeypatch.setattr(dali, "load", lambda: None)
    with closing(make_renderer(manifest, spec, threads=2, cache_bytes=cache)) as renderer:
        assert renderer.id["backend"] == "Pillow"
        assert renderer.id["region_decoding"] is False
        assert torch.equal(renderer.render(rows), expected)
    with closing(DeviceRenderer(manifest, spec, CPU, "cpu", 2, cache)) as renderer:
        assert torch.equal(renderer.render(rows), expected)
    with pytest.raises(InputError, match=r"decoding on a GPU: DALI .*nvidia-dali-cuda130.*give --decoder cpu"):
        dali.DaliDecoder(torch.device("cuda", 0), 1, 1)


def test_a_cache_that_leaves_a_gpu_no_room_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, gpu = scan(folder, digests=False), torch.device("cuda", 0)
    images = Images(manifest, None, ThreadPoolExecutor(1), MEMORY)
    free = HEADROOM_BYTES + 1000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 2 * free))
    with pytest.raises(InputError, match=r"--cache-gib: expected at most 1\.0 kB for decoded images on cuda:0"):
        Kept(images, gpu)

    def taken(*_sizes: object, **_where: object) -> None:
        raise torch.OutOfMemoryError("another process was faster")

    free = 1 << 40
    monkeypatch.setattr(torch, "empty", taken)
    with pytest.raises(InputError, match=r"give a lower --cache-gib, or a GPU that nothing else uses"):
        Kept(images, gpu)


def test_the_cache_of_a_gpu_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, free = torch.device("cuda", 0), 80 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 80 << 30))
    assert cache_budget(gpu, None) == 38 << 30
    assert cache_budget(gpu, 5) == cache_budget(CPU, 5) == 5
    assert cache_budget(CPU, None) == 2 << 30
    one = SimpleNamespace(data=SimpleNamespace(numel=lambda: 30 << 30, device=gpu))
    free -= 30 << 30
    monkeypatch.setattr("pipeline.render.device_cache._caches", [one])
    assert cache_budget(gpu, None) == 8 << 30, "all caches of a process have one share"
    monkeypatch.setattr("pipeline.render.device_cache._caches", [])
    free = 3 << 30
    assert cache_budget(gpu, None) == 0


def test_decoders_are_told_apart_and_found_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = scan(folder, digests=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
    from pipeline.render.identity import renderer_id

    ids = {name: renderer_id(torch.device("cuda", 0), name) for name in DECODERS}
    assert [decoder_of(found) for found in ids.values()] == list(DECODERS)
    assert ids["gpu"]["decoder"] == {"mixed": {"hw_decoder_load": 0.0, "jpeg_fancy_upsampling": True}}
    assert ids["cpu"]["region_decoding"]
    assert not ids["gpu"]["region_decoding"]
    assert decoder_of(make_renderer(manifest, SPECS["resized"], threads=1).id) == "cpu"
    for decoder, words in (("gpu", "works on a GPU; add --device cuda"), ("best", "expected one of cpu, gpu, gpu-hw")):
        with pytest.raises(InputError, match=words):
            make_renderer(manifest, SPECS["resized"], decoder=decoder)


def test_long_axes_weigh_nothing_twice() -> None:
    """A box of one line, and one whose sides exceed any block of the kernels."""
    rng = np.random.default_rng(3)
    for height, width in ((1, 900), (900, 1)):
        image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        boxes = Boxes(
            torch.from_numpy(image.ravel()),
            np.zeros(1, int),
            np.array([[height, width]]),
            np.array([[0, 0, height, width]]),
            np.zeros(1, bool),
        )
        assert prepare(boxes, 5, "bilinear").lines in (1, 900)
        expected = np.asarray(Image.fromarray(image).resize((5, 5), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(resize_all(boxes, 5, "bilinear")[0], expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton finds a GPU")
def test_kernels_that_do_not_run_are_told_and_left_out() -> None:
    kernels_work.cache_clear()
    with pytest.warns(UserWarning, match="crops are the same and take longer: Triton's kernels do not run here"):
        assert not kernels_work(CPU)
    kernels_work.cache_clear()
