"""A transform calibrated with stored labels alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelstore import CropRows, LabelStore, check
from labelstore.durable import disk
from labelstore.encodings.bands import missed
from labelstore.encodings.fidelity import gift_fidelity
from labelstore.encodings.transform import Transform
from labelstore.errors import InputError
from labelstore.operations.convert import convert
from labelstore.operations.refit import refit, split_views
from tests.labelstore.making import Content, build, make_identity, tree

COLUMNS = 64


def low_rank(group: int, views: int) -> Content:
    """Labels as teachers make them: what an image is, what a crop of it adds, and a little of everything."""
    content = Content(
        make_identity(images=320, columns=COLUMNS, encoding="float16", block=(1, 320), group=group, size=8), views
    )
    rng = np.random.default_rng(1)
    basis = rng.standard_normal((40, COLUMNS)) * np.exp(-np.arange(40) / 8)[:, None]
    means = 2 * rng.standard_normal((320, 40)) @ basis
    for view, own in enumerate(content.order):
        rows = CropRows(content.identity.crop_columns, content.rows[view])
        partners = own[rows.partners(group)] if rows.mixed else own
        weights = rows.weights(8)[:, None]
        crops = rng.standard_normal((320, 40)) @ basis + 0.05 * rng.standard_normal((320, COLUMNS))
        content.logits[view] = weights * means[own] + (1 - weights) * means[partners] + crops
    return content


def fidelity(store: LabelStore, encoding: Transform, view: int) -> float:
    labels, pairs = store.read(view, slice(None)), store.pairs(view, slice(None))
    decoded = encoding.decode(encoding.encode(labels.logits, pairs), pairs)
    cosines = gift_fidelity(labels.logits, decoded, labels.targets, store.targets[pairs.partners], pairs.weights)
    return float(cosines.mean())


@pytest.mark.parametrize("group", [1, 16])
def test_the_fidelity_asked_for_is_reached_on_rows_that_nothing_was_fitted_to(tmp_path: Path, group: int) -> None:
    store = build(tmp_path / "store", low_rank(group, 9), 9)
    encoding = Transform(COLUMNS, fidelity=0.95)
    calibration = refit(store, encoding, 9)
    assert calibration.means.shape == (320, calibration.components)
    assert calibration.fidelity >= 0.95  # and KL and top-1 agreement that go with it
    assert fidelity(store, encoding.calibrated(calibration), 0) == pytest.approx(calibration.fidelity, abs=0.01)
    again = refit(store, encoding, 9)
    assert np.array_equal(calibration.basis, again.basis)
    assert np.array_equal(calibration.means, again.means)
    assert calibration.step == again.step


@pytest.mark.parametrize("images", [10, 1000, 100_000])
@pytest.mark.parametrize("views", [3, 4, 10, 300])
def test_views_are_shared_out(images: int, views: int) -> None:
    means, fitted = split_views(views, images)
    assert 0 not in (*means, *fitted)
    assert [*means, *fitted] == list(range(1, views))
    assert min(len(means), len(fitted)) >= 1


def test_too_few_views_are_refused() -> None:
    with pytest.raises(InputError, match="at least 3 views"):
        split_views(2, 10)


@pytest.mark.parametrize("options", [{"codec": "pcodec"}, {"codec": "zstd"}, {"mean_steps": 8, "keep_top1": True}])
@pytest.mark.parametrize("group", [1, 16])
def test_a_store_is_converted_to_a_transform_and_on_to_its_other_codec(
    tmp_path: Path, group: int, options: dict[str, Any]
) -> None:
    wide = build(tmp_path / "wide", low_rank(group, 6), 6)
    parameters: dict[str, Any] = {"name": "transform", "fidelity": 0.95, **options}
    small = convert(wide, tmp_path / "small", parameters)
    assert check(small.path).ok
    kind = "unmixed" if group == 1 else "mixed"
    assert small.fidelity[kind]["mean"] > 0.94
    assert not missed(small.identity.encoding, small.fidelity)
    sizes = {
        name: sum(f.stat().st_size for f in small.path.glob(f"{name}/c.*")) for name in ("scales", "calibration/*")
    }
    assert small.bytes_per_label()["side"] == pytest.approx(sum(sizes.values()) / (6 * 320), abs=2e-3)
    labels, pairs = wide.read(5, slice(None)), wide.pairs(5, slice(None))
    expected = small.encoding.decode(small.encoding.encode(labels.logits, pairs), pairs)
    assert np.array_equal(small.read(5, slice(None)).logits, expected)
    convert(wide, tmp_path / "again", parameters)
    assert tree(tmp_path / "again") == tree(small.path)
    other = convert(
        small, tmp_path / "other", {**parameters, "codec": "pcodec" if options.get("codec") == "zstd" else "zstd"}
    )
    assert check(other.path).ok
    for view in range(6):
        assert np.array_equal(other.read(view, slice(None)).logits, small.read(view, slice(None)).logits)
    assert other.fidelity[kind]["mean"] == 1


@pytest.mark.parametrize("kill_at", [2, 9, 14, 16, 19, 25])
def test_a_stopped_calibration_is_made_again_and_a_finished_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    wide = build(tmp_path / "wide", low_rank(1, 4), 4)
    parameters: dict[str, Any] = {"name": "transform", "fidelity": 0.95}
    whole = convert(wide, tmp_path / "whole", parameters)
    done = 0
    link = disk.link

    class KilledError(BaseException):
        pass

    def die(source: Path, target: Path) -> None:
        nonlocal done
        done += 1
        if done == kill_at:
            raise KilledError
        link(source, target)

    monkeypatch.setattr(disk, "link", die)
    with pytest.raises(KilledError):
        convert(wide, tmp_path / "small", parameters)
    small = convert(wide, tmp_path / "small", parameters)
    assert tree(small.path) == tree(whole.path)
