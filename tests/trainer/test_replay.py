"""Replay: the teacher's own pixels, every crop with its label, in one order, from any point."""

from __future__ import annotations

import gc
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from concurrent.futures.thread import _global_shutdown_lock
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_map

from labelstore import LabelStore
from labelstore.access.reading import Reader
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from pipeline.build.build import build
from pipeline.config import BuildConfig
from pipeline.teacher.labeller import Pending
from pipeline.teacher.teacher import Teacher
from tests.forking import in_a_fork
from tests.journeys.world import SIDE, World, draw_images, random_teacher
from trainer import Replay, TrainBatch
from trainer.batch import TENSORS
from trainer.loader import READ_AHEAD, Loader
from trainer.prefetch import Prefetcher

MIXES = [("none", None), ("cutmix", 5), ("mixup", 8)]


@pytest.fixture(scope="module", params=MIXES, ids=[mix for mix, _ in MIXES])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, torch.Tensor]:
    """A store of 24 images, unmixed or mixed; its images; and the pixels that its teacher was shown, in order.

    The first 24 of them show whether the teacher masks columns, and are shown again for their labels.
    """
    mix, group = request.param
    folder = tmp_path_factory.mktemp("replay")
    shown: list[torch.Tensor] = []
    original = Teacher.start

    def recording(self: Teacher, pixels: torch.Tensor, rows: CropRows | None = None) -> Pending:
        shown.append(pixels.clone())
        return original(self, pixels, rows)

    config = from_flags(
        BuildConfig,
        images=draw_images(folder / "images"),
        teacher=("convnet-d2",),
        teacher_args=('{"width": 16, "norm": "batch"}',),
        weights=(str(random_teacher(folder / "teacher.safetensors")),),
        size=SIDE,
        views=200,
        batch=33,
        threads=1,
        mix=mix,
        group=group,
        store=folder / "store",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "start", recording)
        build(config, Console(as_json=True))
    return config.store, config.images, torch.cat(shown)


def test_replayed_pixels_are_the_teachers_over_all_views(made: tuple[Path, Path, torch.Tensor]) -> None:
    path, images, shown = made
    replay = Replay(path, images, batch_size=9)
    views, count = replay.order.views, replay.order.images
    replayed = torch.cat([replay.source.crops(view, 0, count) for view in range(views)])
    first = shown[: -views * count]
    assert len(first) == count
    assert torch.equal(first, replayed[:count])
    assert torch.equal(replayed, shown[-views * count :])
    replay.close()


@pytest.mark.parametrize("batch_size", [1, 7, 24, 100])
def test_batches_are_whole_and_match_the_store(made: tuple[Path, Path, torch.Tensor], batch_size: int) -> None:
    path, images, _ = made
    store = LabelStore.open(path)
    replay = Replay(store, images, batch_size=batch_size, seed=3)
    for _ in range(2):
        epoch, view = replay.epoch, replay.view
        batches = list(replay)
        assert replay.epoch == epoch + 1
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(replay) - 1)
        position = torch.cat([batch.position for batch in batches]).numpy()
        assert np.array_equal(np.sort(position), np.arange(24))
        labels = store.read(view, position)
        assert np.array_equal(torch.cat([batch.logits for batch in batches]).numpy(), labels.logits)
        assert np.array_equal(torch.cat([batch.targets for batch in batches]).numpy(), labels.targets)
        assert np.array_equal(torch.cat([batch.index for batch in batches]).numpy(), labels.rows.image)
        by_position = store.read(view, slice(None)).rows
        if by_position.mixed:
            partners = store.targets[by_position.image[by_position.partners(store.identity.group)]]
            found = torch.cat([batch.targets2 for batch in batches]).numpy()
            assert np.array_equal(found, partners[position])
    replay.close()


