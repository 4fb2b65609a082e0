"""Killed 100 times or out of disk, builds lose no finished block, show no reader a wrong row, end in the same bytes."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Report, machine
from benchmarks.studies.victims import (
    MARKER,
    POLL_S,
    SERVER,
    build_words,
    digest,
    draw_images,
    markers,
    require,
    require_done,
    save_teacher,
    start,
    tree,
    wait_for_lease,
)
from labelstore import BlockIndex, LabelStore, check
from labelstore.durable import removing
from labelstore.durable.removing import Proof
from labelstore.errors import FormatError, GiftwrapError, NotStoredError
from labelstore.format.arrays import StoreLayout
from labelstore.format.seals import marker_file, seal_file
from labelstore.spec import Json
from labelstore.writing import lease as leases

ENCODINGS = ("int8", "transform")
RANKS = 2
REACH = 0.6  # of a stage's time, the longest that a run is left alive
EARLY = 0.2  # of the kills of a store without blocks, those that do not wait for the first
ALONE = 0.2  # of the kills, those of one rank
BOUND_S = 60.0  # within which a rank ends whose fellow was killed
READ_ROWS = 64
REOPENED = 0.1  # of the reads, those that open the store again
TMPFS_BYTES = 16 << 20
UNITS = {  # of what a toll counts
    "early": "kills",
    "alone": "kills",
    "stranded": "ranks",
    "lost": "blocks",
    "damaged": "stores",
    "others": "stores",
    "rows": "rows",
    "wrong": "rows",
    "refused": "reads",
}


@dataclass(frozen=True)
class Toy:
    """How large it is.

    Attributes:
        images: of the set.
        stages: requested views, one stage after the other.
        kills: at least, of each encoding.
        kills_a_stage: at most, before it is left alone.
    """

    images: int
    stages: tuple[int, ...]
    kills: int
    kills_a_stage: int


@dataclass(frozen=True)
class Scene:
    """A build, its undisturbed end, and how long its parts take.

    Attributes:
        folder: where everything lies.
        encoding: of the labels.
        toy: how large it is.
        whole: store that one process made, undisturbed, through the same stages.
        trees: what lay in it after each stage.
        work_s: seconds from the lease of a stage to its last block.
        seal_s: seconds from there to its end.
    """

    folder: Path
    encoding: str
    toy: Toy
    whole: Path
    trees: list[dict[str, str]]
    work_s: float
    seal_s: float

    def words(self, store: Path, views: int) -> list[str]:
        """The command."""
        return build_words(self.folder, self.encoding, store, views)


@dataclass
class Toll:
    """What was counted.

    Attributes:
        kills: from the first block on, by what the ranks did.
        early: kills before the first block.
        alone: of the kills, those of one rank.
        stranded: ranks that did not end when their fellow was killed.
        lost: finished blocks that were there before a kill or the full disk, and not afterwards.
        damaged: stores that a check found damaged.
        others: finished stores that are not those of an undisturbed build.
        rows: rows that were read beside the build.
        wrong: of these, those that are not those of the undisturbed store.
        refused: reads that found damage.
    """

    kills: Counter[str] = field(default_factory=Counter)
    early: int = 0
    alone: int = 0
    stranded: int = 0
    lost: int = 0
    damaged: int = 0
    others: int = 0
    rows: int = 0
    wrong: int = 0
    refused: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.stranded or self.lost or self.damaged or self.others or self.wrong or self.refused)


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Builds of two processes with a convnet as teacher, on generated images, in a folder beside the report."""
    toy = Toy(32, (384, 512), 3, 2) if quick else Toy(64, (512, 1024, 1536), 100, 10)
    tolls: dict[str, Toll] = {}
    full = ""
    with tempfile.TemporaryDirectory(dir=report.folder, prefix="crash-") as folder:
        draw_images(Path(folder) / "images", toy.images)
        save_teacher(Path(folder) / "teacher.safetensors")
        for encoding in ENCODINGS:
            tolls[encoding] = toll = Toll()
            scene = undisturbed(Path(folder), encoding, toy)
            besiege(scene, toll)
            if not quick or encoding == ENCODINGS[-1]:
                full = fill_disk(scene, toll)
            for phase, count in sorted(toll.kills.items()):
                report.add(encoding, f"kills while {phase}", count, "kills")
            for name, unit in UNITS.items():
                report.add(encoding, name, getattr(toll, name), unit)
    return {
        "kills": sum(toll.kills.total() for toll in tolls.values()),
        "wrong_rows": sum(toll.wrong for toll in tolls.values()),
        "lost_blocks": sum(toll.lost for toll in tolls.values()),
        "identical": not any(toll.others for toll in tolls.values()),
        "damaged_stores": sum(toll.damaged for toll in tolls.values()),
        "refused_reads": sum(toll.refused for toll in tolls.values()),
        "ranks_left_hanging": sum(toll.stranded for toll in tolls.values()),
        "rows_read": sum(toll.rows for toll in tolls.values()),
        "kills_while": dict(sorted(sum((toll.kills for toll in tolls.values()), Counter[str]()).items())),
        "kills_of_one_rank": sum(toll.alone for toll in tolls.values()),
        "kills_before_the_first_block": sum(toll.early for toll in tolls.values()),
        "full_disk": full,
        "kept": all(toll.clean for toll in tolls.values()),
        "machine": machine(),
    }


