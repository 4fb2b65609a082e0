"""A store made from another one without its teacher: the same crops, their labels in another encoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from labelstore.access.records import BlockData, LabelBatch
from labelstore.durable.places import require_apart
from labelstore.encodings import make_encoding
from labelstore.encodings.components import Calibration
from labelstore.encodings.int8 import masked_value
from labelstore.encodings.transform import Transform, is_fitted
from labelstore.errors import InputError, NotStoredError
from labelstore.format.arrays import AUDIT_BLOCK
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.operations.refit import refit
from labelstore.spec import FORMAT, Identity, Json, require_integer, require_same
from labelstore.store import LabelStore
from labelstore.writing.space import require_free_space, store_bytes

MASKED_ROWS = 4_096  # of view 0, that show whether a value is masked


def convert(
    source: LabelStore,
    path: Path,
    parameters: Mapping[str, Json],
    *,
    views: int | None = None,
    take_over: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LabelStore:
    """Write the sealed views of ``source`` into a store of another encoding, block by block.

    Crop rows, image digests, targets, audit rows, pixel digests and versions are copied unchanged; labels are
    decoded and encoded again, or, where only the codec differs, their codes are copied too. Each version
    records under ``converted_from`` what it was made from, and fidelity is measured against that. Killing it loses the
    current block; running it again continues to the same bytes, and converts the views that were added to ``source``.

    Args:
        source: the store to read.
        path: folder of the store to make, to resume or to extend.
        parameters: of the encoding, as ``make_encoding`` takes them.
        views: the first views to convert, rounded up to whole blocks; all that are sealed when None.
        take_over: take the lease of a conversion on another host that is known to be dead.
        progress: called with blocks done and blocks in all.

    Raises:
        NotStoredError: when ``source`` has too few sealed views.
        InputError: when ``path`` is another store, or holds something else.
    """
    require_apart({"DST": path}, {"SRC": source.path})
    stop = views_to_convert(source, views)
    encoding = make_encoding(with_masked(source, parameters), source.identity.columns)
    versions = converted_versions(source, stop)
    store = open_for(path, source, replace(source.identity, encoding=encoding.to_json(), format=FORMAT), stop, versions)
    try:
        with store.lease(take_over=take_over) as writer:
            writer.carry_versions(versions)
            writer.raise_target(stop)
            if not store.calibrated and is_fitted(fitted := store.encoding):
                writer.calibrate(calibration_for(source, fitted, stop, path))
            missing = [block for block in store.missing() if store.block_views(block)[1] <= stop]
            requests = ((view, slice(*store.positions(b))) for b in missing for view in range(*store.block_views(b)))
            labels = source.stream(requests)
            with writer.queue() as write:
                for done, block in enumerate(missing):
                    write(block, converted_block(source, store, block, labels))
                    if progress:
                        progress(done + 1, len(missing))
            if not store.missing():
                writer.seal()
    except InputError:
        store.discard()  # when nothing was written: the next conversion may be to another encoding
        raise
    return store


def with_masked(source: LabelStore, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
    """Parameters of an ``int8`` to be made, with the masked value of ``source``: its own, or what its labels show."""
    own = source.identity.encoding
    if parameters.get("name") != "int8" or "masked" in parameters:
        return parameters
    if own["name"] == "int8":  # its codes are copied, and mean what they meant
        return {**parameters, "masked": own["masked"]} if "masked" in own else parameters
    found = masked_value(source.read(0, slice(MASKED_ROWS)).logits)
    return parameters if found is None else {**parameters, "masked": found}


def views_to_convert(source: LabelStore, views: int | None) -> int:
    """The number of views to convert: whole blocks, all of them sealed."""
    sealed = source.state.views_sealed
    wanted = sealed if views is None else BlockGrid.of(source.identity).whole_views(require_integer("views", views))
    if not 0 < wanted <= sealed:
        raise NotStoredError(
            f"{source.path}: {sealed} of {source.state.views_target} views are sealed, expected at least "
            f"{max(wanted, 1)}; finish its build, or ask for fewer --views"
        )
    return wanted


def converted_versions(source: LabelStore, stop: int) -> list[dict[str, Json]]:
    """The versions that made the first ``stop`` views of ``source``, each with what it is converted from."""
    last = max(source.version_index(block) for block in BlockGrid.of(source.identity).blocks(0, stop))
    origin: dict[str, Json] = {"encoding": dict(source.identity.encoding), "fidelity": source.fidelity}
    return [
        {
            **version,
            "converted_from": origin
            | ({"converted_from": version["converted_from"]} if "converted_from" in version else {}),
        }
        for version in source.state.versions[: last + 1]
    ]


def open_for(
    path: Path, source: LabelStore, identity: Identity, views: int, versions: list[dict[str, Json]]
) -> LabelStore:
    """The store to write: a new one, or the one that is there when it has the identity that a new one would have."""
    grid = BlockGrid.of(identity)
    if not LabelStore.exists(path):
        require_free_space(path, store_bytes(identity, views))
        return LabelStore.create(
            path,
            identity,
            image_digests=source.image_digests,
            targets=source.targets,
            views=views,
            versions=versions,
            notes=source.notes,
        )
    store = LabelStore.open(path)
    require_same("store", store.identity.to_json(), identity.to_json(), "give another folder to write to")
    unfinished = -(-len(store.missing()) // grid.runs) * identity.block.views
    require_free_space(path, store_bytes(identity, unfinished + max(views - store.state.views_target, 0)))
    return store


def converted_block(
    source: LabelStore, store: LabelStore, block: BlockIndex, labels: Iterator[LabelBatch]
) -> BlockData:
    """A block of ``source`` as ``store`` takes it; ``labels`` come view by view."""
    views = range(*source.block_views(block))
    batches = list(islice(labels, len(views)))
    codes = None
    if same_but_codec(source.identity.encoding, store.identity.encoding):
        stored = (source.codes(view, slice(*source.positions(block))) for view in views)
        each = [source.encoding.current(codes) for codes in stored]
        codes = {array.name: np.stack([codes[array.name] for codes in each]) for array in store.encoding.arrays}
    return BlockData(
        logits=np.stack([batch.logits for batch in batches]),
        rows=np.stack([batch.rows.values for batch in batches]),
        pixels_digest=source.pixels_digest(block),
        audit=source.audit() if block == AUDIT_BLOCK else None,
        codes=codes,
        version=source.version_index(block),
    )


def calibration_for(source: LabelStore, encoding: Transform, views: int, folder: Path) -> Calibration:
    """The calibration of ``source`` where its codes are copied, else one that is fitted to its labels."""
    own = source.encoding
    if is_fitted(own) and same_but_codec(own.to_json(), encoding.to_json()):
        return own.calibration
    return refit(source, encoding, views, folder)


def same_but_codec(ours: Mapping[str, Json], theirs: Mapping[str, Json]) -> bool:
    """Whether two encodings make the same codes and only compress them in another way."""
    return {**ours, "codec": None} == {**theirs, "codec": None}
