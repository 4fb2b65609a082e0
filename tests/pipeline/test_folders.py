"""Folders as people have them: files of all kinds and names, leftovers of systems, numbers in names, Unicode forms."""

from __future__ import annotations

import io
import os
import re
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from labelstore.command.names import natural_key, printable, same_form, told_apart
from labelstore.errors import InputError, MismatchError
from pipeline.images.class_folder import order_classes
from pipeline.images.file_formats import readable
from pipeline.images.headers import read_header
from pipeline.images.kinds import IMAGES, other_kind
from pipeline.images.left_out import left_out_kind
from pipeline.images.manifest import Manifest, explained, require_same_images, scan, with_classes, with_order
from pipeline.images.remarks import is_split, splits_warning
from pipeline.replay.source import scan_as

READ = ("JPEG", "PNG", "WEBP", "PPM")


def encoded(kind: str, colour: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (colour, 255 - colour, 7)).save(file, format=kind)
    return file.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


# Files.


@settings(deadline=None)  # a busy machine
@given(
    st.lists(
        st.tuples(
            st.sampled_from(READ),
            st.sampled_from(["", ".jfif", ".jpe", ".PJPEG", ".JPG", ".png", ".txt", ".gif", ".jpg!d", ".bak", ".Png"]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_images_are_known_by_their_bytes_in_image_folders_order(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, str]]
) -> None:
    root = tmp_path_factory.mktemp("any")
    for number, (kind, suffix) in enumerate(files):
        put(root / ("b" if number % 2 else "a") / f"{number}{suffix}", encoded(kind, number))
    put(root / "b" / "last", encoded("PNG", 99))
    put(root / "a" / "notes.txt", b"no image")
    oracle = ImageFolder(str(root), is_valid_file=lambda path: not path.endswith("notes.txt")) if len(files) else None
    found = scan(root)
    assert oracle is not None
    assert [(found.place(i), int(found.targets[i])) for i in range(len(found))] == oracle.samples
    assert found.left_out.counts() == {"text": 1}


OTHER_IMAGES = {
    "BMP": lambda: encoded("BMP"),
    "GIF": lambda: encoded("GIF"),
    "TIFF": lambda: encoded("TIFF"),
    "PNM": lambda: b"P3\n1 1\n255\n1 2 3\n",
    "JPEG 2000": lambda: encoded("JPEG2000"),
    "AVIF": lambda: b"\0\0\0\x20ftypavif\0\0\0\0avifmif1",
    "HEIC": lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "JPEG XL": lambda: b"\xff\x0a\x00\x10",
    "icon": lambda: encoded("ICO"),
    "PCX": lambda: encoded("PCX"),
    "DDS": lambda: encoded("DDS"),
    "SGI": lambda: encoded("SGI"),
    "SVG": lambda: b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("kind", OTHER_IMAGES)
@pytest.mark.parametrize("name", ["x", "x.dat", "x.Tif"])
def test_other_images_are_counted_by_kind_in_a_warning(tmp_path: Path, kind: str, name: str) -> None:
    put(tmp_path / "a" / "0.png", encoded("PNG"))
    put(tmp_path / "a" / name, OTHER_IMAGES[kind]())
    found = scan(tmp_path)
    assert kind in IMAGES
    assert (len(found), found.left_out.counts()) == (1, {kind: 1})
    assert found.left_out.warnings == (f"not read, since only JPEG, PNG, WebP and PPM are: 1 {kind} (a/{name})",)
    assert found.left_out.line is None


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "HEIC", "AVIF", "JPEG XL"])
def test_another_image_under_an_images_name_is_an_error_that_names_its_kind(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "a" / "0.png", encoded("PNG"))
    put(tmp_path / "a" / "1.jpg", OTHER_IMAGES[kind]())
    with pytest.raises(InputError, match=rf"a/1\.jpg: expected a JPEG, PNG, WebP or PPM file.*{kind}"):
        scan(tmp_path)
    assert scan(tmp_path, skip_broken=True).skipped == ("a/1.jpg",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><title>404</title>", "as HTML does"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PK\3\4rest", "as archive does"),
        (b"hello", "content that begins with b'hello'$"),
    ],
)
def test_what_is_no_image_under_an_images_name_is_an_error(tmp_path: Path, data: bytes, message: str) -> None:
    put(tmp_path / "a" / "x.JFIF", data)
    with pytest.raises(InputError, match=re.compile(message, re.MULTILINE)):
        scan(tmp_path)