def undisturbed(folder: Path, encoding: str, toy: Toy) -> Scene:
    """Build once by one process, on the slow disk, for the time that it takes."""
    whole = folder / f"{encoding}-whole"
    trees: list[dict[str, str]] = []
    work: list[float] = []
    seal: list[float] = []
    for views in toy.stages:
        ranks = start(build_words(folder, encoding, whole, views), 1)
        require(wait_for_lease(whole, ranks), "the build ended before it began", ranks)
        began = last = time.monotonic()
        seen = 0
        while ranks[0].process.is_alive():
            now = len(markers(whole))
            last, seen = (time.monotonic(), now) if now > seen else (last, seen)
            time.sleep(POLL_S)
        require_done(ranks)
        work.append(last - began)
        seal.append(time.monotonic() - last)
        trees.append(tree(whole))
    return Scene(folder, encoding, toy, whole, trees, max(work) / RANKS, max(seal))


# --- the siege ---


def besiege(scene: Scene, toll: Toll) -> None:
    """Build the store, killed at random moments, through all stages, again and again until there are enough kills."""
    rng = random.Random(scene.encoding)
    number = 0
    while toll.kills.total() < scene.toy.kills:
        store = scene.folder / f"{scene.encoding}-{number}"
        number += 1
        with reader(scene, store, toll):
            for stage in range(len(scene.toy.stages)):
                before = toll.kills.total()
                while toll.kills.total() - before < scene.toy.kills_a_stage and not attempt(
                    scene, store, stage, toll, rng
                ):
                    pass
                require_done(start(scene.words(store, scene.toy.stages[stage]), RANKS))
        toll.others += tree(store) != scene.trees[-1]


def attempt(scene: Scene, store: Path, stage: int, toll: Toll, rng: random.Random) -> bool:
    """Start a stage of the build, and kill it; True when it was done before."""
    views = scene.toy.stages[stage]
    ranks = start(scene.words(store, views), RANKS)
    if wait_for_lease(store, ranks):
        wanted = len([name for name in scene.trees[stage] if MARKER.fullmatch(name)])
        if not markers(store) and rng.random() > EARLY:
            while ranks[0].process.is_alive() and not markers(store):
                time.sleep(POLL_S)
        left = (wanted - len(markers(store))) / (wanted / (stage + 1)) * scene.work_s + scene.seal_s
        ranks[0].process.join(rng.uniform(0, min(left, REACH * scene.work_s + scene.seal_s)))
    if not ranks[0].process.is_alive():
        require_done(ranks)
        return True
    alone = rng.random() < ALONE
    seen = markers(store)
    for rank in [rng.choice(ranks)] if alone else ranks:
        rank.process.kill()
    for rank in ranks:
        rank.process.join(BOUND_S)
        if rank.process.is_alive():
            toll.stranded += 1
            rank.process.kill()
            rank.process.join()
    if seen:
        toll.alone += alone
        toll.kills[phase(store, views)] += 1
    else:
        toll.early += 1
    inspect(scene, store, seen, toll)
    return False


def phase(store: Path, views: int) -> str:
    """What the ranks did when they were killed, from what they left."""
    there = LabelStore.open(store)
    if there.state.views_sealed >= views:
        return "leaving"
    if there.state.views_target < views:
        return "extending"
    if not (missing := there.missing()):
        table = (store / seal_file(there.state.views_target)).exists()
        return "raising the sealed views" if table else "sealing"
    if any(path.name != leases.LEASE for path in (store / ".partial").glob("*")):
        return "publishing"
    layout = StoreLayout.of(there.identity)
    loose = any((store / array.file(block)).exists() for block in missing for array in layout.of_block(block))
    return "publishing" if loose else "labelling"


