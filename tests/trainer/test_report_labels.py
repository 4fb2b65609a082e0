"""What labels are like, against counting them one by one."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.format.columns import CROP_COLUMNS, CropRows
from labelstore.operations.adopting import AdoptedCrops, adopted_identity, write_adopted
from labelstore.store import LabelStore
from pipeline.teacher.labeller import NOT_KNOWN
from tests.labelstore.making import make_identity
from tests.trainer.report_pages import fill
from trainer.report.labels import Examined, by_class, choices_by_class, confusions, examine, examine_store, joined
from trainer.report.page import Facts
from trainer.report.stores import spread, store_card


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 30.0, 2000.0]))
def test_labels_against_one_row_at_a_time(rows: int, columns: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((rows, columns))).astype(np.float32)
    targets, mates = rng.integers(0, columns, (2, rows))
    weights = rng.random(rows)
    found = examine(logits, targets, mates, weights)
    for row in range(rows):
        exact = [math.exp(float(x) - float(logits[row].max())) for x in logits[row]]
        shares = [each / sum(exact) for each in exact]
        entropy = -sum(share * math.log(share) for share in shares if share)
        assert found.choices[row] == logits[row].tolist().index(max(logits[row].tolist()))
        assert found.confidences[row] == pytest.approx(max(shares), rel=1e-9)
        assert found.entropies[row] == pytest.approx(entropy, abs=1e-9)
        assert found.targets[row] == (targets[row] if weights[row] >= 0.5 else mates[row])
        assert found.right[row] == (found.choices[row] in (targets[row], mates[row]))
    counted = Counter(zip(found.targets[~found.right].tolist(), found.choices[~found.right].tolist(), strict=True))
    pairs = confusions(found)
    assert {(target, choice): count for target, choice, count in pairs} == counted
    assert [count for *_, count in pairs] == sorted(counted.values(), reverse=True)
    order = rng.permutation(columns)
    every, right = by_class(found, order.tolist())
    assert every.tolist() == [Counter(found.targets.tolist())[column] for column in order]
    assert right.tolist() == [Counter(found.targets[found.right].tolist())[column] for column in order]
    shares_of = choices_by_class(found, order.tolist())
    for place, column in enumerate(order):
        chosen = Counter(found.choices[found.targets == column].tolist())
        total = max(sum(chosen.values()), 1)
        assert shares_of[place].tolist() == pytest.approx([chosen[other] / total for other in order])


def test_choices_that_are_no_class_are_in_no_column() -> None:
    logits = np.eye(4, dtype=np.float32)[[0, 3, 3, 2]]
    found = examine(logits, np.array([0, 0, 2, 2]), np.array([0, 0, 2, 2]), np.ones(4))
    assert choices_by_class(found, [2, 0]).tolist() == [[0.5, 0.0], [0.0, 0.5]]
    assert confusions(found) == [(0, 3, 1), (2, 3, 1)]


@pytest.mark.parametrize("group", [1, 2])
def test_a_store_is_looked_at_whole(tmp_path: Path, group: int) -> None:
    identity = make_identity(10, 3, encoding="float16", group=group, classes=("cat", "dog"), block=(2, 4))
    content = fill(tmp_path / "store", identity, 4)
    store = LabelStore.open(tmp_path / "store")
    found = examine_store(store)
    assert found is not None
    assert len(found) == 40
    exact = content.logits.astype(np.float16).astype(np.float32)
    assert found.choices.tolist() == exact.argmax(axis=2).ravel().tolist()
    targets = content.targets[content.order]
    if group == 1:
        assert found.targets.tolist() == targets.ravel().tolist()
        assert found.right.mean() == (exact.argmax(axis=2) == targets).mean()
    else:
        mates = np.take_along_axis(
            targets, np.arange(10) // 2 * 2 + np.arange(10) % 2 // 2 + np.zeros((4, 1), int), axis=1
        )
        choices = exact.argmax(axis=2)
        assert found.right.tolist() == ((choices == targets) | (choices == mates)).ravel().tolist()


def test_a_large_store_is_looked_at_in_part_and_in_whole_views(tmp_path: Path) -> None:
    fill(tmp_path / "store", make_identity(10, 3, classes=("cat", "dog")), 8)
    store = LabelStore.open(tmp_path / "store")
    assert [len(found or ()) for found in (examine_store(store, rows) for rows in (35, 10, 7, 1_000))] == [
        30,
        10,
        7,
        80,
    ]


def test_a_store_without_a_sealed_view_is_not_looked_at(tmp_path: Path) -> None:
    fill(tmp_path / "store", make_identity(10, 3, classes=("cat", "dog")), 4, written=2)
    assert examine_store(LabelStore.open(tmp_path / "store")) is None


def test_parts_are_joined_in_order() -> None:
    parts = [
        examine(np.eye(3, dtype=np.float32)[[row]], np.array([row]), np.array([row]), np.ones(1)) for row in range(3)
    ]
    found = joined(parts)
    assert isinstance(found, Examined)
    assert found.targets.tolist() == [0, 1, 2]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 40))
def test_a_sheet_shows_each_class_before_another_twice(targets: list[int], count: int) -> None:
    rows = spread(np.array(targets, np.int64), count)
    assert len({*rows}) == len(rows) == min(count, len(targets))
    shown = Counter(targets[row] for row in rows)
    least = min((shown[target] for target in {*targets} if shown[target] < targets.count(target)), default=count)
    assert all(times <= least + 1 for times in shown.values())
    assert [targets[row] for row in rows] == sorted(targets[row] for row in rows)


@pytest.mark.parametrize("content", ["logits", "topk"])
def test_adopted_stores_have_cards(content: Literal["logits", "topk"], tmp_path: Path) -> None:
    """Of top-k labels the columns that are not known have probability 0."""
    images, columns, masked = 6, 4, -1e4
    targets, rng = np.arange(images) % 2, np.random.default_rng(0)
    digests = rng.integers(0, 256, (images, 32), np.uint8)
    logits = rng.normal(size=(2, images, columns)).astype(np.float32)
    logits[:, np.arange(images), targets] = 5
    if content == "topk":
        logits[..., 2:] = masked
    identity = adopted_identity(
        image_digests=digests,
        targets=targets,
        classes=("ant", "bee", "cat", "dog"),
        columns=columns,
        size=8,
        views=2,
        teacher={"name": NOT_KNOWN, "mean": [0.5] * 3, "std": [0.5] * 3},
        encoding={"name": "int8", "masked": masked} if content == "topk" else {"name": "float16"},
        content=content,
    )

    def read(view: int, start: int, stop: int) -> AdoptedCrops:
        values = np.zeros((len(CROP_COLUMNS), stop - start), np.uint16)
        for name in ("height", "width"):
            values[CROP_COLUMNS.index(name)] = 8
        values[CROP_COLUMNS.index("image_low")] = np.arange(start, stop)
        return AdoptedCrops(CropRows(CROP_COLUMNS, values), logits[view, start:stop])

    sides = np.full((images, 2), 8)
    write_adopted(tmp_path / "store", identity, image_digests=digests, targets=targets, sides=sides, views=2, read=read)
    card = store_card(tmp_path / "store", tiles=4)
    assert card.subtitle.endswith("labelled by a teacher that is not known.")
    (shown,) = [item for item in card.items if isinstance(item, Facts)][:1]
    assert "seed" not in dict(shown.pairs)
    examined = examine_store(LabelStore.open(tmp_path / "store"))
    assert examined is not None
    wanted = np.exp(logits.astype(np.float64).reshape(-1, columns))
    wanted /= wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(examined.confidences, wanted.max(axis=1), atol=0.01)
    np.testing.assert_allclose(examined.entropies, -np.sum(wanted * np.log(wanted + 1e-300), axis=1), atol=0.05)
