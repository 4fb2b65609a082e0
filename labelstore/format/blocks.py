"""The arithmetic of blocks and positions; no files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from labelstore.errors import InputError
from labelstore.spec import BlockShape, Identity

MAX_BLOCK_ROWS = 1 << 22
MAX_NAME = 32  # characters of a block's name


class BlockIndex(NamedTuple):
    """The i-th run of views x the j-th run of positions."""

    i: int
    j: int

    def __str__(self) -> str:
        return f"{self.i}.{self.j}"

    @classmethod
    def parse(cls, text: str) -> BlockIndex | None:
        """The block that is written like this, or None."""
        i, _, j = text.partition(".")
        if not (i.isdecimal() and j.isdecimal() and text.isascii() and len(text) <= MAX_NAME):
            return None
        block = cls(int(i), int(j))
        return block if str(block) == text else None


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """The blocks of a store.

    Attributes:
        images: positions of a view, N.
        shape: views and positions of a block; the last block of a view may have fewer positions.
    """

    images: int
    shape: BlockShape

    @classmethod
    def of(cls, identity: Identity) -> BlockGrid:
        """The grid of a store; refuses block shapes that could only exhaust memory."""
        shape = identity.block
        if shape.views < 1 or shape.positions < 1 or shape.views * shape.positions > MAX_BLOCK_ROWS:
            raise InputError(
                f"block shape: expected 1 to {MAX_BLOCK_ROWS} rows, "
                f"found {shape.views} views x {shape.positions} positions"
            )
        return cls(identity.images, shape)

    @property
    def runs(self) -> int:
        """Runs of positions of a view, that is blocks for each run of views."""
        return -(-self.images // self.shape.positions)

    def holds(self, block: BlockIndex) -> bool:
        """Whether a view has such a run of positions."""
        return block.i >= 0 and 0 <= block.j < self.runs

    def whole_views(self, views: int) -> int:
        """``views`` rounded up to whole blocks."""
        return -(-views // self.shape.views) * self.shape.views

    def blocks(self, first: int, stop: int) -> Iterator[BlockIndex]:
        """The blocks of views ``first`` to ``stop`` (whole blocks), in stored order."""
        for i in range(first // self.shape.views, stop // self.shape.views):
            for j in range(self.runs):
                yield BlockIndex(i, j)

    def ordinal(self, block: BlockIndex, first: int) -> int:
        """The number of blocks before ``block`` in stored order, from view ``first`` on."""
        return (block.i - first // self.shape.views) * self.runs + block.j

    def views(self, block: BlockIndex) -> tuple[int, int]:
        """First view of a block, and the one after its last."""
        return block.i * self.shape.views, (block.i + 1) * self.shape.views

    def positions(self, block: BlockIndex) -> tuple[int, int]:
        """First position of a block, and the one after its last."""
        start = block.j * self.shape.positions
        return start, min(start + self.shape.positions, self.images)

    def extent(self, block: BlockIndex) -> dict[str, int]:
        """The number of views and positions of a block."""
        start, stop = self.positions(block)
        return {"view": self.shape.views, "position": stop - start}
