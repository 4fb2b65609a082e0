"""Stages hand over in bounded queues, their time at work is counted, and a build can be watched."""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.request
import weakref
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.ports import own_port
from labelstore import LabelStore, check
from labelstore.command.console import Console
from labelstore.command.stopping import StopSignals
from labelstore.errors import GiftwrapError, InputError
from labelstore.format.columns import CropRows
from labelstore.spec import BlockShape, Identity
from pipeline.build import filling, stages, watching
from pipeline.build.filling import Filling, Work
from pipeline.build.labelling import Rows, label
from pipeline.build.stages import Busy, hand_over
from pipeline.build.watching import Watch
from pipeline.build.watching import watching as watch_for
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.ranks import Ranks
from pipeline.teacher.labeller import Pending

SIDE, COLUMNS, POSITIONS, BATCH = 4, 3, 16, 8


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    time = SimpleNamespace(monotonic=clock, perf_counter=clock, time=clock)
    for module in (stages, watching):
        monkeypatch.setattr(module, "time", time)
    return clock


class Black:
    """In the place of a renderer; counts the batches that nobody has labelled yet."""

    def __init__(self) -> None:
        self.id: dict[str, Any] = {}
        self.rendered = 0

    def render(self, rows: CropRows) -> Tensor:
        self.rendered += len(rows)
        return torch.zeros((len(rows), SIDE, SIDE, 3), dtype=torch.uint8)

    def close(self) -> None:
        """Nothing to release."""


class Numbers:
    """In the place of a labeller: the image's number in every column."""

    batch, columns, device = BATCH, COLUMNS, torch.device("cpu")

    def __init__(self) -> None:
        self.identity: dict[str, Any] = {}

    def start(self, _crops: Tensor, rows: CropRows) -> Pending:
        return Pending("numbers", torch.from_numpy(np.repeat(rows.image.astype(np.float32)[:, None], COLUMNS, axis=1)))


def make_work(images: int = POSITIONS) -> Any:
    spec = PlanSpec(size=SIDE)
    sides = np.full(images, 9, np.int32)
    identity = Identity(
        images=images,
        classes=("ant", "bee", "cat"),
        columns=COLUMNS,
        size=SIDE,
        seed=0,
        group=1,
        manifest="00",
        skipped=(),
        teacher={},
        engine={},
        plan=spec.to_json(),
        crop_columns=spec.columns,
        encoding={"name": "int8", "codec": "raw"},
        renderer={},
        block=BlockShape(views=1, positions=POSITIONS),
    )
    manifest: Any = SimpleNamespace(targets=np.zeros(images, np.int64), classes=identity.classes)
    renderer: Any = Black()
    labeller: Any = Numbers()
    return Work(manifest, Plan(spec, sides, sides), renderer, labeller, identity)


def make_store(path: Path, work: Work, views: int) -> LabelStore:
    count = work.identity.images
    digests = np.arange(32 * count, dtype=np.uint32).astype(np.uint8).reshape(count, 32)
    return LabelStore.create(path, work.identity, image_digests=digests, targets=np.zeros(count, np.int64), views=views)


def fill(store: LabelStore, work: Work, watch: Watch, stops: StopSignals | None = None) -> None:
    with store.lease() as writer:
        Filling(store, work, store.missing(), Ranks(), Console(silent=True), watch, stops or StopSignals()).fill(writer)


def test_time_at_work_is_counted_by_stage_and_waiting_is_not(clock: Clock) -> None:
    busy = Busy()

    def items() -> Any:
        for number in range(3):
            clock.now += 2
            yield number

    for _ in busy.making("render", items()):
        clock.now += 10  # of others
    with suppress(ZeroDivisionError), busy.at("write"):
        clock.now += 5
        raise ZeroDivisionError
    assert busy.seconds() == {"render": 6, "teacher": 0, "encode": 0, "write": 5}


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_hand_over_holds_no_more_than_its_depth(depth: int) -> None:
    gate, taken, done = threading.Semaphore(0), threading.Semaphore(0), []

    def work(number: int) -> None:
        taken.release()
        if depth:
            gate.acquire()
        done.append(number)

    with hand_over(work, depth) as call:
        for number in range(depth + 1):
            call(number)
        if depth:
            taken.acquire()
            more = threading.Thread(target=call, args=(depth + 1,))
            more.start()
            assert more.is_alive()
            assert not done
            gate.release(depth + 2)
            more.join()
    assert done == list(range(depth + 2 if depth else 1))


def test_shares_are_of_the_last_seconds_and_the_summary_of_all(clock: Clock) -> None:
    watch = Watch()
    watch.begin(blocks=2, crops=100)
    for second in range(20):
        clock.now += 1
        watch.busy.add("render" if second < 10 else "teacher", 0.75)
        watch.add_crops(3)
        now = watch.now()
    watch.add_block()
    whole = watch.so_far()
    assert (now.binding, now.busy["render"], now.busy["teacher"], now.rate) == ("teacher", 0, 0.75, 3)
    assert (whole.busy["render"], whole.busy["teacher"]) == (0.375, 0.375)
    assert (whole.crops, whole.crops_wanted, whole.blocks, whole.blocks_wanted) == (60, 100, 1, 2)
    assert now.text == "busy: render 0 %, teacher 75 %, encode 0 %, write 0 %; teacher is the bottleneck"