def test_rows_are_read_once_for_each_crop(
    made: tuple[Path, Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, images, _ = made
    replay = Replay(path, images, batch_size=10)
    read: list[int] = []
    original = Reader.rows

    def counted(self: Reader, view: int, positions: Any, parts: Any = None) -> Any:
        read.extend(positions.tolist())
        return original(self, view, positions, parts)

    monkeypatch.setattr(Reader, "rows", counted)
    monkeypatch.delattr(Reader, "pairs")
    assert sum(map(len, replay)) == 24
    assert sorted(read) == [*range(24)]
    replay.close()


def test_a_played_view_comes_permuted_with_its_own_labels(made: tuple[Path, Path, torch.Tensor]) -> None:
    path, images, _ = made
    first = Replay(path, images, batch_size=10, view_order="cycle")
    again = Replay(path, images, batch_size=10, view_order="cycle", epoch=first.order.views)
    crops = {}
    for batch in first:
        for row in range(len(batch)):
            crops[int(batch.position[row])] = (batch.images[row], batch.logits[row], batch.lam[row])
    order = []
    for batch in again:
        for row, position in enumerate(batch.position.tolist()):
            order.append(position)
            image, logits, lam = crops[position]
            assert torch.equal(batch.images[row], image)
            assert torch.equal(batch.logits[row], logits)
            assert batch.lam[row] == lam
    assert sorted(order) == list(range(24))
    assert order != list(range(24))
    first.close()
    again.close()


@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_a_loaded_state_continues_at_the_next_batch(made: tuple[Path, Path, torch.Tensor], taken: int) -> None:
    path, images, _ = made
    whole, stopped, resumed = (Replay(path, images, batch_size=5, seed=1) for _ in range(3))
    wanted = [batch for _ in range(2) for batch in whole]
    batches = iter(stopped)
    for _ in range(taken):
        next(batches)
    resumed.load_state_dict(stopped.state_dict())
    found = [batch for _ in range(2 - (taken == 5)) for batch in resumed]
    assert len(found) == len(wanted) - taken
    for ours, theirs in zip(found, wanted[taken:], strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.logits, theirs.logits)
    for replay in (whole, stopped, resumed):
        replay.close()


def test_an_iterator_does_not_continue_after_another_state_was_loaded(made: tuple[Path, Path, torch.Tensor]) -> None:
    path, images, _ = made
    replay = Replay(path, images, batch_size=5)
    batches = iter(replay)
    next(batches)
    replay.load_state_dict(replay.state_dict())
    with pytest.raises(InputError, match="continue the newest one"):
        next(batches)


def test_two_iterations_at_once_are_refused(made: tuple[Path, Path, torch.Tensor]) -> None:
    path, images, _ = made
    with closing(Replay(path, images, batch_size=5)) as replay:
        first, second = iter(replay), iter(replay)
        next(first)
        assert next(second).position.tolist() == list(range(5, 10))
        with pytest.raises(InputError, match="another iteration was begun"):
            next(first)
        assert next(second).position.tolist() == list(range(10, 15))


def counted(monkeypatch: pytest.MonkeyPatch, enough: int) -> tuple[list[int], threading.Event]:
    """The sizes of the batches as they are made, and an event for when there are enough of them."""
    sizes: list[int] = []
    there, original = threading.Event(), Loader._slices

    def counting(*args: Any) -> Iterator[TrainBatch]:
        for batch in original(*args):
            sizes.append(len(batch))
            if len(sizes) == enough:
                there.set()
            yield batch

    monkeypatch.setattr(Loader, "_slices", counting)
    return sizes, there


def test_what_is_made_ahead_is_bounded(made: tuple[Path, Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    path, images, _ = made
    sizes, enough = counted(monkeypatch, 2 + READ_AHEAD)
    with closing(Replay(path, images, batch_size=1)) as replay:
        batches = replay.play(1)
        next(batches)
        assert enough.wait(60)
        batches.close()
    assert len(sizes) <= 2 + READ_AHEAD + 1  # handed out, waiting, being made; one more when the closing makes room


def test_epochs_are_played_without_a_pause(
    made: tuple[Path, Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, images, _ = made
    with closing(Replay(path, images, batch_size=15)) as replay, closing(Replay(path, images, batch_size=15)) as other:
        theirs = (batch for _ in range(4) for batch in other)
        first = next(iter(replay)), next(theirs)
        for ours, wanted in [first, *zip(replay.play(4), theirs, strict=True)]:
            for column in ("images", "logits", "targets", "index", "view", "position"):
                assert torch.equal(getattr(ours, column), getattr(wanted, column)), column
        assert replay.state_dict() == other.state_dict() == Replay(path, images, batch_size=1, epoch=4).state_dict()
    _, next_epoch = counted(monkeypatch, 2)
    with closing(Replay(path, images, batch_size=24)) as replay, closing(replay.play(2)) as batches:
        next(batches)
        assert next_epoch.wait(60)  # made while the first epoch's only batch is used


def test_the_prefetcher_passes_errors_on_and_stops_with_its_consumer() -> None:
    def items() -> Generator[int]:
        yield 1
        raise InputError("the second item")

    taken: list[int] = []
    with Prefetcher(items(), 2) as results:
        with pytest.raises(InputError, match="second item"):
            taken.extend(results)
        assert list(results) == []
    assert taken == [1]
    where: list[threading.Thread] = []

    def endless() -> Generator[int]:
        try:
            while True:
                yield 0
        finally:
            where.append(threading.current_thread())

    with Prefetcher(endless(), 2) as results:
        assert next(results) == 0
    results.join()
    assert where == [results._thread]
    with pytest.raises(InputError, match="closed while an epoch was being iterated"):
        list(results)


def test_a_dropped_loop_is_collected_whichever_locks_are_held(world: World) -> None:
    """Garbage collection runs in any thread, also in one that holds a lock which the prefetching thread needs."""
    with closing(Replay(world.store, world.images, batch_size=2, threads=1)) as replay:
        dropped: list[Any] = [replay.play(10**15)]
        dropped.append(dropped)  # a cycle, which the collector alone ends
        next(dropped[0])

        def collect() -> None:
            with _global_shutdown_lock:
                gc.collect()

        del dropped
        collecting = threading.Thread(target=collect, daemon=True)
        collecting.start()
        collecting.join(60)
        assert not collecting.is_alive()
        assert len(list(replay)) > 1, "the next iteration waits for the one before"


WAYS = [("", 0), ("sys.exit(3)", 3), ("del batches, others", 0), ("raise KeyboardInterrupt", -signal.SIGINT)]
LEFT = """
import sys, threading
import trainer
replay = trainer.Replay(sys.argv[1], sys.argv[2], batch_size=2, threads=1)
other = trainer.Replay(sys.argv[1], sys.argv[2], batch_size=3, threads=1)
batches, others = replay.play(10**15), other.play(10**15)  # made as they are played
next(batches), next(others)
import atexit
from trainer import prefetch
atexit.unregister(prefetch._stop_all)
atexit.register(lambda: print(len(prefetch._RUNNING), [t.name for t in threading.enumerate() if "prefetch" in t.name]))
atexit.register(prefetch._stop_all)
print("left")
exec(sys.argv[3])
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [("raise ValueError('of the loop')", 1), *(pytest.param(*case, marks=pytest.mark.long) for case in WAYS)],
)
def test_a_loop_that_is_left_early_ends_with_the_program(how: str, code: int, world: World) -> None:
    """No thread works any more when Python is torn down, where it would abort the process."""
    words = [sys.executable, "-c", LEFT, str(world.store), str(world.images), how]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.split("\n")) == (code, ["left", "0 []", ""]), ended.stderr


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_another_process_is_told_what_to_do(world: World) -> None:
    """A forked one has none of the threads; a spawned one would have to be sent the replay."""
    with closing(Replay(world.store, world.images, batch_size=5, threads=1)) as replay:
        loader = torch.utils.data.DataLoader(replay, batch_size=None, num_workers=1, multiprocessing_context="fork")
        with pytest.raises(InputError, match=r"made in another process.*without workers"):
            next(iter(loader))
        with pytest.raises(InputError, match="cannot be sent to another process"):
            pickle.dumps(replay)
        plain = torch.utils.data.DataLoader(replay, batch_size=None)
        assert next(iter(plain)).position.tolist() == list(range(5))


def test_an_iterator_that_was_begun_does_not_wait_in_a_forked_process(world: World) -> None:
    with (
        closing(Replay(world.store, world.images, batch_size=5, threads=1)) as replay,
        closing(replay.play(9)) as batches,
    ):
        next(batches)
        assert in_a_fork(lambda: [*batches]).startswith("InputError: ")
        next(batches)


def test_a_batch_is_a_tree_of_tensors_that_moves(made: tuple[Path, Path, torch.Tensor]) -> None:
    path, images, _ = made
    with closing(Replay(path, images, batch_size=10)) as replay:
        batch = next(iter(replay))
    leaves, structure = tree_flatten({"train": [batch]})
    assert len(leaves) == len(TENSORS)
    assert structure == tree_flatten({"train": [pickle.loads(pickle.dumps(batch))]})[1]  # noqa: S301
    rows = [CropRows(("image",), np.full((1, 10), value, np.uint16)) for value in (1, 1, 2)]
    first, same, other = (tree_flatten(replace(batch, rows=each))[1] for each in rows)
    assert first == same != other
    assert first != tree_flatten(replace(batch, rows=None))[1]
    moved = [batch.to("meta", non_blocking=True), tree_map(lambda leaf: leaf.to("meta"), batch)]
    for each in moved:
        assert isinstance(each, TrainBatch)
        assert all(getattr(each, name).is_meta for name in TENSORS)
        assert (each.total, each.share) == (batch.total, batch.share)
        assert each.rows is batch.rows


def test_layouts_hold_the_same_numbers(made: tuple[Path, Path, torch.Tensor]) -> None:
    path, images, _ = made
    plain, last = (Replay(path, images, batch_size=10, channels_last=layout) for layout in (False, True))
    for ours, theirs in zip(plain, last, strict=True):
        assert ours.images.is_contiguous()
        assert theirs.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours.images, theirs.images)
    for each in (plain, last):
        each.close()
