"""The files of made images: their names, their bytes, and how they are written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from labelstore.durable import disk, newfile, removing
from labelstore.errors import InputError
from pipeline.images.file_formats import SUFFIXES, readable
from pipeline.images.manifest import Manifest
from pipeline.synthesis.method import Job, Made, Pixels


@dataclass(frozen=True, slots=True)
class File:
    """A file of the set that is to be written.

    Attributes:
        name: its path in the set.
        digest: SHA-256 of its bytes.
        content: the bytes, or the file that it becomes a hard link to.
    """

    name: str
    digest: bytes
    content: bytes | Path


def files_of(job: Job, made: Made, manifest: Manifest, jpeg_quality: int | None) -> list[File]:
    """The files of the images of a job.

    Args:
        job: their classes and numbers.
        made: the images.
        manifest: whose files may be taken unchanged.
        jpeg_quality: of made images; PNG when None.

    Raises:
        InputError: an image of the manifest has changed since it was listed, or is no file that can be linked to.
    """
    files = []
    for image, target, number in zip(made.images, job.targets, job.numbers, strict=True):
        content: bytes | Path
        if isinstance(image, int):
            data = _unchanged(manifest, image)
            suffix = SUFFIXES[readable(data[:16]) or "PNG"]
            content = _linkable(manifest, image) if made.linked else data
        else:
            data = content = encode(image, jpeg_quality)
            suffix = ".png" if jpeg_quality is None else ".jpg"
        name = f"{manifest.classes[target]}/{number:05d}{suffix}"
        files.append(File(name, hashlib.sha256(data).digest(), content))
    return files


def _unchanged(manifest: Manifest, image: int) -> bytes:
    (data,) = manifest.read_many([image])
    if hashlib.sha256(data).digest() != manifest.digests[image].tobytes():
        raise InputError(f"{manifest.place(image)}: has changed since the images were listed; run the same again")
    return data


def _linkable(manifest: Manifest, image: int) -> Path:
    place = Path(manifest.place(image))
    if not place.is_file():
        raise InputError(f"--take link: {place} is not a single file; give --take copy")
    return place


def encode(image: Pixels, jpeg_quality: int | None) -> bytes:
    """The file of an image, uint8 ``[H, W, 3]``: PNG, or JPEG of this quality without subsampled colours."""
    file = BytesIO()
    picture = Image.fromarray(image)
    if jpeg_quality is None:
        picture.save(file, "PNG")
    else:
        picture.save(file, "JPEG", quality=jpeg_quality, subsampling=0)
    return file.getvalue()


def write(path: Path, content: bytes | Path) -> None:
    """Write a file of the set, or link to one.

    Raises:
        InputError: the name is taken, or the file cannot be linked to.
    """
    if isinstance(content, bytes):
        newfile.write_new(path, content)
        return
    try:
        disk.link(content.resolve(), path)
    except FileExistsError as error:
        raise removing.taken(path) from error
    except OSError as error:
        if error.errno not in disk.NO_LINKS:
            raise
        raise InputError(
            f"--take link: {content} cannot have a hard link at {path} ({error.strerror}); give --take copy, or an "
            f"--out on the same file system"
        ) from error
    disk.sync_folder(path.parent)


def has_digest(path: Path, digest: bytes) -> bool:
    """Whether a file is there and has this SHA-256."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() == digest
    except FileNotFoundError:
        return False
