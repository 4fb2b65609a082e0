"""`giftwrap synthesize --check SET`: whether files and pixels of a set match its record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from labelstore.command.console import Console, quantity
from labelstore.command.flags import from_flags
from labelstore.durable.places import SYNTHESIS
from labelstore.errors import DamagedError, InputError, MismatchError, reason
from labelstore.spec import Json, first_difference, shorten
from pipeline.config import manifest_cache
from pipeline.images.manifest import Manifest
from pipeline.images.no_images import without_images
from pipeline.images.provenance import PIECES, RECORD_FILES, Pieces, read_pieces, record_of
from pipeline.ranks import Ranks
from pipeline.replay.source import scan_as
from pipeline.synthesis import CLASSES, METHODS
from pipeline.synthesis.config import SynthesizeConfig
from pipeline.synthesis.files import encode, has_digest
from pipeline.synthesis.method import Method, Pixels, Setting

AT_ONCE = 128  # images that are made again and held
NAMED = 5  # images that are listed


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a check.

    Attributes:
        images: of the set.
        made_again: how many were made again from their pieces and compared; 0 if the method cannot.
        different: the files that do not match the record, each with the reason.
        made_otherwise: how images are made differently here than recorded, such as by another renderer.
    """

    images: int
    made_again: int
    different: tuple[str, ...]
    made_otherwise: str | None = None

    def to_json(self, folder: Path) -> dict[str, Json]:
        """The summary."""
        return {
            "set": str(folder),
            "images": self.images,
            "made_again": self.made_again,
            "ok": not self.different,
            "different": [*self.different[:NAMED]],
            "different_images": len(self.different),
            "made_otherwise": self.made_otherwise,
        }


def check(config: SynthesizeConfig, console: Console) -> Mapping[str, Json]:
    """Check a set; returns the summary, whose ``ok`` is whether everything matches.

    Raises:
        InputError: when there is no set, or the images are not its source images.
        DamagedError: its record was changed.
    """
    assert config.check is not None  # noqa: S101  called with --check alone  the caller's condition
    folder = config.check
    values = record_of(folder) if folder.is_dir() else None
    if values is None:
        raise InputError(f"--check {folder}: expected a set with {SYNTHESIS}, found none; give one that giftwrap made")
    pieces = read_pieces(folder / PIECES)
    if not has_digest(folder / PIECES, bytes.fromhex(str(values["pieces"]))):
        raise DamagedError(
            f"{folder / PIECES}: expected the pieces that {SYNTHESIS} names, found others; get the set again from "
            f"where it came, or make it again"
        )
    manifest = _images(config, values)
    different = [*_other_files(folder, pieces)]
    setting = _setting(config, values, manifest, console)
    if values["method"] not in METHODS:
        raise InputError(f"{folder}: made by {values['method']!r}, which this giftwrap does not have")
    with (
        closing(METHODS[str(values["method"])](setting)) as method,
        console.progress("check", len(pieces), "images") as bar,
    ):
        made_again, others = _compare(folder, pieces, method, setting, bar.advance)
        otherwise = _otherwise(values, method)
    found = {**dict(others), **dict(different)}
    order = {file: place for place, file in enumerate(pieces.files)}
    ordered = sorted(found, key=lambda file: (order.get(file, len(order)), file))
    named = tuple(f"{file} ({found[file]})" for file in ordered)
    return Report(len(pieces), made_again, named, otherwise).to_json(folder)


def _images(config: SynthesizeConfig, values: Mapping[str, Any]) -> Manifest:
    """The manifest of the source images of the set.

    Raises:
        MismatchError: they are others; names both digests.
    """
    assert config.check is not None  # noqa: S101  called with --check alone
    recorded = values["images"]
    if values["method"] in CLASSES:
        return without_images(tuple(recorded["classes"]))
    if config.images is None:
        raise InputError(f"--check {config.check}: was made of images; give them by --images")
    manifest = scan_as(
        config.images,
        recorded["classes"],
        options=config.source,
        cache=manifest_cache(config.check),
        rehash=config.rehash,
        leave_out=recorded["skipped"],
        save=False,  # a check writes nothing
    )
    if manifest.digest != recorded["manifest"]:
        raise MismatchError(
            f"other images: {config.check} was made of {recorded['images']:,} of digest {recorded['manifest']}, "
            f"{manifest.location} has {len(manifest):,} of digest {manifest.digest}; give the images that the set was "
            f"made of"
        )
    return manifest


