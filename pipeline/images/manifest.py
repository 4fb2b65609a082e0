"""The manifest: the ordered images of a source, with their targets, sizes and digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable, same_form, told_apart
from labelstore.durable.at_once import AT_ONCE
from labelstore.errors import InputError, MismatchError
from labelstore.format.images import manifest_digest
from labelstore.spec import Identity
from pipeline.images import manifest_cache
from pipeline.images.class_folder import named
from pipeline.images.decodes import require_decodes
from pipeline.images.headers import BrokenImageError, Header, read_header
from pipeline.images.left_out import LeftOut
from pipeline.images.manifest_cache import ImageRows
from pipeline.images.opening import open_images
from pipeline.images.source import ImageSource, Listing, Stamp
from pipeline.images.source_table import ClassOrder, ImageOptions
from pipeline.quiet import quiet

_FILES_IN_FLIGHT = 1_024
_MAX_REFUSED = 100
_LISTED = 10


@dataclass(frozen=True, eq=False)
class Manifest:
    """N images of a source, in order; of a class folder, the order of torchvision's ImageFolder.

    Attributes:
        source: gives the bytes of the images.
        indexes: of each image in the source's listing, int64 ``[N]``.
        names: of each image; of a class folder, the path relative to it, with ``/``.
        classes: class names in target order.
        targets: int64 ``[N]``.
        heights: in pixels, after EXIF orientation, int32 ``[N]``.
        widths: likewise.
        digests: SHA-256 of each image's bytes, uint8 ``[N, 32]``; zeros when they were not computed.
        skipped: names of images that were left out.
        left_out: what of the source is not read, counted by kind.
    """

    source: ImageSource
    indexes: npt.NDArray[np.int64]
    names: Sequence[str]
    classes: tuple[str, ...]
    targets: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    digests: npt.NDArray[np.uint8]
    skipped: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the (class name, image digest) rows in order, hex; names of images do not enter it."""
        if not self.digests.any(axis=1).all():
            raise InputError(f"{self.location}: the images were listed without digests; scan with digests=True")
        return manifest_digest(self.classes, self.targets, self.digests)

    @property
    def location(self) -> str:
        """Where the source is: of a class folder, its path."""
        return self.source.listing.location

    def place(self, image: int) -> str:
        """Where an image is: of a class folder, the path of its file."""
        return self.source.place(int(self.indexes[image]))

    def stamp(self, image: int) -> Stamp:
        """Size in bytes and stamp of an image at present; OSError if it cannot be read."""
        return self.source.stamp(int(self.indexes[image]))

    def read_many(self, images: Sequence[int]) -> Iterator[bytes]:
        """The bytes of images, in their order; OSError in the place of one that cannot be read."""
        return self.source.read_many(self.indexes[list(images)].tolist())

    def subset(self, images: npt.NDArray[np.integer]) -> Manifest:
        """The manifest of the images at ``images``, in that order; the classes stay."""
        return replace(
            self,
            indexes=self.indexes[images],
            names=[self.names[image] for image in images],
            targets=self.targets[images],
            heights=self.heights[images],
            widths=self.widths[images],
            digests=self.digests[images],
        )


def scan(
    images: Path | ImageSource,
    *,
    class_order: ClassOrder = "auto",
    options: ImageOptions | None = None,
    cache: Path | None = None,
    rehash: bool = False,
    digests: bool = True,
    skip_broken: bool = False,
    leave_out: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
    save: bool = True,
    decode: bool = True,
) -> Manifest:
    """Make the manifest of a source: read every image: its header, its digest, whether it decodes.

    Args:
        images: a source, or the path of one, as `pipeline.images.opening` opens it: a class folder, an archive, ...
        class_order: order of the classes of a class folder; ``auto`` is byte order, and stops where numbers in names
            sort otherwise. A source that is given open has its own order.
        options: what the images at a path are, where it is not to be recognised, and names of their classes.
        cache: file that keeps what was read; images of the same size and stamp (of files: modification time) are not
            read again, and contents that decoded are not decoded again.
        rehash: read every image again.
        digests: compute SHA-256 digests.
        skip_broken: leave out the images that do not decode, instead of refusing them.
        leave_out: names of images to leave out (what a store recorded as ``skipped``).
        progress: called with (images read, images to read).
        threads: threads that read; a few more than the cores when None.
        save: write what was read to the cache.
        decode: check whether images can be decoded; False reads only headers, and does not use the cache.

    Raises:
        InputError: names what is wrong with the source, or the images that cannot be used.
    """
    if isinstance(images, Path):
        images = open_images(images, class_order, leave_out, options=options, cache=cache if decode else None)
    source = images
    listing = source.listing
    known = ImageRows.empty(len(listing.names))
    hashed = known.digests[:0]
    if not decode:
        cache = None
    if cache is not None and not rehash:
        known, hashed = manifest_cache.load(cache, listing)
    todo = ~known.decoded
    if digests:
        todo |= ~known.digests.any(axis=1)
    if leave_out:
        todo[_named_among(listing, leave_out)] = False
    decoded = set(map(bytes, hashed)) if todo.any() else set[bytes]()  # 100 bytes an image
    reader = _Reader(source, known, digests, decoded, decode)
    try:
        reader.read(_as_stored(listing, np.flatnonzero(todo)).tolist(), progress, threads)
    finally:  # what was read is kept even when a file is refused, or the user stops
        if cache is not None and save and todo.any():
            manifest_cache.save(cache, listing, known)
    reader.check(skip_broken)
    return _manifest(source, known, sorted(reader.broken), leave_out)


