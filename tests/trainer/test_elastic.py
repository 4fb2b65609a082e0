"""One sequence of batches: for any number of processes, any batch, and from wherever a run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional

from labelstore import LabelStore
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from pipeline.build.build import build
from pipeline.config import BuildConfig
from pipeline.render.crops import CropRenderer
from tests.journeys.world import SIDE, draw_images, random_teacher
from trainer import Replay, TrainBatch
from trainer.batch import TENSORS, slices

IMAGES = 21
MIXES = [("none", 1), ("cutmix", 4), ("mixup", 30)]


@pytest.fixture(scope="module", params=MIXES, ids=[mix for mix, _ in MIXES])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of 21 images, not a multiple of anything used here; and its images."""
    mix, group = request.param
    folder = tmp_path_factory.mktemp("elastic")
    config = from_flags(
        BuildConfig,
        images=draw_images(folder / "images", per_class=7),
        teacher=("convnet-d2",),
        teacher_args=('{"width": 16, "norm": "batch"}',),
        weights=(str(random_teacher(folder / "teacher.safetensors")),),
        size=SIDE,
        views=2,
        threads=1,
        **({} if mix == "none" else {"mix": mix, "group": group}),
        store=folder / "store",
    )
    build(config, Console(as_json=True))
    return config.store, config.images


@pytest.fixture(scope="module")
def replays(made: tuple[Path, Path]) -> Iterator[dict[tuple[int, int], Replay]]:
    """One for each place among 1, 2, 3 and 6 processes, which take turns in this one."""
    store = LabelStore.open(made[0])
    opened = {
        (rank, world): Replay(store, made[1], batch_size=6, seed=1, views=2, rank=rank, world=world, threads=1)
        for world in (1, 2, 3, 6)
        for rank in range(world)
    }
    yield opened
    for replay in opened.values():
        replay.close()


def play(replays: dict[tuple[int, int], Replay], world: int, batch: int, place: tuple[int, int]) -> list[TrainBatch]:
    """What all processes together get of an epoch from a place on, batch by batch."""
    parts = []
    for rank in range(world):
        replay = replays[rank, world]
        replay.batch_size = batch
        replay.load_state_dict({**replay.state_dict(), "epoch": place[0], "position": place[1]})
        parts.append(list(replay))
        assert (replay.epoch, replay.position) == (place[0] + 1, 0)
    joined = []
    for pieces in zip(*parts, strict=True):
        own = [piece for piece in pieces if piece.share]
        assert {piece.total for piece in pieces} == {sum(map(len, own))}
        assert max(map(len, own)) - min(len(piece) if piece.share else 0 for piece in pieces) <= 1
        assert [piece.share for piece in own] == [len(piece) * world / piece.total for piece in own]
        joined_columns: dict[str, Any] = {name: torch.cat([getattr(piece, name) for piece in own]) for name in TENSORS}
        joined.append(TrainBatch(**joined_columns))
    return joined


@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_processes_batches_and_stops_do_not_change_the_sequence(
    replays: dict[tuple[int, int], Replay], data: st.DataObject
) -> None:
    world = data.draw(st.sampled_from([1, 2, 3, 6]))
    batch = data.draw(st.integers(world, 30))
    place = data.draw(st.tuples(st.integers(0, 3), st.integers(0, IMAGES - 1)))
    whole = play(replays, 1, IMAGES, (place[0], 0))
    assert len(whole) == 1
    found = play(replays, world, batch, place)
    assert [len(each) for each in found[:-1]] == [batch] * (len(found) - 1)
    for name in TENSORS:
        rows = torch.cat([getattr(each, name) for each in found])
        assert torch.equal(rows, getattr(whole[0], name)[place[1] :]), name


