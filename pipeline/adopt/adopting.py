"""Make a store of existing labels: check them against their images, then write them block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from labelstore.command.console import Console, quantity
from labelstore.command.stopping import StopSignals
from labelstore.encoding_table import ENCODINGS
from labelstore.encodings import make_encoding
from labelstore.errors import InputError
from labelstore.format.arrays import AUDIT_BLOCK
from labelstore.format.blocks import BlockGrid
from labelstore.operations.adopting import adopted_identity
from labelstore.spec import Identity, Json, require_same
from labelstore.store import LabelStore, require_free_space, store_bytes
from labelstore.writer import StoreWriter
from pipeline.adopt import FORMATS
from pipeline.adopt.agreeing import Evidence, agreeing, require_same_teacher, teacher_of
from pipeline.adopt.blocks import Blocks
from pipeline.adopt.config import AdoptConfig
from pipeline.adopt.continuing import Shown, require_same_labels
from pipeline.adopt.labels import MASKED, Labels, Request
from pipeline.adopt.numbering import numbering
from pipeline.build.continuing import provenance
from pipeline.build.refusing import nothing_left
from pipeline.config import manifest_cache
from pipeline.device.faults import device_faults
from pipeline.images.manifest import Manifest, scan, with_classes, with_order
from pipeline.images.manifest_cache import CACHE
from pipeline.images.remarks import report_left_out
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.plan.spec import PlanSpec
from pipeline.render import Renderer, augmenter_of, make_renderer
from pipeline.replay.source import Replayer, check_pixels, order_of
from pipeline.teacher.class_order import CLASS_COLUMNS, check_classes, choose, require_known_columns
from pipeline.teacher.imagenet import COLUMNS as IMAGENET_COLUMNS
from pipeline.teacher.imagenet import IMAGENET
from pipeline.teacher.labeller import NOT_KNOWN, Labeller

STOPPING = "stopping after the current block; the same signal again stops at once"


@dataclass(frozen=True, eq=False)
class Work:
    """Labels and images that were opened and checked; nothing is written yet.

    Attributes:
        name: name of the format.
        labels: the existing labels.
        manifest: the images.
        spec: how crops are rendered from images.
        renderer: renders the crops.
        identity: identity of the store to write.
    """

    name: str
    labels: Labels
    manifest: Manifest
    spec: PlanSpec
    renderer: Renderer
    identity: Identity


@device_faults("labels are adopted", "a smaller --cache-gib")
def adopt(config: AdoptConfig, console: Console) -> Mapping[str, Json]:
    """Make, continue or extend a store of existing labels; returns the summary.

    Killing this at any instant loses the current block; running it again continues, to the same bytes (P4).

    Args:
        config: the flags.
        console: where progress, notes and warnings go.

    Raises:
        InputError: names what does not fit; no file is left behind.
    """
    store = LabelStore.open(config.store) if LabelStore.exists(config.store) else None
    if store is None:
        LabelStore.require_creatable(config.store)
    cache = manifest_cache(config.store)
    with nothing_left({cache: CACHE}, lambda: LabelStore.exists(config.store)):
        work = prepare(config, console, store)
        with closing(work.renderer):
            if config.dry_run:
                return {"dry_run": True, "views": work.labels.views}
            store = open_for(config, work, store, console)
            try:
                return write(config, work, store, console)
            except InputError:
                store.discard()  # where nothing was written into it
                raise


def prepare(config: AdoptConfig, console: Console, store: LabelStore | None) -> Work:
    """Open images and labels, and check them against each other.

    Raises:
        InputError: names what does not fit.
        MismatchError: the labels are of other images, or of another teacher than the given one.
    """
    manifest = read_images(config, console, store)
    labeller = teacher_of(config, manifest, console)
    request = Request(
        folder=config.labels,
        manifest=manifest,
        size=config.size,
        columns=columns_of(config, labeller),
        views=config.views,
        sampler_seed=config.sampler_seed,
        order=config.order,
        numbering=None if config.image_list is None else numbering(config.image_list, manifest),
    )
    name, each = opened(config, request)
    console.line(f"labels: {each[0].files}; {each[0].columns:,} columns")
    columns = class_columns(config, each[0].columns, manifest, labeller)
    found = agreeing(each, manifest, columns or tuple(range(len(manifest.classes))))
    console.line(f"order of the images: {found.labels.order}")
    console.line(found.text)
    found.require(config)
    labels = found.labels
    spec = PlanSpec(
        size=config.size,
        mix=labels.mix,
        group=labels.group,
        interpolation=config.interpolation or labels.interpolation,
    )
    renderer = make_renderer(
        manifest,
        spec,
        device=config.render.device,
        decoder=config.render.decoder,
        augmenter=config.render.augmenter or (augmenter_of(store.identity.require("renderer")) if store else None),
        threads=config.render.threads,
        cache_bytes=config.render.cache_bytes,
    )
    try:
        look_at_crops(found)
        if labeller is not None:
            console.line(require_same_teacher(found, labeller, spec, renderer))
        teacher = teacher_identity(config, labeller, console)
        identity = make_identity(manifest, labels, spec, teacher, columns, renderer.id, encoding_of(config, labels))
    except BaseException:
        renderer.close()
        raise
    if store:
        identity = replace(identity, renderer=store.identity.renderer, block=store.identity.block)
    return Work(name, labels, manifest, spec, renderer, identity)


def read_images(config: AdoptConfig, console: Console, store: LabelStore | None) -> Manifest:
    """The manifest of the images; in the order of ``store`` if one is continued."""
    ordered = store is not None and config.class_order == "auto"
    with console.progress("images", 1, "images") as progress:
        manifest = scan(
            config.images,
            class_order=order_of(store.identity.classes) if store and ordered else config.class_order,
            options=config.source,
            cache=manifest_cache(config.store),
            rehash=config.rehash,
            save=not config.dry_run,
            progress=progress.reach,
        )
    if store and (ordered or {*store.identity.classes} != {*manifest.classes}):
        manifest = with_order(store.image_digests, with_classes(store.identity.classes, manifest))
    console.line(
        f"images: {len(manifest):,} in {quantity(len(manifest.classes), 'class')}, digest {manifest.digest[:16]}"
    )
    report_left_out(manifest, console)
    return manifest


def opened(config: AdoptConfig, request: Request) -> tuple[str, Sequence[Labels]]:
    """The name of the format, and the labels in each order that they may have."""
    if not request.folder.is_dir():
        raise InputError(f"{request.folder}: expected the folder of the labels, found none")
    name = config.format or next((name for name in FORMATS if FORMATS[name].recognises(request.folder)), None)
    if name is None:
        raise InputError(
            f"{request.folder}: expected labels of {', '.join(FORMATS)}, found neither epoch_0/batch_0.tar with a "
            f"list of 6, 7 or 8 in it nor a .tar of each image; give the folder that holds epoch_0, or name the "
            f"--format"
        )
    return name, FORMATS[name].open(request)


def columns_of(config: AdoptConfig, labeller: Labeller | None) -> int | None:
    """Columns of a label, if the format does not store them: the teacher's or ImageNet's; None for one a class."""
    if labeller is not None:
        return labeller.columns
    return IMAGENET_COLUMNS if config.teacher.class_columns == IMAGENET else None


def class_columns(config: AdoptConfig, columns: int, manifest: Manifest, labeller: Labeller | None) -> tuple[int, ...]:
    """The column of each class in a label; empty if class k has column k.

    Raises:
        InputError: the labels have other columns than the teacher, or it is not known which column a class has.
    """
    if labeller is not None:
        if labeller.columns != columns:
            raise InputError(
                f"{config.labels}: expected {labeller.columns:,} columns, as the teacher has, found {columns:,} in the "
                f"labels; give the teacher that made them"
            )
        return labeller.class_columns
    selection = config.teacher.class_columns
    if selection is None:
        require_known_columns(manifest.classes, None, columns, (CLASS_COLUMNS,))
        check_classes(range(columns), None, manifest.classes, flags=(CLASS_COLUMNS,))
        return ()
    chosen = choose(selection, None, columns, manifest.classes, flag=CLASS_COLUMNS).columns or ()
    if chosen:
        check_classes(chosen, None, manifest.classes, flags=(CLASS_COLUMNS,))
    return chosen


def look_at_crops(found: Evidence) -> None:
    """Read the crops of the sampled labels, so that boxes of other images are refused before writing."""
    for view, start, stop in found.parts:
        found.labels.crops(view, start, stop)


def teacher_identity(config: AdoptConfig, labeller: Labeller | None, console: Console) -> dict[str, Json]:
    """The identity of the teacher if one is given and checked; otherwise its normalisation alone."""
    if labeller is not None:
        return dict(labeller.identity)
    mean, std = config.teacher.mean or IMAGENET_MEAN, config.teacher.std or IMAGENET_STD
    whose = "as given" if config.teacher.mean else "ImageNet's; see --mean, --std"
    console.line(f"normalisation: {whose}; the teacher is {NOT_KNOWN}; --teacher checks and records it")
    return {"name": NOT_KNOWN, "mean": list(mean), "std": list(std)}


def make_identity(
    manifest: Manifest,
    labels: Labels,
    spec: PlanSpec,
    teacher: Mapping[str, Json],
    columns: tuple[int, ...],
    renderer: Mapping[str, Json],
    encoding: Mapping[str, Json],
) -> Identity:
    """The identity of the store: everything that determines its bytes (P3)."""
    return adopted_identity(
        image_digests=manifest.digests,
        targets=manifest.targets,
        classes=manifest.classes,
        columns=labels.columns,
        size=spec.size,
        views=labels.views,
        teacher=teacher,
        mix=labels.mix,
        group=labels.group,
        interpolation=spec.interpolation,
        encoding=encoding,
        renderer=renderer,
        class_columns=columns,
        content=labels.content,
        skipped=manifest.skipped,
    )


def encoding_of(config: AdoptConfig, labels: Labels) -> dict[str, Json]:
    """The label encoding; by default float16, or int8 for labels of the largest columns alone.

    Raises:
        InputError: it needs a calibration, or cannot mark columns as not known.
    """
    name = config.encoding or ("int8" if labels.content == "topk" else "float16")
    if ENCODINGS[name].needs_calibration:
        raise InputError(
            f"--encoding {name}: needs a calibration; adopt the labels as they come, then run "
            f"`giftwrap convert --encoding {name}`"
        )
    if labels.content == "topk" and name != "int8":
        raise InputError(
            f"--encoding {name}: the labels are of the largest columns alone, which int8 keeps; leave it out"
        )
    masked: dict[str, Json] = {"masked": MASKED} if labels.content == "topk" else {}
    return make_encoding({"name": name, **masked}, labels.columns).to_json()


def open_for(config: AdoptConfig, work: Work, store: LabelStore | None, console: Console) -> LabelStore:
    """Create the store, or check that the existing one has the same identity.

    Raises:
        InputError: it has another identity, whole blocks cannot hold the views, or there is too little space.
    """
    identity, views = work.identity, work.labels.views
    if store is None:
        require_free_space(config.store, store_bytes(identity, views))
        return LabelStore.create(
            config.store,
            identity,
            image_digests=work.manifest.digests,
            targets=work.manifest.targets,
            views=views,
            notes={**provenance(work.manifest, console), "adopted": {"format": work.name, "order": work.labels.order}},
        )
    require_same(
        "store",
        store.identity.to_json(),
        identity.to_json(),
        "give the flags that it was adopted with, or another --store",
    )
    if views % identity.block.views:
        raise InputError(
            f"--views {views}: expected a multiple of {identity.block.views}, the views of a block of "
            f"{config.store}; adopt so many, or into another --store"
        )
    store.require_writable(views, take_over=config.take_over)
    require_free_space(config.store, store_bytes(identity, max(views - store.state.views_sealed, 0)))
    return store


def write(config: AdoptConfig, work: Work, store: LabelStore, console: Console) -> Mapping[str, Json]:
    """Write the missing blocks and seal the store, under its lease; returns the summary."""
    with store.lease(take_over=config.take_over) as writer:
        if AUDIT_BLOCK not in store.missing():
            there = LabelStore.open(store.path, follow=True)
            require_same_labels(work.labels, there)
            check_pixels(Replayer(there, work.manifest, work.spec, work.renderer))
        writer.raise_target(work.labels.views, renderer=work.renderer.id)
        written = fill(work, store, writer, console)
        writer.seal()
    return summary(work, store, written)


def fill(work: Work, store: LabelStore, writer: StoreWriter, console: Console) -> int:
    """Write the missing blocks; returns the number of labels in them. A signal stops after the current block."""
    grid, missing = BlockGrid.of(work.identity), store.missing()
    blocks = Blocks(work.labels, work.renderer, store.encoding, work.spec.group)
    counts = [int(np.prod(list(grid.extent(block).values()))) for block in missing]
    shown = Shown(LabelStore.open(store.path, follow=True), missing, work.manifest.names)
    done = 0
    with (
        StopSignals(lambda _number: console.warn(STOPPING)) as stops,
        console.progress("labels", sum(counts), "labels") as progress,
        writer.queue() as write_block,
    ):
        for block, count in zip(missing, counts, strict=True):
            if stops.number:
                break
            data = blocks.data(block, range(*grid.views(block)), grid.positions(block))
            shown.add(block, data.rows)
            write_block(block, data)
            done += count
            progress.advance(count)
    if stops.number:
        raise stops.error()
    return done


def summary(work: Work, store: LabelStore, written: int) -> dict[str, Json]:
    """The summary of the command."""
    sizes: Any = store.bytes_per_label()
    return {
        "store": str(store.path),
        "images": store.identity.images,
        "views": store.state.views_sealed,
        "views_there": work.labels.there,
        "labels": written,
        "encoding": dict(store.identity.encoding),
        "content": store.identity.content,
        "bytes_per_label": dict(sizes),
        "fidelity": store.fidelity,
    }
