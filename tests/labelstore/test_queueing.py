"""Blocks behind a queue: in order, never half, and errors reach who handed them in."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labelstore import BlockData, BlockIndex, LabelStore, StoreWriter, check
from labelstore.durable import disk
from labelstore.errors import InputError, LeaseError
from labelstore.writing.queueing import Queue
from tests.labelstore.making import Content, create, make_identity, tree


def hand_in(queue: Queue[[int]], numbers: Iterable[int]) -> None:
    with queue as call:
        for number in numbers:
            call(number)


def write(writer: StoreWriter, blocks: Iterable[tuple[BlockIndex, BlockData]]) -> None:
    with writer.queue() as write_block:
        for block, data in blocks:
            write_block(block, data)


@pytest.fixture(scope="module")
def content() -> Content:
    return Content(make_identity(block=(2, 4)), 4)


def test_calls_are_made_in_order_by_one_thread_and_the_queue_is_bounded() -> None:
    gate, made = threading.Semaphore(0), []

    def work(number: int) -> None:
        gate.acquire()
        made.append((number, threading.current_thread().name))

    with Queue(work, 2) as call:
        for number in range(3):
            call(number)  # one in hand, two wait
        late = threading.Thread(target=call, args=(3,))
        late.start()
        assert late.is_alive()
        gate.release(4)
        late.join()
    assert made == [(number, "giftwrap-queue") for number in range(4)]


def test_an_error_ends_the_work_and_reaches_the_next_call() -> None:
    made, failed = [], threading.Event()

    def work(number: int) -> None:
        if number == 1:
            failed.set()
            raise ZeroDivisionError(number)
        made.append(number)

    with pytest.raises(ZeroDivisionError):
        hand_in(Queue(work, 1), range(100))
    assert failed.is_set()
    assert made == [0]


def test_the_last_error_is_raised_on_leaving() -> None:
    with pytest.raises(ZeroDivisionError), Queue(lambda: 1 / 0, 1) as call:
        call()


def test_leaving_by_an_exception_lets_the_call_in_hand_end_and_abandons_the_rest() -> None:
    started, gate, made = threading.Event(), threading.Event(), []

    class Left(Queue[[int]]):
        def _finish(self) -> None:
            gate.set()
            super()._finish()

    def work(number: int) -> None:
        started.set()
        gate.wait()
        made.append(number)

    def numbers() -> Iterator[int]:
        yield from range(3)
        started.wait()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hand_in(Left(work, 2), numbers())
    assert made == [0]


def test_a_queued_store_is_the_same_store(tmp_path: Path, content: Content) -> None:
    for name in ("queued", "plain"):
        store = create(tmp_path / name, content, 4)
        with store.lease() as writer:
            if name == "plain":
                for block in store.missing():
                    writer.write(block, content.block(store, block))
            else:
                write(writer, ((block, content.block(store, block)) for block in store.missing()))
            writer.seal()
    assert tree(tmp_path / "queued") == tree(tmp_path / "plain")


def test_a_bad_block_is_refused_and_none_after_it_is_written(tmp_path: Path, content: Content) -> None:
    store = create(tmp_path / "s", content, 4)
    with store.lease() as writer:
        blocks = [(block, content.block(store, block)) for block in store.missing()]
        first, second, *rest = blocks
        bad = replace(second[1], logits=np.full_like(second[1].logits, np.nan))
        with pytest.raises(InputError, match="found nan"):
            write(writer, [first, (second[0], bad), *rest * 10])
        assert store.missing()[-len(blocks) + 1 :] == [block for block, _ in blocks[1:]]
        with pytest.raises(InputError, match="is published already"):
            write(writer, [second, second])
        assert second[0] not in store.missing()
    assert check(store.path).ok
    with pytest.raises(LeaseError, match="needs the lease"):
        write(writer, rest)


def test_a_failing_disk_leaves_no_marker_without_data(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path / "s", content, 4)
    real, left = disk.write_file, [7]

    def fail(path: Path, *pieces: disk.Bytes) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(28, "No space left on device")
        real(path, *pieces)

    with store.lease() as writer:
        monkeypatch.setattr(disk, "write_file", fail)
        with pytest.raises(OSError, match="No space left"):
            write(writer, ((block, content.block(store, block)) for block in store.missing()))
        monkeypatch.undo()
    assert store.missing()[0] == BlockIndex(0, 1)
    store = LabelStore.open(tmp_path / "s")
    assert check(store.path).ok
    with store.lease() as writer:
        write(writer, [(block, content.block(store, block)) for block in store.missing()])
        writer.seal()
    assert check(store.path).ok
