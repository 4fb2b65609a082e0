"""The folder in which a set is made: job by job, each whole and durable before its record, then renamed.

This folder is ``.SET.partial``, next to the future set. ``begun.json`` has the description of the set; ``set/`` becomes
the set; ``jobs/`` has a record of each finished job. Before the files of a job are written, ``N.writing`` lists them
with their digests, so that files of a killed command are recognised; it becomes ``N.npz`` when they are complete.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelstore.durable import disk, documents, locking, newfile, removing
from labelstore.durable.places import SYNTHESIS
from labelstore.durable.removing import Proof
from labelstore.errors import DamagedError, InputError
from labelstore.operations.synthesised import MARK
from labelstore.spec import Json
from pipeline.images.provenance import (
    PIECES,
    PIECES_OF_SET,
    RECORD,
    RECORD_FILES,
    Pieces,
    join_pieces,
    read_pieces,
    record_bytes,
)
from pipeline.synthesis.files import File, has_digest, write
from pipeline.synthesis.method import Job, Made, Progress, Working

BEGUN, LOCK, IMAGES, JOBS = "begun.json", "lock", "set", "jobs"
WRITERS = 8  # files that are flushed at once
# Only this command writes in the folder, under its lock, so that files of these names are its own.
WORKING = Proof("what a stopped command has left", lambda _path: True)


def _is_begun(path: Path) -> bool:
    try:
        return MARK in documents.read(path)
    except DamagedError:
        return False


BEGUN_BY_US = Proof("the description of a started set", _is_begun)


@dataclass(frozen=True, slots=True)
class Partial:
    """The folder in which a set is made."""

    folder: Path

    @classmethod
    def of(cls, out: Path) -> Partial:
        """The working folder of a set."""
        return cls(out.with_name(f".{out.name}.partial"))

    @property
    def begun(self) -> Path:
        """The file with the description of the set."""
        return self.folder / BEGUN

    @property
    def images(self) -> Path:
        """The folder that becomes the set."""
        return self.folder / IMAGES

    def record(self, job: int) -> Path:
        """The record of a job that is made."""
        return self.folder / JOBS / f"{job:06d}.npz"

    def writing(self, job: int) -> Path:
        """The record of a job while its files are written."""
        return self.folder / JOBS / f"{job:06d}.writing"

    def working(self, job: int) -> Path:
        """The file with a method's state of a job."""
        return self.folder / JOBS / f"{job:06d}.working"

    def read_begun(self) -> dict[str, Json] | None:
        """The description that a stopped command has written; None if there is none.

        Raises:
            InputError: there is something else in the way.
        """
        try:
            values = documents.read(self.begun)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            raise self.in_the_way() from error
        if values.get(MARK) is None:
            raise self.in_the_way()
        return {key: value for key, value in values.items() if key not in (MARK, "crc32c")}

    def require_ours(self) -> None:
        """Refuse a folder that this command has not made.

        Raises:
            InputError: names it.
        """
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise self.in_the_way()
        if not self.folder.exists() or self.read_begun() is not None:
            return
        if any(not path.name.startswith((LOCK, f".{BEGUN}.")) for path in self.folder.iterdir()):
            raise self.in_the_way()

    def in_the_way(self) -> InputError:
        """The error for a folder that this command has not made."""
        return InputError(
            f"{self.folder}: expected no folder, or what a stopped command has left, found other files; move it away, "
            f"or give another --out"
        )

    def made(self) -> set[int]:
        """The jobs that have a record."""
        return {int(path.stem) for path in (self.folder / JOBS).glob("*.npz") if path.stem.isdecimal()}


@contextmanager
def held(out: Path) -> Iterator[Partial]:
    """The folder in which a set is made, made where it is absent, kept from other processes.

    A command that is refused before it has started leaves nothing behind.

    Raises:
        InputError: something else is in the way, or it cannot be made.
        LeaseError: another process makes this set.
    """
    partial = Partial.of(out)
    made = not partial.folder.exists()
    partial.require_ours()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another --out") from error
    busy = f"{out}: another process makes this set; wait for it, or give another --out"
    with locking.hold(partial.folder / LOCK, busy, "give another --out"):
        try:
            yield partial
        finally:
            if partial.folder.exists() and not partial.begun.exists():
                sweep(partial, made=made)


