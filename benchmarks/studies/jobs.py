"""Several cells of a study at the same time, each in a process; only the parent writes lines."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from benchmarks.harness import machine
from benchmarks.studies.ledger import CellT, Ledger, Work
from labelstore.command.console import duration


class Parallel(Work[CellT], Protocol[CellT]):
    """A study whose cells can run at the same time; it is sent to other processes."""

    def needs(self, cell: CellT, /) -> Collection[CellT]:
        """Cells that have to be finished before this one begins."""

    def alone(self, cell: CellT, /) -> bool:
        """Whether nothing else may run at the same time, because the cell measures time."""


def run_together(work: Parallel[CellT], ledger: Ledger[CellT], minutes: float, jobs: int) -> None:
    """Do all cells, at most ``jobs`` at a time, until all are finished or the time is used up.

    A cell that fails is printed, and those that do not need it are done nevertheless.

    Raises:
        Exception: that of the first cell that failed, at the end.
    """
    start, expected, taken, failed = time.monotonic(), 0.0, 0.0, dict[str, BaseException]()
    running = dict[Future[dict[str, Any]], CellT]()
    with workers(jobs) as pool:
        while True:
            left = [cell for cell in work.to_do() if cell.name not in failed]
            factor, used = taken / expected if expected else 1.0, time.monotonic() - start
            for cell in startable(work, left, [*running.values()], jobs):
                if used + factor * work.seconds(cell) <= 60 * minutes:
                    running[pool.submit(work.run, cell)] = cell
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                if error := future.exception():
                    failed[cell.name] = error
                    print(f"{cell.name}: failed: {error}", flush=True)
                    traceback.print_exception(error, file=sys.stderr)
                    continue
                values, estimate = future.result(), work.seconds(cell)
                expected, taken = expected + estimate, taken + values["seconds"]
                if cell not in ledger:
                    ledger.add(cell, {**values, "estimate": round(estimate, 1), "jobs": jobs, "machine": machine()})
                after = sum(map(work.seconds, work.to_do())) * taken / expected / jobs
                print(
                    f"{cell.name}: {work.found(values)} in {values['seconds']:.0f} s; about {duration(after)} left",
                    flush=True,
                )
    for error in failed.values():
        raise error
    if left:
        print(f"{len(left)} cells are left; the next one takes more than --minutes leaves")


def startable(work: Parallel[CellT], left: Sequence[CellT], running: Sequence[CellT], jobs: int) -> list[CellT]:
    """The cells that can begin now, the most important ones first.

    Args:
        work: the study.
        left: cells without a line, also those that run.
        running: those that run.
        jobs: cells at a time.
    """
    if any(map(work.alone, running)):
        return []
    waiting, busy = {cell.name for cell in work.to_do()}, {cell.name for cell in running}
    free = [
        cell
        for cell in left
        if cell.name not in busy and not any(needed.name in waiting for needed in work.needs(cell))
    ]
    together = [cell for cell in free if not work.alone(cell)]
    if together or busy:
        return together[: jobs - len(busy)]
    return free[:1]


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Spawned processes, since a GPU cannot be used after a fork; they end with this one, even if it is killed."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin)
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a new process: prints are no part of the parent's summary, and the end of the parent is its own."""
    sys.stdout = sys.stderr
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other processes from making the same thing, a file or folder at ``path``; they wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
