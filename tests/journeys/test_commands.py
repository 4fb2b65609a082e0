"""Whole commands, as a user types them, and what they print."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelstore import AuditRows, LabelStore
from tests.journeys.world import SIDE, VIEWS, World, draw_images, giftwrap, random_teacher, with_audit


def test_info_says_all_that_scripts_rely_on(world: World) -> None:
    info = giftwrap("labelstore", "info", world.store, "--json").summary
    assert {
        "format", "images", "views", "classes", "encoding", "complete", "bytes_per_label", "fidelity", "renderer",
        "teacher", "engine",
    } <= info.keys()  # fmt: skip
    assert (info["format"], info["images"], info["classes"], info["complete"]) == (2, 24, 3, True)
    assert info["views"] % info["block"]["views"] == 0
    assert VIEWS <= info["views"] <= 1.1 * VIEWS  # rounded up to whole blocks by a tenth at most
    assert info["bytes_per_label"].keys() == {"labels", "columns", "side"}
    assert info["fidelity"]["unmixed"]["mean"] > 0.999
    assert info["teacher"]["mean"] == [0.485, 0.456, 0.406]


def test_check_finds_a_flipped_byte(world: World, tmp_path: Path) -> None:
    assert giftwrap("labelstore", "check", world.store, "--json").summary["ok"] is True
    copy = shutil.copytree(world.store, tmp_path / "store")
    shard = next((copy / "labels").glob("c.*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    ended = giftwrap("labelstore", "check", copy, "--json")
    assert ended.code == 1
    assert ended.summary["ok"] is False
    assert shard.name in ended.summary["damaged"][0]


def test_verify_agrees_with_the_build(world: World) -> None:
    ended = giftwrap(
        "pipeline", "verify", "--store", world.store, "--images", world.images, "--weights", world.weights, "--json"
    )
    assert ended.code == 0, ended.err
    values = ended.summary
    assert values["ok"] is True
    assert values["pixels_equal"] is True
    assert values["max_error"] < 1e-3
    assert values["fidelity"] > 0.999


def test_verify_of_mixed_crops_whose_groups_are_larger_than_the_audit(world: World, tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images", per_class=30)
    store = tmp_path / "store"
    built = giftwrap(*world.build_words(store, "--images", images, "--mix", "cutmix", "--group", 80))
    assert built.code == 0, built.err
    ended = giftwrap("pipeline", "verify", "--store", store, "--images", images, "--weights", world.weights, "--json")
    assert ended.code == 0, ended.err
    assert ended.summary["pixels_equal"] is True
    assert ended.summary["fidelity"] > 0.999


def test_verify_says_so_when_pixels_are_others(world: World, tmp_path: Path) -> None:
    opened = LabelStore.open(world.store)
    audit = opened.audit()
    store = with_audit(opened, tmp_path / "store", AuditRows(audit.crops ^ np.uint8(64), audit.logits))
    assert giftwrap("labelstore", "check", store).code == 0
    ended = giftwrap("pipeline", "verify", "--store", store, "--images", world.images, "--json")
    assert ended.code == 1
    assert ended.summary["ok"] is False


def test_a_dry_run_looks_at_the_store_too(world: World) -> None:
    refused = giftwrap(*world.build_words(world.store, "--dry-run", "--seed", 1))
    assert refused.code == 2
    assert "different plan" in refused.err
    done = giftwrap(*world.build_words(world.store, "--dry-run", "--json"))
    assert done.summary["crops"] == 0


def test_verify_refuses_another_teacher(world: World, tmp_path: Path) -> None:
    weights = random_teacher(tmp_path / "other.safetensors")
    words = ("pipeline", "verify", "--store", world.store, "--images", world.images, "--weights", weights)
    assert giftwrap(*words).code == 0  # the same tensors under another name are the same teacher
    import torch

    from pipeline.networks import build_network
    from pipeline.networks.weights import save_weights

    torch.manual_seed(1)
    network = build_network("convnet-d2", {"width": 16, "norm": "batch"}, classes=3, size=SIDE)
    save_weights(network.state_dict(), weights)
    ended = giftwrap(*words)
    assert ended.code == 2
    assert "different teacher (--weights)" in ended.err
    assert "Traceback" not in ended.err


def test_show_draws_a_sheet(world: World, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    ended = giftwrap(
        "pipeline", "show", "--store", world.store, "--images", world.images, "--out", out, "--count", 10, "--json"
    )
    assert ended.code == 0, ended.err
    assert ended.summary == {"out": str(out), "crops": 10}
    with Image.open(out) as sheet:
        assert sheet.width > 8 * SIDE
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 100


def test_dry_run_writes_nothing(world: World, tmp_path: Path) -> None:
    ended = giftwrap(*world.build_words(tmp_path / "store", "--dry-run", "--json"))
    assert ended.code == 0, ended.err
    assert ended.summary["crops"] == 24 * ended.summary["views"]
    assert ended.summary["bytes"] > 0
    assert ended.summary["crops_per_second"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_finished_build_is_left_alone_and_more_views_extend_it(world: World, tmp_path: Path) -> None:
    store = shutil.copytree(world.store, tmp_path / "store")
    before = LabelStore.open(store)
    again = giftwrap(*world.build_words(store, "--json"))
    assert again.code == 0, again.err
    assert again.summary["crops"] == 0
    longer = before.state.views_sealed + 1
    ended = giftwrap(*world.build_words(store, "--views", longer, "--json"))
    assert ended.code == 0, ended.err
    after = LabelStore.open(store)
    assert after.state.views_sealed >= longer
    assert np.array_equal(before.read(3, slice(None)).logits, after.read(3, slice(None)).logits)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--seed", 1), "different plan (--seed): the store has 0, this run has 1"),
        (("--mix", "cutmix", "--group", 4), "different plan ("),
        (("--mean", 0, 0, 0), "different teacher (--mean"),
        (("--encoding", "float16"), "different label encoding"),
        (("--batch", 16, "--views", 2000), "different engine (--batch): the store has 32, this run has 16"),
    ],
)
def test_a_build_of_something_else_is_refused(world: World, more: tuple[object, ...], message: str) -> None:
    ended = giftwrap(*world.build_words(world.store, *more))
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_other_images_are_refused_by_name(world: World, tmp_path: Path) -> None:
    images = shutil.copytree(world.images, tmp_path / "images")
    Image.new("RGB", (30, 30), "red").save(images / "bee" / "03.jpg")
    ended = giftwrap("pipeline", "verify", "--store", world.store, "--images", images)
    assert ended.code == 2
    assert "bee/03.jpg" in ended.err


def test_bad_input_ends_with_a_message(world: World, tmp_path: Path) -> None:
    for words in (
        ("labelstore", "info", tmp_path / "nothing"),
        ("pipeline", "verify", "--store", tmp_path, "--images", world.images),
        (*world.build_words(tmp_path / "s", "--images", tmp_path / "nothing"),),
        (*world.build_words(tmp_path / "s", "--weights", world.images / "ant" / "00.jpg"),),
        (*world.build_words(tmp_path / "s", "--teacher", "convnet-d9"),),
        (*world.build_words(tmp_path / "s", "--size", 0),),
        (*world.build_words(tmp_path / "s", "--threads", -1),),
        (*world.build_words(world.images / "store"),),
        (
            "trainer", "train", "--store", world.store, "--images", world.images, "--student", "convnet-d2",
            "--epochs", 1, "--run", world.images,
        ),
        ("pipeline", "build", "--nonsense"),
    ):  # fmt: skip
        ended = giftwrap(*words)
        assert ended.code == 2, (words, ended)
        assert "Traceback" not in ended.err
        assert ended.err.strip() or ended.out.strip()


def test_train_evaluate_and_train_again(world: World, tmp_path: Path) -> None:
    test = draw_images(tmp_path / "test", per_class=5)
    words = (
        "trainer", "train", "--store", world.store, "--images", world.images, "--student", "convnet-d2",
        "--student-args", '{"width": 16}', "--epochs", 4, "--batch-size", 7, "--test-images", test,
        "--run", tmp_path / "run", "--threads", 1, "--json",
    )  # fmt: skip
    ended = giftwrap(*words)
    assert ended.code == 0, ended.err
    summary = ended.summary
    assert summary["steps"] == 4 * 4
    assert 0 <= summary["last"]["top1"] <= summary["best"]["top1"] <= 100
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert described["made_of"]["store"]["identity"]["teacher"]["weights"]
    assert described["made_of"]["versions"]["torch"]
    assert described["made_with"]["norm_layers"] == ["GroupNorm"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    again = giftwrap(*words)
    assert again.summary["last"] == summary["last"]
    evaluated = giftwrap(
        "trainer", "evaluate", "--student", "convnet-d2", "--student-args", '{"width": 16}',
        "--weights", tmp_path / "run" / "last.safetensors", "--images", test, "--size", SIDE, "--threads", 1, "--json",
    )  # fmt: skip
    assert evaluated.code == 0, evaluated.err
    assert evaluated.summary == {"images": 15, **summary["last"]}
    flags = tmp_path / "run" / "config.toml"
    repeated = giftwrap("trainer", "train", "--config", flags, "--run-folder", tmp_path / "repeated", "--json")
    assert repeated.code == 0, repeated.err
    assert repeated.summary["last"] == summary["last"]
    weights = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("run", "repeated")]
    assert weights[0] == weights[1]
    other = giftwrap(*words, "--loss", "kl")
    assert other.code == 2
    assert "loss" in other.err
