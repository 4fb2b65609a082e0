"""Tensor files become class folders: pixels come back exactly, and what cannot be imported is refused by name."""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from labelstore.errors import InputError
from pipeline.images.class_names import entries
from pipeline.images.manifest import scan
from pipeline.importing.importing import ImportReport, import_tensors

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
ZEROS, ONES = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
LEVELS = torch.randint(0, 256, (7, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 0, 1, 11, 1, 0, 0])


def run(tmp_path: Path, content: Any, **options: Any) -> ImportReport:
    torch.save(content, tmp_path / "data.pt")
    return import_tensors(tmp_path / "data.pt", tmp_path / "out", **options)


def refusal(tmp_path: Path, content: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        run(tmp_path, content, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.pt"]
    return str(caught.value)


def written(out: Path) -> dict[int, tuple[int, np.ndarray[Any, Any]]]:
    """By place in the tensor: (class index, pixels) of every file."""
    return {int(file.stem): (int(file.parent.name), np.asarray(Image.open(file))) for file in out.glob("*/*.png")}


def assert_written(out: Path, levels: torch.Tensor = LEVELS, labels: torch.Tensor = LABELS) -> None:
    found = written(out)
    assert {image: target for image, (target, _) in found.items()} == dict(enumerate(labels.tolist()))
    for image, (_, pixels) in found.items():
        expected = levels[image].permute(1, 2, 0).numpy()
        assert np.array_equal(pixels, expected[..., 0] if len(levels[image]) == 1 else expected)


@pytest.mark.parametrize(
    "content",
    [
        {"dataset": "cifar10", "data": LEVELS, "label": LABELS},
        {"Images": LEVELS, "Targets": LABELS.to(torch.int32).reshape(-1, 1)},
        {"x": LEVELS.permute(0, 2, 3, 1).contiguous(), "y": LABELS.float(), "steps": 3},
        {"cifar10": {"images": torch.nn.Parameter(LEVELS, requires_grad=False), "labels": LABELS}, "ipc": 1},
        (LEVELS, LABELS),
        [LEVELS, LABELS],
        {"data": [[LEVELS, LABELS]], "accs_all_exps": {"ConvNet": [0.5, 0.25]}},
        {"data": [[LEVELS, LABELS]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}, "made": Path("x")},
        {"images": LEVELS.numpy(), "labels": LABELS.numpy()},
        {"images": LEVELS, "labels": LABELS.tolist()},
    ],
)
def test_layouts_of_published_files(tmp_path: Path, content: Any) -> None:
    report = run(tmp_path, content)
    assert_written(tmp_path / "out")
    assert report == ImportReport(7, 4, (), 0.0, 0.0, 0.0, 0.0, 0.0)


def test_files_of_old_torch(tmp_path: Path) -> None:
    torch.save((LEVELS, LABELS), tmp_path / "data.pt", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "data.pt")
    import_tensors(tmp_path / "data.pt", tmp_path / "out")
    assert_written(tmp_path / "out")


def test_the_folder_is_a_manifest_in_class_order(tmp_path: Path) -> None:
    labels = torch.arange(120).flip(0)
    run(tmp_path, (torch.randint(0, 256, (120, 1, 2, 2), dtype=torch.uint8), labels))
    found = scan(tmp_path / "out")
    assert found.classes == tuple(f"{label:03d}" for label in range(120))
    assert found.targets.tolist() == list(range(120))
    assert list(found.names[:2]) == ["000/119.png", "001/118.png"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_images_come_back_exactly(tmp_path: Path, dtype: torch.dtype, channels: int) -> None:
    mean, std = MEAN[:channels], STD[:channels]
    levels = LEVELS[:, :channels]
    shift, scale = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))
    images = ((levels / 255 - shift) / scale).to(dtype)
    report = run(tmp_path, {"images": images, "labels": LABELS}, mean=mean, std=std)
    assert_written(tmp_path / "out", levels)
    assert 0 < report.max_rounding_error < 1e-3
    assert report.clipped_share == 0


@settings(deadline=None)
@given(st.lists(st.floats(-1, 2, width=32), min_size=12, max_size=12))
def test_rounding_and_clipping_are_reported(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    folder = tmp_path_factory.mktemp("import")
    images = torch.tensor(values).reshape(1, 3, 2, 2)
    report = run(folder, (images, torch.tensor([4])), mean=ZEROS, std=ONES)
    exact = np.array(values, np.float32).astype(np.float64) * 255
    rounded = np.rint(exact)
    clipped = (rounded < 0) | (rounded > 255)
    ((target, pixels),) = written(folder / "out").values()
    assert target == 4
    assert pixels.transpose(2, 0, 1).ravel().tolist() == rounded.clip(0, 255).tolist()
    assert report.clipped_share == clipped.mean()
    errors, excess = np.abs(exact - rounded)[~clipped], np.abs(exact - exact.clip(0, 255))[clipped]
    assert report.max_rounding_error == errors.max(initial=0)
    assert report.mean_rounding_error == pytest.approx(errors.mean() if len(errors) else 0)
    assert report.max_clipped == excess.max(initial=0)
    assert report.mean_clipped == pytest.approx(excess.mean() if len(excess) else 0)


def test_more_images_than_are_taken_at_once(tmp_path: Path) -> None:
    levels = torch.randint(0, 256, (150, 3, 2, 2), dtype=torch.uint8)
    labels = torch.arange(150) % 3
    calls: list[tuple[int, int]] = []
    images = (levels / 255).half()
    run(tmp_path, (images, labels), mean=ZEROS, std=ONES, progress=lambda *call: calls.append(call))
    assert_written(tmp_path / "out", levels, labels)
    assert calls[-1] == (150, 150)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (LEVELS / 255, "values are in [0, 1]), pass --mean 0 0 0 --std 1 1 1"),
        (LEVELS / 255 - 0.5, "pass the --mean and --std that they were normalised with"),
        (LEVELS.float(), "look like levels of 0 to 255: save them as uint8"),
    ],
)
def test_float_images_need_their_normalisation(tmp_path: Path, images: torch.Tensor, message: str) -> None:
    assert message in refusal(tmp_path, {"data": images, "label": LABELS})
    assert message in refusal(tmp_path, {"data": images, "label": LABELS}, mean=MEAN)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    images = torch.zeros(70, 3, 2, 2)
    images[66, 1, 0, 1] = value
    message = refusal(tmp_path, (images, torch.zeros(70)), mean=MEAN, std=STD)
    assert "0: image 66 holds NaN or infinite values" in message


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"data": LEVELS, "label": torch.rand(7, 10)}, "label"),
        ({"set": {"x": LEVELS, "y": torch.rand(7, 10)}}, "set.y"),
        ({"images": LEVELS, "labels": LABELS, "soft_labels": torch.rand(7, 10)}, "soft_labels"),
        ((LEVELS, torch.rand(7, 2)), "1"),
    ],
)
def test_soft_labels_are_refused_by_name(tmp_path: Path, content: Any, name: str) -> None:
    assert f"data.pt: {name}, a tensor [7, " in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (LEVELS, {}, "found one tensor [7, 3, 5, 6]"),
        (
            {"pictures": LEVELS, "labels": LABELS},
            {},
            "found a dict of pictures (one tensor [7, 3, 5, 6]), labels (one tensor [7])",
        ),
        ({"a": (LEVELS, LABELS), "b": (LEVELS, LABELS)}, {}, "found 2 (a.0, b.0); --index K takes one of them, 0 to 1"),
        ({"data": [[LEVELS, LABELS]] * 2}, {"index": 2}, "--index 2: expected 0 to 1"),
        ((LEVELS, LABELS), {"index": -1}, "--index -1: expected 0 to 0"),
        ((LEVELS, LABELS), {"normalise": "per-image"}, "leave out --mean and --std, and --normalise"),
        ((LEVELS / 255, LABELS), {"normalise": "min-max", "mean": MEAN, "std": STD}, "needs no --mean and --std"),
        ((LEVELS / 255, LABELS), {"normalise": "mean-std"}, "pass --mean 0 0 0"),
        ((LEVELS * 0.0, LABELS), {"normalise": "min-max"}, "all values are 0"),
        ((LEVELS, LABELS), {"class_names": ["a"] * 11}, "names of the classes 0 to 11, found 11"),
        ((LEVELS, LABELS), {"class_names": [*"abcdefghijkA"]}, "each name once, found A, a"),
        ((LEVELS, LABELS), {"class_names": ["a/b", *"abcdefghijk"]}, "name 0, 'a/b', cannot name a folder"),
        ((LEVELS, LABELS), {"class_names": [*"abcdefghijk", ".."]}, "name 11, '..', cannot name"),
        ((LEVELS, LABELS), {"class_names": [*"abcdefghijk", "x\x1b[1m"]}, "name 11, 'x\\x1b[1m', cannot name"),
        ((LEVELS, torch.ones(7, 10)), {"argmax": True}, "7 of 7 rows have no single largest value"),
        ((LEVELS, LABELS[:3]), {}, "each of the 7 images, found a tensor [3]"),
        ((LEVELS[:0], LABELS[:0]), {}, "each of the 0 images"),
        ((LEVELS, torch.nn.functional.one_hot(LABELS)), {}, "each of the 7 images, found a tensor [7, 12]"),
        ((LEVELS, LABELS - 1), {}, "expected class indexes"),
        ((LEVELS, LABELS + 0.5), {}, "expected class indexes"),
        ((LEVELS, LABELS * float("nan")), {}, "expected class indexes"),
        ((LEVELS.int(), LABELS), {}, "found torch.int32"),
        ((LEVELS[:, :2], LABELS), {}, "1 or 3 channels in one place"),
        ((LEVELS[..., :3], LABELS), {}, "1 or 3 channels in one place"),
        ((LEVELS.to(torch.complex64), LABELS), {"mean": MEAN, "std": STD}, "found torch.complex64"),
        ((torch.empty(1, 1, 1, 1).expand(1, 3, 70_000, 2), LABELS[:1]), {}, "sides of at most 65,000"),
        ((LEVELS, LABELS), {"mean": MEAN, "std": STD}, "leave out --mean and --std"),
        ((LEVELS / 255, LABELS), {"mean": MEAN[:1], "std": STD}, "expected 3 numbers"),
        ((LEVELS / 255, LABELS), {"mean": MEAN, "std": ZEROS}, "--std: expected numbers above 0"),
        ((LEVELS / 255, LABELS), {"mean": (125.3, 123.0, 113.9), "std": (51.6, 50.8, 51.3)}, "by 255"),
        (
            {"images": LEVELS, "labels": LABELS, "made": torch.nn.Linear(1, 1)},
            {},
            "found a pickled torch.nn.modules.linear.Linear",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, options: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path, content, **options)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"hello" * 100])
