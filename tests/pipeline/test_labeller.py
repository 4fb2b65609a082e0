"""The `Labeller` seam: a labeller without a network, written as a user would write it, builds a store."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from labelstore import LabelStore, check
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError, MismatchError
from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.build import build as building
from pipeline.build.build import build
from pipeline.config import BuildConfig, VerifyConfig
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render.normalise import network_input, normalise, renormalise
from pipeline.replay.source import open_source
from pipeline.replay.verify import verify
from pipeline.teacher.labeller import Pending, label_crops
from tests.journeys.world import draw_images

SIDE = 12


@dataclass(frozen=True)
class MeanColours:
    """Labels a crop by the mean of each colour channel: red, green and blue are its three classes."""

    size: int = SIDE
    gain: float = 1.0
    broken: bool = False
    columns: int = 3
    batch: int = 5
    class_columns: tuple[int, ...] = ()
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def identity(self) -> dict[str, Json]:
        return {"name": "mean colours", "gain": self.gain, "mean": list(self.mean), "std": list(self.std)}

    @property
    def engine(self) -> dict[str, Json]:
        return {"name": "mean colours", "dtype": "float32"}

    def start(self, pixels: Tensor, rows: CropRows, /) -> Pending:
        assert len(pixels) == len(rows) <= self.batch
        logits = pixels.float().mean(dim=(1, 2)) / 25.5 * self.gain
        return Pending("mean colours", logits / 0 if self.broken else logits)


def flags(tmp_path: Path, **changes: Any) -> BuildConfig:
    images = tmp_path / "images"
    if not images.exists():
        draw_images(images)
    values: dict[str, Any] = {
        "images": images, "teacher": (), "weights": (), "size": SIDE, "views": 70, "store": tmp_path / "store",
        "encoding": "float16", "threads": 1, "mix": "cutmix", "group": 4,
    }  # fmt: skip
    return from_flags(BuildConfig, **{**values, **changes})


def test_it_builds_extends_and_verifies_a_store(tmp_path: Path) -> None:
    config, quiet = flags(tmp_path), Console(silent=True)
    build(config, quiet, MeanColours())
    build(dataclasses.replace(config, views=140), quiet, MeanColours())
    store = LabelStore.open(config.store)
    assert check(config.store).ok
    assert store.identity.teacher == MeanColours().identity
    source = open_source(store, config.images, threads=1)
    view = store.state.views_sealed - 1
    crops = source.crops(view, 0, 24).numpy()
    expected = crops.mean(axis=(1, 2), dtype=np.float64) / 25.5
    np.testing.assert_allclose(store.read(view, slice(0, 24)).logits, expected, rtol=2e-3)
    source.close()
    ours = from_flags(VerifyConfig, store=config.store, images=config.images, threads=1)
    ok, values = verify(ours, quiet, MeanColours())
    assert ok
    assert values["equal_codes"] == 1
    with pytest.raises(MismatchError, match=r"different teacher \(gain\): the store has 1.0, this run has 2.0"):
        verify(ours, quiet, MeanColours(gain=2.0))
    with pytest.raises(MismatchError, match=r"different teacher \(teacher.gain\): the store has 1.0, this run has 2.0"):
        build(dataclasses.replace(config, views=999), quiet, MeanColours(gain=2.0))


@pytest.mark.parametrize("encoding", ["int8", "transform"])
def test_every_encoding_takes_its_labels(tmp_path: Path, encoding: str) -> None:
    columns = {"int8": 3, "transform": 66}[encoding]

    class Repeated(MeanColours):
        def start(self, pixels: Tensor, rows: CropRows, /) -> Pending:
            logits = super().start(pixels, rows).result()
            return Pending("repeated", logits.repeat(1, columns // 3) * torch.linspace(1, 2, columns))

    chosen = Repeated(columns=columns, class_columns=() if columns == 3 else (0, 1, 2))
    build(flags(tmp_path, encoding=encoding), Console(silent=True), chosen)
    store = LabelStore.open(tmp_path / "store")
    audit = store.audit()
    rows = store.read(0, slice(0, len(audit.crops))).rows
    again = label_crops(chosen, torch.from_numpy(audit.crops), rows)
    assert np.array_equal(again.astype(np.float16), audit.logits)


def test_what_is_wrong_with_it_is_named_before_anything_is_written(tmp_path: Path) -> None:
    class Nameless(MeanColours):
        @property
        def identity(self) -> dict[str, Json]:
            return {"name": "nameless"}

    for labeller, message in (
        (MeanColours(size=8), "expected one for crops of 12 px, found 8 px"),
        (MeanColours(columns=4), "expected a column for each of 3 class folders, found 4 columns"),
        (Nameless(), "nameless: expected mean and std in its identity"),
    ):
        with pytest.raises(InputError, match=message):
            build(flags(tmp_path), Console(silent=True), labeller)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_its_broken_logits_and_wrong_shapes_are_named(tmp_path: Path) -> None:
    class Wide(MeanColours):
        def start(self, pixels: Tensor, rows: CropRows, /) -> Pending:
            return Pending("wide", super().start(pixels, rows).result().repeat(1, 2))

    with pytest.raises(InputError, match=r"logit of image \d+ in view 0, class 0: expected a number, found inf"):
        build(flags(tmp_path), Console(silent=True), MeanColours(broken=True))
    with pytest.raises(InputError, match=r"expected logits float32 \[5, 3\], found torch.float32 \[5, 6\]"):
        build(flags(tmp_path), Console(silent=True), Wide())


def test_other_images_are_refused_before_a_teacher_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = flags(tmp_path)
    build(config, Console(silent=True), MeanColours())
    next(config.images.rglob("*.png")).unlink()

    def loading(*_: object, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(building, "make_teacher", loading)
    monkeypatch.setattr(building, "settled", lambda config, _console: config)
    monkeypatch.setattr(building, "require_known", lambda *_: None)
    with pytest.raises(MismatchError, match=r"different images: the store has 24, this run has 23"):
        build(dataclasses.replace(config, views=999), Console(silent=True))


def test_dsa_works_on_the_plans_normalisation_and_the_network_gets_its_own() -> None:
    plan = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    own = ((0.1, 0.2, 0.3), (0.5, 1.0, 0.7))
    sides = np.full(6, 20, np.int32)
    rows = Plan(PlanSpec(size=SIDE, augment=("dsa",)), sides, sides).rows(0, 0, 6)
    pixels = torch.randint(0, 256, (6, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    as_planned = network_input(pixels, rows, *plan, torch.float32, False)
    assert torch.equal(network_input(pixels, rows, *plan, torch.float32, False, plan=plan), as_planned)
    found = network_input(pixels, rows, *own, torch.float32, False, plan=plan)
    means, stds = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in plan)
    own_means, own_stds = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in own)
    expected = (as_planned.double() * stds + means - own_means) / own_stds
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    # and without augmentation it is the network's own normalisation
    plain = renormalise(normalise(pixels, *plan, torch.float32, False), plan, own)
    torch.testing.assert_close(plain, normalise(pixels, *own, torch.float32, False), rtol=1e-5, atol=1e-5)
