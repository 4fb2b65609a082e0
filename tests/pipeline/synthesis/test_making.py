"""A set is made whole, or continued to the same bytes; nothing that the command did not write is touched."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from labelstore.command.console import Console, Stopped
from labelstore.command.flags import from_flags
from labelstore.durable import disk
from labelstore.durable.locking import hold
from labelstore.errors import InputError, LeaseError, MismatchError
from pipeline.images.manifest import scan
from pipeline.images.provenance import record_of
from pipeline.synthesis import job_writer, making
from pipeline.synthesis.config import SynthesizeConfig
from pipeline.synthesis.making import Partial
from pipeline.synthesis.synthesize import synthesize
from tests.pipeline.synthesis import toys
from tests.pipeline.synthesis.toys import config_of, draw_folder, make, own_files, tree


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("images") / "train")


def test_a_set_is_a_class_folder_that_other_tools_read(images: Path, tmp_path: Path) -> None:
    done = make(images, tmp_path / "set", ipc=3)
    manifest = scan(tmp_path / "set")
    assert (done["images"], done["made"], done["found"]) == (6, 6, False)
    assert [*manifest.names] == [f"{name}/{number:05d}.png" for name in ("ant", "bee") for number in range(3)]
    assert (manifest.left_out.counts(), manifest.left_out.line) == ({}, None)
    record: Any = record_of(tmp_path / "set")
    assert record["method"] == "toy"
    assert record["images"]["manifest"] == scan(images).digest
    assert record["count"] == 6
    assert own_files(tmp_path) == {"set", "set.images.npz"}


def test_a_finished_set_typed_again_is_there_and_stays(images: Path, tmp_path: Path) -> None:
    make(images, tmp_path / "set")
    before = tree(tmp_path)
    assert make(images, tmp_path / "set")["found"]
    with pytest.raises(MismatchError, match=r"--seed.*has 0, this run has 1.*finished"):
        make(images, tmp_path / "set", seed=1)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("named", ["unnamed", "named"])
@pytest.mark.parametrize("every", [13, pytest.param(3, marks=pytest.mark.long)])
def test_killed_at_any_step_and_continued_it_ends_with_the_same_bytes(tmp_path: Path, named: str, every: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.synthesis.killing", str(tmp_path), str(every), named],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 60


def stopped_in(images: Path, out: Path, at: int, **flags: Any) -> None:
    """A command that gets a signal at its ``at``-th step within jobs."""
    plain, steps = toys.Toy.make, 0

    def make_and_stop(self: Any, job: Any, working: Any, /) -> Any:
        def progress(done: int, total: int) -> None:
            nonlocal steps
            steps += 1
            if steps == at:
                os.kill(os.getpid(), signal.SIGTERM)
            working.progress(done, total)

        return plain(self, job, type(working)(working.file, working.proof, progress, working.stopping))

    with mock.patch.object(toys.Toy, "make", make_and_stop), pytest.raises(Stopped):
        make(images, out, **flags)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_signal_saves_the_job_and_the_next_command_continues_within_it(images: Path, tmp_path: Path, at: int) -> None:
    make(images, tmp_path / "whole")
    stopped_in(images, tmp_path / "set", at)
    assert len(Partial.of(tmp_path / "set").made()) == at // toys.STEPS
    steps = []
    with mock.patch.object(toys.Toy, "close", lambda self: steps.append(self.steps)):
        done = make(images, tmp_path / "set")
    assert steps == [2 * toys.STEPS - at]  # nothing is done twice
    assert done["made"] == 2 * (2 - at // toys.STEPS)
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


def test_a_job_is_written_while_the_next_one_is_made(images: Path, tmp_path: Path) -> None:
    make(images, tmp_path / "whole")
    plain, write, jobs, second = toys.Toy.make, making.write_job, [0], threading.Event()

    def make_one(*args: Any) -> Any:
        jobs[0] += 1
        if jobs[0] == 2:
            second.set()
        return plain(*args)

    def write_later(*args: Any) -> None:
        assert second.wait(60)
        write(*args)

    with mock.patch.object(toys.Toy, "make", make_one), mock.patch.object(job_writer, "write_job", write_later):
        make(images, tmp_path / "set")
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


def test_a_job_that_cannot_be_written_ends_the_command_and_the_others_stay(images: Path, tmp_path: Path) -> None:
    make(images, tmp_path / "whole")
    write = making.write_job

    def fail(partial: Any, number: int, *args: Any) -> None:
        if number == 1:
            raise InputError("not this one")
        write(partial, number, *args)

    with mock.patch.object(job_writer, "write_job", fail), pytest.raises(InputError, match="not this one"):
        make(images, tmp_path / "set")
    assert Partial.of(tmp_path / "set").made() == {0}
    make(images, tmp_path / "set")
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


def test_other_flags_or_images_do_not_continue_a_set(images: Path, tmp_path: Path) -> None:
    stopped_in(images, tmp_path / "set", 4)
    before = tree(tmp_path)
    for message, flags in (
        (r"--seed.*has 0, this run has 1", {"seed": 1}),
        (r"--ipc.*has 2, this run has 3", {"ipc": 3}),
        (r"--format.*'png'.*'jpeg'", {"format": "jpeg"}),
        (r"METHOD.*'toy'.*'random'", {"method": "random"}),
    ):
        with pytest.raises(MismatchError, match=message):
            make(images, tmp_path / "set", **flags)
    other = draw_folder(tmp_path / "other", per_class=7)
    with pytest.raises(MismatchError, match="--images"):
        make(other, tmp_path / "set")
    after = tree(tmp_path)
    assert {name: after[name] for name in before if name != "set.images.npz"} == {
        name: content for name, content in before.items() if name != "set.images.npz"
    }


def full_after(most: int, work: Callable[[], object]) -> bool:
    """Do work on a disk that is full after so many operations; whether it came to that."""
    count = 0

    def limited(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count > most:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[-1]))
            return plain(*args)

        return call

    with ExitStack() as stack:
        for name in ("link_unnamed", "make_folder", "link"):
            stack.enter_context(mock.patch.object(disk, name, limited(getattr(disk, name))))
        try:
            work()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return True
    return False


def test_a_disk_that_is_full_is_one_error_and_nothing_is_lost(images: Path, tmp_path: Path) -> None:
    make(images, tmp_path / "whole")
    most = 0
    while full_after(most, lambda: make(images, tmp_path / f"set{most}")):  # noqa: B023  called at once
        kept = Partial.of(tmp_path / f"set{most}").made()
        assert make(images, tmp_path / f"set{most}")["made"] == 4 - 2 * len(kept)
        assert tree(tmp_path / f"set{most}") == tree(tmp_path / "whole")
        assert not Partial.of(tmp_path / f"set{most}").folder.exists()
        most += 2
    assert most > 10


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a file": lambda root: (root / "set").write_bytes(b"mine"),
    "a folder with a file": lambda root: put(root / "set/notes.txt"),
    "a folder of images": lambda root: put(root / "set/ant/00000.png"),
    "a partial folder with a file": lambda root: put(root / ".set.partial/notes.txt"),
    "a partial folder of images": lambda root: put(root / ".set.partial/set/ant/00000.png"),
    "a partial file": lambda root: (root / ".set.partial").write_bytes(b"mine"),
    "another begun.json": lambda root: put(root / ".set.partial/begun.json"),
    "a link": lambda root: (put(root / "other/a"), (root / "set").symlink_to("other")),
    "a linked partial folder": lambda root: (put(root / "other/a"), (root / ".set.partial").symlink_to("other")),
}


def put(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_is_in_the_way_is_refused_and_stays(images: Path, tmp_path: Path, foreign: str) -> None:
    FOREIGN[foreign](tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError):
        make(images, tmp_path / "set")
    assert tree(tmp_path) == before


def test_a_foreign_file_in_the_folder_of_a_stopped_command_stays(images: Path, tmp_path: Path) -> None:
    stopped_in(images, tmp_path / "set", 4)
    partial = Partial.of(tmp_path / "set")
    mine = partial.images / "ant/00001.png"
    mine.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"00001\.png"):
        make(images, tmp_path / "set")
    assert mine.read_bytes() == b"mine"
    mine.rename(mine.with_name("mine.png"))
    with pytest.raises(InputError, match=r"ant/mine\.png.*not written by this command"):
        make(images, tmp_path / "set")
    mine.with_name("mine.png").unlink()
    (partial.folder / "notes.txt").write_bytes(b"mine")
    make(images, tmp_path / "set")
    assert tree(partial.folder) == {"notes.txt": b"mine"}
    assert make(images, tmp_path / "set")["found"]
    assert tree(partial.folder) == {"notes.txt": b"mine"}


def test_a_changed_file_of_a_finished_job_is_named_and_its_advice_works(images: Path, tmp_path: Path) -> None:
    make(images, tmp_path / "whole")
    stopped_in(images, tmp_path / "set", 4)
    path = Partial.of(tmp_path / "set").images / "bee/00000.png"
    changed = path.read_bytes()[:-1] + b"x"
    path.write_bytes(changed)
    with pytest.raises(InputError, match=r"bee/00000.png.*another one; move it away, then run the same again"):
        make(images, tmp_path / "set")
    assert path.read_bytes() == changed
    path.rename(tmp_path / "moved")
    make(images, tmp_path / "set")
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


@pytest.mark.parametrize("begun", ["finished", "being written"])
def test_a_damaged_record_of_a_job_is_named_and_its_advice_works(images: Path, tmp_path: Path, begun: str) -> None:
    make(images, tmp_path / "whole")
    stopped_in(images, tmp_path / "set", 4)
    partial = Partial.of(tmp_path / "set")
    record = partial.record(0)
    if begun == "being written":
        record = record.rename(partial.writing(0))
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(InputError, match=rf"{record.name}.*remove it, then run the same again"):
        make(images, tmp_path / "set")
    record.unlink()
    make(images, tmp_path / "set")
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


def test_a_set_of_which_no_image_is_made_may_begin_with_other_flags(images: Path, tmp_path: Path) -> None:
    no_links = OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    with mock.patch.object(disk, "link", side_effect=no_links), pytest.raises(InputError, match="--take copy"):
        make(images, tmp_path / "set", "random", take="link")
    make(images, tmp_path / "set", "random", take="copy")
    make(images, tmp_path / "whole", "random", take="copy")
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")
    assert own_files(tmp_path) == {"set", "set.images.npz", "whole", "whole.images.npz"}


def test_what_is_saved_of_a_job_is_not_begun_again_with_other_flags(images: Path, tmp_path: Path) -> None:
    stopped_in(images, tmp_path / "set", 1)
    before = tree(tmp_path)
    with pytest.raises(MismatchError, match=r"--seed.*has 0, this run has 1"):
        make(images, tmp_path / "set", seed=1)
    assert tree(tmp_path) == before


def test_a_second_process_is_kept_out(images: Path, tmp_path: Path) -> None:
    stopped_in(images, tmp_path / "set", 4)
    with (
        hold(Partial.of(tmp_path / "set").folder / "lock", "busy", ""),
        pytest.raises(LeaseError, match="another process"),
    ):
        make(images, tmp_path / "set")
    make(images, tmp_path / "set")


def test_a_command_that_is_refused_leaves_nothing(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"7 images in each class.*ant \(6\), bee \(6\).*--allow-fewer"):
        make(images, tmp_path / "deep/er/set", "random", 7)
    assert own_files(tmp_path) == set()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no method": ({"method": None}, "METHOD .*random.*missing"),
    "no images a class": ({"ipc": None}, "--ipc: missing"),
    "nothing to make": ({"ipc": 0}, "--ipc: expected 1"),
    "a flag of another method": ({"pool": 7}, "--pool: is a flag of rded, found method toy"),
    "a flag of random": ({"take": "crop"}, "--take: is a flag of random"),
    "quality of PNG": ({"quality": 90}, "--quality 90.*--format jpeg"),
    "quality beyond JPEG's": ({"quality": 101, "format": "jpeg"}, "--quality: expected 1 to 100"),
    "a sheet that is no PNG": ({"sheet": Path("sheet.jpg")}, "--sheet.*png"),
    "a check of a method": ({"check": Path("set")}, "--check set and method toy"),
    "a check with a seed": ({"check": Path("set"), "method": None, "out": None, "ipc": None, "seed": 3}, "and --seed"),
    "a class that is not there": ({"drop_classes": ("elk",)}, "--drop-classes.*'elk'"),
    "no class": ({"drop_classes": ("ant", "bee")}, "--drop-classes.*all 2"),
    "a teacher without a size": ({"teacher": ("convnet-d2",), "weights": ("w",)}, "--size: missing"),
    "two labellers": ({"labeller": "m:f", "teacher": ("resnet18",)}, "--labeller m:f and --teacher"),
    "a cut without a side": ({"method": "random", "take": "center"}, "--size: missing; --take center"),
    "a side of copies": ({"method": "random", "size": 8}, "--size 8: has an effect with --take"),
    "a decile that is none": ({"method": "random", "ce_decile": 11}, "--ce-decile: expected 1"),
    "a decile of nobody": (
        {"method": "random", "ce_decile": 1, "size": 8, "ipc": 1},
        "--teacher and --weights: missing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_flags_that_are_refused(images: Path, tmp_path: Path, case: str) -> None:
    flags, message = REFUSED[case]
    every = {"method": "toy", "images": images, "out": tmp_path / "set", "ipc": 2, **flags}
    with pytest.raises(InputError, match=message):
        synthesize(from_flags(SynthesizeConfig, **every), Console(silent=True))
    assert own_files(tmp_path) == set()


UNREAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "random without a side": ("random", {"take": "center"}, "--size: missing; --take center"),
    "a decile without a teacher": ("random", {"ce_decile": 1, "size": 8}, "--teacher and --weights: missing"),
    "rded without a side": ("rded", {}, "--size: missing; rded"),
    "rded without a teacher": ("rded", {"size": 8}, "--teacher and --weights: missing"),
    "a factor that does not divide": ("rded", {"size": 32, "factor": 3}, "--factor 3: expected a divisor"),
    "a small pool": ("rded", {"size": 32, "factor": 2, "pool": 7, "labeller": "m:f"}, "--pool 7.*at least 8 images"),
    "sre2l without a side": ("sre2l", {}, "--size: missing; sre2l"),
    "sre2l without a teacher": ("sre2l", {"size": 8}, "--teacher and --weights: missing"),
    "sre2l of a labeller": ("sre2l", {"size": 8, "labeller": "m:f"}, "--labeller m:f: expected networks"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_flags_are_refused_before_images_are_read(tmp_path: Path, case: str) -> None:
    method, flags, message = UNREAD[case]
    with pytest.raises(InputError, match=message):
        make(tmp_path / "absent", tmp_path / "set", method, **flags)


def test_a_set_in_its_images_is_refused(images: Path) -> None:
    with pytest.raises(InputError, match=r"--out.*lies in --images"):
        config_of(images, images / "set")