def _setting(config: SynthesizeConfig, values: Mapping[str, Any], manifest: Manifest, console: Console) -> Setting:
    """The arguments of a method's constructor for making images again, from the recorded flags.

    Raises:
        InputError: this version does not have one of them.
    """
    flags = {key: tuple(value) if isinstance(value, list) else value for key, value in values["flags"].items()}
    assert config.check is not None  # noqa: S101  called with --check alone
    kept = ("device", "decoder", "augmenter", "threads", "cache_gib")
    render: dict[str, Any] = {name: getattr(config.render, name) for name in kept}
    out = config.check.resolve()
    try:
        made = from_flags(SynthesizeConfig, images=config.images, out=out, method=values["method"], **flags, **render)
    except TypeError as error:
        raise InputError(f"{config.check}: its record has a flag that this giftwrap lacks ({reason(error)})") from error
    targets = np.array([manifest.classes.index(name) for name in values["classes"]], np.int64)
    return Setting(config=made, manifest=manifest, targets=targets, console=console, ranks=Ranks(), checking=True)


def _otherwise(values: Mapping[str, Any], method: Method) -> str | None:
    """How images are made differently here than recorded; None if they are not."""
    found = first_difference(values["parameters"], dict(method.parameters))
    return found and f"{found[0]} is {shorten(found[1])} in the record, {shorten(found[2])} here"


def _other_files(folder: Path, pieces: Pieces) -> list[tuple[str, str]]:
    """Files that are not those of the record."""
    found = []
    for file, digest in zip(pieces.files, pieces.digests, strict=True):
        if not has_digest(folder / file, digest.tobytes()):
            found.append((file, "another file" if (folder / file).exists() else "absent"))
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    more = sorted(there - {*pieces.files, *RECORD_FILES})
    return [*found, *((file, "is not in the record") for file in more)]


def _compare(
    folder: Path, pieces: Pieces, method: Method, setting: Setting, advance: Callable[[int], object]
) -> tuple[int, list[tuple[str, str]]]:
    """Make images again, and compare: how many were made, and which files are others."""
    found: list[tuple[str, str]] = []
    made = 0
    for start in range(0, len(pieces), AT_ONCE):
        part = pieces.take(np.arange(start, min(start + AT_ONCE, len(pieces))))
        images = method.again(part.arrays)
        advance(len(part))
        if images is None:
            continue
        made += len(part)
        for file, image in zip(part.files, _require_as_many(images, part), strict=True):
            if not (folder / file).is_file():
                continue
            if not _is_image(folder / file, image, setting):
                found.append((file, "other pixels than its pieces give"))
    return made, found


def _require_as_many(images: Sequence[Pixels | int], part: Pieces) -> Sequence[Pixels | int]:
    if len(images) != len(part):
        raise InputError(f"expected {len(part)} images from their pieces, found {len(images)}")
    return images


def _is_image(path: Path, image: Pixels | int, setting: Setting) -> bool:
    """Whether a file has an image: the same bytes of a copy or a JPEG, the same pixels of a PNG."""
    if isinstance(image, int):
        return has_digest(path, setting.manifest.digests[image].tobytes())
    quality = setting.config.jpeg_quality
    if quality is not None:
        return has_digest(path, hashlib.sha256(encode(image, quality)).digest())
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return np.array_equal(np.asarray(picture.convert("RGB")), image)
    except (OSError, SyntaxError, ValueError):  # Pillow's ways to say that it does not decode
        return False


def verdict_of(found: Mapping[str, Any]) -> str:
    """The result of a check as text."""
    compared = f"{found['made_again']:,} made again from their pieces"
    if not found["made_again"]:
        compared = "files and record only: the method cannot make its images again from their pieces"
    if found["ok"]:
        return f"{found['set']}: {quantity(found['images'], 'image')} compared, all as the record states ({compared})"
    more = found["different_images"] - len(found["different"])
    why = f"; {found['made_otherwise']}" if found["made_otherwise"] else ""
    return (
        f"{found['set']}: NOT as the record states: {', '.join(found['different'])}"
        f"{f' and {more:,} more' if more else ''} ({compared}){why}"
    )
