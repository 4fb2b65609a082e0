"""Kill a build at steps of publishing, run it again, and compare the trees: run as a program by its test.

Called with an empty folder, a name in `STORES`, the first step to kill at, and how many steps on the next one is.

Forks a child a step, which a process with threads must not; so this is a process of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labelstore import check
from labelstore.durable import disk
from tests.labelstore.faults import STEPS
from tests.labelstore.making import Content, build, make_identity, tree

WAITS = ("sync_file", "sync_folder")


# Encoding, columns, and views asked for one after the other.
STORES: dict[str, tuple[Any, int, tuple[int, ...]]] = {
    "int8": ("int8", 3, (1, 2)),
    "transform": ({"name": "transform", "step": 0.5}, 64, (1,)),
    "transform-top1": ({"name": "transform", "step": 1.0, "mean_steps": 8, "keep_top1": True}, 64, (1,)),
}


def make(path: Path, name: str) -> None:
    """Build a store, and extend it."""
    encoding, columns, phases = STORES[name]
    content = Content(make_identity(4, columns, encoding=encoding, block=(1, 4)), 2)
    for views in phases:
        build(path, content, views)


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked child; returns its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return os.waitpid(child, 0)[1]


def killed_at(path: Path, name: str, fatal: int) -> Callable[[], None]:
    """A build that dies at step ``fatal``; a write has a second step when half of its bytes are written."""
    count = 0

    def step(act: Callable[[], None]) -> None:
        nonlocal count
        if count == fatal:
            act()
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def watched(step_name: str) -> Callable[..., None]:
        plain = getattr(disk, step_name)

        def call(*args: Any) -> None:
            step(lambda: None)
            if step_name == "write_file":
                step(lambda: plain(args[0], args[1][: len(args[1]) // 2]))
            if step_name not in WAITS:
                plain(*args)

        return call

    def work() -> None:
        for step_name in STEPS:
            setattr(disk, step_name, watched(step_name))
        make(path, name)

    return work


def main(folder: Path, name: str, first: int, every: int) -> None:
    for wait in WAITS:
        setattr(disk, wait, lambda _path: None)
    make(folder / "whole", name)
    whole = tree(folder / "whole")
    path = folder / "killed"
    fatal = first
    while True:
        status = in_child(killed_at(path, name, fatal))
        if status == 0:
            break
        assert os.WIFSIGNALED(status), f"step {fatal}: failed before it was killed"
        if (path / "zarr.json").exists():
            assert check(path).ok, f"step {fatal}: {check(path)}"
        assert in_child(lambda: make(path, name)) == 0, f"step {fatal}: the second run failed"
        again = tree(path)
        assert again == whole, f"step {fatal}: {sorted(set(again.items()) ^ set(whole.items()))}"
        shutil.rmtree(path)
        fatal += every
    print(fatal)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
