"""Kill a synthesis at steps of writing, run it again, and compare the sets: run as a program by its test.

Called with an empty folder, how many steps each kill is apart, and whether files need a name while they are written, as
on file systems that have none without. Forks a child a step, which a process with threads
must not; so this is a process of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labelstore.durable import disk
from tests.labelstore.killing import in_child
from tests.pipeline.synthesis.toys import draw_folder, make, own_files, tree

WAITS = ("sync_file", "sync_folder", "sync_descriptor")
STEPS = ("link_unnamed", "link", "replace", "unlink", "make_folder", "remove_folder", "sync_folder", "sync_descriptor")


def killed_at(fatal: int, work: Callable[[], object]) -> Callable[[], None]:
    """Work that dies before its operation ``fatal`` on the disk."""
    count = 0

    def watched(name: str) -> Callable[..., object]:
        plain: Callable[..., object] = getattr(disk, name)

        def call(*args: Any) -> object:
            nonlocal count
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return plain(*args)

        return call

    def act() -> None:
        for name in STEPS:
            setattr(disk, name, watched(name))
        work()

    return act


def main(folder: Path, every: int, named: bool) -> None:
    if named:
        vars(disk)["open_unnamed"] = lambda _folder: None
    for wait in WAITS:
        setattr(disk, wait, lambda _place: None)
    images = draw_folder(folder / "images")
    assert in_child(lambda: make(images, folder / "whole")) == 0
    whole, place = tree(folder / "whole"), folder / "place"
    fatal = 0
    while True:
        place.mkdir()
        status = in_child(killed_at(fatal, lambda: make(images, place / "set")))
        if status == 0:
            break
        assert os.WIFSIGNALED(status), f"step {fatal}: failed before it was killed"
        assert in_child(lambda: make(images, place / "set")) == 0, f"step {fatal}: the second run failed"
        again = tree(place / "set")
        assert again == whole, f"step {fatal}: {sorted(set(again) ^ set(whole))}"
        # of the cache, which is read again: its leftovers have tests of their own
        left = {name for name in own_files(place) if not name.startswith(".set.images.npz.")}
        assert left == {"set", "set.images.npz"}, f"step {fatal}: {left}"
        shutil.rmtree(place)
        fatal += every
    print(fatal)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "named")