class UnusableFilesError(InputError):
    """Images that cannot be used, each with the reason."""


class _Reader:
    """Reads images with a thread pool into the rows, and collects those that cannot be used."""

    def __init__(self, source: ImageSource, rows: ImageRows, digest: bool, decoded: set[bytes], decode: bool) -> None:
        self.source = source
        self.rows = rows
        self.digest = digest
        self.decoded = decoded
        self.decode = decode
        self.broken: dict[int, str] = {}
        self.refused: dict[int, str] = {}
        self.stopped = False

    def read(self, images: list[int], progress: Callable[[int, int], None] | None, threads: int | None) -> None:
        """Read these images; stops early when many are refused."""
        threads = AT_ONCE if self.source.listing.remote else threads
        with quiet(), ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(images), _FILES_IN_FLIGHT):
                part = images[start : start + _FILES_IN_FLIGHT]
                for done, _ in enumerate(pool.map(self._read_one, part), start + 1):
                    if progress:
                        progress(done, len(images))
                if len(self.refused) >= _MAX_REFUSED and start + len(part) < len(images):
                    self.stopped = True
                    break

    def _read_one(self, image: int) -> None:
        """Read one image into its row; the row counts as not read when the image cannot be used."""
        self.rows.decoded[image] = False
        try:
            header, digest = _read_image(self.source, image, self.digest, self.decoded if self.decode else None)
        except BrokenImageError as error:
            self.broken[image] = str(error)
        except InputError as error:
            self.refused[image] = str(error)
        else:
            self.rows.heights[image], self.rows.widths[image] = header.height, header.width
            if digest:
                self.decoded.add(digest)
                self.rows.digests[image] = np.frombuffer(digest, np.uint8)
            self.rows.decoded[image] = True

    def check(self, skip_broken: bool) -> None:
        """Raise when images are refused, or broken ones may not be skipped."""
        unusable = self.refused if skip_broken else {**self.refused, **self.broken}
        if not unusable:
            return
        lines = [
            f"  {printable(self.source.place(image))}: {reason}" for image, reason in sorted(unusable.items())[:_LISTED]
        ]
        if len(unusable) > _LISTED:
            lines.append(f"  and {len(unusable) - _LISTED:,} more")
        advice = "repair, convert or remove them"
        if self.broken and not skip_broken:
            advice += "; --skip-broken leaves out those that do not decode"
        count = f"{'at least ' if self.stopped else ''}{len(unusable):,} image file{'s' * (len(unusable) > 1)}"
        raise UnusableFilesError("\n".join([f"{count} cannot be used; {advice}:", *lines]))


def _read_image(
    source: ImageSource, image: int, digest: bool, decoded: Collection[bytes] | None
) -> tuple[Header, bytes]:
    """Header and SHA-256 (or nothing) of an image that decodes.

    Contents with the digests ``decoded`` have been decoded before; with None, none is decoded.
    """
    try:
        with source.open(image) as file:
            header = read_header(file)
            file.seek(0)
            sha = hashlib.file_digest(file, "sha256").digest() if digest else b""
            if decoded is not None and sha not in decoded:
                require_decodes(file)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from error
    return header, sha


