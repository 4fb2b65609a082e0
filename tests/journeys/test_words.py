"""What commands say when they are refused, have nothing to do, or run on another number of threads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore
from tests.journeys.world import World, giftwrap, random_teacher


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--teacher", "resnet18"), "did you mean torchvision:resnet18?"),
        (("--teacher", "torchvision:resnet19"), "has none of that name; did you mean torchvision:resnet18"),
        (("--teacher", "torchvision:resnet81"), "of that name; did you mean torchvision:resnet18"),
        (
            ("--teacher-args", '{"width": 16}'),
            """only the norm differs: give the network's arguments by --teacher-args""",
        ),
        (("--teacher-args", '{"norm": "batch"}'), """--student-args, such as '{"width": 64}', or --size"""),
        (("--teacher", "convnet-d33"), "did you mean convnet-d3"),
        (("--teacher", "networks/mine.py:Net"), "give mine:Net, with the file in this folder"),
        (("--teacher", "no_such_module:Net"), "No module named 'no_such_module'"),
        (("--weights", "none.safetensors"), "weights none.safetensors: no such file"),
        (("--weights", "FIVE"), "expected a column for each of the 3 class folders"),
        (("--mean", 123.7, 116.3, 103.5), "divide by 255"),
        (("--teacher-classes", "ant,bee,wasp"), "'ant' is no index and no file"),
        (("--store", "DEEP"), "no such file"),
    ],
)
def test_a_refused_build_leaves_nothing_behind(
    world: World, tmp_path: Path, more: tuple[object, ...], message: str
) -> None:
    five = random_teacher(tmp_path / "five.safetensors", columns=5)
    places = {"FIVE": five, "DEEP": tmp_path / "a" / "b" / "store"}
    words = [places.get(word, word) for word in more]
    if "DEEP" in more:
        words += ["--weights", "none.safetensors"]
    before = sorted(tmp_path.rglob("*"))
    ended = giftwrap(*world.build_words(tmp_path / "store", "--progress-log", tmp_path / "log", *words))
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
    assert "Errno" not in ended.err
    assert "resume with" not in ended.err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_read_is_kept_where_single_files_are_to_be_mended(world: World, tmp_path: Path) -> None:
    images = shutil.copytree(world.images, tmp_path / "images")
    whole = (images / "bee" / "00.jpg").read_bytes()
    (images / "bee" / "00.jpg").write_bytes(whole[: len(whole) // 2])
    words = world.build_words(tmp_path / "store", "--images", images, "--views", 1)
    ended = giftwrap(*words)
    assert ended.code == 2
    assert "bee/00.jpg" in ended.err
    assert [path.name for path in tmp_path.iterdir() if path != images] == ["store.images.npz"]


def test_a_build_with_nothing_to_do_says_so(world: World) -> None:
    has = LabelStore.open(world.store).state.views_sealed
    ended = giftwrap(*world.build_words(world.store))
    assert (ended.code, ended.err) == (0, "")
    assert "labels: complete\n" in ended.out
    assert "0/0" not in ended.out
    assert "bottleneck" not in ended.out
    ended = giftwrap(*world.build_words(world.store, "--views", 1))
    assert ended.code == 0
    assert f"views: the store already has {has} views; --views 1 adds none" in ended.out
    assert "rounded" not in ended.out


def test_a_store_is_extended_on_other_threads_where_the_audit_rows_come_out_again(world: World, tmp_path: Path) -> None:
    store = shutil.copytree(world.store, tmp_path / "store")
    has = LabelStore.open(store).state.views_sealed
    ended = giftwrap(*world.build_words(store, "--views", has + 1, "--threads", 2))
    assert ended.code == 0, ended.err
    assert "engine.threads: 1 in the store and 2 here, with the same labels of the audit rows" in ended.out
    after = LabelStore.open(store)
    assert [version["engine"]["threads"] for version in after.state.versions] == [1, 2]
    one = tmp_path / "one"
    shutil.copytree(world.store, one)
    assert giftwrap(*world.build_words(one, "--views", has + 1)).code == 0
    assert np.array_equal(after.read(has, slice(None)).logits, LabelStore.open(one).read(has, slice(None)).logits)


def test_another_number_of_threads_is_refused_where_the_audit_rows_come_out_otherwise(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.__main__ import main
    from pipeline.build import continuing

    store = shutil.copytree(world.store, tmp_path / "store")
    has = LabelStore.open(store).state.views_sealed
    monkeypatch.setattr(continuing, "labels_come_out_again", lambda _source, _teacher: False)
    words = world.build_words(store, "--views", has + 1, "--threads", 2)
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    assert main() == 2


@pytest.mark.parametrize(
    "words",
    [("info", "none"), ("check", "none"), ("evaluate", "--run", "none"), ("compare", "none"), ("plot", "none")],
)
def test_a_folder_that_is_not_there_is_named_before_what_it_should_hold(tmp_path: Path, words: tuple[str, ...]) -> None:
    ended = giftwrap("giftwrap", *words, cwd=tmp_path)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "none: no such folder; give " in ended.err
