"""The manifest against torchvision's ImageFolder, its cache, its refusals, and the comparison with a store."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from labelstore.errors import InputError, MismatchError
from labelstore.spec import BlockShape, Identity
from pipeline.images import manifest as manifest_module
from pipeline.images import manifest_cache as cache_module
from pipeline.images.class_folder import SUFFIXES, ClassFolder, order_classes
from pipeline.images.decodes import require_decodes
from pipeline.images.manifest import Manifest, require_same_images, scan
from tests.pipeline.damaged import encoded, one_frame, png_chunk


def write(path: Path, colour: int = 0, size: tuple[int, int] = (6, 4), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 255 - colour, 7)).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, five images of all kinds."""
    root = tmp_path / "images"
    for colour, path in enumerate(("b/2.png", "b/1.webp", "a-b/x.jpg", "a/z.JPEG", "a/y.PNG")):
        write(root / path, colour, lossless=True)
    return root


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read, by relative path."""
    read: list[str] = []
    real = ClassFolder.open

    def spy(source: ClassFolder, image: int) -> object:
        read.append("/".join(source.listing.names[image].split("/")[-2:]))
        return real(source, image)

    monkeypatch.setattr(ClassFolder, "open", spy)
    return read


def test_columns_and_digests(folder: Path) -> None:
    found = scan(folder)
    assert list(found.names) == ["a/y.PNG", "a/z.JPEG", "a-b/x.jpg", "b/1.webp", "b/2.png"]
    assert found.classes == ("a", "a-b", "b")
    assert found.targets.tolist() == [0, 0, 1, 2, 2]
    assert found.heights.tolist() == [4] * 5
    assert found.widths.tolist() == [6] * 5
    kinds: list[np.dtype] = [found.targets.dtype, found.heights.dtype, found.digests.dtype]
    assert kinds == [np.int64, np.int32, np.uint8]
    whole = hashlib.sha256()
    for image in range(len(found)):
        digest = hashlib.sha256(Path(found.place(image)).read_bytes()).digest()
        assert found.digests[image].tobytes() == digest
        name = found.classes[found.targets[image]].encode()
        whole.update(struct.pack("<I", len(name)) + name + digest)
    assert found.digest == whole.hexdigest()


def test_order_is_that_of_image_folder(tmp_path: Path) -> None:
    names = ("n1", "n1-x", "n10", "N2", "é", "z")
    inside = ("9.png", "10.png", "B.jpg", "a.PNG", "sub/0.png", "sub-2/0.webp", "sub/deep/1.jpeg", "sub2/ü.png")
    for colour, path in enumerate(f"{name}/{file}" for name in names for file in inside):
        write(tmp_path / path, colour)
    (tmp_path / "z" / "notes.txt").write_text("no image")
    oracle = ImageFolder(str(tmp_path), is_valid_file=lambda path: path.lower().endswith(SUFFIXES))
    found = scan(tmp_path)
    assert list(found.classes) == oracle.classes
    assert [(found.place(i), int(found.targets[i])) for i in range(len(found))] == oracle.samples


def test_moving_the_folder_keeps_the_digest_and_renaming_a_class_does_not(folder: Path) -> None:
    before = scan(folder).digest
    moved = folder.rename(folder.with_name("moved"))
    assert scan(moved).digest == before
    (moved / "b").rename(moved / "c")
    assert scan(moved).digest != before


def test_sizes_are_those_after_orientation(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write(folder / "a" / "turned.jpg", exif=exif)
    found = scan(folder)
    turned = list(found.names).index("a/turned.jpg")
    assert (found.heights[turned], found.widths[turned]) == (6, 4)


@given(st.lists(st.integers(0, 10**6).map(str), min_size=1, max_size=8, unique=True))
def test_integer_classes(names: list[str]) -> None:
    by_bytes = sorted(names, key=str.encode)
    by_number = sorted(names, key=int)
    assert order_classes(names, "bytes") == by_bytes
    assert order_classes(names, "numeric") == by_number
    if by_bytes == by_number:
        assert order_classes(names, "auto") == by_bytes
    else:
        with pytest.raises(InputError, match=r"--class-order bytes .* or --class-order numeric"):
            order_classes(names, "auto")


def test_numeric_order_of_a_folder(tmp_path: Path) -> None:
    for colour, name in enumerate(("2", "10")):
        write(tmp_path / name / "x.png", colour)
    with pytest.raises(InputError, match=r"'10', '2'.*'2', '10'"):
        scan(tmp_path)
    assert scan(tmp_path, class_order="bytes").classes == ("10", "2")
    assert scan(tmp_path, class_order="numeric").classes == ("2", "10")
    write(tmp_path / "dog" / "x.png")
    with pytest.raises(InputError, match=r"'10', '2', 'dog'.*'2', '10', 'dog'"):
        scan(tmp_path)
    assert scan(tmp_path, class_order="numeric").classes == ("2", "10", "dog")


def test_links_inside_are_followed(folder: Path) -> None:
    (folder / "c").symlink_to(folder / "b")
    (folder / "a" / "again.png").symlink_to("y.PNG")
    (folder / "a" / "more").symlink_to("../a-b")
    found = scan(folder)
    assert found.classes == ("a", "a-b", "b", "c")
    assert list(found.names[:4]) == ["a/again.png", "a/y.PNG", "a/z.JPEG", "a/more/x.jpg"]
    assert scan(Path(os.path.relpath(folder))).digest == found.digest


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("a/out.png", "../../outside.png", "out.png: this symbolic link leads out of"),
        ("a/out", "../..", "leads out of"),
        ("out", "..", "leads out of"),
        ("a/near", "../../images-2", "leads out of"),
        ("a/gone.png", "nowhere.png", "gone.png: cannot be reached"),
        ("gone", "nowhere", "gone: cannot be reached"),
        ("a/loop", "..", "leads back to"),
        ("a/self", "self", "self: cannot be reached"),
        ("a/down", "../b", "leads back to"),
    ],
)
def test_links_that_are_refused(folder: Path, link: str, target: str, message: str) -> None:
    write(folder.parent / "outside.png")
    write(folder.parent / "images-2" / "x.png")
    (folder / "b" / "back").symlink_to("../a")
    (folder / link).symlink_to(target)
    if link != "a/down":
        (folder / "b" / "back").unlink()
    with pytest.raises(InputError, match=message):
        scan(folder)


def make_pipe(root: Path) -> None:
    os.mkfifo(root / "a" / "pipe.png")


def make_bad_name(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root / "a") + b"/\xff.png")).write_bytes(b"")


def make_empty_class(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "empty" / "x.gif").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (make_pipe, "pipe.png: expected a regular file"),
        (make_bad_name, "expected a name in UTF-8"),
        (make_empty_class, "found none in 'empty'"),
    ],
)
def test_folders_that_are_refused(folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(folder)
    with pytest.raises(InputError, match=message):
        scan(folder)


def test_no_folder_and_no_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent: cannot be reached"):
        scan(tmp_path / "absent")
    file = write(tmp_path / "flat" / "x.png")
    with pytest.raises(InputError, match=r"expected one subfolder for each class, found none \(and 1 image "):
        scan(file.parent)
    with pytest.raises(InputError, match="expected a folder"):
        scan(file)


def test_all_unusable_files_are_named(folder: Path) -> None:
    Image.new("I;16", (4, 4)).save(folder / "a" / "deep.png")
    (folder / "b" / "text.jpg").write_text("hello")
    with pytest.raises(InputError) as caught:
        scan(folder)
    message = str(caught.value)
    assert "2 image files cannot be used" in message
    assert "a/deep.png: has 16 bits a channel" in message
    assert "b/text.jpg: expected a JPEG, PNG, WebP or PPM file, found content that begins with b'hello'" in message
    assert "--skip-broken" in message
    with pytest.raises(InputError, match="1 image file cannot be used") as caught:
        scan(folder, skip_broken=True)
    assert "text.jpg" not in str(caught.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize("path", ["a/y.PNG", "a/z.JPEG", "b/1.webp"])
def test_broken_files(folder: Path, path: str, reads: list[str]) -> None:
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    noise.save(folder / path)
    write(folder / "a" / "third.png", 99)
    before = scan(folder)
    truncate(folder / path)
    with pytest.raises(InputError, match=rf"{path}: does not decode"):
        scan(folder)
    cache = folder.parent / "cache.npz"
    found = scan(folder, skip_broken=True, cache=cache)
    assert found.skipped == (path,)
    keep = np.array([i for i in range(6) if before.names[i] != path])
    assert found.digest == before.subset(keep).digest
    assert list(found.names) == [before.names[i] for i in keep]
    reads.clear()
    again = scan(folder, skip_broken=True, cache=cache)
    assert (again.skipped, again.digest, reads) == (found.skipped, found.digest, [path])
    (folder / path).unlink()
    copy = scan(folder, leave_out=found.skipped)
    assert (copy.skipped, copy.digest) == (found.skipped, found.digest)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The contents that are decoded."""
    contents: list[bytes] = []

    def spy(file: BinaryIO) -> None:
        file.seek(0)
        contents.append(file.read())
        require_decodes(file)

    monkeypatch.setattr(manifest_module, "require_decodes", spy)
    return contents


