"""Labels of one's own in training: their crops are compared with what is rendered, where they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from labelstore import from_arrays
from labelstore.errors import InputError, MismatchError
from pipeline.build.continuing import require_built
from pipeline.images.manifest import scan
from pipeline.replay.source import open_source
from tests.journeys.world import draw_images
from trainer import Replay

V, S = 4, 8


def own(images: Path, **changes: Any) -> dict[str, Any]:
    """Arguments of `from_arrays` for labels that are the mean colours of crops which Pillow cuts."""
    manifest = scan(images)
    pictures = [Image.open(manifest.place(n)).convert("RGB") for n in range(len(manifest))]
    sides = np.stack([manifest.heights, manifest.widths], axis=1)
    rng = np.random.default_rng(0)
    cut = rng.integers(sides // 2, sides + 1, (V, len(manifest), 2))
    boxes = np.concatenate([rng.integers(0, sides - cut + 1), cut], axis=2)
    flips = rng.random((V, len(manifest))) < 0.5

    def crops(view: int, entries: Any) -> np.ndarray:
        made = []
        for n in entries:
            top, left, height, width = map(int, boxes[view, n])
            box = (left, top, left + width, top + height)
            crop = np.asarray(pictures[n].resize((S, S), Image.Resampling.BILINEAR, box))
            made.append(crop[:, ::-1] if flips[view, n] else crop)
        return np.stack(made)

    every = np.arange(len(manifest))
    logits = np.stack([crops(view, every).mean((1, 2)) for view in range(V)])
    plain = {
        "images": manifest.digests,
        "targets": manifest.targets,
        "classes": manifest.classes,
        "sides": sides,
        "size": S,
        "boxes": boxes,
        "flips": flips,
        "logits": logits,
        "labeller": "mean colours",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "encoding": {"name": "float16"},
        "crops": crops,
    }
    return plain | changes


@pytest.mark.parametrize("kept", [True, False])
def test_crops_come_with_the_labels_that_were_made_of_them(tmp_path: Path, kept: bool) -> None:
    draw_images(tmp_path / "set", per_class=4)
    given = own(tmp_path / "set")
    if not kept:
        del given["crops"]
    replay = Replay(from_arrays(tmp_path / "s", **given), tmp_path / "set", batch_size=5)
    assert ("not checked" in replay.crops.remark) is not kept
    for batch in replay.play(V):  # the label of a crop is the mean colour of what is rendered
        torch.testing.assert_close(batch.images.mean((2, 3)) * 255, batch.logits, atol=1.5, rtol=0)
    replay.close()


def test_boxes_of_another_meaning_are_refused(tmp_path: Path) -> None:
    draw_images(tmp_path / "set", per_class=4)
    given = own(tmp_path / "set")
    given["flips"] = ~given["flips"]  # as if they meant something else
    store = from_arrays(tmp_path / "s", **given)
    with pytest.raises(MismatchError, match="pixels of 12 audit crops"):
        Replay(store, tmp_path / "set", batch_size=5)
    with open_source(store, tmp_path / "set") as source:
        assert not source.same_renderer


def test_one_crop_comes_with_its_label(tmp_path: Path) -> None:
    draw_images(tmp_path / "set", per_class=4)
    store = from_arrays(tmp_path / "s", **own(tmp_path / "set"))
    with open_source(store, tmp_path / "set") as source:
        places: tuple[tuple[Any, Any], ...] = ((0, 0), (3, 11), (np.int64(2), np.int64(5)))
        for view, position in places:
            crop, label = source.crop(view, position), store.read(view, [position])
            assert np.array_equal(crop.pixels, source.crops(view, 0, 12)[position].numpy())
            assert (crop.image, crop.target) == (label.rows.image[0], label.targets[0])
            assert np.array_equal(crop.logits, label.logits[0])
        assert repr(crop) == f"LabelledCrop(view 2, position 5: image {crop.image}, 8 x 8 px)"
        with pytest.raises(InputError, match="positions: expected 0 to 11, found 12"):
            source.crop(0, 12)


def test_a_build_does_not_extend_labels_that_were_made_elsewhere(tmp_path: Path) -> None:
    draw_images(tmp_path / "set", per_class=4)
    store = from_arrays(tmp_path / "s", **own(tmp_path / "set"))
    with pytest.raises(InputError, match=r"`labelstore\.from_arrays` adds more of the same labels"):
        require_built(store)
