"""Images from elsewhere than a class folder: the same manifest, the same pixels, the same store."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from labelstore.store import LabelStore
from pipeline.build.build import build
from pipeline.config import BuildConfig
from pipeline.images import opening, source_table
from pipeline.images.class_folder import ClassFolder
from pipeline.images.manifest import Manifest, require_same_images, scan
from pipeline.images.source import ImageSource
from pipeline.networks import save_weights
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import make_renderer
from tests.pipeline.other_sources import MemoryImages

SIZE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures of several kinds and sides, one in a folder of its own."""
    root, rng = tmp_path_factory.mktemp("sources") / "images", np.random.default_rng(0)
    for number, name in enumerate(["a/0.jpg", "a/1.png", "a/2.webp", "a/more/0.jpg", "b/0.jpg", "b/1.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(picture).resize((30 + number, 40 - number)).save(root / name)
    return root


def packed(folder: Path, archive: Path) -> Path:
    """The folder as a ZIP archive."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.*"), reverse=True):  # its order is of no matter
            file.write(path, path.relative_to(folder))
    return archive


def from_memory(folder: Path, _tmp_path: Path) -> ImageSource:
    return MemoryImages({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")})


def from_zip(folder: Path, tmp_path: Path) -> ImageSource:
    return opening.open_images(packed(folder, tmp_path / "images.zip"))


def crops(manifest: Manifest, cache_bytes: int) -> torch.Tensor:
    spec = PlanSpec(size=SIZE, mix="mixup", group=3)
    rows = Plan(spec, manifest.heights, manifest.widths).rows(1, 0, len(manifest))
    renderer = make_renderer(manifest, spec, threads=2, cache_bytes=cache_bytes)
    try:
        return renderer.render(rows)
    finally:
        renderer.close()


@pytest.mark.parametrize("source", [from_memory, from_zip])
def test_another_source_gives_the_same_images(
    folder: Path, tmp_path: Path, source: Callable[[Path, Path], ImageSource]
) -> None:
    theirs, ours = scan(folder), scan(source(folder, tmp_path))
    assert ours.digest == theirs.digest
    for name in ("targets", "heights", "widths", "digests"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for cache_bytes in (1 << 30, 0):
        assert torch.equal(crops(ours, cache_bytes), crops(theirs, cache_bytes))


def test_images_of_another_source_are_left_out_cached_and_named(folder: Path, tmp_path: Path) -> None:
    source: Any = from_memory(folder, tmp_path)
    source.contents["b/0.jpg"] = b"no image"
    with pytest.raises(InputError, match=r"memory: b/0\.jpg: expected a JPEG, PNG, WebP or PPM file"):
        scan(source)
    cache = tmp_path / "cache.npz"
    found = scan(source, skip_broken=True, leave_out=["a/1.png"], cache=cache)
    assert found.names == ["a/0.jpg", "a/2.webp", "a/more/0.jpg", "b/1.png"]
    assert found.skipped == ("a/1.png", "b/0.jpg")
    assert [found.place(image) for image in range(4)] == [f"memory: {name}" for name in found.names]
    read: list[int] = []
    source.open = lambda image: read.append(image)
    again = scan(source, leave_out=found.skipped, cache=cache)
    assert (again.digest, read) == (found.digest, [])
    source.contents["b/1.png"] = source.contents["a/0.jpg"]
    with pytest.raises(InputError, match=r"memory: b/1\.png: expected .* pixels"):
        crops(again, 0)


def test_images_are_read_many_at_a_time(folder: Path, tmp_path: Path) -> None:
    source: Any = from_memory(folder, tmp_path)
    manifest = scan(source).subset(np.array([5, 0, 3]))
    crops(manifest, 1 << 30)
    assert sorted(map(sorted, source.asked)) == [[0, 3, 5]]


def test_a_store_of_an_archive_is_that_of_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 2))
    monkeypatch.setattr("tests.pipeline.test_sources.teacher", lambda: network, raising=False)
    save_weights(network.state_dict(), tmp_path / "teacher.safetensors")
    stores = {}
    for images in (folder, packed(folder, tmp_path / "images.zip")):
        store = tmp_path / f"{images.stem} {images.suffix}"
        build(
            from_flags(
                BuildConfig,
                images=images,
                teacher=("tests.pipeline.test_sources:teacher",),
                weights=(str(tmp_path / "teacher.safetensors"),),
                size=SIZE,
                views=2,
                store=store,
                batch=4,
                threads=1,
                encoding="int8",
            ),
            Console(silent=True),
        )
        stores[images] = {
            path.relative_to(store): path.read_bytes() for path in sorted(store.rglob("c*")) if path.is_file()
        }
        opened = LabelStore.open(store)
        require_same_images(opened.identity, opened.image_digests, opened.targets, scan(folder))
    first, second = stores.values()
    assert len(first) > 2
    assert first == second


def test_a_folder_is_looked_at_before_it_is_a_class_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of archives is a source of its own; one that two sources recognise is refused."""

    def archives(path: Path) -> bool:
        return path.is_dir() and any(path.glob("*.arc"))

    opened = MemoryImages({"a/0": b"x"})
    kind = source_table.SourceKind(archives, lambda *_: opened)
    monkeypatch.setitem(source_table.SOURCES, "arc", kind)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.png").write_bytes(b"")
    assert isinstance(opening.open_images(tmp_path), ClassFolder)
    (tmp_path / "0.arc").touch()
    assert opening.open_images(tmp_path) is opened
    monkeypatch.setitem(source_table.SOURCES, "other", kind)
    with pytest.raises(InputError, match="found what could be arc or other"):
        opening.open_images(tmp_path)
