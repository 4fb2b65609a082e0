"""What flags leave out is what weights, runs and networks say; where nobody says it, it is asked for."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from labelstore import LabelStore
from tests.journeys.world import SIDE, TEACHER, Ended, World, draw_images, giftwrap, random_teacher

MEAN, STD = (0.3, 0.6, 0.2), (0.1, 0.4, 0.2)
FLAGS = ("--mean", *MEAN, "--std", *STD)


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a student of another size than its store's, tested by a resize of its own."""
    folder = tmp_path_factory.mktemp("run")
    built = giftwrap(*world.build_words(folder / "store", *FLAGS, "--interpolation", "bicubic"))
    assert built.code == 0, built.err
    assert "normalisation: mean 0.3 0.6 0.2 (--mean), std 0.1 0.4 0.2 (--std)" in built.out
    trained = giftwrap(
        "trainer", "train", "--store", folder / "store", "--images", world.images, "--student", "convnet-d2",
        "--student-args", '{"width": 8}', "--size", 24, "--epochs", 3, "--batch-size", 12, "--threads", 1,
        "--test-images", draw_images(folder / "test", per_class=5), "--test-resize", 28, "--run", folder / "run",
        "--json",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    (folder / "run" / "scores").write_text(json.dumps(trained.summary["last"]))
    return folder / "run"


@pytest.fixture
def scores(run: Path) -> dict[str, Any]:
    return {"images": 15, **json.loads((run / "scores").read_text())}


def evaluate(*words: object) -> Ended:
    return giftwrap("trainer", "evaluate", *words, "--threads", 1, "--json")


def test_a_run_is_measured_as_it_was_tested(run: Path, scores: dict[str, Any], tmp_path: Path) -> None:
    test, weights = run.parent / "test", run / "last.safetensors"
    alone = tmp_path / "alone.safetensors"
    shutil.copy(weights, alone)
    same = ("--student", "convnet-d2", "--student-args", '{"width": 8}', "--size", 24, *FLAGS)
    for words in (("--run", run), ("--run-folder", run, "--images", test), ("--weights", alone, "--images", test),
                  ("--weights", alone, "--images", test, *same)):  # fmt: skip
        ended = evaluate(*words)
        assert ended.code == 0, ended.err
        assert ended.summary == scores, words
        assert "warning" not in ended.err
        assert "24 px, cut from short side 28, bicubic" in ended.err
    old = shutil.copytree(run, tmp_path / "old")  # of a version whose weights said nothing
    save_file(load_file(weights), old / "last.safetensors")
    assert evaluate("--run", old).summary == scores
    (old / "last.safetensors").unlink()
    refused = evaluate("--run", old)
    assert (refused.code, "best.safetensors" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--mean", 0.485, 0.456, 0.406), "warning: --mean 0.485 0.456 0.406: {} has 0.3 0.6 0.2; the flag is taken"),
        (("--std", 0.2, 0.2, 0.2), "warning: --std 0.2 0.2 0.2: {} has 0.1 0.4 0.2"),
        (("--size", 25), "warning: --size 25 instead of 24, --resize 25 instead of 28 of {}"),
        (("--resize", 24), "--resize 24 instead of 28"),
        (("--interpolation", "bilinear"), "--interpolation bilinear instead of bicubic"),
    ],
)
def test_a_flag_that_says_something_else_is_named(
    run: Path, scores: dict[str, Any], flags: tuple[object, ...], said: str
) -> None:
    weights = run / "last.safetensors"
    ended = evaluate("--weights", weights, "--images", run.parent / "test", *flags)
    assert ended.code == 0, ended.err
    assert said.format(weights) in ended.err
    assert ended.summary != scores


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--student", "convnet-d3"), "--student convnet-d3: the weights"),
        (("--student-args", '{"width": 16}'), "--student-args {'width': 16}: the weights"),
        (("--mean", 123.7, 116.3, 103.5), "divide by 255"),
        (("--run", "RUN"), "found both"),
    ],
)
def test_another_network_and_other_forms_are_refused(run: Path, flags: tuple[object, ...], said: str) -> None:
    words = [run if flag == "RUN" else flag for flag in flags]
    ended = evaluate("--weights", run / "last.safetensors", "--images", run.parent / "test", *words)
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_of_weights_that_say_nothing_every_flag_is_asked_for(world: World, tmp_path: Path) -> None:
    words = ("--weights", world.weights, "--images", world.images)
    ended = evaluate(*words)
    assert ended.code == 2
    assert "give --student and --size and --mean and --std" in ended.err
    known = ("--student", TEACHER[1], "--student-args", TEACHER[3], "--size", SIDE)
    ended = evaluate(*words, *known, "--mean", *MEAN)
    assert (ended.code, "nothing is guessed; give --std" in ended.err) == (2, True)
    assert evaluate(*words, *known, *FLAGS).code == 0
    ended = evaluate("--weights", world.weights, *known, *FLAGS)
    assert (ended.code, "give --images" in ended.err) == (2, True)
    ended = evaluate("--images", world.images)
    assert (ended.code, "found neither" in ended.err) == (2, True)


