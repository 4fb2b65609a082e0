"""Labels as SRe2L, G-VBSM and EDC write them become a store: each label stays with its own crop."""

from __future__ import annotations

import filecmp
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, functional

from labelstore import LabelStore
from labelstore.command.console import Console
from labelstore.errors import InputError
from labelstore.spec import BlockShape
from pipeline.adopt.adopting import adopt
from pipeline.adopt.blocks import Blocks
from pipeline.adopt.config import AdoptConfig
from pipeline.adopt.labels import largest_of
from pipeline.adopt.orders import SamplerOrder
from pipeline.build.continuing import require_built
from pipeline.config import TeacherOptions, VerifyConfig
from pipeline.render.options import RenderOptions
from pipeline.replay.source import open_source
from pipeline.replay.verify import verify
from tests.journeys.world import SIDE
from tests.pipeline.adopt.conftest import EPOCHS
from tests.pipeline.adopt.taught import ARGS, MEAN, STD, Taught
from tests.pipeline.adopt.writers import Writer

Written = Callable[..., Path]
KINDS: list[dict[str, Any]] = [
    {"layout": "sre2l"},
    {"layout": "sre2l", "mix": "mixup"},
    {"layout": "sre2l", "mix": None, "half": False},
    {"layout": "g-vbsm"},
    {"layout": "edc"},
]


def config_of(made: Taught, labels: Path, store: Path, **more: Any) -> AdoptConfig:
    numbers = {"images": made.images, "size": SIDE, "render": RenderOptions(threads=1), **more}
    return AdoptConfig(labels=labels, store=store, **numbers)


def adopted(made: Taught, labels: Path, store: Path, **more: Any) -> LabelStore:
    adopt(config_of(made, labels, store, **more), Console(silent=True))
    return LabelStore.open(store)


def records(labels: Path, epoch: int) -> list[list[Any]]:
    """What an epoch's files hold, read as plain pickles."""
    files = sorted((labels / f"epoch_{epoch}").iterdir(), key=lambda file: int(file.stem.split("_")[1]))
    return [torch.load(file, weights_only=False) for file in files]


def as_they_load(made: Taught, record: list[Any], indexes: list[int], *, tensors: bool) -> Tensor:
    """The crops of a batch as their loaders make them of the stored coordinates, levels ``[B, S, S, 3]``."""
    files, crops = ImageFolder(made.images), []
    for coordinates, flip, index in zip(record[0], record[1], indexes, strict=True):
        image: Any = files.loader(files.samples[index][0])
        if tensors:
            image = functional.to_tensor(image)
        by_i, by_j = (image.shape[2], image.shape[1]) if tensors else (image.size[1], image.size[0])
        i, j, h, w = (
            round(share.item() * side) for share, side in zip(coordinates, (by_i, by_j, by_i, by_j), strict=True)
        )
        crop = functional.resized_crop(image, i, j, h, w, [SIDE] * 2, InterpolationMode.BILINEAR, antialias=True)
        crop = functional.hflip(crop) if flip else crop
        crops.append(crop if tensors else functional.to_tensor(crop))
    pixels = torch.stack(crops)
    if record[2] is not None and record[4] is None:
        pixels = record[3] * pixels + (1 - record[3]) * pixels[record[2]]
    elif record[2] is not None:
        first, second, first_end, second_end = record[4]
        part = (slice(None), slice(None), slice(first, first_end), slice(second, second_end))
        pixels[part] = pixels[record[2]][part]
    return (255 * pixels).permute(0, 2, 3, 1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_each_label_stays_with_the_crop_that_its_authors_load(
    made: Taught, written: Written, tmp_path: Path, kind: dict[str, Any]
) -> None:
    labels = written(**kind)
    store = adopted(made, labels, tmp_path / "store")
    with_indexes = written(**{**kind, "layout": "g-vbsm"})  # the same draws, with the images they are of
    assert store.state.views_sealed == EPOCHS
    assert (store.identity.origin, store.identity.seed, store.identity.engine) == ("adopted", None, None)
    source = open_source(store, made.images)
    for epoch in range(EPOCHS):
        start = 0
        for record, known in zip(records(labels, epoch), records(with_indexes, epoch), strict=True):
            part = slice(start, start + len(record[5]))
            batch = store.read(epoch, part)
            # EDC draws as the others do, but cuts tensors: the indexes are the same
            assert batch.rows.image.tolist() == known[6].tolist()
            assert np.array_equal(batch.logits, record[5].half().float().numpy())
            theirs = as_they_load(made, record, known[6].tolist(), tensors=kind["layout"] == "edc")
            apart = (source.crops(epoch, part.start, part.stop) - theirs).abs().max()
            assert apart <= (0.501 if kind.get("mix") == "mixup" else 1.1 if kind["layout"] == "edc" else 1e-3)
            start = part.stop
    source.close()


def test_a_teacher_that_made_the_labels_is_recorded_and_another_one_is_refused(
    made: Taught, written: Written, tmp_path: Path
) -> None:
    teacher: dict[str, Any] = {"names": ("convnet-d2",), "args": (ARGS,), "weights": (str(made.weights),)}
    store = adopted(made, written(layout="sre2l"), tmp_path / "store", teacher=TeacherOptions(**teacher))
    assert store.identity.require("teacher")["name"] == "convnet-d2"
    again = VerifyConfig(store=store.path, images=made.images, weights=(str(made.weights),))
    ok, values = verify(again, Console(silent=True))
    assert ok
    assert values["labels_compared"]
    with pytest.raises(InputError, match="found adopted labels, to which no views can be built; `giftwrap adopt`"):
        require_built(store)
    other = TeacherOptions(**teacher, mean=(0.9, 0.1, 0.5), std=(0.1, 0.9, 0.5))
    with pytest.raises(InputError, match=r"another teacher, or other crops: .* nothing was written"):
        adopted(made, written(layout="sre2l"), tmp_path / "other", teacher=other)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("other")] == []


