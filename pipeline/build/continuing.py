"""Continue a store: checks that the build has the images, teacher, plan and engine of the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labelstore.command.console import Console
from labelstore.command.flags import flags_of
from labelstore.errors import GiftwrapError, InputError, MismatchError
from labelstore.format.arrays import AUDIT_BLOCK
from labelstore.format.blocks import BlockGrid
from labelstore.spec import Identity, Json, first_difference, located, require_same
from labelstore.store import LabelStore, require_free_space, store_bytes
from pipeline.build.filling import Work
from pipeline.config import BuildConfig
from pipeline.images.manifest import Manifest, explained
from pipeline.images.provenance import record_of
from pipeline.render import decoder_of
from pipeline.replay.source import Replayer, check_pixels
from pipeline.replay.verify import labels_come_out_again, require_same_labels

PARTS: Mapping[str, tuple[str, ...]] = {
    "images": ("images", "classes", "skipped", "manifest"),
    "teacher": ("class_columns", "columns", "teacher"),
    "plan": ("size", "seed", "group", "plan", "crop_columns", "block"),
    "label encoding": ("encoding",),
}
ADVICE: Mapping[str, str] = {
    "images": "give the images of the store, or another --store",
    "teacher": "give the teacher of the store (--weights, --mean, --std), or its --labeller and "
    "--labeller-args, or another --store",
    "plan": "give the crop, mix, size and seed flags of the store, or another --store",
    "label encoding": "give the store's --encoding, --codec, --fidelity, --step, --mean-steps or --keep-top1, or "
    "another --store",
}
# The flag that sets a value, by the place of the value in an identity or an engine.
FLAG_AT: Mapping[str, str] = {
    f"{part}{key}": f"--{flag.name}"
    for key, flag in flags_of(BuildConfig).items()
    for part in ("", "plan.", "teacher.", "engine.")
}


def open_for(
    config: BuildConfig, work: Work, store: LabelStore | None = None, notes: Mapping[str, Json] | None = None
) -> LabelStore:
    """The store to write: ``store`` after checking its identity, or a new one with ``notes`` if there is none.

    Raises:
        MismatchError: names the first difference between the store and this build.
    """
    require_buildable(config, work, store)
    if store:
        return store
    return LabelStore.create(
        config.store,
        work.identity,
        image_digests=work.manifest.digests,
        targets=work.manifest.targets,
        views=BlockGrid.of(work.identity).whole_views(config.views),
        notes=notes,
    )


def require_built(store: LabelStore) -> None:
    """Refuse to add views to labels that were made elsewhere, since their crops have no plan.

    Raises:
        InputError: when the store is adopted; names the command that extends it.
    """
    if store.identity.origin == "adopted":
        raise InputError(
            f"{store.path}: expected a store that a build has made, found adopted labels, to which no views can be "
            f"built; `{store.maker}` adds more of the same labels; give another --store for labels of a teacher"
        )


def provenance(manifest: Manifest, console: Console) -> dict[str, Json]:
    """Notes for a new store: the record of a synthesised image set, if the images have one."""
    try:
        found = record_of(Path(manifest.location))
    except GiftwrapError as error:
        console.warn(f"the record of how the images were made is not kept in the store: {error}")
        return {}
    return {} if found is None else {"synthesis": found}


def require_buildable(config: BuildConfig, work: Work, store: LabelStore | None) -> None:
    """Checks before a store is written: its identity, free space, and a place for a new store."""
    identity = work.identity
    views = BlockGrid.of(identity).whole_views(config.views)
    if store is None:
        LabelStore.require_creatable(config.store)
        require_free_space(config.store, store_bytes(identity, views))
        return
    store.refresh()
    require_same_identity(store.identity, identity, explained(store.identity.images, work.manifest))
    store.require_writable(views, take_over=config.take_over)
    require_free_space(config.store, store_bytes(identity, views_to_write(store, views)))


def require_same_images(store: LabelStore, manifest: Manifest) -> None:
    """Refuse to continue a store with other images, before the rest of the build is prepared.

    Raises:
        MismatchError: names the first difference.
    """
    stored = store.identity.to_json()
    given: dict[str, Json] = {
        "images": len(manifest),
        "classes": list(manifest.classes),
        "skipped": list(manifest.skipped),
        "manifest": manifest.digest,
    }
    advice = ADVICE["images"] + explained(store.identity.images, manifest)
    require_same("images", {name: stored[name] for name in given}, given, advice, flags=FLAG_AT)


def views_to_write(store: LabelStore, views: int) -> int:
    """Number of views that a build of ``views`` still has to write, in whole blocks, including unfinished ones."""
    grid = BlockGrid.of(store.identity)
    unfinished = -(-len(store.missing()) // grid.runs) * store.identity.block.views
    return unfinished + max(views - store.state.views_target, 0)


def require_same_engine(config: BuildConfig, store: LabelStore, work: Work, console: Console) -> None:
    """Refuse another engine or renderer than that of the last views, unless it is allowed and gives the same labels."""
    last = store.state.versions[-1]
    engine = work.identity.require("engine")
    ours: dict[str, Json] = {"engine": dict(engine), "renderer": dict(work.renderer.id)}
    theirs: dict[str, Json] = {name: last[name] for name in ours}
    found = first_difference(theirs, ours)
    if not found or not views_to_write(store, config.views):
        return
    audited = AUDIT_BLOCK not in store.missing()
    # with follow, since the audit rows exist before their views are sealed
    source = Replayer(LabelStore.open(store.path, follow=True), work.manifest, work.plan.spec, work.renderer)
    if audited and only_threads_differ(theirs, ours) and labels_come_out_again(source, work.labeller):
        console.line(f"{found[0]}: {found[1]} in the store and {found[2]} here, with the same labels of the audit rows")
        return
    if not config.allow_engine_change:
        raise MismatchError(
            f"different engine{located(found[0], flags=FLAG_AT)}: the store has {found[1]!r}, this run has "
            f"{found[2]!r}; run on the device and with the flags of the store (--dtype, --batch, --threads, --fold, "
            f"--compile, "
            f"--cuda-graph, --augmenter), or give --allow-engine-change, which the store records for the next views"
        )
    if audited:
        require_same_labels(source, work.labeller, console)


def require_same_pixels(config: BuildConfig, store: LabelStore, work: Work) -> None:
    """If a GPU decodes, render stored crops again before views are added, and refuse other pixels.

    nvImageCodec silently falls back to the CPU if the GPU fails to decode an image, with other pixels.

    Raises:
        MismatchError: when pixels differ.
    """
    by_gpu = decoder_of(work.renderer.id) != "cpu"
    if not by_gpu or AUDIT_BLOCK in store.missing() or not views_to_write(store, config.views):
        return
    # with follow, since the audit rows exist before their views are sealed
    check_pixels(Replayer(LabelStore.open(store.path, follow=True), work.manifest, work.plan.spec, work.renderer))


def only_threads_differ(theirs: Mapping[str, Json], ours: Mapping[str, Json]) -> bool:
    """Whether two descriptions of engine and renderer differ only in the number of CPU threads."""
    engine: Any = theirs["engine"]
    other: Any = ours["engine"]
    return first_difference({**theirs, "engine": {**engine, "threads": other.get("threads")}}, dict(ours)) is None


def require_same_identity(stored: Identity, given: Identity, found: str = "") -> None:
    """Refuse to continue a store with other images, another teacher, another plan or another shape.

    Args:
        stored: the store's identity.
        given: the identity of this build.
        found: a possible reason for other images.
    """
    ours, theirs = stored.to_json(), given.to_json()
    for what, names in PARTS.items():
        advice = ADVICE[what] + (found if what == "images" else "")
        require_same(what, {n: ours.get(n) for n in names}, {n: theirs.get(n) for n in names}, advice, flags=FLAG_AT)
