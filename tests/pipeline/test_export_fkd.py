"""SRe2L's files: what its own training would read of them is what the store holds, crop for crop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import BatchSampler, RandomSampler

from labelstore import LabelStore, Mixing, from_arrays
from labelstore.errors import InputError, MismatchError
from labelstore.export_table import ExportOptions
from pipeline.adopt import FORMATS
from pipeline.adopt.labels import Request
from pipeline.exporting.fkd import export_fkd
from pipeline.images.manifest import Manifest, scan
from pipeline.replay.source import open_source
from tests.journeys.world import draw_images

V, S, C = 3, 8, 5


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draw_images(tmp_path / "set", per_class=4)
    return tmp_path / "set"


def store_of(images: Path, path: Path, mix: str = "none", **changes: Any) -> LabelStore:
    """A store of drawn boxes and labels; of mixed crops groups of 5."""
    manifest = scan(images)
    count, rng = len(manifest), np.random.default_rng(0)
    sides = np.stack([manifest.heights, manifest.widths], axis=1)
    cut = np.broadcast_to(sides.min(axis=0) // 2, (V, count, 2)) + rng.integers(0, 3, (V, count, 2))
    given: dict[str, Any] = {
        "boxes": np.concatenate([rng.integers(0, 3, (V, count, 2)), cut], axis=2),
        "flips": rng.random((V, count)) < 0.5,
        "logits": rng.normal(size=(V, count, C)).astype(np.float16),
    }
    if mix != "none":
        starts = np.arange(count) // 5 * 5
        partners = starts + rng.integers(0, np.minimum(5, count - starts), (V, count))
        group = np.arange(count) // 5
        more: dict[str, Any] = {
            "boxes": np.stack([group, group + 1, group * 0 + 2, group * 0 + 4], axis=1)[None].repeat(V, 0)
        }
        if mix == "mixup":
            more = {"shares": ((group + 1) / 8)[None].repeat(V, 0)}
        given["order"] = np.stack([rng.permutation(count) for _ in range(V)])
        given["mixing"] = Mixing(group=5, partners=partners, **more)
    return from_arrays(
        path,
        images=manifest.digests,
        targets=manifest.targets,
        classes=manifest.classes,
        sides=sides,
        size=S,
        labeller="drawn",
        mean=(0, 0, 0),
        std=(1, 1, 1),
        encoding={"name": "float16"},
        **(given | changes),
    )


class TheirTraining:
    """What SRe2L's train_FKD.py reads, transcribed from its utils_fkd.py: files found by the first image of a batch."""

    def __init__(self, path: Path, manifest: Manifest, orders: np.ndarray | None = None) -> None:
        self.path, self.manifest = path, manifest
        epochs = len([*path.iterdir()])
        names = [file.name for file in (path / "epoch_0").iterdir()]
        files = sorted(names, key=lambda s: int(s.split("_")[1].split(".tar")[0]))
        sizes = [torch.load(path / "epoch_0" / files[at])[1].size()[0] for at in (0, -1)]
        self.batch, images = sizes[0], sizes[0] * (len(files) - 1) + sizes[1]
        assert images == len(manifest)
        sampler = RandomSampler(range(images), generator=torch.Generator().manual_seed(42))
        each = [list(sampler) for _ in range(epochs)] if orders is None else orders.tolist()
        self.batches = [list(BatchSampler(order, self.batch, drop_last=False)) for order in each]
        self.first = [{batch[0]: number for number, batch in enumerate(epoch)} for epoch in self.batches]

    def crops(self, epoch: int) -> list[tuple[int, np.ndarray, torch.Tensor]]:
        """Image, pixels as floats [S, S, 3] and label of each crop."""
        found = []
        for batch in self.batches[epoch]:
            name = f"batch_{self.first[epoch][batch[0]]}.tar"
            config = torch.load(self.path / f"epoch_{epoch}" / name)
            pixels = np.stack([self.crop(n, *row) for n, *row in zip(batch, *config[:2], strict=True)])
            index, lam, bbox, labels = config[2:]
            if bbox is not None:
                x1, y1, x2, y2 = bbox[0], bbox[1], bbox[2], bbox[3]  # x counts rows, as in their code
                pixels[:, x1:x2, y1:y2] = pixels[index][:, x1:x2, y1:y2]
            elif lam is not None:
                pixels = lam * pixels + (1 - lam) * pixels[index]
            found += list(zip(batch, pixels, labels, strict=True))
        return found

    def crop(self, image: int, coords: torch.Tensor, flip: torch.Tensor) -> np.ndarray:
        picture = Image.open(self.manifest.place(image)).convert("RGB")
        i, j = coords[0].item() * picture.size[1], coords[1].item() * picture.size[0]
        h, w = coords[2].item() * picture.size[1], coords[3].item() * picture.size[0]
        cut = picture.crop((round(j), round(i), round(j + w), round(i + h)))
        pixels = np.asarray(cut.resize((S, S), Image.Resampling.BILINEAR)).astype(np.float64)
        return pixels[:, ::-1].copy() if flip == True else pixels  # noqa: E712  theirs


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_their_training_reads_what_the_store_holds(images: Path, tmp_path: Path, mix: str) -> None:
    store = store_of(images, tmp_path / "s", mix)
    made = export_fkd(store, tmp_path / "fkd", ExportOptions(images=images, batch_size=5))
    manifest, out = scan(images), tmp_path / "fkd"
    assert (made.beside is not None) == (mix != "none")
    assert made.size == sum(path.stat().st_size for path in out.rglob("*.tar"))
    orders = np.load(made.beside) if made.beside else None
    theirs = TheirTraining(out, manifest, orders)
    assert theirs.batch == 5
    source = open_source(store, images)
    for view in range(V):
        crops = theirs.crops(view)
        ours = store.read_images(view, [image for image, _, _ in crops])
        pixels = source.crops(view, 0, len(manifest)).numpy()[ours.positions]
        np.testing.assert_allclose(np.stack([each for _, each, _ in crops]), pixels, atol=1.5)
        assert np.array_equal(np.stack([label for _, _, label in crops]), ours.logits.astype(np.float16))
        assert sorted(image for image, _, _ in crops) == [*range(len(manifest))]
    source.close()