@pytest.mark.parametrize("epoch", [0, 2])  # played for the first time, and again
def test_going_on_costs_the_same_anywhere(
    replays: dict[tuple[int, int], Replay], epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []
    original = CropRenderer.render
    monkeypatch.setattr(
        CropRenderer, "render", lambda self, rows: (rendered.append(len(rows)), original(self, rows))[1]
    )
    replay = replays[0, 1]
    replay.batch_size = 3
    group = replay.store.identity.group
    for position in range(IMAGES - 3):
        rendered.clear()
        first = next(replay._slices(epoch, position, epoch + 1))
        assert first.position.tolist() == replay.order.positions(epoch, position, position + 3).tolist()
        assert sum(rendered) <= -(-3 // group) * group + group


@given(st.integers(1, 9), st.integers(1, 3), st.data())
def test_crops_are_labelled_in_the_same_parts_wherever_an_epoch_is_continued(
    replays: dict[tuple[int, int], Replay], batch: int, world: int, data: st.DataObject
) -> None:
    """The last bits of labels may depend on how many are decoded, or made by a teacher, at a time."""
    replay = replays[data.draw(st.integers(0, world - 1)), world]
    replay.batch_size = batch
    start = batch * data.draw(st.integers(0, (IMAGES - 1) // batch))

    def parts(start: int) -> list[list[int]]:
        plays = replay._plays(0, start, 1)
        return [play.positions.tolist() for play in plays if len(play.positions)]

    every, rest = parts(0), parts(start)
    assert rest == every[len(every) - len(rest) :]


@given(st.integers(0, 100), st.integers(1, 20))
def test_slices_are_whole_and_alike(count: int, parts: int) -> None:
    found = slices(count, parts)
    assert [row for part in found for row in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in found]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_pieces_keep_every_crop_and_the_share(replays: dict[tuple[int, int], Replay]) -> None:
    batch = play(replays, 1, IMAGES, (0, 0))[0]
    for count in (1, 2, 5, 50):
        pieces = list(batch.pieces(count))
        assert len(pieces) == min(count, IMAGES)
        assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images)
        assert sum(piece.share for piece in pieces) == pytest.approx(1)


def test_a_batch_smaller_than_the_processes_is_refused(made: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="one crop for each of 3 processes, found 2"):
        Replay(*made, batch_size=2, rank=0, world=3)


@pytest.mark.parametrize("size", [8, 2 * SIDE])
def test_another_size_shows_the_same_boxes(made: tuple[Path, Path], size: int) -> None:
    replay = Replay(*made, batch_size=IMAGES, size=size, mean=(0, 0, 0), std=(1, 1, 1), threads=1)
    assert (replay.size, replay.store.identity.size) == (size, SIDE)
    (batch,) = list(replay)
    plain = Replay(*made, batch_size=IMAGES, threads=1)
    (same,) = list(plain)
    for name in TENSORS[1:]:
        assert torch.equal(getattr(batch, name), getattr(same, name)), name
    rows = replay.store.read(int(batch.view[0]), batch.position.numpy()).rows
    crops = []
    for image, box, flip in zip(rows.image.tolist(), rows.boxes().tolist(), rows.flip.tolist(), strict=True):
        with Image.open(replay.source.manifest.place(image)) as picture:
            crop = functional.resized_crop(picture.convert("RGB"), *box, [size, size])
        crops.append(np.asarray(functional.hflip(crop) if flip else crop).astype(np.int64))
    wanted = np.stack(crops)
    if rows.mixed:
        others = wanted[rows.partners(replay.store.identity.group)]
        if "share" in rows:
            share = rows.column("share").astype(np.int64)[:, None, None, None]
            wanted = (share * wanted + (65536 - share) * others + 32768) >> 16
        else:
            for row, (top, left, height, width) in enumerate(rows.mix_boxes().astype(float) * size / SIDE):
                inside = (slice(*edges(top, height)), slice(*edges(left, width)))
                wanted[row][inside] = others[row][inside]
    found = (batch.images.permute(0, 2, 3, 1) * 255).round().long().numpy()
    assert np.abs(found - wanted).max() <= 1
    assert np.abs(found - wanted).mean() < 0.05
    for each in (replay, plain):
        each.close()


def edges(start: float, length: float) -> tuple[int, int]:
    """The pixels from edge to edge, halves rounded up."""
    return int(np.floor(start + 0.5)), int(np.floor(start + length + 0.5))
