"""`giftwrap synthesize`: images, teacher and flags are checked, then the set is made job by job."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import features

from labelstore.command.console import Console, Progress, quantity
from labelstore.command.flags import flags_of
from labelstore.command.stopping import StopSignals
from labelstore.durable.places import SYNTHESIS, require_new_file
from labelstore.errors import InputError, LeaseError
from labelstore.spec import Json, first_difference, require_same
from labelstore.version import __version__
from pipeline.build.refusing import nothing_left
from pipeline.config import manifest_cache, require_labels
from pipeline.device.current import make_current
from pipeline.device.faults import device_faults
from pipeline.images.manifest import Manifest, scan
from pipeline.images.manifest_cache import CACHE
from pipeline.images.no_images import without_images
from pipeline.images.provenance import record_of
from pipeline.images.remarks import report_foreign_cache, report_left_out, report_skipped
from pipeline.networks.load import require_known
from pipeline.ranks import Ranks, join
from pipeline.replay.folder import draw_folder
from pipeline.synthesis import CLASSES, METHODS, REFUSING, making
from pipeline.synthesis.config import SynthesizeConfig, flags_in_effect, require_size
from pipeline.synthesis.files import files_of
from pipeline.synthesis.job_writer import JobWriter
from pipeline.synthesis.looking import look_at_set, look_first
from pipeline.synthesis.making import Partial
from pipeline.synthesis.method import Job, Method, Setting, StopRequestedError
from pipeline.synthesis.teaching import has_teacher

STOPPING = "stopping when the current job is made or saved; the same signal again stops at once"
KEPT = "finished jobs are kept"
ADVICE = "give the flags, images and teacher that it was started with, or another --out"
WAITING_SECONDS = 1.0  # interval between checks for jobs of other ranks
FLAG_AT: Mapping[str, str] = {
    f"{part}{key}": f"--{flag.name}"
    for key, flag in flags_of(SynthesizeConfig).items()
    for part in ("flags.", "teacher.", "teacher.engine.")
} | {
    "method": "METHOD", "images.manifest": "--images", "parameters.batch": "--batch",
    "parameters.cells": "--update-cells", "parameters.weights": "--model",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a command.

    Attributes:
        record: of the set.
        made: images that this command made, by all ranks.
        seconds: that it took.
        found: whether the set was there already.
    """

    record: Mapping[str, Json]
    made: int
    seconds: float
    found: bool = False


@device_faults("images are made", "a smaller --batch or --cache-gib")
def synthesize(config: SynthesizeConfig, console: Console) -> Mapping[str, Json]:
    """Make or continue a set; returns the summary.

    Killing this at any instant loses the current jobs; the same command continues, to the same bytes. Under torchrun,
    ranks share the jobs; rank 0 returns the summary, the others return nothing.

    Args:
        config: the flags.
        console: where progress, notes and warnings go.
    """
    start = time.monotonic()
    if config.method in REFUSING:
        REFUSING[config.method](config)
    if has_teacher(config.teacher):  # what is wrong with it is found before images are read
        require_labels(config.teacher)
        require_size(config, "the teacher")
        for name, weights in zip(config.teacher.names, config.teacher.weights, strict=False):
            require_known(name, weights)
    with join("synthesis") as ranks:
        config = replace(ranks.own_resources(config), out=config.out.resolve())
        make_current(config.render.device)
        ranks.require_shared(config.out, "--out")
        if not ranks.first:
            make_share(prepare(config, Console(silent=True), ranks))
            return {}
        require_place(config.out)
        sheet = config.sheet
        if sheet and not (sheet.exists() and record_of(config.out)):
            require_new_file("--sheet", sheet)
        cache = {manifest_cache(config.out): CACHE}
        with nothing_left(cache, lambda: (config.out / SYNTHESIS).exists() or Partial.of(config.out).begun.exists()):
            setting = prepare(config, console, ranks)
            begun: Any = None if record_of(config.out) else Partial.of(config.out).read_begun()
            if begun and begun["teacher"] and begun["method"] == config.method:
                setting = replace(setting, engine=begun["teacher"]["engine"])
            with closing(METHODS[config.method](setting)) as method:
                ranks.broadcast(engine_of(method))
                done = make(setting, method, start)
        looked = look_at_set(setting)
        if sheet and not sheet.exists():
            draw_folder(config.out, sheet, render=config.render)
        return {**summary(setting, done), **looked}


def prepare(config: SynthesizeConfig, console: Console, ranks: Ranks) -> Setting:
    """Read the images: on rank 0 first, so that the others find its cache."""
    with ranks.first_alone():
        manifest = manifest_of(config, console, save=ranks.first)
    return Setting(config=config, manifest=manifest, targets=targets_of(config, manifest), console=console, ranks=ranks)


