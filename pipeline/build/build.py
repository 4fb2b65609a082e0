"""Images in, labels out: build, resume or extend a store, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import torch

from labelstore.command.console import Console, quantity
from labelstore.command.stopping import StopSignals
from labelstore.durable.removing import EMPTY
from labelstore.encodings.bands import missed
from labelstore.encodings.transform import is_fitted
from labelstore.errors import InputError
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.spec import BlockShape, Identity, Json, require_same
from labelstore.store import LabelStore
from labelstore.writer import StoreWriter
from pipeline.build.calibrate import Calibrator
from pipeline.build.continuing import (
    FLAG_AT,
    open_for,
    provenance,
    require_built,
    require_same_engine,
    require_same_images,
    require_same_pixels,
)
from pipeline.build.defaults import encoding_of, settled
from pipeline.build.filling import Filling, Work
from pipeline.build.probing import dry_run, engine_of, shortened
from pipeline.build.recipe import describe_recipe
from pipeline.build.refusing import nothing_left
from pipeline.build.watching import Moment, Watch, watching
from pipeline.config import BuildConfig, json_object
from pipeline.device.current import make_current
from pipeline.device.faults import DeviceMemoryError, device_faults
from pipeline.device.memory import keep_freed_memory
from pipeline.images.manifest import Manifest, scan, with_classes, with_order
from pipeline.images.manifest_cache import CACHE
from pipeline.images.remarks import report_foreign_cache, report_left_out, report_skipped
from pipeline.networks.imported import imported
from pipeline.networks.load import require_known
from pipeline.plan.plan import Plan
from pipeline.ranks import Ranks, join
from pipeline.render import augmenter_of, make_renderer
from pipeline.replay.source import order_of
from pipeline.teacher.engine.batches import Workload
from pipeline.teacher.engine.spec import every_name
from pipeline.teacher.labeller import Labeller, load_labeller, require_fit
from pipeline.teacher.teacher import Teacher, TeacherSpec, make_teacher

STOPPING = "stopping after the current block; the same signal again stops at once"
KEPT = "finished blocks are kept"
BUILDING, LESS = "the store is built", "a smaller --cache-gib, or for another store a smaller --batch"  # of faults


def prepare(
    config: BuildConfig,
    console: Console,
    ranks: Ranks,
    store: LabelStore | None = None,
    labeller: Labeller | None = None,
) -> Work:
    """Check images, teacher and plan against each other, and against the store if there is one.

    Args:
        config: the flags.
        console: prints notes and warnings.
        ranks: the processes of this build.
        store: the store that is resumed or extended; None for a new one.
        labeller: labels the crops; None for the teacher of the flags.

    Raises:
        InputError: when the store cannot be built.
    """
    keep_freed_memory()
    if config.render.threads is not None:
        torch.set_num_threads(config.render.threads)
    own = config.teacher.labeller
    if own:
        imported("--labeller", own)  # a wrong name is found before images are read
    elif labeller is None:
        names = every_name(config.teacher.names, config.teacher.weights)
        for name, weights in zip(names, config.teacher.weights, strict=False):
            require_known(name, weights)
        config = settled(config, console)
    spec = config.crops
    with ranks.first_alone():
        manifest = read_images(config, console, store)
    if store:
        require_built(store)
        require_same_images(store, manifest)
    if config.recipe:
        console.line(describe_recipe(config, manifest))
    plan = Plan(spec, manifest.heights, manifest.widths)
    if labeller is None and own:
        args = json_object("--labeller-args", config.teacher.labeller_args or "{}")
        labeller = load_labeller(own, args, spec.size, manifest.classes, spec.columns)
    if labeller is None:
        labeller, engine = load_teacher(config, manifest, ranks, console, store)
    else:
        require_fit(labeller, spec.size, len(manifest.classes), spec.columns)
        engine = labeller.engine
    renderer = make_renderer(
        manifest,
        spec,
        device=config.render.device,
        decoder=config.render.decoder,
        augmenter=config.render.augmenter or (augmenter_of(store.identity.require("renderer")) if store else None),
        threads=config.render.threads,
        cache_bytes=config.render.cache_bytes,
    )
    encoding = encoding_of(config, plan, renderer, labeller, console, store)
    shape = store.identity.block if store else None
    identity = make_identity(manifest, plan, labeller, engine, encoding, renderer.id, shape or config.views)
    return Work(manifest, plan, renderer, labeller, identity)


def make_identity(
    manifest: Manifest,
    plan: Plan,
    labeller: Labeller,
    engine: Mapping[str, Json],
    encoding: Mapping[str, Json],
    renderer: Mapping[str, Json],
    block: BlockShape | int,
) -> Identity:
    """The identity of a store (P3).

    Args:
        manifest: the images; in a dry run without digests.
        plan: the plan of the crops.
        labeller: makes the labels.
        engine: the engine of the labeller.
        encoding: the encoding of the labels.
        renderer: id of the renderer.
        block: shape of the store's blocks; for a new store, the requested number of views.
    """
    spec = plan.spec
    if isinstance(block, int):
        block = BlockShape.choose(len(manifest), labeller.columns, spec.group, block)
    return Identity(
        images=len(manifest),
        classes=manifest.classes,
        columns=labeller.columns,
        size=spec.size,
        seed=spec.seed,
        group=spec.group,
        manifest=manifest.digest if manifest.digests.any() else "",
        skipped=manifest.skipped,
        teacher=labeller.identity,
        engine=engine,
        plan=spec.to_json(),
        crop_columns=spec.columns,
        encoding=encoding,
        renderer=renderer,
        block=block,
        class_columns=labeller.class_columns,
    )


def load_teacher(
    config: BuildConfig, manifest: Manifest, ranks: Ranks, console: Console, store: LabelStore | None
) -> tuple[Teacher, Mapping[str, Json]]:
    """Load the teacher of the flags; returns it with the engine of a build, which differs from that of a dry run."""
    wanted, plan = resolve_engine(config, ranks, console, store), config.crops

    def block(columns: int) -> int:
        shape = BlockShape.choose(len(manifest), columns, plan.group, config.views)
        return shape.views * min(shape.positions, len(manifest))

    teacher = make_teacher(
        shortened(wanted) if config.dry_run else wanted,
        size=plan.size,
        classes=manifest.classes,
        work=Workload(crop_columns=plan.columns, block=block),
    )
    if ranks.first:
        ranks.broadcast(dict(teacher.engine))
    console.report(teacher.notes, teacher.warnings)
    return teacher, engine_of(wanted, teacher.engine) if config.dry_run else teacher.engine


def resolve_engine(config: BuildConfig, ranks: Ranks, console: Console, store: LabelStore | None) -> TeacherSpec:
    """The teacher with the batch and the compilation of the store's last views.

    For a new store rank 0 finds the batch; the other ranks wait and use the same.
    """
    spec = config.teacher_spec()
    if not ranks.first:
        engine: Any = ranks.broadcast()
        return spec.like(engine)
    if store is None:
        return spec
    last: Any = store.state.versions[-1]["engine"]
    resolved = spec.like(last)
    if (spec.compile, resolved.compile) == ("on", "off"):
        console.warn("--compile on: the store was started with an uncompiled teacher and continues with one")
    return resolved


def read_images(config: BuildConfig, console: Console, store: LabelStore | None) -> Manifest:
    """The manifest of the images; unchanged files are taken from the cache beside the store.

    A dry run of a new store computes no digests and decodes nothing, since both read every byte.
    """
    thorough = store is not None or not config.dry_run
    ordered = store is not None and config.class_order == "auto"
    with console.progress("images", 1, "images") as progress:
        manifest = scan(
            config.images,
            class_order=order_of(store.identity.classes) if store and ordered else config.class_order,
            options=config.source,
            cache=config.manifest_cache,
            rehash=config.rehash,
            digests=thorough,
            decode=thorough,
            save=not config.dry_run,
            skip_broken=config.skip_broken,
            progress=progress.reach,
        )
    if store:
        if ordered or {*store.identity.classes} != {*manifest.classes}:
            manifest = with_classes(store.identity.classes, manifest)
        manifest = with_order(store.image_digests, manifest)
    digest = f", digest {manifest.digest[:16]}" if thorough else ""
    console.line(f"images: {len(manifest):,} in {quantity(len(manifest.classes), 'class')}{digest}")
    report_left_out(manifest, console)
    if not config.dry_run:
        report_foreign_cache(config.manifest_cache, console)
    report_skipped(manifest, console)
    return manifest


@device_faults(BUILDING, LESS)
def build(config: BuildConfig, console: Console, labeller: Labeller | None = None) -> Mapping[str, Json]:
    """Make, resume or extend the store; returns the summary.

    Killing it at any moment loses only the current blocks; running it again gives the same bytes (P4). After a signal
    it finishes the current blocks. Under torchrun, ranks share the work (P8); rank 0 returns the summary, the others
    return nothing.

    Args:
        config: the flags.
        console: prints progress, notes and warnings.
        labeller: labels the crops instead of the teacher of the flags, which are then ignored.
    """
    with join() as ranks:
        config, console = ranks.own_resources(config), console if ranks.first else Console(silent=True)
        make_current(config.render.device)
        store = LabelStore.open(config.store) if LabelStore.exists(config.store) else None
        if store is not None:
            require_built(store)
        elif ranks.first:
            LabelStore.require_creatable(config.store)
        if config.dry_run:
            if not ranks.first:
                return {}
            return dry_run(config, prepare(config, console, Ranks(), store, labeller), console, store)
        ranks.require_shared(config.store, "--store")
        if not ranks.first:
            return write_share(config, prepare(config, console, ranks, store, labeller), console, ranks)
        with (
            nothing_left(
                {config.manifest_cache: CACHE, **({config.progress_log: EMPTY} if config.progress_log else {})},
                lambda: LabelStore.exists(config.store),
            ),
            watching(config.progress_log, config.metrics_port, config.metrics_host, console) as watch,
        ):
            work = prepare(config, console, ranks, store, labeller)
            store = open_for(config, work, store, None if store else provenance(work.manifest, console))
            try:
                return write(config, work, store, console, ranks, watch)
            except Exception as error:
                # An empty new store is removed, so that the next build can use other flags.
                refused = isinstance(error, (InputError, DeviceMemoryError))
                if not (refused and store.discard()) and store.begun:
                    error.add_note(KEPT)
                raise


@device_faults(BUILDING, LESS)
def write(
    config: BuildConfig, work: Work, store: LabelStore, console: Console, ranks: Ranks, watch: Watch
) -> Mapping[str, Json]:
    """Write the missing blocks and seal them, under the store's lease."""
    with closing(work.renderer), store.lease(take_over=config.take_over, job=ranks.job) as writer:
        require_same_engine(config, store, work, console)
        require_same_pixels(config, store, work)
        views = writer.raise_target(config.views, engine=work.labeller.engine, renderer=work.renderer.id)
        whole = BlockGrid.of(work.identity).whole_views(config.views)
        if views > whole:
            console.line(f"views: the store already has {quantity(views, 'view')}; --views {config.views} adds none")
        elif whole != config.views:
            console.line(f"views: {config.views} rounded up to {whole}, whole blocks of {work.identity.block.views}")
        calibrate(store, writer, work, console)
        missing = store.missing()
        if not missing:
            console.line("labels: complete")
        ranks.broadcast(
            {"build": writer.build, "missing": [list(block) for block in missing], "work": work.identity.to_json()}
        )
        with StopSignals(lambda _number: console.warn(STOPPING)) as stops:
            Filling(store, work, missing, ranks, console, watch, stops).fill(writer)
        if stops.number:
            raise stops.error()
        writer.seal()
    return summary(store, watch.so_far())


