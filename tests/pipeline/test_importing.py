"""Tensor files become class folders: pixels come back exactly, and what cannot be imported is refused by name."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from labelstore.errors import InputError
from pipeline.importing import ImportReport, import_tensors
from pipeline.manifest import scan

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
    ],
)
def test_layouts_of_published_files(tmp_path: Path, content: Any) -> None:
    report = run(tmp_path, content)
    assert_written(tmp_path / "out")
    assert report == ImportReport(7, 4, 5, 6, max_rounding_error=0.0, clipped_share=0.0)


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
    assert list(found.paths[:2]) == ["000/119.png", "001/118.png"]


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
    assert report.max_rounding_error == np.abs(exact - rounded)[~clipped].max(initial=0)


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
        (LEVELS / 255, "values lie in [0, 1]), pass --mean 0 0 0 --std 1 1 1"),
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
        ({"pictures": LEVELS, "labels": LABELS}, {}, "found a dict of pictures, labels"),
        ({"a": (LEVELS, LABELS), "b": (LEVELS, LABELS)}, {}, "found 2 (a.0, b.0)"),
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
        (
            {"images": LEVELS, "labels": LABELS, "made": Path("x")},
            {},
            "found a pathlib.PosixPath, which only code could make",
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