def _as_stored(listing: Listing, images: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Some images in the order in which they are read fastest."""
    return images if listing.layout is None else images[np.argsort(listing.layout[images], kind="stable")]


def _named_among(listing: Listing, names: Collection[str]) -> list[int]:
    """The indexes of the listed images with these names."""
    wanted = frozenset(names)
    return [image for image, name in enumerate(listing.names) if name in wanted] if wanted else []


def _manifest(source: ImageSource, rows: ImageRows, broken: list[int], leave_out: Collection[str]) -> Manifest:
    """The manifest of the listed images without the broken ones and those to be left out."""
    listing = source.listing
    indexes = np.arange(len(listing.names))
    absent = {*broken, *_named_among(listing, leave_out)}
    skipped = {*leave_out, *(listing.names[image] for image in broken)}
    whole = Manifest(
        source=source,
        indexes=indexes,
        names=listing.names,
        classes=listing.classes,
        targets=listing.targets,
        heights=rows.heights,
        widths=rows.widths,
        digests=rows.digests,
        skipped=tuple(sorted(skipped)),
        left_out=listing.left_out,
    )
    if not absent:
        return whole
    keep = np.delete(indexes, sorted(absent))
    counts = np.bincount(listing.targets[keep], minlength=len(listing.classes))
    empty = [listing.classes[target] for target in np.flatnonzero(counts == 0)]
    if empty:
        raise InputError(
            f"{printable(listing.location)}: every image of class {named(empty)} is broken; repair the images or "
            f"remove the folder"
        )
    return whole.subset(keep)


def require_same_images(
    identity: Identity,
    digests: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.int64],
    manifest: Manifest,
) -> None:
    """Raise unless a manifest has the images of a store.

    Args:
        identity: the store's identity.
        digests: the store's image digests, uint8 ``[N, 32]``.
        targets: the store's targets, int64 ``[N]``.
        manifest: the images.

    Raises:
        MismatchError: names the first difference on both sides.
    """
    same_tables = np.array_equal(digests, manifest.digests) and np.array_equal(targets, manifest.targets)
    if identity.classes == manifest.classes and identity.manifest == manifest.digest and same_tables:
        return
    found = (
        f"the store has {identity.images:,} images in {len(identity.classes):,} classes, "
        f"{printable(manifest.location)} has {len(manifest):,} in {len(manifest.classes):,}"
    )
    advice = "give the images of the store, or build another store for these"
    found += explained(identity.images, manifest)
    for index, (stored, given) in enumerate(zip_longest(identity.classes, manifest.classes)):
        if stored != given:
            ours, theirs = _quoted(stored, given)
            raise MismatchError(
                f"other images: class {index} of the store is {ours}, of {printable(manifest.location)} it is "
                f"{theirs}; {found}; {advice}"
            )
    both = min(len(digests), len(manifest))
    differ = (digests[:both] != manifest.digests[:both]).any(axis=1) | (targets[:both] != manifest.targets[:both])
    image = int(np.argmax(differ)) if differ.any() else both
    if sorted(map(bytes, digests)) == sorted(map(bytes, manifest.digests)):
        found += " (the same files, in another order or in other classes)"
    raise MismatchError(
        f"other images: image {image} of the store is {_row(identity.classes, digests, targets, image)}, "
        f"here it is {_row(manifest.classes, manifest.digests, manifest.targets, image)}"
        f"{f' ({printable(manifest.place(image))})' if image < len(manifest) else ''}; {found}; {advice}"
    )


def _row(classes: Sequence[str], digests: npt.NDArray[np.uint8], targets: npt.NDArray[np.int64], image: int) -> str:
    """One image of the store or the manifest, for messages."""
    if image >= len(digests):
        return "absent"
    return f"{digests[image, :8].tobytes().hex()} of class {classes[targets[image]]!r}"


def _quoted(ours: str | None, theirs: str | None) -> tuple[str, str]:
    """Two class names, for messages."""
    if ours is None or theirs is None:
        return ("absent" if ours is None else repr(ours)), ("absent" if theirs is None else repr(theirs))
    return told_apart(ours, theirs)


def explained(images: int, manifest: Manifest) -> str:
    """Why a folder may have more or fewer images than a store made of it by an earlier version; empty if unknown."""
    former = manifest.source.listing.former_suffixes
    if not former:
        return ""
    new = [path for path in manifest.names if not path.lower().endswith(former)]
    if len(manifest) > images and new:
        return (
            f"; {len(new):,} of these are not named {', '.join(former)}, as {printable(new[0])}: versions "
            f"before 0.2 did not read such files, so move them out of the folder to continue a store of that time"
        )
    if len(manifest) < images and manifest.left_out.line:
        return f"; {manifest.left_out.line} (versions before 0.2 took images in folders of systems for the set's)"
    return ""


def with_classes(classes: Sequence[str], manifest: Manifest) -> Manifest:
    """A manifest with its classes in the order and Unicode form of ``classes``; unchanged if they are other classes."""
    forms = {same_form(name): target for target, name in enumerate(classes)}
    places = [forms.get(same_form(name), -1) for name in manifest.classes]
    if manifest.classes == tuple(classes) or sorted(places) != [*range(len(classes))]:
        return manifest
    targets = np.array(places, np.int64)[manifest.targets]
    order = np.argsort(targets, kind="stable")
    return replace(manifest.subset(order), classes=tuple(classes), targets=targets[order])


def with_order(digests: npt.NDArray[np.uint8], manifest: Manifest) -> Manifest:
    """A manifest in the order of a store whose files had names in another Unicode form; else unchanged.

    File systems and archives write one letter in several ways, and these sort differently.

    Args:
        digests: the store's image digests, uint8 ``[N, 32]``.
        manifest: with digests, classes in the store's order.
    """
    if np.array_equal(digests, manifest.digests) or all(map(str.isascii, manifest.names)):
        return manifest
    for form in ("NFC", "NFD"):
        names = [normalize(form, path).split("/")[1:] for path in manifest.names]
        keys = [
            (target, "/".join(parts[:-1]), parts[-1]) for target, parts in zip(manifest.targets, names, strict=True)
        ]
        moved = manifest.subset(np.array(sorted(range(len(keys)), key=keys.__getitem__)))
        if np.array_equal(digests, moved.digests):
            return moved
    return manifest