def begin(partial: Partial, given: Mapping[str, Json]) -> None:
    """Write the description of a new set."""
    write_again(partial.begun, documents.encode({MARK: 1, **given}), BEGUN_BY_US)


def forget_begun(partial: Partial) -> bool:
    """Remove the description if no image is made yet, so that nothing is lost; returns whether it was removed."""
    jobs = partial.folder / JOBS
    if partial.made() or any(path.suffix == ".working" for path in jobs.glob("*")):
        return False
    for path in jobs.glob("*.writing"):
        if path.stem.isdecimal():
            forget_unfinished(partial, int(path.stem))
    removing.remove(partial.begun, BEGUN_BY_US)
    return True


def make_folders(partial: Partial) -> None:
    """Make the folders of images and records where they are absent."""
    for folder in (partial.images, partial.folder / JOBS):
        disk.make_folder(folder)
    disk.sync_folder(partial.folder)


def missing(partial: Partial, jobs: Sequence[Job]) -> list[int]:
    """The jobs that are still to be made; the files of the others are complete.

    A job of which a file was removed is made again.

    Raises:
        InputError: a record or a file has changed since.
    """
    made = partial.made()
    for job in sorted(made):
        pieces = _pieces_of(partial.record(job))
        same = job < len(jobs) and len(pieces) == len(jobs[job].targets)
        if not (same and np.array_equal(pieces.numbers, jobs[job].numbers)):
            raise InputError(f"{partial.record(job)}: expected the record of {len(jobs)} jobs, found another one")
        changed = [
            path
            for file, digest in zip(pieces.files, pieces.digests, strict=True)
            if not has_digest(path := partial.images / file, digest.tobytes())
        ]
        for path in changed:
            if path.exists() or path.is_symlink():
                raise InputError(
                    f"{path}: expected the file that a stopped command wrote, found another one; move it away, then "
                    f"run the same again to have it made again"
                )
        if changed:
            removing.give_name(partial.record(job), partial.writing(job))
    made = partial.made()
    return [job for job in range(len(jobs)) if job not in made]


def _pieces_of(path: Path) -> Pieces:
    """The pieces of a job of this folder, whose files can be made again."""
    try:
        return read_pieces(path)
    except DamagedError as error:
        raise InputError(
            f"{path}: {error.why}; remove it, then run the same again to have its images made again"
        ) from error


def make_job(
    partial: Partial,
    number: int,
    job: Job,
    make: Callable[[Job, Working], Made],
    progress: Progress,
    stopping: Callable[[], bool],
) -> Made:
    """Make the images of one job; nothing is written yet.

    Args:
        partial: where.
        number: of the job.
        job: what is made.
        make: makes it.
        progress: see `Working`.
        stopping: see `Working`.
    """
    forget_unfinished(partial, number)
    return make(job, Working(partial.working(number), WORKING, progress, stopping))


def write_job(
    partial: Partial, number: int, job: Job, made: Made, files_of: Callable[[Job, Made], Sequence[File]]
) -> None:
    """Write the files of a job that is made, then its record."""
    files = files_of(job, made)
    pieces = Pieces(
        files=tuple(file.name for file in files),
        digests=np.frombuffer(b"".join(file.digest for file in files), np.uint8).reshape(-1, 32),
        targets=job.targets,
        numbers=job.numbers,
        copied=np.array([each if isinstance(each, int) else -1 for each in made.images], np.int64),
        arrays=made.pieces,
    )
    _require_pieces(job, pieces)
    write_again(partial.writing(number), pieces.to_bytes(), PIECES_OF_SET)
    for folder in {(partial.images / file.name).parent for file in files}:
        disk.make_folder(folder)
    disk.sync_folder(partial.images)
    # files of a job whose record was lost are whole, and stay
    absent = [file for file in files if not has_digest(partial.images / file.name, file.digest)]
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda file: write(partial.images / file.name, file.content), absent))
    removing.give_name(partial.writing(number), partial.record(number))
    disk.sync_folder(partial.folder / JOBS)
    forget_working(partial, number)