def test_files_that_are_no_tensors_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.pt").write_bytes(content)
    with pytest.raises(InputError, match="expected nothing but tensors"):
        import_tensors(tmp_path / "data.pt", tmp_path / "out")
    with pytest.raises(InputError, match="no such file"):
        import_tensors(tmp_path / "absent.pt", tmp_path / "out")


def test_the_folder_must_be_absent_or_empty(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run(tmp_path, (LEVELS, LABELS))
    assert_written(tmp_path / "out")
    with pytest.raises(InputError, match="absent or empty"):
        run(tmp_path, (LEVELS, LABELS))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"absent or empty|cannot be written"):
            import_tensors(tmp_path / "data.pt", out)
    assert_written(tmp_path / "out")


def test_one_of_several_experiments(tmp_path: Path) -> None:
    runs = [[LEVELS.flip(0), LABELS], [LEVELS, LABELS], [LEVELS.flip(2), LABELS]]
    report = run(tmp_path, {"data": runs}, index=1)
    assert_written(tmp_path / "out")
    assert report.notes == ("set 1 of 3 is taken: data.1.0",)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (LEVELS, LABELS),
        (torch.nn.Parameter(LEVELS, requires_grad=False), LABELS.reshape(-1, 1).float()),
        ({"images": LEVELS, "lr": 0.01}, {"labels": LABELS}),
        ({"data": LEVELS}, LABELS.tolist()),
    ],
)
def test_images_and_labels_in_two_files(tmp_path: Path, images: Any, labels: Any) -> None:
    torch.save(images, tmp_path / "images_best.pt")
    torch.save(labels, tmp_path / "labels_best.pt")
    with pytest.raises(InputError, match=r"--labels FILE names the file of their labels \(labels_best.pt lies beside"):
        import_tensors(tmp_path / "images_best.pt", tmp_path / "out")
    import_tensors(tmp_path / "images_best.pt", tmp_path / "out", labels=tmp_path / "labels_best.pt")
    assert_written(tmp_path / "out")