def test_the_log_gets_a_line_every_ten_seconds_and_continues(clock: Clock, tmp_path: Path) -> None:
    file = tmp_path / "logs" / "build.jsonl"
    for _ in range(2):
        with watch_for(file, None, "127.0.0.1", Console(silent=True)) as watch:
            watch.begin(blocks=1, crops=10)
            for _ in range(25):
                clock.now += 1
                watch.busy.add("teacher", 0.5)
                watch.now()
            watch.log(watch.so_far())
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["seconds"] for line in lines] == [10, 20, 25] * 2
    assert all(line["binding_stage"] == "teacher" and line["busy"]["teacher"] == 0.5 for line in lines)


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    console = Console(silent=True)
    with (
        pytest.raises(InputError, match=r"--progress-log .*: expected a file that can be written"),
        watch_for(tmp_path, None, "127.0.0.1", console),
    ):
        pass
    full = Watch(Path("/dev/full"))
    with pytest.raises(GiftwrapError, match=r"--progress-log /dev/full: cannot be written \(No space left on device\)"):
        full.log(full.so_far())


def test_metrics_are_served_while_the_watch_is_open() -> None:
    port = own_port()
    url = f"http://127.0.0.1:{port}/metrics"
    with watch_for(None, port, "127.0.0.1", Console(silent=True)) as watch:
        watch.begin(blocks=4, crops=200)
        watch.add_crops(50)
        watch.add_block()
        watch.busy.add("encode", 1.5)
        with urllib.request.urlopen(url) as answer:
            lines = answer.read().decode().splitlines()
    for line in (
        "giftwrap_build_crops_total 50.0",
        "giftwrap_build_crops_wanted 200.0",
        "giftwrap_build_blocks_total 1.0",
        "giftwrap_build_blocks_wanted 4.0",
        'giftwrap_build_stage_busy_seconds_total{stage="encode"} 1.5',
    ):
        assert line in lines
    with watch_for(None, port, "127.0.0.1", Console(silent=True)):
        pass  # the port is free again


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        expected = rf"--metrics-port {port}: expected a free port of 127\.0\.0\.1, found: Address already in use"
        with pytest.raises(InputError, match=expected), watch_for(None, port, "127.0.0.1", Console(silent=True)):
            pass


def test_a_gpus_teacher_gets_its_batches_from_a_thread_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of a GPU's build, without the GPU."""
    work, most = make_work(images=24 * POSITIONS), 0
    taken: list[float] = []
    renderer: Any = work.renderer
    job = Rows([work.plan.rows(0, 0, 24 * POSITIONS)], ["view 0"])
    monkeypatch.setattr("pipeline.build.labelling._on_gpu", lambda _labeller: True)
    for each in label(renderer, work.labeller, 1, [job]):
        assert each.job is job
        most = max(most, renderer.rendered - len(taken))
        taken.extend(each.logits[:, 0].tolist())
    assert taken == job.rows[0].image.tolist()
    # taken, under way, waiting, handed over and rendered: whatever the number of batches
    assert most <= 6 * BATCH


def test_labelling_that_is_left_early_ends_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.build.labelling._on_gpu", lambda _labeller: True)
    work, before = make_work(), {*threading.enumerate()}
    labelled = label(work.renderer, work.labeller, 1, [Rows([work.plan.rows(0, 0, POSITIONS)], ["view 0"])] * 9)
    next(labelled)
    (thread,) = {*threading.enumerate()} - before
    labelled.close()
    assert not thread.is_alive()


def test_a_signal_lets_the_current_block_end(tmp_path: Path) -> None:
    work, stops = make_work(), StopSignals()
    store = make_store(tmp_path / "store", work, 40)
    watch = Watch()
    start = work.labeller.start

    def hearing(crops: Tensor, rows: CropRows) -> Pending:
        if watch.so_far().crops == 2 * POSITIONS:
            stops.record(15)
        pending: Pending = start(crops, rows)
        return pending

    work.labeller.start = hearing
    fill(store, work, watch, stops)
    assert len(store.missing()) == 40 - 3
    assert check(store.path).ok


class Held:
    """How many arrays of logits are alive at most."""

    def __init__(self) -> None:
        self.alive = self.most = 0


def test_the_number_of_blocks_in_memory_does_not_depend_on_how_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held()

    class Counted(filling.OpenBlock):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            held.alive += 1
            held.most = max(held.most, held.alive)
            weakref.finalize(self.logits, self._drop)

        @staticmethod
        def _drop() -> None:
            held.alive -= 1

    monkeypatch.setattr(filling, "OpenBlock", Counted)
    work = make_work()
    fill(make_store(tmp_path / "store", work, 200), work, Watch())
    assert 1 <= held.most <= 2 + filling.QUEUED_BLOCKS + 1  # made, waiting, encoded, and one that Python lets go of


@pytest.mark.long
def test_memory_is_flat_over_ten_thousand_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, watch = make_work(), Watch()
    store = make_store(tmp_path / "store", work, 10_000)
    sizes: dict[int, int] = {}

    def measure(block: object = None) -> None:
        add_block()
        done = watch.so_far().blocks
        if done in (1_000, 10_000):
            sizes[done] = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    add_block = watch.add_block
    monkeypatch.setattr(watch, "add_block", measure)
    fill(store, work, watch)
    assert not store.missing()
    assert sizes[10_000] - sizes[1_000] < 16 << 20
