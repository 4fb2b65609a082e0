"""FKD's one file an image becomes a store of the largest probabilities alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelstore import LabelStore
from labelstore.command.console import Console
from labelstore.errors import InputError
from pipeline.adopt import fkd
from pipeline.adopt.adopting import adopt
from pipeline.adopt.config import AdoptConfig
from pipeline.adopt.labels import boxes_of
from pipeline.render.options import RenderOptions
from tests.journeys.world import CLASSES, SIDE
from tests.pipeline.adopt.taught import MEAN, STD, Taught
from tests.pipeline.adopt.writers import write_fkd
from trainer.losses import LossSpec

CROPS, KEPT = 5, 2


@pytest.fixture(scope="module")
def labels(made: Taught, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fkd") / "labels"
    return write_fkd(made.images, made.network, folder, size=SIDE, mean=MEAN, std=STD, crops=CROPS, kept=KEPT)


def adopted(made: Taught, labels: Path, store: Path, **more: Any) -> LabelStore:
    config = AdoptConfig(
        labels=labels, store=store, images=made.images, size=SIDE, render=RenderOptions(threads=1), **more
    )
    adopt(config, Console(silent=True))
    return LabelStore.open(store)


def test_view_v_is_the_crop_v_of_every_image(
    made: Taught, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fkd, "WINDOW_BYTES", 1)  # one view at a time
    store = adopted(made, labels, tmp_path / "store")
    assert (store.identity.content, store.state.views_sealed, store.identity.group) == ("topk", CROPS, 1)
    names = [path for name in CLASSES for path in sorted((labels / name).iterdir())]
    orders = set()
    for view in range(CROPS):
        batch = store.read(view, slice(None))
        orders.add(tuple(batch.rows.image.tolist()))
        probabilities = torch.softmax(torch.from_numpy(batch.logits), 1).numpy()
        for row, image in enumerate(batch.rows.image.tolist()):
            coordinates, flips, label = torch.load(names[image], weights_only=False)
            assert batch.rows.flip[row] == flips[view]
            assert batch.rows.boxes()[row, 2] >= 1
            assert coordinates.shape == (CROPS, 4)
            columns, wanted = label[view, 0].long().numpy(), label[view, 1].numpy()
            wanted = wanted / wanted.sum()  # the others are not known: probability 0
            assert np.abs(probabilities[row, columns] - wanted).max() < 0.03  # a step of int8
            assert np.delete(probabilities[row], columns).max() == 0
    assert len(orders) == CROPS
    with pytest.raises(InputError, match="--loss gift: needs the logits of all columns"):
        LossSpec(name="gift").require_content(store.identity.content)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file of an image": (lambda at: (at / "bee/03.tar").unlink(), r"found none of 1 of them, first bee/03"),
    "fewer crops": (
        lambda at: changed(at / "cat/00.tar", slice(4)),
        r"expected 5 crops with 2 probabilities .* found 4",
    ),
    "a column that no class has": (
        lambda at: changed(at / "ant/00.tar", slice(None), column=7),
        r"00.tar: expected columns below 3, .* found 7; .*--class-columns",
    ),
    "a column beyond all": (
        lambda at: changed(at / "ant/00.tar", slice(None), column=float("inf")),
        r"00.tar: expected columns as whole numbers from 0 on, found inf",
    ),
    "two files of one image": (
        lambda at: shutil.copytree(at / "ant", at / "more/ant"),
        r"expected one file of labels for an image, found .*ant/00.tar and .*more/ant/00.tar",
    ),
    "no probabilities": (
        lambda at: changed(at / "ant/00.tar", slice(None), value=float("nan")),
        r"00.tar: expected probabilities, found .*nan",
    ),
}


def changed(file: Path, part: slice, column: float | None = None, value: float | None = None) -> None:
    coordinates, flips, label = torch.load(file, weights_only=False)
    if column is not None:
        label[:, 0, 0] = column
    if value is not None:
        label[1, 1, 0] = value
    torch.save([coordinates[part], flips[part], label[part]], file)


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named_and_leaves_nothing(made: Taught, labels: Path, tmp_path: Path, what: str) -> None:
    damage, message = WRONG[what]
    shutil.copytree(labels, tmp_path / "labels")
    damage(tmp_path / "labels")
    with pytest.raises(InputError, match=message):
        adopted(made, tmp_path / "labels", tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


def test_flags_without_an_effect_and_other_encodings_are_refused(made: Taught, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--sampler-seed: has no effect on labels of fkd"):
        adopted(made, labels, tmp_path / "store", sampler_seed=1)
    with pytest.raises(InputError, match="--encoding float16: the labels are of the largest columns alone"):
        adopted(made, labels, tmp_path / "store", encoding="float16")


def test_indexes_in_float16_are_refused_where_it_rounds_them(tmp_path: Path) -> None:
    label = torch.tensor([[[2049.0, 3.0], [0.6, 0.4]]]).numpy().astype(np.float16)
    torch.save([np.full((1, 4), 0.5, np.float16), np.array([True]), label], tmp_path / "a.tar")
    with pytest.raises(InputError, match="columns below 2,048, which float16 holds exactly"):
        fkd.read_image(tmp_path / "a.tar")


@pytest.mark.parametrize("share", [np.inf, 5.0, 0.0, -1.0, np.nan])
@pytest.mark.parametrize("place", range(4))
def test_shares_in_float16_may_be_rounded_and_no_more(share: float, place: int) -> None:
    """All whole boxes of images of some sides come back; what float16 does not explain is refused."""
    draws, sides = np.random.default_rng(place), np.array([17, 224, 500, 1333])
    ends = np.sort(draws.integers(0, sides[None, :, None] + 1, (200, 4, 2)), axis=2)
    cut = np.maximum(ends[..., 1] - ends[..., 0], 1)
    top = np.minimum(ends[..., 0], sides - cut)
    boxes = np.stack([top, top, cut, cut], axis=2).reshape(-1, 4)
    each = np.tile(sides, 200)
    shares = (boxes / each[:, None]).astype(np.float16)
    found = boxes_of(shares, each, each, "labels", exact=False)
    assert np.abs(found - boxes).max() <= 1
    if not (share == 0 and place < 2):
        shares[3, place] = share
        with pytest.raises(InputError, match=r"labels: crop 3: expected a box within an image of 1333 x 1333"):
            boxes_of(shares, each, each, "labels", exact=False)