def require_place(out: Path) -> None:
    """Refuse a place where something else is than a set, or what a stopped command has left of one."""
    there = out.exists() or out.is_symlink()
    if there and not (out.is_dir() and ((out / SYNTHESIS).is_file() or not any(out.iterdir()))):
        raise InputError(
            f"--out {out}: expected a folder that is absent or empty, or a finished set, found other files; give "
            f"another --out"
        )
    if not (out / SYNTHESIS).is_file():
        Partial.of(out).require_ours()


def manifest_of(config: SynthesizeConfig, console: Console, *, save: bool) -> Manifest:
    """The source images of the set; a manifest without images if the method needs none."""
    if config.method not in CLASSES:
        return read_images(config, manifest_cache(config.out), console, save=save)
    classes = CLASSES[config.method](config)
    require_names(classes)
    return without_images(classes)


def read_images(config: SynthesizeConfig, cache: Path, console: Console, *, save: bool) -> Manifest:
    """The manifest of the images, from the cache beside the set where files have not changed.

    Args:
        config: the flags.
        cache: what was read of the images; written with ``save``.
        console: where notes and warnings go.
        save: whether to write it, which the first rank does.

    Raises:
        InputError: images cannot be used, or a class cannot name a folder.
    """
    with console.progress("images", 1, "images") as progress:
        manifest = scan(
            config.images,
            class_order=config.class_order,
            options=config.source,
            cache=cache,
            rehash=config.rehash,
            skip_broken=config.skip_broken,
            progress=progress.reach,
            save=save,
        )
    console.line(
        f"images: {len(manifest):,} in {quantity(len(manifest.classes), 'class')}, digest {manifest.digest[:16]}"
    )
    report_left_out(manifest, console)
    report_foreign_cache(cache, console)
    report_skipped(manifest, console)
    require_names(manifest.classes)
    return manifest


def require_names(classes: Sequence[str]) -> None:
    """Refuse a class that cannot name a folder."""
    for name in classes:
        if not name or "/" in name or "\0" in name or name.startswith(".") or len(name.encode()) > 255:
            raise InputError(f"class {name!r}: expected the name of a folder; name the classes of --images otherwise")


def targets_of(config: SynthesizeConfig, manifest: Manifest) -> npt.NDArray[np.int64]:
    """The classes that the set has, int64 ``[c]``.

    Raises:
        InputError: --drop-classes names a class that is not there, or leaves none.
    """
    unknown = [name for name in config.drop_classes if name not in manifest.classes]
    if unknown:
        raise InputError(f"--drop-classes: expected classes of {manifest.location}, found no {unknown[0]!r} among them")
    kept = [target for target, name in enumerate(manifest.classes) if name not in config.drop_classes]
    if not kept:
        raise InputError(f"--drop-classes: expected to leave a class, found all {len(manifest.classes)} dropped")
    return np.array(kept, np.int64)


def make(setting: Setting, method: Method, start: float) -> Done:
    """Make what is missing of the set, under its lock: the part of rank 0."""
    config, ranks, jobs = setting.config, setting.ranks, method.jobs
    given = record(setting, method)
    if (stored := record_of(config.out)) is not None:
        ranks.broadcast({"given": None, "todo": []})
        require_finished_same(stored, given)
        if Partial.of(config.out).folder.is_dir():  # killed when the set had its name; or of somebody else, and stays
            with suppress(InputError, LeaseError), making.held(config.out) as partial:
                making.sweep(partial)
        return Done(stored, 0, time.monotonic() - start, found=True)
    with making.held(config.out) as partial:
        begun = partial.read_begun()
        if begun is not None and first_difference(begun, given) and making.forget_begun(partial):
            begun = None
        if begun is None:
            making.begin(partial, given)
        else:
            require_same("set", begun, given, ADVICE, holder=str(partial.folder), flags=FLAG_AT)
        making.make_folders(partial)
        todo = making.missing(partial, jobs)
        ranks.broadcast({"given": given, "todo": [*todo]})
        with keeping(partial):
            if todo:
                look_first(setting, quiet=method.teacher is not None)
            make_jobs(setting, method, partial, todo)
            making.finish(partial, config.out, jobs, given | count(setting, jobs))
    made = sum(len(jobs[job].targets) for job in todo)
    return Done(record_of(config.out) or {}, made, time.monotonic() - start)


def make_share(setting: Setting) -> None:
    """Make this rank's part of the jobs, under the lock of rank 0."""
    engine: Any = setting.ranks.broadcast()
    with closing(METHODS[setting.config.method](replace(setting, engine=engine))) as method:
        begun: Any = setting.ranks.broadcast()
        if begun["given"] is None:
            return
        advice = "start all ranks with the same command, on devices of one model"
        what = f"command of rank {setting.ranks.rank}"
        require_same(what, begun["given"], record(setting, method), advice, holder="the first rank", flags=FLAG_AT)
        make_jobs(setting, method, Partial.of(setting.config.out), begun["todo"])


@contextmanager
def keeping(partial: Partial) -> Iterator[None]:
    """Note on an error that finished jobs are kept, where there are some."""
    try:
        yield
    except Exception as error:
        if partial.made():
            error.add_note(KEPT)
        raise