def inspect(scene: Scene, store: Path, seen: set[str], toll: Toll) -> None:
    """Count finished blocks that are not there any more, byte for byte, and damage of any kind."""
    if not LabelStore.exists(store):
        toll.lost += len(seen)
        return
    layout = StoreLayout.of(LabelStore.open(store).identity)
    for name in seen:
        block = BlockIndex(*map(int, name.split(".")[:2]))
        files = [marker_file(block), *(array.file(block) for array in layout.of_block(block))]
        toll.lost += any(scene.trees[-1][file] != digest(store / file) for file in files)
    toll.damaged += not check(store).ok


# --- the reader beside the writers ---


@contextmanager
def reader(scene: Scene, store: Path, toll: Toll) -> Iterator[None]:
    """Read the store in another process all the while, and count."""
    ours, theirs = SERVER.Pipe()
    process = SERVER.Process(target=read_along, args=(store, scene.whole, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield
    finally:
        ours.send("stop")
        rows, wrong, refused = ours.recv()
        process.join()
    toll.rows += rows
    toll.wrong += wrong
    toll.refused += refused


def read_along(path: Path, reference: Path, commands: Connection) -> None:
    """Read random rows until a command arrives; send the numbers of rows read, of wrong rows and of refused reads.

    A reader that follows sees a block as soon as it is published; what is not yet there is no row.
    """
    torch.set_num_threads(1)
    whole, store = LabelStore.open(reference), None
    rng = np.random.default_rng(0)
    rows = wrong = refused = 0
    while not commands.poll(POLL_S):
        view = int(rng.integers(whole.state.views_sealed))
        positions = rng.integers(0, whole.identity.images, READ_ROWS)
        try:
            if store is None or rng.random() < REOPENED:
                store = LabelStore.open(path, follow=True)
            found = store.read(view, positions)
        except (NotStoredError, FormatError):
            continue
        except GiftwrapError as error:
            print(f"refused: {error}", file=sys.stderr, flush=True)
            refused += 1
            continue
        wanted = whole.read(view, positions)
        same = (found.logits == wanted.logits).all(axis=1) & (found.targets == wanted.targets)
        same &= (found.rows.values == wanted.rows.values).all(axis=0)
        rows += len(same)
        wrong += int((~same).sum())
    commands.send((rows, wrong, refused))


# --- the full disk ---


def fill_disk(scene: Scene, toll: Toll) -> str:
    """Fill the disk after the first block, look, make room, and finish; returns how the disk was filled."""
    folder = scene.folder / f"{scene.encoding}-full"
    folder.mkdir()
    mounted = run_tool("mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "giftwrap", str(folder))
    try:
        ballast, store = folder / "ballast", folder / "store"
        with reader(scene, store, toll):
            ranks = start(scene.words(store, scene.toy.stages[0]), RANKS, full=None if mounted else ballast)
            while ranks[0].process.is_alive() and not markers(store):
                time.sleep(POLL_S)
            require(ranks[0].process.is_alive(), "the build ended before the disk was full", ranks)
            fill(ballast, room=mounted)
            for rank in ranks:
                rank.process.join(BOUND_S)
            toll.stranded += sum(rank.process.is_alive() for rank in ranks)
            require(bool(ranks[0].process.exitcode), "a build ended well on a full disk", ranks)
            inspect(scene, store, markers(store), toll)
            removing.remove(ballast, Proof("what this took", lambda path: set(path.read_bytes()) <= {0}))
            require_done(start(scene.words(store, scene.toy.stages[0]), RANKS))
        toll.others += tree(store) != scene.trees[0]
    finally:
        if mounted:
            run_tool("umount", str(folder))
    return "tmpfs" if mounted else "the disk's writes fail"


def run_tool(name: str, *words: str) -> bool:
    """Run a program of the system; False where it is not there or not allowed."""
    program = shutil.which(name)
    return program is not None and subprocess.run([program, *words], capture_output=True).returncode == 0  # noqa: S603  our own words


def fill(ballast: Path, *, room: bool) -> None:
    """Make a file that marks the disk as full; take all room that is left, where there is little."""
    with ballast.open("xb", buffering=0) as file:
        for size in (1 << 20, 4096) if room else ():
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