def test_a_content_that_decodes_is_decoded_once(folder: Path, decoded: list[bytes]) -> None:
    cache = folder.parent / "cache.npz"
    first = scan(folder, cache=cache)
    assert sorted(decoded) == sorted(Path(first.place(image)).read_bytes() for image in range(5))
    decoded.clear()
    os.utime(folder / "b" / "2.png", ns=(1, 1))
    (folder / "a" / "z.JPEG").rename(folder / "b" / "moved.jpg")
    shutil.copy(folder / "b" / "1.webp", folder / "a" / "copy.webp")
    scan(folder, cache=cache)
    scan(folder.rename(folder.with_name("elsewhere")), cache=cache)
    assert decoded == []


def test_a_verdict_of_another_pillow_is_asked_for_again(
    folder: Path, decoded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = folder.parent / "cache.npz"
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "judge", lambda: "another")
        scan(folder, cache=cache)
    decoded.clear()
    scan(folder, cache=cache)
    assert len(decoded) == 5


@pytest.mark.parametrize(("in_flight", "count"), [(1, "at least 2 image files"), (100, "3 image files")])
def test_a_scan_that_ends_early_says_that_there_may_be_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch, in_flight: int, count: str
) -> None:
    monkeypatch.setattr("pipeline.images.manifest._MAX_REFUSED", 2)
    monkeypatch.setattr("pipeline.images.manifest._FILES_IN_FLIGHT", in_flight)
    picture = Image.new("RGB", (4, 4))
    for name in "xyz":
        (folder / "a" / f"0{name}.webp").write_bytes(
            encoded(picture, "WEBP", save_all=True, append_images=[Image.effect_noise((4, 4), 60).convert("RGB")])
        )
    for other in [path for path in (folder / "a").iterdir() if path.suffix != ".webp"]:
        other.unlink()
    with pytest.raises(InputError, match=rf"^{count} cannot be used"):
        scan(folder)


