"""What a stopped build leaves behind, besides temporaries."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path

from labelstore.arrays import AUDIT_BLOCK, StoreLayout
from labelstore.blocks import BlockIndex
from labelstore.spec import State


def leftovers(
    root: Path,
    layout: StoreLayout,
    state: State,
    missing: Set[BlockIndex],
    *,
    calibrated: bool,
    parts: Set[str] | None = None,
) -> Iterator[Path]:
    """Files to remove before blocks are written: shards without a marker, and seals that seal nothing.

    Args:
        root: folder of the store.
        layout: its arrays.
        state: its state.
        missing: blocks that have no marker.
        calibrated: whether its calibration, where it takes one, has a marker.
        parts: files of the parts of its seals; None where a seal is damaged, and what it names is not known.
    """
    for array in layout.blocks:
        for path in sorted((root / array.name).glob("c.*")):
            if array.block(path.name) in missing:
                yield path
    if AUDIT_BLOCK in missing:
        yield from (root / array.file() for array in layout.audit)
    if not calibrated:
        yield from (root / array.file() for array in layout.calibration)
    for path in sorted((root / "seals").glob("*.json")):
        stop, _, part = path.stem.partition(".")
        unnamed = bool(part) and parts is not None and f"seals/{path.name}" not in parts
        if stop.isdecimal() and (int(stop) > state.views_sealed or unnamed):
            yield path