def test_soft_labels_of_their_own_file(tmp_path: Path) -> None:
    soft = torch.nn.functional.one_hot(LABELS).float() * 3 + torch.rand(7, 12)  # DATM has logits
    torch.save(LEVELS, tmp_path / "images_best.pt")
    torch.save(soft, tmp_path / "labels_best.pt")
    paths = tmp_path / "images_best.pt", tmp_path / "out"
    with pytest.raises(InputError, match=r"holds soft labels; .* --argmax keeps the class of the largest alone"):
        import_tensors(*paths, labels=tmp_path / "labels_best.pt")
    report = import_tensors(*paths, labels=tmp_path / "labels_best.pt", argmax=True)
    assert_written(tmp_path / "out")
    assert "of the largest of 12 values" in report.notes[0]
    torch.save({"other": LEVELS}, tmp_path / "labels_best.pt")
    with pytest.raises(InputError, match=r"expected labels \[N\], found a dict of other"):
        import_tensors(paths[0], tmp_path / "b", labels=tmp_path / "labels_best.pt")


NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck", "x", "zebra")


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (NAMES, ["airplane", "automobile", "bird", "zebra"]),
        (NAMES[::-1], ["00_zebra", "01_x", "02_truck", "11_airplane"]),
        ([f"class_{index}" for index in range(12)], ["class_0", "class_1", "class_2", "class_11"]),
        ([f"v{index}" for index in (10, 2, 3, *range(20, 28), 4)], ["00_v10", "01_v2", "02_v3", "11_v4"]),
        (["B", "a", *NAMES[2:]], ["B", "a", "bird", "zebra"]),
    ],
)
def test_class_names_keep_the_order_of_the_labels(tmp_path: Path, names: list[str], folders: list[str]) -> None:
    """Byte order of the folders is that of the labels, and so is the order of the numbers in them."""
    if folders[3] == "class_11":  # byte order has it before class_2
        folders = [f"{label:02d}_class_{label}" for label in (0, 1, 2, 11)]
    report = run(tmp_path, (LEVELS, LABELS), class_names=names)
    found = scan(tmp_path / "out")
    assert list(found.classes) == folders
    order = dict(zip(folders, (0, 1, 2, 11), strict=True))
    assert {int(Path(path).stem): order[path.partition("/")[0]] for path in found.names} == dict(
        enumerate(LABELS.tolist())
    )
    assert bool(report.notes) == folders[0].startswith("00_")


