"""P13 of whole commands: places that overlap are refused before any work, and what is the user's outlives them all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from labelstore import LabelStore, check
from labelstore.durable.places import require_apart
from labelstore.errors import InputError
from labelstore.writing.lease import hold
from tests.journeys.world import SIDE, TEACHER, VIEWS, World, draw_images, giftwrap

MINE = b"precious"


def put(path: Path, content: bytes = MINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def everything(*roots: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for root in roots for path in root.rglob("*")}


# --- overlaps ---


def build(world: World, store: Path, *more: object) -> list[object]:
    return world.build_words(store, *more)


def train(world: World, run: Path, *more: object) -> list[object]:
    return [
        "trainer", "train", "--store", world.store, "--images", world.images, "--student", "convnet-d2",
        "--student-args", '{"width": 16}', "--epochs", 2, "--batch-size", 24, "--threads", 1, "--run", run, *more,
    ]  # fmt: skip


def show(world: World, out: Path) -> list[object]:
    return ["pipeline", "show", "--store", world.store, "--images", world.images, "--out", out, "--count", 4]


def evaluate(world: World, csv: Path) -> list[object]:
    return [
        "trainer", "evaluate", "--student", TEACHER[1], "--student-args", TEACHER[3], "--weights", world.weights,
        "--images", world.images, "--size", SIDE, "--threads", 1, "--csv", csv,
        "--mean", 0.5, 0.5, 0.5, "--std", 0.25, 0.25, 0.25,
    ]  # fmt: skip


Words = Callable[[World, Path], list[object]]
OVERLAPS: dict[str, tuple[Words, tuple[str, ...]]] = {
    "a store in the images": (lambda w, _: build(w, w.images / "s"), ("--store", "lies in --images")),
    "a store that is the images": (lambda w, _: build(w, w.images), ("--store", "is the same as --images")),
    "a store around the images": (lambda w, _: build(w, w.folder), ("--store", "holds --images")),
    "through a link": (lambda w, tmp: build(w, link(tmp / "l", w.images) / "ant" / "s"), ("lies in --images",)),
    "in another store": (lambda w, _: build(w, w.store / "labels" / "s"), ("--store", "lies in the label store")),
    "a log in the images": (
        lambda w, t: build(w, t / "s", "--progress-log", w.images / "ant/00.jpg"),
        ("--progress-log", "--images"),
    ),
    "a log in the store": (
        lambda w, t: build(w, t / "s", "--progress-log", t / "s/log"),
        ("--progress-log", "lies in --store"),
    ),
    "a dry run in the images": (lambda w, _: build(w, w.images / "s", "--dry-run"), ("lies in --images",)),
    "a run in the images": (lambda w, _: train(w, w.images / "run"), ("--run", "lies in --images")),
    "a run in the store": (lambda w, _: train(w, w.store / "run"), ("--run", "lies in --store")),
    "a run around all": (lambda w, _: train(w, w.folder), ("--run", "holds --images")),
    "a run in the test images": (
        lambda w, t: train(w, link(t / "test", w.images) / "ant", "--images", t, "--test-images", t / "test"),
        ("--run", "--test-images"),
    ),
    "a sheet in the images": (lambda w, _: show(w, w.images / "ant/new.png"), ("--out", "lies in --images")),
    "a sheet in the store": (lambda w, _: show(w, w.store / "sheet.png"), ("--out", "lies in --store")),
    "a table in the images": (lambda w, _: evaluate(w, w.images / "a.csv"), ("--csv", "lies in --images")),
    "an export in its store": (
        lambda w, _: ["labelstore", "export", w.store, w.store / "labels/x.npy"],
        ("OUT", "lies in STORE"),
    ),
    "a conversion into itself": (
        lambda w, _: ["labelstore", "convert", w.store, w.store, "--encoding", "int8"],
        ("DST", "is the same as SRC"),
    ),
    "a conversion inside": (
        lambda w, _: ["labelstore", "convert", w.store, w.store / "x", "--encoding", "int8"],
        ("DST", "lies in SRC"),
    ),
    "a conversion around": (
        lambda w, _: ["labelstore", "convert", w.store, w.folder, "--encoding", "int8"],
        ("DST", "holds SRC"),
    ),
    "an import into a store": (
        lambda w, t: ["pipeline", "import", tensors(t), "--out", w.store / "images/new"],
        ("--out", "lies in the label store"),
    ),
    "a plot in a store": (
        lambda w, t: ["trainer", "plot", t, "--out", w.store / "p.png"],
        ("--out", "lies in the label store"),
    ),
    "figures in a store": (
        lambda w, _: ["benchmarks", "run", "plan", "--quick", "--out", w.store / "figures"],
        ("--out", "lies in the label store"),
    ),
}


def link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def tensors(folder: Path) -> Path:
    torch.save((torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])), folder / "data.pt")
    return folder / "data.pt"


@pytest.mark.parametrize("case", OVERLAPS)
def test_places_that_overlap_are_refused_before_any_work(case: str, world: World, tmp_path: Path) -> None:
    words, said = OVERLAPS[case]
    written = words(world, tmp_path)
    before = everything(world.folder, tmp_path)
    ended = giftwrap(*written)
    assert ended.code == 2, ended
    # The parser prints a frame around its message.
    text = " ".join((ended.err + ended.out).replace("│", " ").split())
    assert all(part in text for part in said), text
    assert "Traceback" not in text
    assert everything(world.folder, tmp_path) == before


@pytest.mark.parametrize("one", ["a", "a/b", "a/b/c", "l", "l/c", "x", "ab", "a/../x"])
@pytest.mark.parametrize("other", ["a", "a/b", "a/b/c", "l", "l/c", "x", "ab", "a/../x"])
def test_places_are_apart_when_neither_holds_the_other(tmp_path: Path, one: str, other: str) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    link(tmp_path / "l", tmp_path / "a/b")
    ours, theirs = (os.path.realpath(tmp_path / name) for name in (one, other))
    overlap = os.path.commonpath((ours, theirs)) in (ours, theirs)
    message = rf"--out {tmp_path / one}: .* --images {tmp_path / other}, .*a folder beside it"
    with pytest.raises(InputError, match=message) if overlap else nullcontext():
        require_apart({"--out": tmp_path / one}, {"--images": tmp_path / other})


# --- a dry run refuses what the build would refuse ---


HELD = ExitStack()


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    """Leases that a case takes are let go after it."""
    yield
    HELD.close()


def held(world: World, tmp: Path) -> list[object]:
    store = shutil.copytree(world.store, tmp / "s")
    HELD.enter_context(hold(store))
    return build(world, store, "--views", 2000)


def in_the_way(world: World, tmp: Path) -> list[object]:
    store = shutil.copytree(world.store, tmp / "s")
    views = LabelStore.open(store).identity.block.views
    put(store / f"rows/c.{LabelStore.open(store).state.views_sealed // views}.0.0")
    return build(world, store, "--views", 2000)


REFUSED: dict[str, Words] = {
    "a folder with files": lambda w, t: build(w, put(t / "s/images/cat/a.jpg").parents[2]),
    "a file": lambda w, t: build(w, put(t / "s")),
    "another plan": lambda w, _: build(w, w.store, "--seed", 1),
    "another hierarchy": lambda w, t: build(w, put(t / "s/zarr.json", b"{}").parent),
    "labels without their root": lambda w, t: build(w, put(t / "s/markers/0.0.json").parents[1]),
    "another log": lambda w, t: build(w, t / "s", "--progress-log", put(t / "a.jpg", b"\xff\xd8 no line")),
    "a log that is a folder": lambda w, t: build(w, t / "s", "--progress-log", put(t / "d/x").parent),
    "a file in the way": in_the_way,
    "a held store": held,
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_dry_run_refuses_what_the_build_refuses(case: str, world: World, tmp_path: Path) -> None:
    words = REFUSED[case](world, tmp_path)
    before = everything(tmp_path)
    dry = giftwrap(*words, "--dry-run")
    assert everything(tmp_path) == before
    real = giftwrap(*words)
    assert dry.code == real.code != 0, (dry, real)
    assert dry.err.splitlines()[-1].startswith("error: ")
    assert [line for line in dry.err.splitlines() if line.startswith("error: ")] == [
        line for line in real.err.splitlines() if line.startswith("error: ")
    ]
    assert {path: content for path, content in everything(tmp_path).items() if path in before} == before


# --- files of the user's in every folder that a command writes ---


def test_the_users_files_outlive_a_build_a_run_and_their_outputs(world: World, tmp_path: Path) -> None:
    store, run = tmp_path / "store", tmp_path / "run"
    files = [
        put(tmp_path / name)
        for name in (".store.images.npz", "store.images.npz.partial", "store.images.npz", "notes", ".run", "sheet.txt")
    ]
    mine = dict.fromkeys(files, MINE)
    built = giftwrap(*world.build_words(store, "--progress-log", tmp_path / "log"))
    assert built.code == 0, built.err
    assert "store.images.npz: is not a cache of images, and is left unchanged" in built.err
    names = ("notes", "checkpoint.pt.partial", "config.json.partial", "log.jsonl.partial", "x/y", ".lock2")
    mine |= {put(folder / name): MINE for folder in (store, store / "labels", store / "markers") for name in names}
    more = giftwrap(*world.build_words(store, "--views", 2 * VIEWS, "--progress-log", tmp_path / "log"))
    assert more.code == 0, more.err
    words = train(replace(world, store=store), run, "--test-images", world.images)
    assert giftwrap(*words).code == 0
    mine |= {put(run / name): MINE for name in (*names, ".checkpoint.pt.partial", "tensorboard/x")}
    log = (run / "log.jsonl").read_bytes()
    (run / "log.jsonl").write_bytes(b"my line\n" + log)
    again = giftwrap(*words)
    assert again.code == 0, again.err
    assert (run / "log.jsonl").read_bytes() == b"my line\n" + log
    out = tmp_path / "sheet.png"
    assert giftwrap(*show(world, out)).code == 0
    table = tmp_path / "classes.csv"
    assert giftwrap(*evaluate(world, table)).code == 0
    drawn = {path: path.read_bytes() for path in (out, table)}
    for refused in (show(world, out), evaluate(world, table)):
        ended = giftwrap(*refused)
        assert ended.code == 2, ended
        assert "exists already" in ended.err + ended.out
    assert {path: path.read_bytes() for path in drawn} == drawn
    assert {path: path.read_bytes() for path in mine} == mine
    assert check(store).ok


@pytest.mark.parametrize("name", ["checkpoint.pt", "last.safetensors", "best.safetensors", "classes.csv"])
def test_a_file_with_the_name_of_a_runs_own_stops_it_before_the_first_step(
    name: str, world: World, tmp_path: Path
) -> None:
    words = train(world, tmp_path / "run", "--test-images", world.images)
    assert giftwrap(*words).code == 0
    (tmp_path / "run" / "checkpoint.pt").unlink()  # so that there is something to do
    mine = put(tmp_path / "run" / name)
    before = everything(tmp_path)
    ended = giftwrap(*words)
    assert ended.code in (1, 2), ended.err
    assert name in ended.err
    assert "steps" not in ended.out
    assert everything(tmp_path) == before
    assert mine.read_bytes() == MINE


def test_a_lock_with_content_and_one_that_is_a_link_are_kept(world: World, tmp_path: Path) -> None:
    put(tmp_path / "run/.lock")
    assert giftwrap(*train(world, tmp_path / "run")).code == 0
    assert (tmp_path / "run/.lock").read_bytes() == MINE
    (tmp_path / "other").mkdir()
    link(tmp_path / "other/.lock", put(tmp_path / "target"))
    ended = giftwrap(*train(world, tmp_path / "other"))
    assert (ended.code, "cannot be locked" in ended.err) == (2, True)
    assert (tmp_path / "target").read_bytes() == MINE


def test_an_import_removes_what_it_wrote_and_nothing_else(tmp_path: Path) -> None:
    data = tensors(tmp_path)
    aside = put(tmp_path / ".out.partial/00/0.png")
    ended = giftwrap("pipeline", "import", data, "--out", tmp_path / "out")
    assert ended.code == 2
    assert ".out.partial: is there already" in ended.err
    assert aside.read_bytes() == MINE
    shutil.rmtree(aside.parents[1])
    assert giftwrap("pipeline", "import", data, "--out", tmp_path / "out").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.pt", "out"]


def test_figures_are_not_written_over(tmp_path: Path) -> None:
    put(tmp_path / "plan.jsonl")
    ended = giftwrap("benchmarks", "run", "plan", "--quick", "--out", tmp_path)
    assert ended.code == 2
    assert "plan.jsonl: exists already" in ended.err
    assert everything(tmp_path) == {tmp_path / "plan.jsonl": MINE}


def test_a_refused_build_takes_back_its_own_store_alone(world: World, tmp_path: Path) -> None:
    """The case that was found: photographs in folders that are called as a store's are."""
    project = tmp_path / "proj"
    draw_images(project / "images")
    put(project / "labels/a.txt")
    before = everything(tmp_path)
    for store in (project, tmp_path / "proj" / "images"):
        ended = giftwrap(*world.build_words(store, "--images", project / "images"))
        assert ended.code == 2
        assert "Traceback" not in ended.err
        assert everything(tmp_path) == before
    assert json.dumps(sorted(map(str, before)))
