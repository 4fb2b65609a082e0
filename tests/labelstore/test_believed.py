"""What readers believe is checked when a block is written: views are permutations, partners and boxes lie inside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore import BlockIndex, LabelStore
from labelstore.access.reading import Reader
from labelstore.errors import DamagedError, InputError
from labelstore.format.columns import CROP_COLUMNS, MIXUP_COLUMNS
from labelstore.format.images import add_digests, images_digest, whole_digest
from labelstore.operations.export import export
from tests.labelstore.making import Content, build, create, make_identity, tree


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**32))
def test_digests_add_up_where_every_view_shows_every_image_once(images: int, views: int, run: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(images) for _ in range(views)])
    each = [images_digest(orders[:, start : start + run]) for start in range(0, images, run)]
    assert add_digests(each) == whole_digest(images, views)
    if images > 1:
        view, place = rng.integers(views), rng.integers(images)
        orders[view, place] = (orders[view, place] + 1) % images
        each = [images_digest(orders[:, start : start + run]) for start in range(0, images, run)]
        assert add_digests(each) != whole_digest(images, views)


def test_two_views_that_swap_an_image_are_told_from_two_permutations() -> None:
    orders = np.array([[0, 1, 1], [2, 0, 2]])  # together every image twice
    assert images_digest(orders) != whole_digest(3, 2)


def test_an_image_twice_in_a_block_is_refused_when_it_is_written(tmp_path: Path) -> None:
    content = Content(make_identity(block=(2, 10)), 2)
    content.rows[1, 0] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 7]
    store = create(tmp_path / "s", content, 2)
    before = tree(store.path)
    with pytest.raises(InputError, match=r"block 0\.0: expected every image at most once .* found image 0 twice"):
        build(store.path, content, 2)
    assert tree(store.path) == before


def test_an_image_twice_in_a_view_of_several_blocks_is_refused_when_it_is_sealed(tmp_path: Path) -> None:
    content = Content(make_identity(block=(2, 4)), 4)
    content.rows[2, 0, 9] = content.rows[2, 0, 0]
    with pytest.raises(InputError, match="views 2 to 3: expected every image once in each"):
        build(tmp_path / "s", content, 4)
    store = LabelStore.open(tmp_path / "s")
    assert store.state.views_sealed == 0
    follower = LabelStore.open(tmp_path / "s", follow=True)
    with pytest.raises(DamagedError, match=f"view 2 has no crop of image {content.order[2, 9]}"):
        follower.read_images(2, [0])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("partner", 2, "partner: expected at most 1, found 2"),
        ("partner", 60_000, "partner: expected at most 1, found 60000"),
        ("mix_height", 9, r"mix_top \+ mix_height: expected at most 8, found"),
        ("mix_left", 8, r"mix_left \+ mix_width: expected at most 8, found"),
        ("mix_width", 65_535, r"mix_left \+ mix_width: expected at most 8, found"),
    ],
)
def test_mixing_that_is_none_is_refused(tmp_path: Path, name: str, value: int, message: str) -> None:
    content = Content(make_identity(group=2, block=(2, 4), size=8), 2)
    names = content.identity.crop_columns
    content.rows[:, [names.index("mix_left"), names.index("mix_width")]] = 1
    content.rows[1, names.index(name), 5] = value
    with pytest.raises(InputError, match=rf"block 0\.1: {message}.*view 1, position 1 of the block"):
        build(tmp_path / "s", content, 2)


def test_the_last_group_has_only_the_partners_that_it_has(tmp_path: Path) -> None:
    names = CROP_COLUMNS + MIXUP_COLUMNS
    content = Content(make_identity(9, group=4, block=(2, 8), crop_columns=names), 2)
    content.rows[:, names.index("partner"), 8] = 1
    with pytest.raises(InputError, match=r"block 0\.1: partner: expected at most 0, found 1"):
        build(tmp_path / "s", content, 2)


def test_weights_are_shares(tmp_path: Path) -> None:
    content = Content(make_identity(50, group=2, block=(2, 50), size=6), 4)
    store = build(tmp_path / "s", content, 4)
    for view in range(4):
        weights = store.pairs(view, slice(None)).weights
        assert weights.min() >= 0
        assert weights.max() <= 1


def test_a_view_of_an_earlier_format_that_is_no_permutation_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores were not checked when they were written: reading by image and exporting look themselves."""
    content = Content(make_identity(block=(2, 10)), 2)
    store = build(tmp_path / "s", content, 2)
    plain = Reader._read_rows

    def doubled(reader: Reader, block: BlockIndex) -> np.ndarray:
        rows = plain(reader, block).copy()
        rows[:, 0, 3] = rows[:, 0, 4]
        return rows

    monkeypatch.setattr(Reader, "_read_rows", doubled)
    with pytest.raises(DamagedError, match="view 0 has no crop of image"):
        export(LabelStore.open(store.path), tmp_path / "labels.npy")
    assert not (tmp_path / "labels.npy").exists()
    assert export(LabelStore.open(store.path), tmp_path / "stored.npy", order="stored") == (2, 10, 3)


def test_codes_given_by_the_writer_are_held_against_the_same_rules(tmp_path: Path) -> None:
    content = Content(make_identity(block=(2, 10)), 2)
    store = create(tmp_path / "s", content, 2)
    data = content.block(store, BlockIndex(0, 0))
    rows = data.rows.copy()
    rows[0, 0, 0] = 11
    with store.lease() as writer, pytest.raises(InputError, match=r"image index: expected below 10, found 11"):
        writer.write(BlockIndex(0, 0), replace(data, rows=rows))
