"""Several stores played as one: each crop with its own pixels and label, once a view; what does not fit is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelstore import LabelStore
from labelstore.command.command_line import read_command
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import GiftwrapError
from pipeline.build.build import build
from pipeline.config import BuildConfig
from tests.journeys.world import SIDE, draw_images, random_teacher
from trainer.__main__ import COMMANDS, without_more
from trainer.compare import label_bytes, table
from trainer.joint import JointCrops, JointLabels, joined
from trainer.labels import StoredLabels
from trainer.loader import Loader
from trainer.replay import open_crops
from trainer.runs import read_run
from trainer.train import train

VIEWS = 3


def made(
    folder: Path, name: str, classes: tuple[str, ...], columns: str, mix: str, **changes: Any
) -> tuple[Path, Path]:
    """A store of eight images a class, and its images."""
    weights = folder / "teacher.safetensors"
    if not weights.exists():
        random_teacher(weights)
    images, store = draw_images(folder / f"{name} images", classes=classes), folder / name
    values: dict[str, Any] = {
        "teacher": ("convnet-d2",), "teacher_args": ('{"width": 16, "norm": "batch"}',), "weights": (str(weights),),
        "images": images, "class_columns": columns, "size": SIDE, "views": VIEWS, "threads": 1, "mix": mix,
        "group": None if mix == "none" else 4, "encoding": "float16", "store": store,
    }  # fmt: skip
    build(from_flags(BuildConfig, **{**values, **changes}), Console(as_json=True))
    return store, images


@pytest.mark.parametrize("mix", ["none", "cutmix"])
def test_each_crop_comes_once_a_view_with_its_own_pixels_and_label(tmp_path: Path, mix: str) -> None:
    places = [made(tmp_path, "two", ("ant", "bee"), "0,1", mix), made(tmp_path, "one", ("cat",), "2", mix)]
    sources = [open_crops(store, images, threads=1)[0] for store, images in places]
    stores = [source.source.store for source in sources]
    whole = joined([store.identity for store in stores], ["two", "one"])
    assert (whole.images, whole.classes, whole.label_columns) == (24, ("ant", "bee", "cat"), (0, 1, 2))
    crops = JointCrops(sources, whole.manifest)
    labels = [StoredLabels(store, torch.device("cpu"), any_scale=False) for store in stores]
    loader = Loader(crops, JointLabels(crops, labels), batch_size=7, view_order="cycle")
    seen = []
    for batch in loader.play(2 * VIEWS):  # the second time in another order
        for row in range(len(batch)):
            image, view = int(batch.index[row]), int(batch.view[row])
            which = int(image >= 16)
            seen.append((view, image))
            own = stores[which].read(view, slice(None))
            place = int(np.flatnonzero(own.rows.image == image - 16 * which)[0])
            torch.testing.assert_close(batch.logits[row], torch.from_numpy(own.logits[place]))
            assert int(batch.targets[row]) == (2 if which else image // 8)
    assert sorted(seen) == sorted(2 * [(view, image) for view in range(VIEWS) for image in range(24)])
    for view in range(VIEWS):
        rows = crops.rows(view, np.arange(24))
        pixels = crops.pixels(rows)
        for number, at, _ in crops.parts(rows):
            alone = sources[number].pixels(sources[number].rows(view, np.arange(len(at))))
            assert torch.equal(pixels[at], alone)
    loader.close()


def test_stores_that_cannot_be_played_together_are_refused_by_name(tmp_path: Path) -> None:
    first, _ = made(tmp_path, "first", ("ant",), "0", "none")
    identity = LabelStore.open(first).identity
    other = replace(identity, manifest="0" * 64, classes=("bee",), class_columns=(1,))
    for changed in (
        replace(other, columns=5),
        replace(other, teacher={**identity.require("teacher"), "name": "another"}),
        replace(other, size=SIDE * 2),
        replace(other, class_columns=(0,)),
        replace(other, classes=("ant",)),
        identity,
    ):
        with pytest.raises(GiftwrapError, match=r"second|same images"):
            joined([identity, changed], ["first", "second"])


def test_store_and_images_take_several_paths() -> None:
    typed = ["train", "--store", "a", "b", "c", "--images", "x", "y", "z", "--loss", "ce", "--seeds", "1", "2"]
    assert without_more(typed) == [
        "train", "--store", "a", "--more-stores", "b", "c", "--images", "x", "--more-images", "y", "z", "--loss", "ce",
        "--seeds", "1", "2",
    ]  # fmt: skip


def test_a_student_of_several_stores_is_trained_resumed_and_tested_on_all_classes(tmp_path: Path) -> None:
    two, two_images = made(tmp_path, "two", ("ant", "bee"), "0,1", "none")
    one, one_images = made(tmp_path, "one", ("cat",), "2", "none")
    tests = draw_images(tmp_path / "tests", per_class=2)
    words = ["train", "--student", "convnet-d1", "--epochs", "2", "--batch-size", "8", "--threads", "1"]
    words += ["--test-images", str(tests), "--run-folder"]
    several = [str(tmp_path / "run"), "--store", str(two), str(one), "--images", str(two_images), str(one_images)]

    def run(*more: str) -> Mapping[str, Any]:
        return train(read_command(COMMANDS["train"], "train", [*words, *more]).config, Console(silent=True))

    ended, again = run(*several), run(*several)
    assert (ended["steps"], again["steps_now"], again["last"]) == (6, 0, ended["last"])
    record = read_run(tmp_path / "run")
    assert record.stores == [str(two), str(one)]
    sizes = [label_bytes(store) or 0 for store in (two, one)]
    assert table([record])[0].label_bytes == sum(sizes) > max(sizes)
    for wrong in (
        [*several[:-1]],
        [*several[:-2], str(one_images), str(two_images)],
        [*several, "--labels", "none", "--loss", "ce"],
        [*several, "--recipe", "gift"],
    ):
        with pytest.raises(GiftwrapError):
            run(str(tmp_path / "other"), *wrong[1:])
        assert not (tmp_path / "other" / "config.json").exists()