def write_again(path: Path, content: bytes, proof: Proof) -> None:
    """Write a file of this folder; what a killed command has left of it goes first."""
    removing.remove(path, proof)
    removing.remove(path.with_name(f".{path.name}.partial"), WORKING)
    newfile.write_new(path, content)


def forget_working(partial: Partial, number: int) -> None:
    """Remove what a method has kept of a job, and what was left while that was written."""
    path = partial.working(number)
    for each in (path, *path.parent.glob(f".{path.name}.*partial")):
        removing.remove(each, WORKING)


def _require_pieces(job: Job, pieces: Pieces) -> None:
    count = len(job.targets)
    lengths = {name: len(array) for name, array in pieces.arrays.items()} | {"images": len(pieces)}
    if wrong := {name: length for name, length in lengths.items() if length != count}:
        raise InputError(f"{job.name}: expected {count} of each from its method, found {wrong}")


def forget_unfinished(partial: Partial, number: int) -> None:
    """Remove the files of a job that a killed command has left without a record."""
    listed = partial.writing(number)
    if not listed.exists():
        return
    pieces = _pieces_of(listed)
    for file, digest in zip(pieces.files, pieces.digests, strict=True):
        path, own = partial.images / file, digest.tobytes()
        removing.remove(path.with_name(f".{path.name}.partial"), WORKING)
        removing.remove(path, Proof("an image of this set", lambda found, own=own: has_digest(found, own)))  # type: ignore[misc]
    removing.remove(listed, PIECES_OF_SET)


def finish(partial: Partial, out: Path, jobs: Sequence[Job], record: Mapping[str, Json]) -> None:
    """Turn the folder into the set, when all jobs are made.

    Args:
        partial: where the jobs are.
        out: the set.
        jobs: all.
        record: content of ``synthesis.json``, without the digest of the pieces.
    """
    whole = join_pieces([read_pieces(partial.record(job)) for job in range(len(jobs))])
    _require_no_others(partial, whole)
    pieces = whole.to_bytes()
    digest = hashlib.sha256(pieces).hexdigest()
    write_again(partial.images / PIECES, pieces, PIECES_OF_SET)
    write_again(partial.images / SYNTHESIS, record_bytes({**record, "pieces": digest}), RECORD)
    removing.move_folder(partial.images, out)
    disk.sync_folder(out.parent)
    sweep(partial)


def _require_no_others(partial: Partial, pieces: Pieces) -> None:
    """Refuse to make a set of files that this command has not written.

    Raises:
        InputError: names one.
    """
    known = {*pieces.files, *(name for each in RECORD_FILES for name in (each, f".{each}.partial"))}
    there = (path for path in partial.images.rglob("*") if path.is_symlink() or not path.is_dir())
    others = sorted(path for path in there if path.relative_to(partial.images).as_posix() not in known)
    if others:
        raise InputError(
            f"{others[0]}: expected only images of this set, found a file that was not written by this command; "
            f"move it away, then run the same again"
        )


def sweep(partial: Partial, *, made: bool = True) -> None:
    """Remove the working folder of a set that is finished or was not started; foreign files are kept.

    Args:
        partial: the folder.
        made: whether the folder itself goes when it is empty.
    """
    jobs = partial.folder / JOBS
    for path in jobs.glob("*") if jobs.is_dir() else ():
        ours = path.suffix in (".npz", ".writing") and path.stem.isdecimal()
        left = re.fullmatch(r"\d{6}\.working|\.\d{6}\..*\.?partial", path.name)
        proof = PIECES_OF_SET if ours else WORKING
        if (ours or left) and removing.may_go(path, proof):
            removing.remove(path, proof)
    for folder in (jobs, partial.images):
        removing.remove_folder(folder)
    begun = partial.begun
    for path, proof in (
        (begun.with_name(f".{begun.name}.partial"), WORKING),
        (begun, BEGUN_BY_US),
        (partial.folder / LOCK, removing.EMPTY),
    ):
        if removing.may_go(path, proof):
            removing.remove(path, proof)
    if made:
        removing.remove_folder(partial.folder)
