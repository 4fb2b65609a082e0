"""The contact sheet of `show`: captions, and which crops are marked."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.replay.sheet import LINE_HEIGHT, MARGIN, Caption, draw_sheet
from pipeline.replay.show import LEGEND, captions
from pipeline.replay.source import open_source
from tests.journeys.world import World, giftwrap


def test_the_sheet_frames_the_crops_whose_first_choice_is_another_class() -> None:
    right = Caption(("target cat", "cat: 69.9 %", "dog: 20.0 %", "ant: 10.1 %", "52.png"))
    wrong = replace(right, lines=("target cat", "dog: 69.9 %", "cat: 20.0 %", "ant: 10.1 %", "52.png"), agrees=False)
    crops = np.random.default_rng(0).integers(0, 200, (4, 8, 8, 3), np.uint8)
    crops[..., 1:] = 255  # no red in the crops
    red = np.array([255, 0, 0])
    sheet = np.asarray(draw_sheet(crops, [right, wrong, right, right], 4, LEGEND))
    body = sheet[-(128 + MARGIN + 5 * LINE_HEIGHT) :]
    marked = [(part == red).all(2).any() for part in np.split(body[:, MARGIN // 2 : -MARGIN // 2], 4, axis=1)]
    assert marked == [False, True, False, False]
    for number, crop in enumerate(crops):  # the frame covers no pixel of a crop
        left = MARGIN + number * (128 + MARGIN)
        assert np.array_equal(body[:128, left : left + 128], crop.repeat(16, 0).repeat(16, 1))


def test_the_sheet_of_mixed_crops_names_both_targets(world: World, tmp_path: Path) -> None:
    store = tmp_path / "store"
    built = giftwrap(*world.build_words(store, "--mix", "cutmix", "--group", 4, "--views", 1))
    assert built.code == 0, built.err
    source = open_source(store, world.images, threads=1)
    labels = source.store.read(0, slice(None))
    mates = labels.targets[labels.rows.partners(4)]
    names = source.store.identity.classes
    images = [source.manifest.names[image] for image in labels.rows.image]
    shown = captions(source, labels)
    for caption, image, own, mate, logits in zip(shown, images, labels.targets, mates, labels.logits, strict=True):
        both = dict.fromkeys([names[own], names[mate]])
        assert caption.lines[0] == f"target {' + '.join(both)}"
        assert f"{names[own]}/{caption.lines[-1]}" == image
        assert caption.agrees == (names[logits.argmax()] in both)
    source.renderer.close()
    words = ("--store", store, "--images", world.images, "--start", 5, "--count", 6, "--out", tmp_path / "sheet.png")
    assert giftwrap("pipeline", "show", *words).code == 0


def test_a_set_whose_folders_are_splits_is_marked(world: World, tmp_path: Path) -> None:
    splits = tmp_path / "set.zip"
    with zipfile.ZipFile(splits, "w") as archive:
        for path in sorted(world.images.rglob("*.png")):
            archive.write(path, f"train/{path.relative_to(world.images)}")
        archive.writestr("train/notes.txt", "mine")
    shown = giftwrap("pipeline", "show", splits, "--out", tmp_path / "sheet.png", "--count", 2)
    assert shown.code == 0, shown.err
    assert f"give one of them: --images {splits}/train" in shown.err
    assert "train/notes.txt" in shown.out
