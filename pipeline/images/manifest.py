"""The manifest: the ordered images of a class folder, with their targets, sizes and digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable, same_form, told_apart
from labelstore.errors import InputError, MismatchError
from labelstore.format.images import manifest_digest
from labelstore.spec import Identity
from pipeline.images import manifest_cache
from pipeline.images.class_folder import FORMER_SUFFIXES, ClassOrder, Listing, list_images, named
from pipeline.images.decodes import require_decodes
from pipeline.images.headers import BrokenImageError, Header, read_header
from pipeline.images.left_out import LeftOut
from pipeline.images.manifest_cache import FileRows
from pipeline.images.quiet import quiet

_FILES_IN_FLIGHT = 1_024
_MAX_REFUSED = 100
_LISTED = 10


@dataclass(frozen=True, eq=False)
class Manifest:
    """N images of a class folder, in the order of torchvision's ImageFolder.

    Attributes:
        root: the folder.
        paths: path of each image relative to ``root``, with ``/``.
        classes: class names in target order.
        targets: int64 ``[N]``.
        heights: rows after EXIF orientation, int32 ``[N]``.
        widths: columns after EXIF orientation, int32 ``[N]``.
        digests: SHA-256 of each file, uint8 ``[N, 32]``; zeros when they were not asked for.
        skipped: relative paths of images that were left out.
        left_out: what of the folder is not read, counted by kind.
    """

    root: Path
    paths: Sequence[str]
    classes: tuple[str, ...]
    targets: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    digests: npt.NDArray[np.uint8]
    skipped: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the (class name, image digest) rows in order, hex; paths do not enter it."""
        if not self.digests.any(axis=1).all():
            raise InputError(f"{self.root}: the images were listed without digests; scan with digests=True")
        return manifest_digest(self.classes, self.targets, self.digests)

    def file(self, image: int) -> Path:
        """The file of an image."""
        return self.root / self.paths[image]

    def said(self, image: int) -> str:
        """The file of an image, for a message."""
        return printable(str(self.file(image)))

    def subset(self, images: npt.NDArray[np.integer]) -> Manifest:
        """The manifest of the images at ``images``, in that order; the classes stay."""
        return replace(
            self,
            paths=[self.paths[image] for image in images],
            targets=self.targets[images],
            heights=self.heights[images],
            widths=self.widths[images],
            digests=self.digests[images],
        )


def scan(
    root: Path,
    *,
    class_order: ClassOrder = "auto",
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
    """Make the manifest of a class folder: list it, then read every file: its header, its digest, whether it decodes.

    Args:
        root: the class folder.
        class_order: order of the classes; ``auto`` is byte order, and stops where numbers in names sort otherwise.
        cache: file that keeps what was read; files of the same size and modification time are not read again, and
            contents that decoded are not decoded again.
        rehash: read every file again.
        digests: compute SHA-256 digests.
        skip_broken: leave out the files that do not decode, instead of refusing them.
        leave_out: relative paths to leave out (what a store recorded as ``skipped``).
        progress: called with (files read, files to read).
        threads: threads that read; a few more than the cores when None.
        save: write what was read to the cache.
        decode: find out whether files decode; False reads headers alone, and neither takes nor makes a cache.

    Raises:
        InputError: names what is wrong with the folder, or the files that cannot be used.
    """
    listing = list_images(root, class_order, leave_out)
    known, decoded = FileRows.empty(len(listing.paths)), set[bytes]()
    if not decode:
        cache = None
    if cache is not None and not rehash:
        known, decoded = manifest_cache.load(cache, listing)
    todo = ~known.decoded
    if digests:
        todo |= ~known.digests.any(axis=1)
    reader = _Reader(listing, known, digests, decoded, decode)
    try:
        reader.read(np.flatnonzero(todo).tolist(), progress, threads)
    finally:  # what was read is kept even when a file is refused, or the user stops
        if cache is not None and save and todo.any():
            manifest_cache.save(cache, listing, known)
    reader.check(skip_broken)
    return _manifest(listing, known, sorted(reader.broken), leave_out)


class UnusableFilesError(InputError):
    """Image files that cannot be used, each with why."""


class _Reader:
    """Reads files with a thread pool into the rows, and collects those that cannot be used."""

    def __init__(self, listing: Listing, rows: FileRows, digest: bool, decoded: set[bytes], decode: bool) -> None:
        self.listing = listing
        self.rows = rows
        self.digest = digest
        self.decoded = decoded
        self.decode = decode
        self.broken: dict[int, str] = {}
        self.refused: dict[int, str] = {}
        self.stopped = False

    def read(self, images: list[int], progress: Callable[[int, int], None] | None, threads: int | None) -> None:
        """Read these files; stops early when many are refused."""
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
        """Read one file into its row; the row counts as not read when the file cannot be used."""
        path = self.listing.root / self.listing.paths[image]
        self.rows.decoded[image] = False
        try:
            header, digest = _read_file(path, self.digest, self.decoded if self.decode else None)
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
        """Raise when files are refused, or broken ones may not be skipped."""
        unusable = self.refused if skip_broken else {**self.refused, **self.broken}
        if not unusable:
            return
        lines = [
            f"  {printable(str(self.listing.root / self.listing.paths[image]))}: {reason}"
            for image, reason in sorted(unusable.items())[:_LISTED]
        ]
        if len(unusable) > _LISTED:
            lines.append(f"  and {len(unusable) - _LISTED:,} more")
        advice = "repair, convert or remove them"
        if self.broken and not skip_broken:
            advice += "; --skip-broken leaves out those that do not decode"
        count = f"{'at least ' if self.stopped else ''}{len(unusable):,} image file{'s' * (len(unusable) > 1)}"
        raise UnusableFilesError("\n".join([f"{count} cannot be used; {advice}:", *lines]))


def _read_file(path: Path, digest: bool, decoded: Collection[bytes] | None) -> tuple[Header, bytes]:
    """Header and SHA-256 (or nothing) of a file that decodes, as those of the digests ``decoded`` did.

    With None it is not decoded at all.
    """
    try:
        with path.open("rb") as file:
            header = read_header(file)
            file.seek(0)
            sha = hashlib.file_digest(file, "sha256").digest() if digest else b""
            if decoded is not None and sha not in decoded:
                require_decodes(file)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from error
    return header, sha


def _manifest(listing: Listing, rows: FileRows, broken: list[int], leave_out: Collection[str]) -> Manifest:
    """The manifest of the listed files without the broken ones."""
    keep = np.delete(np.arange(len(listing.paths)), broken)
    skipped = {*leave_out, *(listing.paths[image] for image in broken)}
    whole = Manifest(
        root=listing.root,
        paths=listing.paths,
        classes=listing.classes,
        targets=listing.targets,
        heights=rows.heights,
        widths=rows.widths,
        digests=rows.digests,
        skipped=tuple(sorted(skipped)),
        left_out=listing.left_out,
    )
    if not broken:
        return whole
    counts = np.bincount(listing.targets[keep], minlength=len(listing.classes))
    empty = [listing.classes[target] for target in np.flatnonzero(counts == 0)]
    if empty:
        raise InputError(
            f"{listing.root}: every image of class {named(empty)} is broken; repair the images or remove the folder"
        )
    return whole.subset(keep)


def require_same_images(
    identity: Identity,
    digests: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.int64],
    manifest: Manifest,
) -> None:
    """Raise unless a manifest is the set of images that a store was made of.

    Args:
        identity: the store's identity.
        digests: the store's image digests, uint8 ``[N, 32]``.
        targets: the store's targets, int64 ``[N]``.
        manifest: the images at hand.

    Raises:
        MismatchError: names the first difference on both sides.
    """
    same_tables = np.array_equal(digests, manifest.digests) and np.array_equal(targets, manifest.targets)
    if identity.classes == manifest.classes and identity.manifest == manifest.digest and same_tables:
        return
    found = (
        f"the store has {identity.images:,} images in {len(identity.classes):,} classes, "
        f"{manifest.root} has {len(manifest):,} in {len(manifest.classes):,}"
    )
    advice = "give the folder that the store was made of, or build another store for this one"
    found += explained(identity.images, manifest)
    for index, (stored, given) in enumerate(zip_longest(identity.classes, manifest.classes)):
        if stored != given:
            ours, theirs = _quoted(stored, given)
            raise MismatchError(
                f"other images: class {index} of the store is {ours}, of {printable(str(manifest.root))} it is "
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
        f"{f' ({manifest.said(image)})' if image < len(manifest) else ''}; {found}; {advice}"
    )