def test_every_file_that_is_not_read_is_counted_in_one_line(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png", encoded("PNG"))
    put(tmp_path / "loose.jpg", encoded("JPEG"))
    put(tmp_path / "loose", encoded("JPEG"))
    for path, data in {
        "labels.csv": b"a,b\n",
        "a/readme.TXT": "ü".encode(),
        "a/more/notes": "é".encode() * 400,
        "a/meta.json": b'{"a": 1}',
        "a/page.html": b"<html>",
        "a/x.zip": b"PK\3\4....",
        "a/x.npy": b"\x93NUMPY\1\0",
        "a/x.bin": bytes(range(256)),
        "a/nothing": b"",
        "a/.hidden.png": encoded("PNG"),
        "a/._0.png": b"\0\5\x16\7",
        "a/.DS_Store": b"\0\0\0\1Bud1",
        "a/Thumbs.db": b"\xd0\xcf\x11\xe0",
        "a/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg": encoded("JPEG"),
        "@eaDir/x.jpg": encoded("JPEG"),
        "a/__MACOSX/._0.png": b"",
    }.items():
        put(tmp_path / path, data)
    os.mkfifo(tmp_path / "a" / "pipe")
    found = scan(tmp_path)
    assert list(found.names) == ["a/0.png"]
    assert found.left_out.counts() == {
        "image": 2, ".DS_Store": 1, "._*": 1, "@eaDir": 2, "HTML": 1, "JSON": 1, "NumPy": 1, "Thumbs.db": 1,
        "__MACOSX": 1, "archive": 1, "empty": 1, "hidden": 1, "no regular file": 1, "text": 3, "unknown": 1,
    }  # fmt: skip
    assert found.left_out.warnings == ("2 image files lie beside the class folders, in no class, and not read: loose",)
    line = found.left_out.line
    assert line is not None
    assert line.startswith("left out: 3 text (a/more/notes), 2 @eaDir (@eaDir), 1 ")
    assert "\n" not in line


@pytest.mark.parametrize(
    "name",
    ["@eaDir", ".thumbnails", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", "#recycle",
     ".AppleDouble", "@Recently-Snapshot", ".ipynb_checkpoints", "__pycache__", ".git", "@EADIR", "found.000"],
)  # fmt: skip
def test_folders_of_systems_are_neither_classes_nor_inside_them(tmp_path: Path, name: str) -> None:
    for path in ("a/0.png", f"{name}/1.png", f"a/{name}/2.png", f"a/b/{name}/c/3.png"):
        put(tmp_path / path, encoded("PNG"))
    found = scan(tmp_path)
    assert (list(found.names), found.classes) == (["a/0.png"], ("a",))
    assert sum(found.left_out.counts().values()) == 3
    assert name in str(found.left_out.line)


@pytest.mark.parametrize(
    "name", ["thumbs", "recycled", "@home", "#1", "$5", "lost", "found", "found.0001", "git", "~", "_"]
)
def test_names_that_only_resemble_those_of_systems_are_read(name: str) -> None:
    assert left_out_kind(name) is None


def test_an_empty_class_says_what_lies_in_it(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png", encoded("PNG"))
    put(tmp_path / "b" / "0.gif", encoded("GIF"))
    with pytest.raises(InputError, match=r"found none in 'b'.*1 GIF \(b/0\.gif\)"):
        scan(tmp_path)
    (tmp_path / "b" / "0.gif").unlink()
    with pytest.raises(InputError, match="found none in 'b'"):
        scan(tmp_path)


@settings(deadline=None)  # a busy machine
@given(st.one_of(st.binary(max_size=600), st.sampled_from([encoded(kind) for kind in READ])), st.integers(0, 40))
def test_the_listing_and_the_header_agree_on_what_an_image_is(data: bytes, cut: int) -> None:
    data = data[cut:] if cut < 20 else data
    try:
        kind: str | None = read_header(io.BytesIO(data)).kind
    except InputError as error:
        kind = None if "expected a JPEG, PNG, WebP or PPM file" in str(error) else "damaged"
    assert (readable(data[:512]) is None) == (kind is None)
    assert isinstance(other_kind(data[:512], "x.bin"), str)


def test_a_store_of_a_version_that_knew_suffixes_is_told_of_them(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png", encoded("PNG"))
    before = scan(tmp_path)
    put(tmp_path / "a" / "1.jfif", encoded("JPEG"))
    assert "1 of these are not named .jpg, .jpeg, .png, .webp, as a/1.jfif" in explained(len(before), scan(tmp_path))
    (tmp_path / "a" / "1.jfif").unlink()
    put(tmp_path / "a" / "@eaDir" / "1.jpg", encoded("JPEG"))
    assert "1 @eaDir (a/@eaDir)" in explained(len(before) + 1, scan(tmp_path))
    assert explained(len(before), scan(tmp_path)) == ""


# Numbers in names.


def by_value(name: str) -> list[tuple[int, int]]:
    """The order by its words: character by character, but a number where digits begin."""
    key, rest = [], name
    while rest:
        digits = re.match(r"\d+", rest)
        key.append(
            (ord("0"), int("".join(str(unicodedata.decimal(c)) for c in digits[0]))) if digits else (ord(rest[0]), 0)
        )
        rest = rest[len(digits[0]) if digits else 1 :]
    return key


NAMES = st.text(st.sampled_from("ab-_ 0129é\u0663"), min_size=1, max_size=6)


@settings(deadline=None)  # a busy machine
@given(st.lists(NAMES, min_size=1, max_size=8, unique=True))
def test_natural_order(names: list[str]) -> None:
    by_bytes = sorted(names, key=str.encode)
    natural = sorted(sorted(names), key=by_value)
    assert order_classes(names, "bytes") == by_bytes
    assert order_classes(names, "numeric") == natural
    if natural == by_bytes:
        assert order_classes(names, "auto") == by_bytes
    else:
        with pytest.raises(InputError, match=r"--class-order bytes .* or --class-order numeric"):
            order_classes(names, "auto")


@settings(deadline=None)  # a busy machine
@given(
    st.lists(st.integers(0, 999), min_size=1, max_size=8, unique=True), st.sampled_from(["class_{}", "{}_cat", "a-{}b"])
)
def test_numbers_around_one_text_sort_as_numbers(numbers: list[int], pattern: str) -> None:
    names = [pattern.format(number) for number in numbers]
    assert order_classes(names, "numeric") == [pattern.format(number) for number in sorted(numbers)]
    padded = [pattern.format(f"{number:03d}") for number in numbers]
    assert order_classes(padded, "auto") == sorted(padded)


def test_names_without_such_numbers_ask_nothing() -> None:
    for names in (
        ["n01440764", "n02102040"],
        ["a-b", "a1", "a"],
        ["B", "a"],
        ["x1", "y10", "z2"],
        ["01", "1"],
        ["img\u0661", "img\u0662"],
    ):
        assert order_classes(names, "auto") == sorted(names) == order_classes(names, "numeric")
    assert natural_key("9" * 255)


@pytest.mark.parametrize("order", ["bytes", "numeric"])
def test_a_store_tells_the_order_of_its_classes(tmp_path: Path, order: Any) -> None:
    for number in (1, 2, 10):
        put(tmp_path / f"class_{number}" / "0.png", encoded("PNG", number))
    with pytest.raises(InputError, match=r"'class_1', 'class_10', 'class_2'.*'class_1', 'class_2', 'class_10'"):
        scan(tmp_path)
    stored = scan(tmp_path, class_order=order)
    found = scan_as(tmp_path, stored.classes)
    assert (found.classes, found.digest) == (stored.classes, stored.digest)
    mixed = stored.classes[::-1]
    assert scan_as(tmp_path, mixed).classes == mixed
    assert [found.classes[t] for t in found.targets] == [path.split("/")[0] for path in found.names]


# Unicode forms.


ACCENTS = st.text(st.sampled_from("aezéüñå가"), min_size=1, max_size=4)


@settings(deadline=None)  # a busy machine
@given(st.lists(ACCENTS, min_size=1, max_size=4, unique=True), st.lists(ACCENTS, min_size=1, max_size=4, unique=True))
def test_a_folder_in_the_other_unicode_form_is_the_same_set(
    tmp_path_factory: pytest.TempPathFactory, classes: list[str], files: list[str]
) -> None:
    root = tmp_path_factory.mktemp("forms")
    for number, (name, file) in enumerate((name, file) for name in classes for file in files):
        data = encoded("PNG", number)
        put(root / "composed" / name / f"{file}.png", data)
        put(root / "split" / nfd(name) / f"{nfd(file)}.png", data)
    composed, split = scan(root / "composed"), scan(root / "split")
    for stored, other in ((composed, split), (split, composed)):
        found = with_order(stored.digests, scan_as(Path(other.location), stored.classes))
        assert found.classes == stored.classes
        assert found.digest == stored.digest
        assert np.array_equal(found.digests, stored.digests)
        assert np.array_equal(found.targets, stored.targets)


def test_other_files_are_not_put_in_order(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / "é" / f"{number}.png", encoded("PNG", number))
    found = scan(tmp_path)
    assert with_order(found.digests[::-1], found) is found
    assert with_classes(("é", "b"), found) is found
    assert with_classes(("b",), found) is found


def test_one_name_in_two_forms_side_by_side_is_refused(tmp_path: Path) -> None:
    for name in ("é", nfd("é")):
        put(tmp_path / name / "0.png", encoded("PNG"))
    with pytest.raises(InputError, match=r"one name in two Unicode forms.*U\+0065 U\+0301.*U\+00E9"):
        scan(tmp_path)


def test_left_out_files_are_found_in_the_other_form(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png", encoded("PNG"))
    put(tmp_path / "a" / nfd("é.png"), encoded("PNG", 1))
    assert list(scan(tmp_path, leave_out=["a/é.png"]).names) == ["a/0.png"]
    put(tmp_path / "a" / "é.png", b"broken")
    assert list(scan(tmp_path, leave_out=["a/é.png"]).names) == ["a/0.png", f"a/{nfd('é.png')}"]


@settings(deadline=None)  # a busy machine
@given(st.text(max_size=20), st.text(max_size=20))
def test_names_are_told_apart(ours: str, theirs: str) -> None:
    left, right = told_apart(ours, theirs)
    assert (left == right) == (ours == theirs)
    assert left.isprintable()
    assert right.isprintable()
    if ours != theirs and not (ours.isascii() and theirs.isascii()):
        assert "at character" in left
    assert (same_form(ours) == same_form(theirs)) == (
        unicodedata.normalize("NFC", ours) == unicodedata.normalize("NFC", theirs)
    )


@settings(deadline=None)  # a busy machine
@given(st.text(max_size=30))
def test_printable_text_breaks_nothing_and_loses_nothing(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(text, keep="\n").split("\n") == [printable(line) for line in text.split("\n")]
    plain = text.replace("\\", "")
    assert printable(plain).encode("ascii", "backslashreplace").decode("unicode_escape") == plain


def test_wild_names_are_printed_escaped(tmp_path: Path) -> None:
    put(tmp_path / "a\x1b[31m\n" / "0.png", encoded("PNG"))
    put(tmp_path / "a\x1b[31m\n" / "1\r\u202e\u200b.jpg", b"no image")
    put(tmp_path / "a\x1b[31m\n" / "2\n.gif", encoded("GIF"))
    with pytest.raises(InputError) as caught:
        scan(tmp_path)
    assert str(caught.value).count("\n") == 1
    assert r"a\x1b[31m\n/1\r\u202e\u200b.jpg: expected" in str(caught.value)
    found = scan(tmp_path, skip_broken=True)
    assert found.left_out.warnings[0].endswith(r"1 GIF (a\x1b[31m\n/2\n.gif)")
    with pytest.raises(InputError) as caught:
        scan(tmp_path / "no\x1bfolder")
    assert str(caught.value).isprintable()


# Splits.


def split_of(root: Path, *paths: str) -> Manifest:
    for path in paths:
        put(root / path, encoded("PNG"))
    return scan(root, class_order="bytes")


@pytest.mark.parametrize(
    ("paths", "give"),
    [
        (("train/a/0.png", "train/b/0.png", "val/a/0.png"), "train"),
        (("Training/a/0.png", "Testing/a/0.png"), "Training"),
        (("test/a/0.png", "validation/a/0.png"), "test"),
        (("train2017/a/0.png", "val2017/a/0.png"), "train2017"),
        (("train/a/0.png", "val/a/0.png", "extra/0.png"), "train"),
        (("images/a/0.png", "images/b/0.png"), "images"),
        (("set/images/a/0.png", "set/images/b/x/0.png"), "set/images"),
        (("train/a/0.png", "train/b/0.png"), "train"),
    ],
)
def test_a_parent_of_class_folders_is_warned_of_with_the_path_to_give(
    tmp_path: Path, paths: tuple[str, ...], give: str
) -> None:
    warning = splits_warning(split_of(tmp_path, *paths))
    assert warning is not None
    assert warning.endswith(f"--images {tmp_path}/{give}")


def test_splits_without_class_folders_are_warned_of(tmp_path: Path) -> None:
    warning = splits_warning(split_of(tmp_path, "train/0.png", "test/0.png", "unlabelled/0.png"))
    assert warning is not None
    assert "without class folders" in warning


@pytest.mark.parametrize(
    "paths",
    [
        ("train/0.png", "car/0.png", "bus/0.png"),
        ("a/x/0.png", "b/y/0.png"),
        ("only/0.png",),
        ("only/a/0.png", "only/1.png"),
        ("only/a/0.png", "only/a/b/1.png"),
        ("training wheels/a/0.png", "tester/a/0.png"),
    ],
)
def test_classes_are_not_taken_for_splits(tmp_path: Path, paths: tuple[str, ...]) -> None:
    assert splits_warning(split_of(tmp_path, *paths)) is None


@pytest.mark.parametrize("name", ["train", "VAL", "test_images", "train2017", "valid", "dev-set", "Test Set"])
def test_names_of_splits(name: str) -> None:
    assert is_split(name)


def test_other_sets_are_told_apart_by_code_points(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png", encoded("PNG"))
    latin = scan(tmp_path)
    (tmp_path / "a").rename(tmp_path / "\u0430")
    cyrillic = scan_as(tmp_path, latin.classes)
    identity: Any = SimpleNamespace(classes=latin.classes, images=1, manifest=latin.digest)
    with pytest.raises(MismatchError, match=r"\(U\+0061 at character 1\).*\(U\+0430 at character 1\)"):
        require_same_images(identity, latin.digests, latin.targets, cyrillic)


def test_links_without_a_suffix_are_refused_too(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png", encoded("PNG"))
    (tmp_path / "a" / "gone").symlink_to("nowhere")
    with pytest.raises(InputError, match="cannot be reached"):
        scan(tmp_path)