def write_share(config: BuildConfig, work: Work, console: Console, ranks: Ranks) -> Mapping[str, Json]:
    """Write this rank's part of the missing blocks, under the lease of rank 0."""
    with closing(work.renderer):
        begun: Any = ranks.broadcast()
        advice = "start all ranks with the same command, on devices of one model"
        require_same(
            f"command of rank {ranks.rank}",
            begun["work"],
            work.identity.to_json(),
            advice,
            holder="the first rank",
            flags=FLAG_AT,
        )
        store = LabelStore.open(config.store)
        missing = [BlockIndex(*block) for block in begun["missing"]]
        with StopSignals() as stops:
            filling = Filling(store, work, missing, ranks, console, Watch(), stops)
            with store.join_lease(begun["build"]) as writer:
                filling.fill(writer)
            filling.wait()  # after the lease is released
    if stops.number:
        raise stops.error()
    return {}


def calibrate(store: LabelStore, writer: StoreWriter, work: Work, console: Console) -> None:
    """Calibrate the store's encoding if it needs a calibration and has none yet."""
    if not store.calibrated and is_fitted(encoding := store.encoding):
        calibrator = Calibrator(work.identity, work.plan, work.renderer, work.labeller, store.target_columns)
        writer.calibrate(calibrator.calibrate(encoding, console))


def summary(store: LabelStore, done: Moment) -> dict[str, Json]:
    """The summary of a build."""
    state = store.state
    return {
        "store": str(store.path),
        "images": store.identity.images,
        "views": state.views_sealed,
        "complete": store.complete,
        "crops": done.crops,
        "seconds": round(done.seconds, 1),
        "crops_per_second": round(done.rate, 1) if done.crops else None,
        "busy": {stage: round(share, 3) for stage, share in done.busy.items()},
        "binding_stage": done.binding if done.crops else None,
        "bytes_per_label": dict(store.bytes_per_label()),
        "fidelity": store.fidelity,
        "missed": [*missed(store.identity.encoding, store.fidelity)],
    }