def _row(classes: Sequence[str], digests: npt.NDArray[np.uint8], targets: npt.NDArray[np.int64], image: int) -> str:
    """One image of one side, for a message."""
    if image >= len(digests):
        return "absent"
    return f"{digests[image, :8].tobytes().hex()} of class {classes[targets[image]]!r}"


def _quoted(ours: str | None, theirs: str | None) -> tuple[str, str]:
    """Two class names, for a message."""
    if ours is None or theirs is None:
        return ("absent" if ours is None else repr(ours)), ("absent" if theirs is None else repr(theirs))
    return told_apart(ours, theirs)


def explained(images: int, manifest: Manifest) -> str:
    """Why a folder may hold more or fewer images than a store that an earlier version made of it; empty if unknown."""
    new = [path for path in manifest.paths if not path.lower().endswith(FORMER_SUFFIXES)]
    if len(manifest) > images and new:
        return (
            f"; {len(new):,} of these are not named {', '.join(FORMER_SUFFIXES)}, as {printable(new[0])}: versions "
            f"before 0.2 did not read such files, so move them out of the folder to continue a store of that time"
        )
    if len(manifest) < images and manifest.left_out.line:
        return f"; {manifest.left_out.line} (versions before 0.2 took images in folders of systems for the set's)"
    return ""


def with_classes(classes: Sequence[str], manifest: Manifest) -> Manifest:
    """A manifest with its classes in the order and the Unicode form of ``classes``; as it is where they are others."""
    forms = {same_form(name): target for target, name in enumerate(classes)}
    places = [forms.get(same_form(name), -1) for name in manifest.classes]
    if manifest.classes == tuple(classes) or sorted(places) != [*range(len(classes))]:
        return manifest
    targets = np.array(places, np.int64)[manifest.targets]
    order = np.argsort(targets, kind="stable")
    return replace(manifest.subset(order), classes=tuple(classes), targets=targets[order])


def with_order(digests: npt.NDArray[np.uint8], manifest: Manifest) -> Manifest:
    """A manifest in the order of a store whose files had their names in another Unicode form; else as it is.

    File systems and archives write one letter in several ways, and these sort differently.

    Args:
        digests: the store's image digests, uint8 ``[N, 32]``.
        manifest: with digests, classes in the store's order.
    """
    if np.array_equal(digests, manifest.digests) or all(map(str.isascii, manifest.paths)):
        return manifest
    for form in ("NFC", "NFD"):
        names = [normalize(form, path).split("/")[1:] for path in manifest.paths]
        keys = [
            (target, "/".join(parts[:-1]), parts[-1]) for target, parts in zip(manifest.targets, names, strict=True)
        ]
        moved = manifest.subset(np.array(sorted(range(len(keys)), key=keys.__getitem__)))
        if np.array_equal(digests, moved.digests):
            return moved
    return manifest
