"""A teacher of more classes than there are folders, all of whose columns are kept: build, train, evaluate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from labelstore import LabelStore
from labelstore.encodings.fidelity import gift_fidelity
from pipeline.networks import read_weights
from tests.journeys.world import SIDE, World, draw_images, giftwrap, random_teacher
from trainer import Replay

COLUMNS = (5, 0, 3)
SELECTION = ",".join(map(str, COLUMNS))
MIXED = ("--mix", "cutmix", "--group", 5)


@pytest.fixture(scope="module")
def wide(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The labels of seven columns for images of three classes."""
    folder = tmp_path_factory.mktemp("wide")
    weights = random_teacher(folder / "teacher.safetensors", columns=7)
    made = World(folder, world.images, weights, folder / "store")
    ended = giftwrap(*made.build_words(made.store, "--class-columns", SELECTION, *MIXED))
    assert ended.code == 0, ended.err
    assert "(chance 33.33 %)" in ended.out
    return made


def test_labels_keep_all_columns_and_targets_are_among_them(wide: World, tmp_path: Path) -> None:
    ended = giftwrap(*wide.build_words(tmp_path / "store", "--teacher-classes", SELECTION, *MIXED))
    assert ended.code == 0, ended.err
    store, narrow = LabelStore.open(wide.store), LabelStore.open(tmp_path / "store")
    assert (store.identity.columns, narrow.identity.columns) == (7, 3)
    assert np.array_equal(store.targets, narrow.targets)
    assert np.array_equal(store.audit().logits[:, COLUMNS], narrow.audit().logits)
    ours, theirs = store.read(3, slice(None)), narrow.read(3, slice(None))
    assert np.array_equal(ours.rows.values, theirs.rows.values)
    assert np.array_equal(ours.targets, np.array(COLUMNS)[theirs.targets])
    batch = next(iter(Replay(store, wide.images, batch_size=10)))
    targets = np.array(COLUMNS)[store.targets]
    assert np.array_equal(batch.targets, targets[batch.index])
    partners = store.read(int(batch.view[0]), batch.position.numpy()).rows.partners(5)
    assert np.array_equal(batch.targets2, targets[batch.index[partners]])


def test_fidelity_is_that_of_the_label_columns(wide: World) -> None:
    store = LabelStore.open(wide.store)
    count = len(store.audit().logits)
    labels = store.read(0, slice(0, count))
    partners = labels.rows.partners(5)
    targets = np.array(COLUMNS)[store.targets]
    cosines = gift_fidelity(
        store.audit().logits.astype(np.float32),
        labels.logits,
        targets[labels.rows.image],
        targets[labels.rows.image][partners],
        labels.rows.weights(SIDE),
    )
    recorded = store.fidelity
    assert isinstance(recorded, dict)
    measured: list[Any] = [(kind["rows"], kind["mean"]) for kind in recorded.values() if isinstance(kind, dict)]
    mean = sum(rows * value for rows, value in measured) / sum(rows for rows, _ in measured)
    assert mean == pytest.approx(float(cosines.mean()), abs=1e-4)


def test_the_store_says_what_its_columns_are(wide: World, tmp_path: Path) -> None:
    values = giftwrap("labelstore", "info", wide.store, "--json").summary
    assert (values["classes"], values["columns"], values["class_columns"]) == (3, 7, list(COLUMNS))
    assert "class columns    [5, 0, 3]" in giftwrap("labelstore", "info", wide.store).out
    where = ("--store", wide.store, "--images", wide.images)
    verified = giftwrap("pipeline", "verify", *where, "--weights", wide.weights, "--json")
    assert verified.code == 0, verified.err
    assert verified.summary["fidelity"] > 0.999
    shown = giftwrap("pipeline", "show", *where, "--out", tmp_path / "sheet.png")
    assert shown.code == 0, shown.err
    converted = giftwrap("labelstore", "convert", wide.store, tmp_path / "small", "--encoding", "float16")
    assert converted.code == 0, converted.err
    assert LabelStore.open(tmp_path / "small").identity.class_columns == COLUMNS


def test_a_student_has_all_columns_and_is_measured_on_those_of_the_folders(wide: World, tmp_path: Path) -> None:
    test, run = draw_images(tmp_path / "test", per_class=5), tmp_path / "run"
    student = ("--student", "convnet-d2", "--student-args", '{"width": 16}')
    trained = giftwrap(
        "trainer", "train", "--store", wide.store, "--images", wide.images, *student, "--epochs", 4, "--batch-size", 8,
        "--test-images", test, "--run", run, "--threads", 1, "--json",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    with safe_open(run / "last.safetensors", framework="pt") as file:
        assert file.get_tensor("classifier.bias").shape == (7,)
        assert json.loads(file.metadata()["giftwrap"])["class_columns"] == [5, 0, 3]
    words = ("trainer", "evaluate", "--weights", run / "last.safetensors", "--images", test, "--threads", 1, "--json")
    for selected in ((), ("--classes", SELECTION)):
        evaluated = giftwrap(*words, *selected)
        assert evaluated.code == 0, evaluated.err
        assert evaluated.summary == {"images": 15, **trained.summary["last"]}
    (test / "bee").rename(test / "eel")
    refused = giftwrap(*words)
    assert refused.code == 2
    assert "give --classes" in refused.err
    assert "--class-columns" not in refused.err


def test_class_names_of_columns_in_another_order_go_with_the_weights(world: World, tmp_path: Path) -> None:
    built = giftwrap(*world.build_words(tmp_path / "store", "--class-columns", "2,0,1"))
    assert built.code == 0, built.err
    trained = giftwrap(
        "trainer", "train", "--store", tmp_path / "store", "--images", world.images, "--student", "convnet-d2",
        "--student-args", '{"width": 16}', "--epochs", 1, "--run", tmp_path / "run", "--threads", 1,
    )  # fmt: skip
    assert trained.code == 0, trained.err
    with safe_open(tmp_path / "run" / "last.safetensors", framework="pt") as file:
        assert list(file.metadata()) == ["giftwrap"]
        assert file.get_tensor("classifier.bias").dtype == torch.float32
    assert read_weights(tmp_path / "run" / "last.safetensors").class_names == ("bee", "cat", "ant")


def test_what_does_not_fit_is_refused(wide: World, tmp_path: Path) -> None:
    (tmp_path / "columns").write_text("5\n0\n2\n")
    store = shutil.copytree(wide.store, tmp_path / "store")
    new = tmp_path / "new"
    for target, more, message in (
        (new, (), "found 7 columns; name the 3 columns in the folders' order: give --teacher-classes"),
        (new, (), "to keep only these columns, or --class-columns to keep all"),
        (new, ("--class-columns", "5,0"), "3 class folders (ant, bee, cat), found 2 columns"),
        (new, ("--class-columns", "5,0,7"), "--class-columns: index 7 of a network of 7 columns"),
        (new, ("--class-columns", "5,0,5"), "columns [5] more than once"),
        (new, ("--class-columns", "ant,bee,cat"), "class names are unknown"),
        (new, ("--teacher-classes", "0,1,2,3", "--class-columns", SELECTION), "index 5 of a network of 4 columns"),
        (
            store,
            ("--class-columns", tmp_path / "columns", *MIXED),
            "(--class-columns[2]): the store has 3, this run has 2",
        ),
        (store, ("--teacher-classes", SELECTION, *MIXED), "different teacher (--class-columns"),
    ):
        ended = giftwrap(*wide.build_words(target, *more))
        assert ended.code == 2, (more, ended)
        assert message in " ".join(ended.err.split()), (more, ended.err)
        assert "Traceback" not in ended.err
    assert not new.exists()
