"""Training from a store that is still being built."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from labelstore import LabelStore
from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.errors import InputError, NotStoredError
from tests.journeys.world import VIEWS, World, giftwrap, start
from trainer import Replay, following
from trainer import train as loop
from trainer.config import TrainConfig
from trainer.step import step

MORE = 2 * VIEWS


@pytest.fixture
def config(world: World, tmp_path: Path) -> TrainConfig:
    return from_flags(
        TrainConfig,
        store=world.store, images=world.images, student="convnet-d1", student_args='{"width": 4}', epochs=3,
        batch_size=24, run_folder=tmp_path / "run", view_order="cycle", seed=5, threads=1,
    )  # fmt: skip


def begun(world: World, path: Path) -> LabelStore:
    """A copy of the world's store that was asked for more views, and not built further."""
    store = LabelStore.open(shutil.copytree(world.store, path))
    with store.lease() as writer:
        writer.raise_target(MORE)
    return store


def test_a_build_is_followed_to_its_end(config: TrainConfig, world: World, tmp_path: Path) -> None:
    store, views = tmp_path / "store", 60
    words = world.build_words(store, "--views", views)
    (tmp_path / "said").mkdir()
    build = start(tmp_path / "said", *words)
    while build.process.is_alive() and not (LabelStore.exists(store) and (store / "lease.json").exists()):
        build.process.join(0.005)
    run = changed(config, store=store, follow=True, epochs=views, checkpoint_every=views)
    summary = loop.train(run, Console(as_json=True))
    assert build.end().code == 0
    assert summary["steps"] == views
    lines = [json.loads(line) for line in (run.run / "log.jsonl").read_text().splitlines()]
    assert [line["view"] for line in lines] == list(range(views))
    whole = changed(run, follow=False, run_folder=tmp_path / "whole")
    loop.train(whole, Console(as_json=True))
    assert (run.run / "last.safetensors").read_bytes() == (whole.run / "last.safetensors").read_bytes()


def test_a_build_that_ends_short_is_said_and_the_run_goes_on_when_it_is_continued(
    config: TrainConfig, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = begun(world, tmp_path / "store")
    sealed = store.state.views_sealed
    run = changed(config, store=store.path, follow=True, epochs=sealed + 2, checkpoint_every=10_000)
    monkeypatch.setattr(following, "POLL_SECONDS", 0)
    with pytest.raises(NotStoredError, match=rf"view {sealed} is not stored, and no build holds the store"):
        loop.train(run, Console(as_json=True))
    assert giftwrap(*world.build_words(store.path, "--views", MORE)).code == 0
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step", lambda run, batch: (steps.append(run.step), step(run, batch))[1])
        loop.train(run, Console(as_json=True))
    assert steps == list(range(sealed, sealed + 2))  # what was trained before it waited is kept


def test_a_view_is_waited_for_while_a_build_holds_the_store(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = begun(world, tmp_path / "store")
    view = store.state.views_sealed
    follower = LabelStore.open(store.path, follow=True)
    waits: list[float] = []
    held = contextlib.ExitStack()
    held.enter_context(store.lease())

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            held.close()

    monkeypatch.setattr(time, "sleep", sleep)
    following.wait_for_view(follower, view - 1)
    assert not waits
    with pytest.raises(NotStoredError, match="no build holds the store"):
        following.wait_for_view(follower, view)
    assert len(waits) == 2 + following.POLLS_ALONE + 1  # two while it is held, and those alone


def test_following_needs_stored_order(world: World) -> None:
    with pytest.raises(InputError, match="give view_order 'cycle'"):
        Replay(world.store, world.images, batch_size=4, follow=True)
    with closing(Replay(world.store, world.images, batch_size=4, view_order="cycle", follow=True)) as replay:
        with pytest.raises(InputError, match="expected one epoch of a store that is followed, found 2"):
            next(replay.play(2))
        assert len(next(replay.play(1))) == 4


def test_a_store_without_views_says_how_to_follow_it(world: World, tmp_path: Path) -> None:
    store = shutil.copytree(world.store, tmp_path / "store")
    opened = LabelStore.open(store)
    with opened.lease() as writer:
        writer.unseal(0)
    with pytest.raises(NotStoredError, match="no view is sealed yet; finish the build first, or follow it"):
        Replay(store, world.images, batch_size=4)
    replay = Replay(store, world.images, batch_size=24, follow=True, view_order="cycle")  # its blocks are there
    assert next(iter(replay)).view.tolist() == [0] * 24
    replay.close()


def test_a_signal_ends_the_waiting(config: TrainConfig, world: World, tmp_path: Path) -> None:
    store = begun(world, tmp_path / "store")
    sealed = store.state.views_sealed
    run = changed(config, store=store.path, follow=True, epochs=sealed + 1, checkpoint_every=9_999)
    with store.lease(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            loop.train(run, Console(as_json=True))
    assert (run.run / "checkpoint.pt").exists()