def make_jobs(setting: Setting, method: Method, partial: Partial, todo: Sequence[int]) -> None:
    """Make this rank's part of some jobs, until all ranks have made theirs, or a signal has stopped them."""
    config, ranks, console, jobs = setting.config, setting.ranks, setting.console, method.jobs
    sizes = [len(job.targets) for job in jobs]
    with (
        StopSignals(lambda _number: console.warn(STOPPING)) as stops,
        console.progress(config.method, sum(sizes), "images") as progress,
    ):
        line = Line(progress, partial, sizes)
        with JobWriter(partial, lambda job, made: files_of(job, made, setting.manifest, config.jpeg_quality)) as writer:
            for number in ranks.shard(todo):
                if stops.number:
                    break
                within = functools.partial(line.within, jobs[number])
                try:
                    made = making.make_job(
                        partial, number, jobs[number], method.make, within, lambda: bool(stops.number)
                    )
                except StopRequestedError:
                    break
                writer.write(number, jobs[number], made)
                line.show()
        ranks.barrier(line.wait)
        stopped = [value for value in ranks.all_gather(stops.number) if value]
        if stopped:
            stops.record(int(str(stopped[0])))
            raise stops.error()
        line.end()


class Line:
    """The live line: images of all ranks, and how far this one is in its job."""

    def __init__(self, progress: Progress, partial: Partial, sizes: Sequence[int]) -> None:
        """Count what was made before as done."""
        self._progress, self._partial, self._sizes = progress, partial, sizes
        self._looked, self._done = time.monotonic(), self._made()
        progress.resume_at(self._done)

    def _made(self) -> int:
        return sum(self._sizes[job] for job in self._partial.made())

    def show(self, note: str = "") -> None:
        """Print what all ranks have made."""
        self._looked, self._done = time.monotonic(), self._made()
        self._progress.reach(self._done, sum(self._sizes), note)

    def wait(self) -> None:
        """Print what other ranks have made, now and then."""
        if time.monotonic() - self._looked > WAITING_SECONDS:
            self.show()

    def end(self) -> None:
        """Print what all ranks have made, unless it is printed."""
        if self._made() != self._done:
            self.show()

    def within(self, job: Job, done: int, total: int, binding: str = "") -> None:
        """Print how far a job is, and what takes the time."""
        if time.monotonic() - self._looked > WAITING_SECONDS:
            self.show(f"{job.name} {100 * done / max(total, 1):.0f} %{binding and f', {binding}'}")


def engine_of(method: Method) -> Json:
    """The engine of a method's teacher; None if there is none."""
    return None if method.teacher is None else method.teacher.get("engine")


def record(setting: Setting, method: Method) -> dict[str, Json]:
    """The description of a set, before it is made."""
    manifest = setting.manifest
    return {
        "method": setting.config.method,
        "flags": flags_in_effect(setting.config),
        "parameters": dict(method.parameters),
        "images": {
            "manifest": manifest.digest,
            "images": len(manifest),
            "classes": list(manifest.classes),
            "skipped": list(manifest.skipped),
        },
        "classes": [manifest.classes[target] for target in setting.targets],
        "teacher": None if method.teacher is None else dict(method.teacher),
        "versions": versions(),
    }


def count(setting: Setting, jobs: Sequence[Job]) -> dict[str, Json]:
    """The number of images of the set, and the classes that have fewer than the others."""
    found = np.bincount(np.concatenate([job.targets for job in jobs]), minlength=len(setting.manifest.classes))
    fewer: dict[str, Json] = {
        setting.manifest.classes[target]: int(found[target])
        for target in setting.targets
        if found[target] < (setting.config.ipc or 0)
    }
    return {"count": int(found.sum()), "fewer": fewer}


def versions() -> dict[str, Json]:
    """The versions of what decodes, cuts and encodes images."""
    return {
        "giftwrap": __version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "zlib": features.version("zlib"),
        "libjpeg_turbo": features.version("libjpeg_turbo"),
    }


def require_finished_same(stored: Mapping[str, Json], given: Mapping[str, Json]) -> None:
    """Refuse to type another command for a set that is finished; what ran it may be another.

    Raises:
        MismatchError: names the first difference.
    """

    def lasting(values: Mapping[str, Any]) -> dict[str, Json]:
        kept = {name: values.get(name) for name in given if name != "versions"}
        if kept["teacher"]:
            kept["teacher"] = {name: value for name, value in kept["teacher"].items() if name != "engine"}
        return kept

    advice = "the set is finished and cannot be changed; give another --out"
    require_same("set", lasting(stored), lasting(given), advice, holder="--out", flags=FLAG_AT)


def summary(setting: Setting, done: Done) -> dict[str, Json]:
    """The summary of a synthesis."""
    out = setting.config.out
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "out": str(out),
        "method": done.record["method"],
        "images": done.record["count"],
        "classes": len(setting.targets),
        "fewer": done.record["fewer"],
        "made": done.made,
        "found": done.found,
        "seconds": round(done.seconds, 1),
        "bytes": size,
    }