def test_a_file_with_two_readings_has_one_verdict(folder: Path) -> None:
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    plain = encoded(picture, "PNG")
    text = png_chunk(b"tEXt", b"Software\0scanner")[:-4] + bytes(4)
    files = {
        "behind.png": plain[:-12] + text + plain[-12:],
        "endless.png": plain[:-12],
        "before.png": plain[:33] + text + plain[33:],
        "frame.webp": one_frame(encoded(picture, "WEBP"), (2, 4)),
        "frames.webp": encoded(picture, "WEBP", save_all=True, append_images=[picture.rotate(180)]),
    }
    for name, data in files.items():
        (folder / "a" / name).write_bytes(data)
    with pytest.raises(InputError, match=r"1 image file cannot be used(.|\n)*a/frames.webp: is animated"):
        scan(folder, skip_broken=True)
    (folder / "a" / "frames.webp").unlink()
    with pytest.raises(InputError, match=r"1 image file cannot be used(.|\n)*a/before.png: does not decode"):
        scan(folder)
    found = scan(folder, skip_broken=True)
    assert found.skipped == ("a/before.png",)
    frame = list(found.names).index("a/frame.webp")
    with Image.open(folder / "a" / "frame.webp") as image:
        assert (found.heights[frame], found.widths[frame]) == image.size[::-1]