def leaves(count: int, seed: int, side: int = 16) -> np.ndarray[Any, Any]:
    """Pictures of overlapping discs of any size, as photographs have edges and areas: ``[n, 3, side, side]`` in 0-1."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    images = np.empty((count, 3, side, side))
    for image in images:
        image[:] = random.random((3, 1, 1))
        for _ in range(14):
            row, column, radius = *random.uniform(-4, side + 4, 2), 1.5 / random.uniform(0.15, 1)
            image[:, (rows - row) ** 2 + (columns - column) ** 2 < radius**2] = random.random((3, 1))
    return images


PICTURES = leaves(1200, 0)
SHIFT, SCALE = (np.array(values).reshape(3, 1, 1) for values in (MEAN, STD))


@functools.cache
def axes_of(normalised: bool) -> tuple[np.ndarray[Any, Any], ...]:
    """The pictures as centred rows, the variances along their principal axes, and these."""
    images = (PICTURES - SHIFT) / SCALE if normalised else PICTURES
    flat = images.reshape(len(images), -1) - images.reshape(len(images), -1).mean(axis=0)
    return flat, *np.linalg.eigh(flat.T @ flat / len(flat))


def zca(normalised: bool, regularisation: float) -> np.ndarray[Any, Any]:
    flat, power, axes = axes_of(normalised)
    whitened = (flat[:40] @ axes / np.sqrt(power.clip(0) + regularisation)) @ axes.T
    return np.asarray(whitened.reshape(40, *PICTURES.shape[1:]))


def set_of(images: np.ndarray[Any, Any], count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(images[:count]).float(), torch.arange(min(count, len(images))) % 10


@pytest.mark.parametrize("regularisation", [0.1, 0.03, 0.01, 1e-3])
@pytest.mark.parametrize("normalised", [False, True])
def test_whitened_images_are_refused_by_name(tmp_path: Path, regularisation: float, normalised: bool) -> None:
    images = zca(normalised, regularisation)
    message = refusal(tmp_path, set_of(images), mean=MEAN, std=STD)
    assert "look whitened (ZCA)" in message
    assert "--normalise per-image (or min-max)" in message
    report = run(tmp_path, set_of(images), normalise="mean-std", mean=MEAN, std=STD)
    assert report.images == 40


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PICTURES, "pixels in [0, 1] that were not normalised; pass --mean 0 0 0 --std 1 1 1"),
        (2 * PICTURES / PICTURES.max() - 1, "pixels in [-1, 1]; pass --mean .5 .5 .5 --std .5 .5 .5"),
        (255 * PICTURES, "they look like levels of 0 to 255: save them as uint8"),
        (PICTURES * [[[1]], [[1]], [[255]]], "would be clipped; they look like levels"),  # one channel of three
    ],
)
def test_another_normalisation_is_refused_by_name(tmp_path: Path, images: Any, message: str) -> None:
    assert message in refusal(tmp_path, set_of(images), mean=MEAN, std=STD)


def test_exchanged_mean_and_deviation_are_refused(tmp_path: Path) -> None:
    images = set_of((PICTURES - SHIFT) / SCALE)
    assert "exchanged they could be right" in refusal(tmp_path, images, mean=STD, std=MEAN)


NOISE = np.random.default_rng(0).standard_normal((40, 3, 16, 16))


@pytest.mark.parametrize(
    "images",
    [
        (PICTURES - SHIFT) / SCALE,
        (PICTURES - SHIFT) / SCALE + 0.5 * np.resize(NOISE, PICTURES.shape),  # optimised for long
        NOISE / 2,
        NOISE,
        1.5 * NOISE,
        NOISE / 2 + 0.7 * (PICTURES[:40] - SHIFT) / SCALE,
        (np.rint(255 * (0.45 + 0.1 * PICTURES)) / 255 - SHIFT) / SCALE,  # pale, but whole levels
    ],
)
def test_photographs_and_synthetic_images_are_not_refused(tmp_path: Path, images: np.ndarray[Any, Any]) -> None:
    assert run(tmp_path, set_of(images), mean=MEAN, std=STD).images == 40


@given(st.integers(0, 999), st.floats(-3, 3), st.floats(0.01, 9))
@settings(deadline=None, max_examples=20)
def test_images_are_stretched(tmp_path_factory: pytest.TempPathFactory, seed: int, shift: float, scale: float) -> None:
    random = np.random.default_rng(seed)
    images = (random.standard_normal((5, 3, 4, 4)) * scale * random.random((5, 1, 1, 1)) + shift).astype(np.float32)
    images[3] = images[3, 0, 0, 0]
    exact = images.astype(np.float64)
    low, high = exact.min(axis=(1, 2, 3), keepdims=True), exact.max(axis=(1, 2, 3), keepdims=True)
    per_image = np.where(high > low, (exact - low) / np.where(high > low, high - low, 1), 0.5) * 255
    together = (exact - exact.min()) / (exact.max() - exact.min()) * 255
    for name, expected in (("per-image", per_image), ("min-max", together)):
        folder = tmp_path_factory.mktemp("import")
        report = run(folder, (torch.from_numpy(images), torch.arange(5)), normalise=name)
        assert report.clipped_share == 0
        for image, (_, pixels) in written(folder / "out").items():
            assert np.abs(pixels.transpose(2, 0, 1) - expected[image]).max() <= 0.5 + 1e-6


def test_class_names_are_a_list_or_the_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("\ufeffcat\n tabby, dog \n\n", encoding="utf-8")
    assert entries(str(tmp_path / "names"), (), "--class-names") == ["cat", "tabby, dog"]
    assert entries("cat, dog", (), "--class-names") == ["cat", "dog"]
    assert entries('cat, "tabby, dog",', (), "--class-names") == ["cat", "tabby, dog", ""]  # none is passed over
    (tmp_path / "names").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"--class-names .*: not a readable text file"):
        entries(str(tmp_path / "names"), (), "--class-names")
