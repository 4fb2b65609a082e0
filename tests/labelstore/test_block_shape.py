"""Block shapes: little is rounded up, a kill loses little, processes share small sets, and files stay few."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from labelstore.errors import InputError
from labelstore.format.blocks import BlockGrid
from labelstore.format.root import require_views
from labelstore.format.seals import PART_BLOCKS, part_file, seal_file
from labelstore.spec import MAX_BLOCKS, BlockShape, Identity
from tests.labelstore.making import make_identity


def grid_of(images: int, columns: int, group: int, views: int) -> BlockGrid:
    shape = BlockShape.choose(images, columns, group, views)
    return BlockGrid(images, shape)


@example(12, 10, 1, 20)  # once 342 views
@example(100, 10, 1, 205)
@given(
    st.integers(1, 20_000), st.sampled_from([2, 10, 1000, 21_841]), st.sampled_from([1, 2, 128]), st.integers(1, 3000)
)
def test_views_are_rounded_up_by_a_tenth_at_most(images: int, columns: int, group: int, views: int) -> None:
    grid = grid_of(images, columns, group, views)
    assert views <= grid.whole_views(views) <= 1.1 * views
    assert grid.shape.positions % group == 0
    rows = grid.shape.views * min(grid.shape.positions, images)
    assert grid.shape.views == 1 or rows <= 3072, "a kill loses what a CPU labels in seconds"
    assert min(grid.shape.positions, images) * columns * 2 <= 64 << 20 or grid.shape.positions == group


@pytest.mark.parametrize("views", [2, 7, 20, 35, 200, 205, 1000])
def test_two_processes_share_a_build_of_a_hundred_images(views: int) -> None:
    grid = grid_of(100, 10, 1, views)
    blocks = list(grid.blocks(0, grid.whole_views(views)))
    shares = [blocks[rank::2] for rank in range(2)]
    assert min(map(len, shares)) >= max(map(len, shares)) - 1 >= 0
    assert all(shares)


@pytest.mark.parametrize(
    ("images", "columns", "files"), [(12, 10, 16), (100, 10, 160), (10_000, 1000, 4000), (1_281_167, 1000, 316_000)]
)
def test_files_of_a_thousand_views(images: int, columns: int, files: int) -> None:
    grid = grid_of(images, columns, 1, 1000)
    blocks = grid.whole_views(1000) // grid.shape.views * grid.runs
    assert 4 * blocks == files  # labels, scales, rows, marker


def test_the_shape_of_a_store_does_not_follow_later_views() -> None:
    first = BlockShape.choose(100, 10, 1, 20)
    grid = BlockGrid(100, first)
    assert grid.whole_views(205) <= 1.1 * 205


def test_seals_of_imagenet_21k_are_read_in_parts() -> None:
    """14.2 million images, 21,841 columns, 300 views: what is listed stays within what readers accept."""
    images = 14_197_122
    shape = BlockShape.choose(images, 21_841, 1, 300)
    identity: Identity = make_identity(images, 21_841, block=(shape.views, shape.positions))
    grid = BlockGrid.of(identity)
    blocks = grid.runs * 300 // shape.views
    assert 2_000_000 < blocks <= MAX_BLOCKS
    assert require_views(identity, 300) == 300
    parts = -(-blocks // PART_BLOCKS)
    entry = len('{"bytes":99999999,"crc32c":4294967295,"xxh3":"0123456789abcdef"},')
    assert parts * entry < 1 << 20, "the head of the seal"
    row = 3 * len('99999999,4294967295,"0123456789abcdef","0123456789abcdef",') + 2 * len('"0123456789abcdef",') + 8
    assert PART_BLOCKS * row < 8 << 20, "a part of its table"
    assert seal_file(300) == "seals/300.json"
    assert part_file(300, parts - 1, "0" * 16) == f"seals/300.{parts - 1}.{'0' * 16}.json"
    with pytest.raises(InputError, match=r"views: expected at most .* of 14,197,122 images, found 1000000000"):
        require_views(identity, 10**9)