def test_folders_in_another_order_than_the_weights_were_trained_on_are_refused(run: Path, tmp_path: Path) -> None:
    test = shutil.copytree(run.parent / "test", tmp_path / "test")
    (test / "ant").rename(test / "dog")
    ended = evaluate("--run", run, "--images", test)
    assert "'ant'" in ended.err
    assert "'dog'" in ended.err or "folder 0 is 'bee'" in ended.err


def test_a_student_labels_as_it_was_trained(run: Path, world: World, tmp_path: Path) -> None:
    weights = run / "last.safetensors"
    words = [
        "pipeline", "build", "--images", world.images, "--teacher", "convnet-d2", "--weights", weights, "--size", 24,
        "--views", 20, "--threads", 1, "--store", tmp_path / "store",
    ]  # fmt: skip
    ended = giftwrap(*words)
    assert ended.code == 0, ended.err
    assert "bilinear instead of bicubic" in ended.out
    teacher = LabelStore.open(tmp_path / "store").identity.require("teacher")
    assert (teacher["args"], teacher["mean"], teacher["std"]) == ({"width": 8}, [*MEAN], [*STD])
    assert giftwrap(*words, *FLAGS, "--teacher-args", '{"width": 8}').code == 0  # the same, said
    other = giftwrap(*words, "--mean", 0.4, 0.4, 0.4)
    assert other.code == 2
    assert "different teacher (--mean[0])" in other.err
    assert "has 0.3 0.6 0.2; the flag is taken" in other.err
    other = giftwrap(*words, "--teacher-args", '{"width": 9}')
    assert (other.code, "--teacher-args {'width': 9}: the weights" in other.err) == (2, True)


@pytest.mark.parametrize("flag", [("--mean", 123.7, 116.3, 103.5), ("--std", 58.4, 57.1, 57.4)])
def test_a_normalisation_of_pixels_of_0_to_255_is_refused(
    world: World, tmp_path: Path, flag: tuple[object, ...]
) -> None:
    ended = giftwrap(*world.build_words(tmp_path / "store", *flag))
    assert (ended.code, "divide by 255" in ended.err) == (2, True)
    assert list(tmp_path.iterdir()) == []
    torch.save({"images": torch.zeros(2, 3, 8, 8), "labels": torch.tensor([0, 1])}, tmp_path / "data.pt")
    full = {"--mean": (0, 0, 0), "--std": (1, 1, 1), flag[0]: flag[1:]}
    words = [word for name, values in full.items() for word in (name, *values)]
    ended = giftwrap("pipeline", "import", tmp_path / "data.pt", "--out", tmp_path / "out", *words)
    assert (ended.code, "divide by 255" in ended.err) == (2, True)