def test_a_class_of_broken_files_only(folder: Path) -> None:
    (folder / "a-b" / "x.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="every image of class 'a-b' is broken"):
        scan(folder, skip_broken=True)


def test_left_out_files_are_not_read(folder: Path) -> None:
    (folder / "a" / "bad.png").write_bytes(b"bad")
    found = scan(folder, leave_out=["a/bad.png"])
    assert (len(found), found.skipped) == (5, ("a/bad.png",))


def test_the_cache_is_believed_until_a_file_changes(folder: Path, reads: list[str]) -> None:
    cache = folder.parent / "deep" / "cache.npz"
    first = scan(folder, cache=cache)
    assert len(reads) == 5
    reads.clear()
    second = scan(folder, cache=cache)
    assert (second.digest, reads) == (first.digest, [])
    assert second.heights.tolist() == first.heights.tolist()

    changed = write(folder / "b" / "2.png", 200, size=(3, 3))
    write(folder / "a" / "new.png", 201)
    (folder / "a" / "z.JPEG").unlink()
    third = scan(folder, cache=cache)
    assert sorted(reads) == ["a/new.png", "b/2.png"]
    assert third.digest == scan(folder).digest
    assert third.heights[list(third.names).index("b/2.png")] == 3
    reads.clear()

    os.utime(changed, ns=(1, 1))
    scan(folder, cache=cache)
    assert reads == ["b/2.png"]
    reads.clear()
    scan(folder, cache=cache, rehash=True)
    assert len(reads) == 5
    assert [file.name for file in cache.parent.iterdir()] == ["cache.npz"]


def test_the_cache_knows_what_was_not_done(folder: Path, reads: list[str]) -> None:
    cache = folder.parent / "cache.npz"
    plain = scan(folder, cache=cache, digests=False)
    assert not plain.digests.any()
    with pytest.raises(InputError, match="without digests"):
        _ = plain.digest
    assert scan(folder, cache=cache).digest == scan(folder).digest
    reads.clear()
    scan(folder, cache=cache)
    scan(folder, cache=cache, digests=False)
    scan(folder, cache=cache, skip_broken=True)
    assert reads == []


def test_a_cache_of_another_folder_is_not_believed(folder: Path, reads: list[str]) -> None:
    cache = folder.parent / "cache.npz"
    scan(folder, cache=cache)
    folder.rename(folder.with_name("other"))
    reads.clear()
    scan(folder.with_name("other"), cache=cache)
    assert len(reads) == 5


@settings(deadline=None)  # a busy machine
@given(place=st.integers(0, 10**4), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_cache_is_never_believed(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, cut: bool
) -> None:
    root = tmp_path_factory.getbasetemp() / "damaged"
    cache = root.with_name("damaged.npz")
    if not root.exists():
        for colour in range(3):
            write(root / f"{colour}" / "x.png", colour)
    expected = scan(root)
    cache.unlink(missing_ok=True)
    scan(root, cache=cache, rehash=True)
    data = bytearray(cache.read_bytes())
    place %= len(data)
    data[place] = value
    cache.write_bytes(data[:place] if cut else data)
    found = scan(root, cache=cache)
    assert found.digest == expected.digest
    assert found.heights.tolist() == expected.heights.tolist()


def test_what_was_read_is_kept_when_a_file_is_refused(folder: Path, reads: list[str]) -> None:
    cache = folder.parent / "cache.npz"
    bad = folder / "b" / "bad.png"
    bad.write_bytes(b"bad")
    with pytest.raises(InputError, match=r"bad\.png"):
        scan(folder, cache=cache)
    bad.unlink()
    reads.clear()
    scan(folder, cache=cache)
    assert reads == []


def test_a_cache_that_cannot_be_written_is_no_error(folder: Path) -> None:
    (folder.parent / "file").write_text("")
    assert len(scan(folder, cache=folder.parent / "file" / "cache.npz")) == 5


def test_progress(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    scan(folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 5) for done in range(1, 6)]


def test_subset(folder: Path) -> None:
    found = scan(folder)
    part = found.subset(np.array([4, 0]))
    assert list(part.names) == ["b/2.png", "a/y.PNG"]
    assert part.targets.tolist() == [2, 0]
    assert part.digests.tolist() == found.digests[[4, 0]].tolist()
    assert (len(part), part.classes) == (2, found.classes)


def identity(found: Manifest) -> Identity:
    return Identity(
        images=len(found),
        classes=found.classes,
        columns=3,
        size=8,
        seed=0,
        group=1,
        manifest=found.digest,
        skipped=(),
        teacher={},
        engine={},
        plan={},
        crop_columns=(),
        encoding={},
        renderer={},
        block=BlockShape(views=1, positions=5),
    )


def refusal(stored: Manifest, given: Manifest) -> str:
    with pytest.raises(MismatchError) as caught:
        require_same_images(identity(stored), stored.digests, stored.targets, given)
    return str(caught.value)


def test_the_same_images_elsewhere_are_accepted(folder: Path) -> None:
    stored = scan(folder)
    moved = scan(folder.rename(folder.with_name("moved")))
    require_same_images(identity(stored), stored.digests, stored.targets, moved)


def test_other_images_are_refused_by_name(folder: Path) -> None:
    stored = scan(folder)
    hexes = [digest[:8].tobytes().hex() for digest in stored.digests]

    write(folder / "a-b" / "x.jpg", 123)
    changed = scan(folder)
    message = refusal(stored, changed)
    assert f"image 2 of the store is {hexes[2]} of class 'a-b', here it is" in message
    assert changed.digests[2, :8].tobytes().hex() in message
    assert "a-b/x.jpg" in message
    assert "5 images in 3 classes" in message

    message = refusal(stored, stored.subset(np.arange(4)))
    assert f"image 4 of the store is {hexes[4]} of class 'b', here it is absent" in message
    message = refusal(stored.subset(np.arange(4)), stored)
    assert f"image 4 of the store is absent, here it is {hexes[4]} of class 'b'" in message
    message = refusal(stored, stored.subset(np.array([1, 0, 2, 3, 4])))
    assert "the same files, in another order" in message
    message = refusal(stored, replace(stored, targets=np.array([0, 1, 1, 2, 2])))
    assert f"image 1 of the store is {hexes[1]} of class 'a', here it is {hexes[1]} of class 'a-b'" in message


def test_other_classes_are_refused_by_name(folder: Path) -> None:
    stored = scan(folder)
    message = refusal(stored, replace(stored, classes=("a", "cat", "b")))
    assert "class 1 of the store is 'a-b'" in message
    assert "it is 'cat'" in message
    message = refusal(stored, replace(stored, classes=("a", "a-b", "b", "c")))
    assert "class 3 of the store is absent" in message


def test_real_images_decode(data: Path) -> None:
    found = scan(data / "cifar10" / "test_jpeg")
    oracle = ImageFolder(str(data / "cifar10" / "test_jpeg"))
    assert [found.place(i) for i in range(len(found))] == [path for path, _ in oracle.samples]