def test_what_their_record_cannot_hold_is_refused(images: Path, tmp_path: Path) -> None:
    store = store_of(images, tmp_path / "s")
    mixed = store_of(images, tmp_path / "m", "cutmix")
    boxes = np.random.default_rng(0).integers(0, 4, (V, 12, 4))
    mixing = Mixing(group=5, partners=np.tile(np.arange(12) // 5 * 5, (V, 1)), boxes=boxes)
    several = store_of(images, tmp_path / "several", "cutmix", mixing=mixing)
    largest = store_of(images, tmp_path / "largest")
    object.__setattr__(largest.identity, "content", "topk")
    draw_images(tmp_path / "other", per_class=4, classes=("a", "b", "c"))
    out = tmp_path / "fkd"
    for wrong, options, error, message in (
        (store, ExportOptions(), InputError, "--images: --format fkd needs the images of the store"),
        (store, ExportOptions(images=tmp_path / "other"), MismatchError, "other (images|classes)"),
        (store, ExportOptions(images=images, batch_size=0), InputError, "--batch-size: expected at least 1"),
        (store, ExportOptions(images=images, views=range(4)), InputError, "views: expected 0 to 2, found 3"),
        (mixed, ExportOptions(images=images, batch_size=6), InputError, "--batch-size: expected 5, .*found 6"),
        (largest, ExportOptions(images=images), InputError, "expected the logits of all columns, .* --format parquet"),
        (several, ExportOptions(images=images), InputError, "one mixing weight and box a file, found several"),
    ):
        with pytest.raises(error, match=message):
            export_fkd(wrong, out, options)
        assert not [path for path in tmp_path.iterdir() if "fkd" in path.name]
    with pytest.raises(InputError, match=r"OUT .*: lies in --images"):
        export_fkd(store, images / "fkd", ExportOptions(images=images))
    beside = tmp_path / "fkd.order.npy"
    beside.write_text("mine")
    with pytest.raises(InputError, match=r"fkd\.order\.npy: exists already"):
        export_fkd(mixed, out, ExportOptions(images=images))
    assert beside.read_text() == "mine"
    out.mkdir()
    with pytest.raises(InputError, match="exists already"):
        export_fkd(store, out, ExportOptions(images=images))


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_what_is_exported_is_adopted_as_the_same_rows_and_labels(images: Path, tmp_path: Path, mix: str) -> None:
    store, manifest = store_of(images, tmp_path / "s", mix), scan(images)
    made = export_fkd(store, tmp_path / "fkd", ExportOptions(images=images, batch_size=5))
    request = Request(folder=tmp_path / "fkd", manifest=manifest, size=S, order=made.beside)
    labels = FORMATS["sre2l"].open(request)[0]
    assert (labels.mix, labels.views) == (mix, V)
    for view in range(V):
        adopted = labels.crops(view, 0, len(manifest))
        ours = store.read_images(view, adopted.rows.image)
        assert adopted.rows.names == ours.rows.names
        assert np.array_equal(adopted.rows.values, ours.rows.values)
        assert np.array_equal(adopted.logits, ours.logits.astype(np.float16))
