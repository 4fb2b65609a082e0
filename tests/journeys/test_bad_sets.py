"""Sets and teachers at the edge of what a store can be made of: built right, or refused by name with nothing lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from labelstore import LabelStore, check
from pipeline.networks import build_network
from pipeline.networks.weights import save_weights
from tests.journeys.world import SIDE, World, draw_images, giftwrap, random_teacher

WIDE = 64


def broken_teacher(path: Path) -> Path:
    """Weights of a network one of whose outputs is no number."""
    torch.manual_seed(0)
    network = build_network("convnet-d2", {"width": 16, "norm": "batch"}, classes=WIDE, size=SIDE)
    weights = network.state_dict()
    weights[list(weights)[-1]][5] = float("nan")
    save_weights(weights, path)
    return path


@pytest.mark.parametrize("encoding", [["int8"], ["float16"], ["transform", "--step", "0.5"]])
def test_a_broken_teacher_is_refused_with_image_and_view(world: World, tmp_path: Path, encoding: list[str]) -> None:
    weights, store = broken_teacher(tmp_path / "teacher.safetensors"), tmp_path / "store"
    words = world.build_words(store, "--weights", weights, "--class-columns", "0,1,2", "--encoding", *encoding)
    ended = giftwrap(*words)
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    assert re.search(r"logit of image \d+ in (view 0|a calibration view), class 5: expected a number", ended.err)
    assert not store.exists()


def test_a_folder_without_images_is_refused(world: World, tmp_path: Path) -> None:
    for name in ("empty", "classes/ant"):
        (tmp_path / name).mkdir(parents=True)
        ended = giftwrap(*world.build_words(tmp_path / "store", "--images", tmp_path / name.partition("/")[0]))
        assert ended.code == 2
        assert str(tmp_path) in ended.err
        assert "Traceback" not in ended.err
        assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("mix", [[], ["--mix", "cutmix", "--group", "8"], ["--mix", "mixup", "--group", "2"]])
def test_one_image(world: World, tmp_path: Path, mix: list[str]) -> None:
    images = draw_images(tmp_path / "images", per_class=1, classes=("ant",))
    weights = random_teacher(tmp_path / "teacher.safetensors", columns=1)
    store = tmp_path / "store"
    ended = giftwrap(*world.build_words(store, "--images", images, "--weights", weights, "--views", 3, *mix))
    assert ended.code == 0, ended.err
    opened = LabelStore.open(store)
    assert (opened.identity.images, opened.complete) == (1, True)
    assert opened.read(2, slice(None)).logits.shape == (1, 1)
    assert check(store).ok


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_a_count_that_groups_do_not_divide(world: World, tmp_path: Path, mix: str) -> None:
    images = draw_images(tmp_path / "images", per_class=7)
    store = tmp_path / "store"
    words = world.build_words(store, "--images", images, "--mix", mix, "--group", 4)
    assert giftwrap(*words).code == 0
    opened = LabelStore.open(store)
    assert sorted(opened.read(0, slice(None)).rows.image) == list(range(21))
    verified = giftwrap("pipeline", "verify", "--store", store, "--images", images, "--weights", world.weights)
    assert verified.code == 0, verified.err


def test_a_damaged_store_is_checked_repaired_and_built_to_the_same_bytes(world: World, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert giftwrap(*world.build_words(store)).code == 0
    files = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    shard, marker = store / "labels/c.1.0.0", store / "markers/0.0.json"
    shard.write_bytes(files[shard][:-9])
    marker.unlink()
    found = giftwrap("labelstore", "check", store, "--json")
    assert found.code == 1
    assert (found.summary["ok"], found.summary["damaged_blocks"]) == (False, ["0.0", "1.0"])
    assert "--repair" in giftwrap("labelstore", "check", store).out
    repaired = giftwrap("labelstore", "check", store, "--repair", "--json")
    assert repaired.code == 0, repaired.err
    assert repaired.summary["made_again"] == ["markers/0.0.json"]
    assert (repaired.summary["removed_blocks"], repaired.summary["needs_build"]) == (["1.0"], True)
    built = giftwrap(*world.build_words(store, "--json"))
    assert built.summary["crops"] == 24 * LabelStore.open(store).identity.block.views
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == files


def test_what_only_a_copy_has_is_said(world: World, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert giftwrap(*world.build_words(store)).code == 0
    (store / "images/target/c.0").unlink()
    ended = giftwrap("labelstore", "check", store, "--repair")
    assert ended.code == 1
    assert "images/target/c.0: depends only on the images" in ended.out
    (store / "zarr.json").write_text((store / "zarr.json").read_text().replace('"seed": 0', '"seed": 1'))
    for words in (["check"], ["check", "--repair"]):
        ended = giftwrap("labelstore", words[0], store, *words[1:])
        assert ended.code == 1
        assert "restore it from a copy of the store" in ended.out + ended.err
        assert "run it again with --repair" not in ended.out