def test_timm_s_own_normalisation_is_taken(world: World, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    named = ("timm:vit_tiny_patch16_224", "--weights", tmp_path / "vit.safetensors", "--size", 32)
    args = '{"img_size": 32}'
    words = ("pipeline", "build", "--images", world.images, "--teacher", *named, "--teacher-args", args,
             "--views", 2, "--threads", 1, "--store", tmp_path / "s", "--dry-run")  # fmt: skip
    built = giftwrap(*words)
    assert built.code == 0, built.err
    assert "mean 0.5 0.5 0.5, std 0.5 0.5 0.5 (timm's configuration of vit_tiny_patch16_224)" in built.out
    assert "note: --size 32 instead of 224, --interpolation bilinear instead of bicubic of timm's" in built.out
    told = giftwrap(*words, "--mean", 0.485, 0.456, 0.406)
    assert "warning: --mean 0.485 0.456 0.406: timm's configuration" in told.err
    measured = evaluate("--student", *named, "--student-args", args, "--images", world.images)
    assert measured.code == 0, measured.err
    assert "(timm's configuration of vit_tiny_patch16_224)" in measured.err


# --- a dry run, and the encoding of a new store ---


def test_a_dry_run_says_how_often_the_teacher_agrees(world: World, tmp_path: Path) -> None:
    for more in ((), ("--mix", "cutmix", "--group", 5), ("--compile", "on")):
        ended = giftwrap(*world.build_words(tmp_path / "store", "--dry-run", "--json", *more))
        assert ended.code == 0, ended.err
        assert "the teacher agrees with the folders on" in ended.err
        assert "not checked: whether images decode (except those of 24 crops), their digests" in ended.err
        assert ("--compile" in ended.summary["not_checked"]) is ("--compile" in more)
    assert list(tmp_path.iterdir()) == []
    resumed = giftwrap(*world.build_words(world.store, "--dry-run", "--views", 300, "--json"))
    assert resumed.code == 0, resumed.err
    assert "their digests" not in resumed.err


def test_a_dry_run_leaves_the_cache_as_it_is(world: World, tmp_path: Path) -> None:
    images = shutil.copytree(world.images, tmp_path / "images")
    words = world.build_words(tmp_path / "store", "--images", images)
    assert giftwrap(*words).code == 0
    cache = tmp_path / "store.images.npz"
    before = cache.read_bytes()
    first = next(path for path in sorted(images.rglob("*")) if path.is_file())
    os.utime(first, ns=(1, 1))
    assert giftwrap(*words, "--dry-run").code == 0
    assert cache.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_new_store_takes_the_smaller_encoding_and_keeps_it(world: World, tmp_path: Path) -> None:
    weights = random_teacher(tmp_path / "wide.safetensors", columns=70)
    store = tmp_path / "store"
    words = world.build_words(store, "--weights", weights, "--class-columns", "5,0,3")
    few = giftwrap(*words, "--views", 2, "--dry-run", "--json")
    assert few.summary["encoding"]["name"] == "int8"
    assert "would be shared by only 48 labels" in few.err
    many = giftwrap(*words, "--views", 500, "--dry-run", "--json")
    assert many.summary["encoding"]["name"] == "transform"
    for more, name in ((("--encoding", "int8"), "int8"), (("--codec", "raw"), "int8"), (("--step", 0.5), "transform")):
        asked = giftwrap(*words, "--views", 500, "--dry-run", "--json", *more)
        assert asked.summary["encoding"]["name"] == name, asked.err
    refused = giftwrap(*words, "--encoding", "int8", "--fidelity", 0.9)
    assert (refused.code, "belongs to --encoding transform" in refused.err) == (2, True)
    begun = giftwrap(*words, "--views", 4)
    assert begun.code == 0, begun.err
    assert "encoding: int8 (the smaller one), about 74.1 B a label" in begun.out
    extended = giftwrap(*words, "--views", 500)  # which would be transform, were it new
    assert extended.code == 0, extended.err
    assert LabelStore.open(store).identity.encoding["name"] == "int8"
    other = giftwrap(*words, "--views", 500, "--encoding", "transform")
    assert (other.code, "different label encoding" in other.err) == (2, True)
