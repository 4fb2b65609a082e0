"""From real images to a table: RDED's set and its control, labelled, trained on, compared."""

from __future__ import annotations

from pathlib import Path

from labelstore import LabelStore
from tests.journeys.world import SIDE, TEACHER, draw_images, giftwrap, random_teacher


def run(*words: object) -> str:
    ended = giftwrap("giftwrap", *words)
    assert ended.code == 0, ended.err
    return ended.out


def test_sets_are_made_labelled_trained_on_and_compared(tmp_path: Path) -> None:
    images, weights = draw_images(tmp_path / "images"), random_teacher(tmp_path / "teacher.safetensors")
    small, teacher = ("--size", SIDE, "--threads", 1), (*TEACHER, "--weights", weights, "--batch", 16)
    methods = {"rded": ("--factor", 2, "--crops", 2, "--pool", 8, *teacher), "random": ("--take", "center")}
    for method, flags in methods.items():
        made, store, out = (tmp_path / kind / method for kind in ("sets", "stores", "runs"))
        run("synthesize", method, *flags, *small, "--images", images, "--ipc", 2, "--out", made)
        run("build", "--recipe", "rded", *teacher, *small, "--images", made, "--views", 2, "--store", store)
        assert LabelStore.open(store).identity.images == 6
        run(
            "train", "--recipe", "rded", "--store", store, "--images", made, "--test-images", images, "--student",
            "convnet-d2", "--epochs", 1, "--threads", 1, "--run", out,
        )  # fmt: skip
    table = run("compare", tmp_path / "runs")
    assert all(any(method in line for line in table.splitlines()) for method in methods), table