class OldSampler(torch.utils.data.Sampler[int]):
    """The order of versions of torch whose sampler draws one permutation an epoch."""

    def __init__(self, images: Any, generator: torch.Generator) -> None:
        self._images, self._generator = len(images), generator

    def __len__(self) -> int:
        return self._images

    def __iter__(self) -> Any:
        return iter(torch.randperm(self._images, generator=self._generator).tolist())


def test_the_order_of_an_older_sampler_is_found(
    made: Taught, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.pipeline.adopt.writers.RandomSampler", OldSampler)
    labels, known = (written(layout=layout, batch=9) for layout in ("sre2l", "g-vbsm"))
    monkeypatch.undo()
    store = adopted(made, labels, tmp_path / "store")
    for epoch in range(EPOCHS):
        assert (
            store.rows(epoch, slice(None)).image.tolist() == torch.cat([r[6] for r in records(known, epoch)]).tolist()
        )


def test_an_order_and_a_numbering_that_are_listed(made: Taught, written: Written, tmp_path: Path) -> None:
    labels, known = written(layout="sre2l"), written(layout="g-vbsm")
    orders = [torch.cat([record[6] for record in records(known, epoch)]).numpy() for epoch in range(EPOCHS)]
    np.save(tmp_path / "orders.npy", np.stack(orders))
    by_list = adopted(made, labels, tmp_path / "listed", order=tmp_path / "orders.npy")
    names = [path for path, _ in ImageFolder(made.images).samples]
    shuffled = np.random.default_rng(0).permutation(len(names))
    (tmp_path / "names.txt").write_text("\n".join(names[image] for image in shuffled))
    numbers = np.argsort(shuffled)  # the number of each image in that list
    np.save(tmp_path / "renamed.npy", np.stack([numbers[order] for order in orders]))
    renamed = adopted(
        made, labels, tmp_path / "renamed", order=tmp_path / "renamed.npy", image_list=tmp_path / "names.txt"
    )
    for epoch, order in enumerate(orders):
        assert by_list.rows(epoch, slice(None)).image.tolist() == order.tolist()
        assert renamed.rows(epoch, slice(None)).image.tolist() == order.tolist()
    (tmp_path / "names.txt").write_text("\n".join(names[1:]))
    with pytest.raises(InputError, match=r"names.txt: expected 24 lines, one for each image of .*, found 23"):
        adopted(made, labels, tmp_path / "short", order=tmp_path / "renamed.npy", image_list=tmp_path / "names.txt")


def stopped_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop as a kill does when so many blocks are made."""
    own, made = Blocks.data, list[Any]()

    def data(self: Blocks, *args: Any) -> Any:
        if len(made) == count:
            raise KeyboardInterrupt
        made.append(args)
        return own(self, *args)

    monkeypatch.setattr(Blocks, "data", data)


@pytest.mark.parametrize("count", [0, 3])
def test_what_is_stopped_continues_to_the_same_bytes(
    made: Taught, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("labelstore.spec.SMALL_BLOCK_ROWS", 24)  # blocks of one view
    labels = written(layout="sre2l")
    whole = adopted(made, labels, tmp_path / "whole")
    assert len(whole.sealed_blocks()) == EPOCHS
    with monkeypatch.context() as patch:
        stopped_after(count, patch)
        with pytest.raises(KeyboardInterrupt):
            adopted(made, labels, tmp_path / "store")
    assert len(LabelStore.open(tmp_path / "store").missing()) >= EPOCHS - count  # a queued block is dropped
    adopted(made, labels, tmp_path / "store")
    assert same_files(tmp_path / "whole", tmp_path / "store") > 20


def same_files(left: Path, right: Path) -> int:
    """The number of files of two folders, which are the same."""
    names = sorted(str(path.relative_to(left)) for path in left.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(right)) for path in right.rglob("*") if path.is_file())
    assert [name for name in names if not filecmp.cmp(left / name, right / name, shallow=False)] == []
    return len(names)


def test_more_views_are_added_and_other_labels_are_refused(made: Taught, written: Written, tmp_path: Path) -> None:
    labels = written(layout="sre2l")
    assert adopted(made, labels, tmp_path / "store", views=2).state.views_sealed == 2
    with pytest.raises(InputError, match=r"other labels, or other .* at positions 0 to 23 of view 0 differ"):
        adopted(made, other_labels(labels, tmp_path / "others"), tmp_path / "store")
    store = adopted(made, labels, tmp_path / "store")
    assert store.state.views_sealed == EPOCHS
    assert np.array_equal(store.read(3, slice(0, 10)).logits, records(labels, 3)[0][5].half().float().numpy())


def test_the_same_labels_of_other_images_do_not_continue_a_store(
    made: Taught, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images of one size and class change places in the last view that is there: nothing else shows it."""
    monkeypatch.setattr("labelstore.spec.SMALL_BLOCK_ROWS", 24)  # blocks of one view
    names = [Path(path) for path, _ in ImageFolder(made.images).samples]
    images = tmp_path / "images"
    for name in names:
        (images / name.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(name).convert("RGB").resize((40, 40)).save(images / name.parent.name / f"{name.stem}.png")
    same = replace(made, images=images)
    writer = Writer(images=images, network=made.network, size=SIDE, mean=MEAN, std=STD)
    torch.manual_seed(1)
    labels = writer.write(tmp_path / "labels", EPOCHS)
    orders = np.stack([SamplerOrder(24, 42, 2).images(epoch) for epoch in range(EPOCHS)])
    np.save(tmp_path / "order.npy", orders)
    adopted(same, labels, tmp_path / "store", order=tmp_path / "order.npy", views=2)
    first, second = (int(np.flatnonzero(orders[1] == image)[0]) for image in (0, 1))
    orders[1, [first, second]] = orders[1, [second, first]]
    np.save(tmp_path / "other.npy", orders)
    with pytest.raises(InputError, match=r"other labels, or other images of them: .* of view 1 differ"):
        adopted(same, labels, tmp_path / "store", order=tmp_path / "other.npy")
    assert adopted(same, labels, tmp_path / "store", order=tmp_path / "order.npy").state.views_sealed == EPOCHS


@pytest.mark.parametrize("stopped", [0, 1])
def test_an_image_that_a_view_shows_twice_in_two_blocks_is_refused(
    made: Taught, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int
) -> None:
    monkeypatch.setattr(BlockShape, "choose", lambda *_args: BlockShape(views=1, positions=10))
    shutil.copytree(written(layout="g-vbsm", mix=None), tmp_path / "labels")
    shutil.copy(tmp_path / "labels/epoch_0/batch_0.tar", tmp_path / "labels/epoch_0/batch_1.tar")
    if stopped:
        with monkeypatch.context() as patch:
            stopped_after(1, patch)
            with pytest.raises(KeyboardInterrupt):
                adopted(made, tmp_path / "labels", tmp_path / "store")
    with pytest.raises(InputError, match=r"view 0: expected every image once, found .* twice"):
        adopted(made, tmp_path / "labels", tmp_path / "store")
    assert not LabelStore.exists(tmp_path / "store") or LabelStore.open(tmp_path / "store").state.views_sealed == 0


def test_labels_with_a_history_are_read(made: Taught, written: Written, tmp_path: Path) -> None:
    """Written without torch.no_grad()."""
    shutil.copytree(written(layout="sre2l"), tmp_path / "labels")
    for file in (tmp_path / "labels").rglob("*.tar"):
        change(file, lambda record: replaced(record, 5, record[5].float().requires_grad_()))
    assert adopted(made, tmp_path / "labels", tmp_path / "store").state.views_sealed == EPOCHS


def other_labels(labels: Path, folder: Path) -> Path:
    """The same labels, of the first crop with twice the logits."""
    shutil.copytree(labels, folder)
    change(folder / "epoch_0" / "batch_0.tar", lambda record: record[5][0].mul_(2))
    return folder


def change(file: Path, edit: Callable[[list[Any]], object]) -> None:
    record = torch.load(file, weights_only=False)
    edit(record)
    torch.save(record, file)


def replaced(record: list[Any], place: int, value: Any) -> None:
    record[place] = value


class Hostile:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, ("hostile",)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing epoch": (lambda at: shutil.rmtree(at / "epoch_1"), r"epoch_1 is missing: .* --views 1 adopts"),
    "a missing file": (
        lambda at: (at / "epoch_2/batch_1.tar").unlink(),
        r"epoch_2/batch_1.tar is missing: .* --views 2",
    ),
    "no last file": (lambda at: (at / "epoch_0/batch_2.tar").unlink(), r"expected labels of 24 images, .* found 20"),
    "other columns": (
        lambda at: change(at / "epoch_3/batch_0.tar", lambda r: replaced(r, 5, torch.zeros(10, 4).half())),
        r"batch_0.tar: expected 3 columns, .* found 4",
    ),
    "another class count": (
        lambda at: [
            change(file, lambda r: replaced(r, 5, torch.zeros(len(r[5]), 10).half())) for file in at.rglob("*.tar")
        ],
        r"expected a column for each of the 3 class folders \(ant, bee, cat\), found 10",
    ),
    "another batch size": (
        lambda at: change(at / "epoch_1/batch_0.tar", lambda r: r.__setitem__(slice(None), cut(r, 5))),
        r"epoch_1/batch_0.tar: expected 10 labels, .* found 5; all batches must be alike",
    ),
    "NaN": (
        lambda at: change(at / "epoch_3/batch_1.tar", lambda r: r[5][4].fill_(float("nan"))),
        r"batch_1.tar: expected numbers of at most 65504 as logits, found nan in column 0 of crop 4",
    ),
    "a truncated file": (
        lambda at: (at / "epoch_0/batch_0.tar").write_bytes((at / "epoch_0/batch_0.tar").read_bytes()[:900]),
        r"batch_0.tar: expected nothing but tensors, .* ends early",
    ),
    "an empty file": (lambda at: (at / "epoch_0/batch_0.tar").write_bytes(b""), r"batch_0.tar: .* found an empty file"),
    "a hostile file": (
        lambda at: torch.save([Hostile()], at / "epoch_0/batch_0.tar"),
        r"batch_0.tar: .* found a pickled posix.mkdir",
    ),
    "another pickle": (
        lambda at: (at / "epoch_0/batch_0.tar").write_bytes(pickle.dumps({1: 2})),
        r"batch_0.tar: expected nothing but tensors",
    ),
    "other images": (
        lambda at: [change(file, lambda r: r[0].mul_(0.9)) for file in at.rglob("*.tar")],
        r"expected a box in whole pixels of an image of .* give the images that were labelled",
    ),
    "other orders": (
        lambda at: [change(file, lambda r: replaced(r, 5, r[5].flip(0).contiguous())) for file in at.rglob("*.tar")],
        r"agree with the folders on .* where guessing gives 33.33 %: .* nothing was written",
    ),
    "a box of larger crops": (
        lambda at: [change(file, lambda r: replaced(r, 4, [0, 0, 40, 40])) for file in at.rglob("*.tar")],
        r"expected a CutMix box within crops of 16 px, found one up to 40; .*--size",
    ),
    "a partner that is none": (
        lambda at: change(at / "epoch_0/batch_0.tar", lambda r: replaced(r, 2, r[2] + 5)),
        r"expected partners from 0 to 9, found 14",
    ),
    "a pruned pool": (
        lambda at: (at / "sampler_indices_epoch.json").write_text(str([[0] * 24] * EPOCHS)),
        r"holds 24 labels of 1 of the 24 images: a view of a store shows every image once; .* LPLD",
    ),
    "a file too many": (
        lambda at: shutil.copy(at / "epoch_2/batch_1.tar", at / "epoch_2/batch_3.tar"),
        r"epoch_2/batch_3.tar is one too many: expected 3 files an epoch, found 4; --views 2",
    ),
    "a gap in the first epoch": (
        lambda at: (at / "epoch_0/batch_1.tar").unlink(),
        r"epoch_0/batch_1.tar is missing: expected 3 files an epoch, found 2",
    ),
    "a sparse tensor": (
        lambda at: change(at / "epoch_0/batch_0.tar", lambda r: replaced(r, 5, r[5].float().to_sparse())),
        r"expected logits, .* found a sparse tensor",
    ),
    "a tensor without numbers": (
        lambda at: change(at / "epoch_0/batch_0.tar", lambda r: replaced(r, 0, torch.empty(10, 4, device="meta"))),
        r"expected coordinates \[10, 4\], found a meta tensor",
    ),
    "complex numbers": (
        lambda at: change(at / "epoch_0/batch_0.tar", lambda r: replaced(r, 2, r[2] + 0j)),
        r"expected partners, integers \[10\], found complex64",
    ),
    "numbers repeated to more than memory": (
        lambda at: change(at / "epoch_0/batch_0.tar", lambda r: replaced(r, 5, torch.zeros(1).expand(10, 10**12))),
        r"found a tensor of 40,000,000,000,000 bytes that repeats 4 bytes",
    ),
    "a logit that float16 cannot hold": (
        lambda at: change(at / "epoch_3/batch_1.tar", lambda r: replaced(r, 5, r[5].float() * 1e6)),
        r"epoch_3/batch_1.tar: expected numbers of at most 65504 as logits, found",
    ),
    "a pipe": (
        lambda at: ((at / "epoch_1/batch_0.tar").unlink(), os.mkfifo(at / "epoch_1/batch_0.tar")),
        r"epoch_1/batch_0.tar: expected a file, found a pipe or a device",
    ),
    "an order with numbers of no image": (
        lambda at: (at / "sampler_indices_epoch.json").write_text(str([[2**62] * 24] * EPOCHS)),
        r"holds 24 labels of 0 of the 24 images",
    ),
    "something else": (
        lambda at: [shutil.rmtree(epoch) for epoch in at.iterdir()],
        r"expected labels of sre2l, g-vbsm",
    ),
}


def cut(record: list[Any], count: int) -> list[Any]:
    partners = torch.arange(count)
    return [record[0][:count], record[1][:count], partners, record[3], record[4], record[5][:count]]


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named_in_one_line_and_leaves_nothing(
    made: Taught, written: Written, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, message = WRONG[what]
    shutil.copytree(written(layout="sre2l"), tmp_path / "labels")
    damage(tmp_path / "labels")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as refused:
        adopted(made, tmp_path / "labels", tmp_path / "store")
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


def test_epochs_whose_last_images_were_dropped_are_refused_with_the_reason(
    made: Taught, written: Written, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"the last 4 images of an epoch were dropped .* as LPLD does .* cannot be"):
        adopted(made, written(layout="sre2l", drop_last=True), tmp_path / "store")


def test_shuffled_patches_are_refused(made: Taught, written: Written, tmp_path: Path) -> None:
    shutil.copytree(written(layout="edc"), tmp_path / "labels")
    change(tmp_path / "labels/epoch_0/batch_0.tar", lambda r: r[7].fill_(1))
    with pytest.raises(InputError, match="shuffled patches"):
        adopted(made, tmp_path / "labels", tmp_path / "store")


def test_the_largest_magnitude_of_float16() -> None:
    draws = np.random.default_rng(0)
    for scale in (1e-6, 1.0, 1e3):
        labels = (scale * draws.normal(size=(7, 5))).astype(np.float16)
        assert largest_of(labels) == np.abs(labels).max()
    assert largest_of(np.array([1, -np.inf], np.float16)) == np.inf
    assert np.isnan(largest_of(np.array([1, np.nan], np.float16)))
