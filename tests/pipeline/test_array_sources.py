"""Arrays as image sets: CIFAR, IDX, tensors and numpy files; their images are canonical PPM files."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from labelstore.errors import InputError
from pipeline.images.cifar import read_plain
from pipeline.images.decodes import require_decodes
from pipeline.images.file_formats import ppm_file, readable
from pipeline.images.headers import BrokenImageError, UnsupportedImageError, read_header
from pipeline.images.manifest import Manifest, scan
from pipeline.images.opening import recognised
from pipeline.images.source_table import ImageOptions
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import make_renderer
from tests.pipeline.packing import idx, python2_names, python2_pickle

CLASSES = ("plane", "car", "bird")
PIXELS = np.random.default_rng(3).integers(0, 256, (5, 32, 32, 3), np.uint8)
LABELS = [2, 0, 1, 0, 2]
ORDER = [1, 3, 2, 0, 4]  # by class, then by number


def planes(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), 3072)


def decoded(manifest: Manifest) -> npt.NDArray[np.uint8]:
    images = (Image.open(io.BytesIO(data)) for data in manifest.read_many(range(len(manifest))))
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def cifar10(folder: Path) -> Path:
    folder.mkdir()
    (folder / "batches.meta").write_bytes(python2_names(CLASSES))
    (folder / "data_batch_1").write_bytes(python2_pickle(planes(PIXELS[:2]), LABELS[:2]))
    (folder / "data_batch_2").write_bytes(python2_pickle(planes(PIXELS[2:]), LABELS[2:]))
    (folder / "test_batch").write_bytes(python2_pickle(planes(PIXELS[:3]), LABELS[:3]))
    (folder / "readme.html").write_text("...")
    return folder


def require_set(found: Manifest, classes: tuple[str, ...] = CLASSES) -> None:
    assert found.classes == classes
    assert found.targets.tolist() == sorted(LABELS)
    np.testing.assert_array_equal(decoded(found), PIXELS[ORDER])
    assert [bytes(data) for data in found.read_many(range(5))] == [ppm_file(PIXELS[image]) for image in ORDER]


# PPM files.


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(0, 9))
def test_a_ppm_is_what_pillow_reads(height: int, width: int, channels: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    data = ppm_file(pixels)
    header = read_header(io.BytesIO(data))
    assert (readable(data), header.kind, header.height, header.width) == ("PPM", "PPM", height, width)
    require_decodes(io.BytesIO(data))
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(data))), pixels.squeeze(2) if channels == 1 else pixels
    )
    theirs = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).save(theirs, "PPM")
    assert theirs.getvalue() == data
    with pytest.raises(BrokenImageError):
        require_decodes(io.BytesIO(data[:-1]))


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (b"P6\n2 2\n65535\n" + bytes(24), UnsupportedImageError),
        (b"P6\n2 2\n15\n" + bytes(24), UnsupportedImageError),
        (b"P6\n99999999999 2\n255\n" + bytes(24), BrokenImageError),
        (b"P6\n70000 2\n255\n" + bytes(24), UnsupportedImageError),
        (b"P6\n0 2\n255\n" + bytes(24), BrokenImageError),
        (b"P6\n2 2 and so on, as in a text", BrokenImageError),
        (b"P6 is a protein, and no image", BrokenImageError),
    ],
)
def test_other_ppms_are_refused(head: bytes, error: type[InputError]) -> None:
    with pytest.raises(error):
        read_header(io.BytesIO(head))


def test_a_ppm_may_have_comments() -> None:
    data = b"P6 # by hand\n2 # wide\n1 # high\n255\n" + bytes(range(6))
    assert (read_header(io.BytesIO(data)).height, read_header(io.BytesIO(data)).width) == (1, 2)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))).ravel(), range(6))


@pytest.mark.parametrize("augmenter", ["pillow", "dali"])
def test_crops_of_a_ppm_are_those_of_the_same_pixels_in_a_png(tmp_path: Path, augmenter: str) -> None:
    (tmp_path / "set/a").mkdir(parents=True)
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"set/a/{number}.png")
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.zeros(5, np.int64))
    spec = PlanSpec(size=16, mix="cutmix", group=5)
    for cache_bytes in (1 << 30, 0):
        crops = []
        for path in (tmp_path / "set", tmp_path / "a.npz"):
            found = scan(path, options=ImageOptions(class_names="a") if path.suffix else None)
            renderer = make_renderer(found, spec, threads=2, cache_bytes=cache_bytes, augmenter=augmenter)
            crops.append(renderer.render(Plan(spec, found.heights, found.widths).rows(0, 0, 5)))
            renderer.close()
        assert torch.equal(*crops)


# CIFAR.


def test_cifars_python_files_are_read_without_unpickling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cifar10(tmp_path / "cifar-10-batches-py")
    names = pickle.loads(python2_names(CLASSES), encoding="bytes")  # noqa: S301  the oracle
    assert names == {b"label_names": [n.encode() for n in CLASSES]}
    batch = pickle.loads((folder / "data_batch_1").read_bytes(), encoding="bytes")  # noqa: S301
    np.testing.assert_array_equal(batch[b"data"], planes(PIXELS[:2]))
    monkeypatch.setattr(pickle, "load", None)
    monkeypatch.setattr(pickle, "loads", None)
    with pytest.raises(InputError, match=r"expected one split, found test and train.*/train \(or /test\)"):
        scan(folder)
    require_set(scan(folder / "train"))
    assert len(scan(folder / "test")) == 3
    with pytest.raises(InputError, match="found none of 'car'"):
        scan(folder / "data_batch_1")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
    require_set(scan(tmp_path / "cifar-10-python.tar.gz/train"))
    assert (
        recognised(tmp_path / "cifar-10-python.tar.gz") == recognised(folder) == recognised(folder / "train") == "cifar"
    )


def test_cifars_binary_files_are_the_same_images(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rows = planes(PIXELS)
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")
    (folder / "data_batch_1.bin").write_bytes(
        b"".join(bytes([y]) + row.tobytes() for y, row in zip(LABELS, rows, strict=True))
    )
    require_set(scan(folder))
    assert scan(folder).digest == scan(cifar10(tmp_path / "cifar-10-batches-py") / "train").digest
    hundred = tmp_path / "cifar-100-binary"
    hundred.mkdir()
    (hundred / "fine_label_names.txt").write_text("\n".join(CLASSES))
    (hundred / "train.bin").write_bytes(
        b"".join(bytes([9, y]) + row.tobytes() for y, row in zip(LABELS, rows, strict=True))
    )
    require_set(scan(hundred / "train.bin"))
    (hundred / "train.bin").write_bytes((hundred / "train.bin").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"train\.bin: expected records of 3074 bytes"):
        scan(hundred)


def test_cifar_100_has_its_fine_classes(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "meta").write_bytes(python2_names(CLASSES, b"fine_label_names"))
    (folder / "train").write_bytes(python2_pickle(planes(PIXELS), LABELS, b"fine_labels"))
    require_set(scan(folder / "train"))


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "data_batch_7.bin"])
def test_a_file_of_cifar_alone_is_recognised(tmp_path: Path, name: str) -> None:
    rows = b"".join(bytes([y]) + row.tobytes() for y, row in zip(LABELS, planes(PIXELS), strict=True))
    (tmp_path / "set").mkdir()
    file = tmp_path / "set" / name
    file.write_bytes(rows if name.endswith(".bin") else python2_pickle(planes(PIXELS), LABELS))
    for path in (file, file.parent):
        assert recognised(path) == "cifar"
        require_set(scan(path), ("00", "01", "02"))
        require_set(scan(path, options=ImageOptions(class_names=",".join(CLASSES))))
    (tmp_path / "set" / "a").mkdir()  # a class folder with a file of that name in it is one
    assert (recognised(file), recognised(file.parent)) == ("cifar", "class-folder")


EXECUTED: list[int] = []


def executed(number: int) -> int:
    EXECUTED.append(number)
    return number


class Evil:
    def __reduce__(self) -> tuple[object, tuple[int]]:
        return executed, (1,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_pickle_of_anything_else_is_refused(protocol: int) -> None:
    for held in ({"data": Evil()}, Evil(), [1], {"data": 1.5}, {"data": {1, 2}}):
        with pytest.raises(InputError, match="nothing in it was executed"):
            read_plain(pickle.dumps(held, protocol), "file")
    assert EXECUTED == []


@settings(deadline=None)
@given(st.data())
def test_a_damaged_batch_is_refused_or_read(data: st.DataObject) -> None:
    raw = bytearray(python2_pickle(planes(PIXELS[:1]), [1]))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.sampled_from([len(raw), 100, 150, 2000]))]
    with suppress(InputError):  # and nothing else
        assert isinstance(read_plain(bytes(raw), "file"), dict)


# IDX.


def test_idx_files_are_read_with_their_labels(tmp_path: Path) -> None:
    grey = PIXELS[..., 0]
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(grey))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array(LABELS, np.uint8))))
    found = scan(tmp_path, options=ImageOptions(class_names=",".join(CLASSES)))
    np.testing.assert_array_equal(decoded(found), np.repeat(grey[ORDER][..., None], 3, 3))
    assert (found.classes, scan(tmp_path).classes) == (CLASSES, ("00", "01", "02"))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(grey)))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array(LABELS, np.uint8)))
    with pytest.raises(
        InputError, match=r"expected one IDX file of images, found 't10k-.*', 'train-.*--images .*/train-"
    ):
        scan(tmp_path)
    packed = scan(tmp_path / "t10k-images-idx3-ubyte.gz", options=ImageOptions(class_names=",".join(CLASSES)))
    assert packed.digest == found.digest


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (idx(PIXELS[..., 0])[:-1], idx(np.array(LABELS, np.uint8)), "it is truncated"),
        (idx(PIXELS[..., 0]) + b"\0", idx(np.array(LABELS, np.uint8)), "found more after them"),
        (idx(PIXELS[..., 0]), idx(np.array(LABELS[:4], np.uint8)), "a class for each of the 5 images"),
        (idx(PIXELS[..., 0])[:10], idx(np.array(LABELS, np.uint8)), "ends within its header"),
        (b"\0\0\x0d\3" + bytes(40), idx(np.array(LABELS, np.uint8)), "expected an IDX file of bytes"),
        (idx(PIXELS[:, :, :, :2]), idx(np.array(LABELS, np.uint8)), "expected images"),
        (
            struct.pack(">BBBB3I", 0, 0, 8, 3, 1 << 31, 1 << 31, 1 << 31),
            idx(np.array(LABELS, np.uint8)),
            "truncated|declares",
        ),
        (idx(PIXELS[..., 0]), b"", "expected an IDX file of bytes"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_wrong_with_idx_files_is_named(
    tmp_path: Path, images: bytes, labels: bytes, said: str, packed: bool
) -> None:
    end = ".gz" if packed else ""
    name = "images-idx4-ubyte" if images[3:4] == b"\4" else "images-idx3-ubyte"
    (tmp_path / f"{name}{end}").write_bytes(gzip.compress(images) if packed else images)
    (tmp_path / f"labels-idx1-ubyte{end}").write_bytes(gzip.compress(labels) if packed else labels)
    with pytest.raises(InputError, match=said):
        scan(tmp_path / f"{name}{end}")
    (tmp_path / f"labels-idx1-ubyte{end}").unlink()
    with pytest.raises(InputError, match="expected its labels in labels-idx1-ubyte beside it"):
        scan(tmp_path / f"{name}{end}")


# Tensors and arrays.


def test_tensor_and_numpy_files_are_one_set(tmp_path: Path) -> None:
    images, labels = torch.from_numpy(PIXELS), torch.tensor(LABELS)
    torch.save({"images": images.permute(0, 3, 1, 2), "labels": labels}, tmp_path / "a.pt")
    np.savez(tmp_path / "b.npz", images=PIXELS, labels=np.array(LABELS))
    np.savez(
        tmp_path / "c.npz", x_train=PIXELS, y_train=np.array(LABELS)[:, None], x_test=PIXELS[:1], y_test=LABELS[:1]
    )
    np.save(tmp_path / "d_images.npy", PIXELS)
    np.save(tmp_path / "d_labels.npy", np.array(LABELS))
    options = ImageOptions(class_names=",".join(CLASSES))
    digests = set()
    for path in ("a.pt", "b.npz", "c.npz/train", "d_images.npy"):
        assert recognised(tmp_path / path) == "tensors"
        found = scan(tmp_path / path, options=options)
        require_set(found)
        digests.add(found.digest)
    assert len(digests) == 1
    with pytest.raises(
        InputError, match=r"expected one set of images, found 2.*give one split: --images .*c\.npz/train"
    ):
        scan(tmp_path / "c.npz")
    with pytest.raises(InputError, match="expected a split val, found"):
        scan(tmp_path / "c.npz/val")


def test_grey_arrays_have_one_channel(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=PIXELS[..., 0], y=np.array(LABELS))
    grey, labels = torch.from_numpy(PIXELS[..., 0].copy()), torch.tensor(LABELS)
    torch.save({"train": (grey, labels)}, tmp_path / "b.pt")
    safetensors.torch.save_file({"images": grey, "labels": labels}, tmp_path / "c.safetensors")
    for name in ("a.npz", "b.pt", "c.safetensors"):
        np.testing.assert_array_equal(decoded(scan(tmp_path / name)), np.repeat(PIXELS[ORDER][..., :1], 3, 3))


def test_what_needs_a_choice_is_left_to_import(tmp_path: Path) -> None:
    torch.save({"images": torch.rand(5, 3, 4, 4), "labels": torch.tensor(LABELS)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"expected uint8 images, found torch\.float32.*`giftwrap import .* --mean M"):
        scan(tmp_path / "a.pt")
    torch.save({"images": torch.from_numpy(PIXELS), "labels": torch.rand(5, 3)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"soft labels.*`giftwrap import .* --argmax` reads it"):
        scan(tmp_path / "a.pt")
    np.save(tmp_path / "a.npy", PIXELS)
    with pytest.raises(InputError, match=r"NAME_labels\.npy beside it; or `giftwrap import"):
        scan(tmp_path / "a.npy")
    np.savez(tmp_path / "b.npz", images=np.array([Evil()], object), labels=[0])
    with pytest.raises(InputError, match="expected arrays of numbers"):
        scan(tmp_path / "b.npz")
    (tmp_path / "b.npz").write_bytes((tmp_path / "b.npz").read_bytes()[:-30])
    with pytest.raises(InputError, match="expected arrays of numbers"):
        scan(tmp_path / "b.npz")


def test_an_array_that_changes_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(PIXELS[..., 0]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array(LABELS, np.uint8)))
    found = scan(tmp_path)
    before = found.stamp(0)
    with (tmp_path / "train-images-idx3-ubyte").open("ab") as file:
        file.write(b"\0")
    assert found.stamp(0) != before
