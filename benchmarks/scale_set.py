"""A set of ImageNet's size in little room: tar shards in which few photographs have many names."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

PER_SHARD = 8  # classes: 125 shards of 1,000
RECORD = 20 * 512  # bytes that the size of a tar is a multiple of


def write_shards(photographs: Path, folder: Path, images: int) -> str:
    """Tar shards with repeated files of a class folder, under different names.

    The first copy of a photograph is a file of its tar, and each further one a hard link to it, which in a tar is a
    header of 512 bytes. So all that depends on the number of images is as large as ever; contents and digests repeat.

    Args:
        photographs: a class folder.
        folder: of the shards, to be made.
        images: of all classes together, shared out evenly.

    Returns:
        The pattern of the shards, in the folder.
    """
    folder.mkdir()
    classes = sorted(path for path in photographs.iterdir() if path.is_dir())
    counts = [images // len(classes) + (number < images % len(classes)) for number in range(len(classes))]
    starts = range(0, len(classes), PER_SHARD)
    for number, start in enumerate(starts):
        part = slice(start, start + PER_SHARD)
        _write_shard(folder / f"shard-{number:03d}.tar", classes[part], counts[part])
    return f"shard-{{000..{len(starts) - 1:03d}}}.tar"


def _write_shard(path: Path, classes: Sequence[Path], counts: Sequence[int]) -> None:
    with path.open("xb") as file:
        for folder, count in zip(classes, counts, strict=True):
            for entry in _entries(folder, count):
                file.write(entry)
        file.write(bytes(2 * tarfile.BLOCKSIZE))
        file.write(bytes(-file.tell() % RECORD))


def _entries(folder: Path, count: int) -> Iterator[bytes]:
    """The entries of one class: headers, those of files with their contents."""
    files = sorted(folder.iterdir())
    names = [f"{folder.name}/{folder.name}_{number:06d}{files[number % len(files)].suffix}" for number in range(count)]
    for number, name in enumerate(names):
        info = tarfile.TarInfo(name)
        if number >= len(files):
            info.type, info.linkname = tarfile.LNKTYPE, names[number % len(files)]
            yield info.tobuf(tarfile.USTAR_FORMAT)
        else:
            content = files[number].read_bytes()
            info.size = len(content)
            yield info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def draw_classes(folder: Path, classes: int, sides: tuple[int, int]) -> Path:
    """A class folder of smooth pictures, one a class, JPEG of height and width ``sides``."""
    generator = np.random.default_rng(0)
    for index in range(classes):
        coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3)).astype(np.uint8))
        (folder / f"class{index:04d}").mkdir(parents=True)
        picture = coarse.resize((sides[1], sides[0]), Image.Resampling.BICUBIC)
        picture.save(folder / f"class{index:04d}" / "drawn.jpg", quality=88)
    return folder
