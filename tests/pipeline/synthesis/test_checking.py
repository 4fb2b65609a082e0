"""`synthesize --check` finds what is not as the record says; the record itself is proven before it is believed."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.durable.places import SYNTHESIS
from labelstore.errors import DamagedError, GiftwrapError, InputError, MismatchError
from labelstore.operations.synthesised import set_info, set_lines
from labelstore.spec import Json
from pipeline.images.provenance import PIECES, Pieces, join_pieces, read_pieces, record_bytes, record_of
from pipeline.synthesis import METHODS
from pipeline.synthesis.checking import check, verdict_of
from pipeline.synthesis.config import SynthesizeConfig
from tests.journeys.world import draw_images
from tests.pipeline.synthesis.toys import Toy, draw_folder, make, tree

WAYS: dict[str, dict[str, Any]] = {
    "copies": {"take": "copy"},
    "centre": {"take": "center", "size": 9},
    "crops": {"take": "crop", "size": 9},
    "JPEG": {"take": "crop", "size": 9, "format": "jpeg", "quality": 80},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images") / "train")


def checked(folder: Path, images: Path) -> Mapping[str, Any]:
    return check(from_flags(SynthesizeConfig, check=folder, images=images), Console(silent=True))


@pytest.mark.parametrize("way", WAYS)
def test_a_set_is_what_its_record_says(images: Path, tmp_path: Path, way: str) -> None:
    make(images, tmp_path / "set", "random", 4, **WAYS[way])
    before = tree(tmp_path)
    found = checked(tmp_path / "set", images)
    assert found["ok"]
    assert (found["images"], found["made_again"]) == (12, 12)
    assert "12 images compared, all as the record states" in verdict_of(found)
    assert tree(tmp_path) == before


def change_a_pixel(path: Path) -> None:
    pixels = np.asarray(Image.open(path).convert("RGB")).copy()
    pixels[1, 2, 0] ^= 1
    Image.fromarray(pixels).save(path)


def encode_otherwise(path: Path) -> None:
    Image.open(path).save(path, "PNG", compress_level=1)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pixel": (change_a_pixel, "other pixels"),
    "a file of the same pixels": (encode_otherwise, "another file"),
    "no file": (Path.unlink, "absent"),
    "no image": (lambda path: path.write_bytes(b"text"), "other pixels"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_image_is_named(images: Path, tmp_path: Path, change: str) -> None:
    make(images, tmp_path / "set", "random", 4, take="crop", size=9)
    act, why = CHANGES[change]
    act(tmp_path / "set/bee/00002.png")
    found = checked(tmp_path / "set", images)
    assert not found["ok"]
    assert found["different_images"] == 1
    assert found["different"][0].startswith("bee/00002.png (")
    if why != "other pixels":
        assert why in found["different"][0]
    assert "NOT as the record states: bee/00002.png" in verdict_of(found)


def test_an_image_that_is_not_in_the_record_is_named(images: Path, tmp_path: Path) -> None:
    make(images, tmp_path / "set", "random", 2)
    Image.new("RGB", (9, 9)).save(tmp_path / "set/cat/more.png")
    assert checked(tmp_path / "set", images)["different"] == ["cat/more.png (is not in the record)"]


def test_pieces_that_give_other_pixels_are_found(images: Path, tmp_path: Path) -> None:
    """Files that a record names, and pieces that do not make them: the record was made up."""
    make(images, tmp_path / "set", "random", 3, take="crop", size=9)
    record: Any = record_of(tmp_path / "set")
    pieces = read_pieces(tmp_path / "set" / PIECES)
    boxes = pieces.arrays["boxes"].copy()
    boxes[4, 0, 0] += 1
    boxes[4, 0, 2] -= 1
    data = Pieces(
        pieces.files, pieces.digests, pieces.targets, pieces.numbers, pieces.copied, {**pieces.arrays, "boxes": boxes}
    ).to_bytes()
    (tmp_path / "set" / PIECES).write_bytes(data)
    with pytest.raises(DamagedError, match=r"pieces\.npz"):
        checked(tmp_path / "set", images)
    (tmp_path / "set" / SYNTHESIS).write_bytes(record_bytes({**record, "pieces": hashlib.sha256(data).hexdigest()}))
    assert checked(tmp_path / "set", images)["different"] == [f"{pieces.files[4]} (other pixels than its pieces give)"]


def test_a_set_of_another_renderer_says_so_where_pixels_differ(images: Path, tmp_path: Path) -> None:
    make(images, tmp_path / "set", "random", 2, take="crop", size=9)
    record: Any = record_of(tmp_path / "set")
    renderer = {**record["parameters"]["renderer"], "device": "cuda"}
    parameters = {**record["parameters"], "renderer": renderer}
    (tmp_path / "set" / SYNTHESIS).write_bytes(record_bytes({**record, "parameters": parameters}))
    assert verdict_of(checked(tmp_path / "set", images)).endswith("made again from their pieces)")
    change_a_pixel(tmp_path / "set/ant/00000.png")
    found = verdict_of(checked(tmp_path / "set", images))
    assert found.endswith("renderer.device is 'cuda' in the record, 'cpu' here")


def test_other_images_are_refused_with_both_digests(images: Path, tmp_path: Path) -> None:
    make(images, tmp_path / "set", "random", 2)
    other = draw_images(tmp_path / "other", per_class=5)
    before = tree(tmp_path)
    with pytest.raises(MismatchError, match=r"24 of digest [0-9a-f]{64}, .*15 of digest [0-9a-f]{64}"):
        checked(tmp_path / "set", other)
    assert tree(tmp_path) == before  # the digests of the images that the set was made of are kept


def test_a_folder_without_a_record_is_refused(images: Path) -> None:
    with pytest.raises(InputError, match=r"expected a set with synthesis\.json"):
        checked(images, images)


def test_a_record_that_was_changed_is_refused(images: Path, tmp_path: Path) -> None:
    make(images, tmp_path / "set", "random", 2)
    path = tmp_path / "set" / SYNTHESIS
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DamagedError, match="was changed"):
        checked(tmp_path / "set", images)


def test_a_method_that_cannot_make_images_again_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw_folder(tmp_path / "train")

    class Once(Toy):
        def make(self, job: Any, working: Any, /) -> Any:
            made = super().make(job, working)
            return type(made)(Toy.again(self, made.pieces), made.pieces)

        def again(self, pieces: Any, /) -> Any:
            return None if self.checking else Toy.again(self, pieces)

        def __init__(self, setting: Any) -> None:
            super().__init__(setting)
            self.checking = setting.checking

    monkeypatch.setitem(METHODS, "once", Once)
    make(images, tmp_path / "set", "once")
    found = checked(tmp_path / "set", images)
    assert found["ok"]
    assert found["made_again"] == 0
    assert "cannot make its images again" in verdict_of(found)
    change_a_pixel(tmp_path / "set/ant/00000.png")
    assert not checked(tmp_path / "set", images)["ok"]


# --- the two files ---


def some_pieces(count: int = 5) -> Pieces:
    rng = np.random.default_rng(count)
    return Pieces(
        files=tuple(f"ant/{number:05d}.png" for number in range(count)),
        digests=rng.integers(0, 256, (count, 32), np.uint8),
        targets=np.zeros(count, np.int64),
        numbers=np.arange(count),
        copied=np.full(count, -1),
        arrays={"boxes": rng.integers(0, 9, (count, 2, 4)), "scores": rng.random((count, 2))},
    )


def same(one: Pieces, other: Pieces) -> bool:
    pairs: list[tuple[Any, Any]] = [
        (one.digests, other.digests),
        (one.targets, other.targets),
        (one.numbers, other.numbers),
    ]
    pairs += [(one.copied, other.copied), *((one.arrays[name], other.arrays[name]) for name in one.arrays)]
    return one.files == other.files and all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_pieces_come_back(tmp_path: Path) -> None:
    pieces = some_pieces()
    (tmp_path / PIECES).write_bytes(pieces.to_bytes())
    assert same(read_pieces(tmp_path / PIECES), pieces)
    assert pieces.to_bytes() == some_pieces().to_bytes()
    with np.load(tmp_path / PIECES) as file:  # as anybody reads them
        assert np.array_equal(file["boxes"], pieces.arrays["boxes"])
        assert bytes(file["files"]).decode().split("\0") == list(pieces.files)
    order = np.array([3, 0, 4, 2, 1])
    assert same(join_pieces([pieces.take(order[:2]), pieces.take(order[2:])]), pieces)


@given(draw=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_pieces_are_refused_or_read(draw: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = bytearray(some_pieces(2).to_bytes())
    for _ in range(draw.draw(st.integers(1, 4))):
        content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(bytes(content[: draw.draw(st.integers(0, len(content)))]))
    with suppress(DamagedError):  # and no other error
        found = read_pieces(path)
        assert len(found) == len(found.digests)


def test_pieces_that_would_fill_memory_are_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("format.npy", b"\0" * 50_000_000)
    (tmp_path / PIECES).write_bytes(file.getvalue())
    with pytest.raises(DamagedError, match="compressed"):
        read_pieces(tmp_path / PIECES)


def test_files_outside_of_the_set_are_refused(tmp_path: Path) -> None:
    for name in ("../a.png", "/etc/passwd", "ant/../../a"):
        pieces = some_pieces(1)
        (tmp_path / PIECES).write_bytes(
            Pieces((name,), pieces.digests, pieces.targets, pieces.numbers, pieces.copied, pieces.arrays).to_bytes()
        )
        with pytest.raises(DamagedError, match="outside"):
            read_pieces(tmp_path / PIECES)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"mine": 1}', b'{"giftwrap_synthesis": 1}', b"\xff\xfe"])
def test_another_file_of_the_records_name_is_no_record(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SYNTHESIS).write_bytes(content)
    with pytest.raises(GiftwrapError, match=r"synthesis\.json"):
        record_of(tmp_path)


@pytest.mark.parametrize("part", ["classes", "images", "teacher", "flags", "versions", "count", "method"])
@pytest.mark.parametrize("other", [None, 1, "text", [1], {"images": [], "members": [3, {"name": {}}], "name": {}}])
def test_any_record_is_printed(tmp_path: Path, part: str, other: Json) -> None:
    record: dict[str, Json] = {"method": "random", "count": 4, "classes": ["a"], "teacher": None}
    (tmp_path / SYNTHESIS).write_bytes(record_bytes({**record, part: other}))
    found = set_info(tmp_path)
    assert found[part] == other
    assert set_lines(found)


def test_a_record_of_a_later_format_is_refused(tmp_path: Path) -> None:
    from labelstore.durable import documents

    values: dict[str, Json] = {"giftwrap_synthesis": 2}
    (tmp_path / SYNTHESIS).write_text(json.dumps(documents.stamp(values)))
    with pytest.raises(InputError, match="later giftwrap"):
        record_of(tmp_path)
