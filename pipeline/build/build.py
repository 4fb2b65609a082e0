"""Images in, labels out: build, resume or extend a store, block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import torch

from labelstore.command.console import Console, byte_count, duration
from labelstore.command.names import printable
from labelstore.command.stopping import Stops
from labelstore.durable import removing
from labelstore.encodings.bands import missed
from labelstore.encodings.transform import Transform
from labelstore.errors import InputError, MismatchError
from labelstore.format.arrays import AUDIT_BLOCK
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.spec import BlockShape, Identity, Json, first_difference, require_same
from labelstore.store import LabelStore, require_free_space, store_bytes
from pipeline import recipes
from pipeline.build import probing
from pipeline.build.calibrate import Calibrator
from pipeline.build.defaults import encoding_of, settled
from pipeline.build.filling import Filling, Work, report_agreement
from pipeline.build.watching import Moment, Watch, require_log, watching
from pipeline.config import BuildConfig
from pipeline.device.memory import keep_freed_memory
from pipeline.images import manifest_cache
from pipeline.images.manifest import Manifest, UnusableFilesError, explained, scan, with_classes, with_order
from pipeline.images.remarks import say_left_out
from pipeline.networks.load import require_known
from pipeline.plan.plan import Plan
from pipeline.ranks import Ranks, join
from pipeline.render import make_renderer
from pipeline.replay.source import Source, order_of
from pipeline.replay.verify import labels_come_out_again, require_same_labels
from pipeline.teacher.teacher import TeacherSpec, make_teacher

STOPPING = "stopping after the block in hand; the same again stops at once"
KEPT = "finished blocks are kept"


def prepare(config: BuildConfig, console: Console, ranks: Ranks) -> Work:
    """Check images, teacher and plan against each other.

    Raises:
        InputError: on anything that could not be built.
    """
    keep_freed_memory()
    if config.render.threads is not None:
        torch.set_num_threads(config.render.threads)
    for name, weights in zip(config.teacher.names, config.teacher.weights, strict=False):
        require_known(name, weights)
    config = settled(config, console)
    spec = config.crops
    with ranks.first_alone():
        manifest = read_images(config, console)
    if config.recipe:
        console.line(recipes.said(config, manifest))
    plan = Plan(spec, manifest.heights, manifest.widths)
    wanted = settle_engine(config, ranks, console)
    teacher = make_teacher(
        probing.shortened(wanted) if config.dry_run else wanted, size=config.crops.size, classes=manifest.classes
    )
    if ranks.first:
        ranks.tell(dict(teacher.engine))
    console.tell(teacher.notes, teacher.warnings)
    renderer = make_renderer(
        manifest,
        spec,
        device=config.render.device,
        decoder=config.render.decoder,
        threads=config.render.threads,
        cache_bytes=config.render.cache_bytes,
    )
    identity = Identity(
        images=len(manifest),
        classes=manifest.classes,
        columns=teacher.columns,
        size=config.crops.size,
        seed=config.crops.seed,
        group=spec.group,
        manifest=manifest.digest if manifest.digests.any() else "",  # a dry run may not know it
        skipped=manifest.skipped,
        teacher=teacher.identity,
        engine=probing.engine_of(wanted, teacher.engine) if config.dry_run else teacher.engine,
        plan=spec.to_json(),
        crop_columns=spec.columns,
        encoding=encoding_of(config, plan, renderer, teacher, console),
        renderer=renderer.id,
        block=block_shape(config, len(manifest), teacher.columns),
        class_columns=teacher.class_columns,
    )
    return Work(manifest, plan, renderer, teacher, identity)


def block_shape(config: BuildConfig, images: int, columns: int) -> BlockShape:
    """The shape of the store's blocks; of a new store, one that suits the views that its first build asks for."""
    if LabelStore.exists(config.store):
        return LabelStore.open(config.store).identity.block
    return BlockShape.choose(images, columns, config.crops.group, config.views)


def settle_engine(config: BuildConfig, ranks: Ranks, console: Console) -> TeacherSpec:
    """The teacher with the batch that the store's last views were made with, compiled or not as they were.

    Of a new store the first rank finds that out, and the others wait for it and take the same.
    """
    spec = config.teacher_spec()
    if not ranks.first:
        told: Any = ranks.tell()
        return spec.like(told)
    if LabelStore.exists(config.store):
        last: Any = LabelStore.open(config.store).state.versions[-1]["engine"]
        settled = spec.like(last)
        if (spec.compile, settled.compile) == ("on", "off"):
            console.warn("--compile on: the store was begun with an uncompiled teacher and continues with one")
        return settled
    return spec


def read_images(config: BuildConfig, console: Console) -> Manifest:
    """The manifest of the images, from the cache beside the store where files have not changed.

    A dry run of a new store takes no digests and decodes nothing, for which every byte would be read.
    """
    store = LabelStore.open(config.store) if LabelStore.exists(config.store) else None
    thorough = store is not None or not config.dry_run
    ordered = store is not None and config.class_order == "auto"
    with console.progress("images", 1, "images") as progress:
        manifest = scan(
            config.images,
            class_order=order_of(store.identity.classes) if store and ordered else config.class_order,
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
    console.line(f"images: {len(manifest):,} in {len(manifest.classes):,} classes{digest}")
    say_left_out(manifest, console)
    if not config.dry_run and manifest_cache.is_foreign(config.manifest_cache):
        console.warn(
            f"{config.manifest_cache}: is no cache of images and stays as it is; all images are read again each time"
        )
    for path in manifest.skipped:
        console.warn(f"left out, does not decode: {printable(path)}")
    return manifest


def build(config: BuildConfig, console: Console) -> Mapping[str, Json]:
    """Make, resume or extend the store; returns the summary.

    Killing this at any instant loses the blocks in hand; running it again continues, to the same bytes (P4). A signal
    lets them end. Under torchrun, ranks share the work (P8); the summary is the first one's, others return nothing.
    """
    with join() as ranks:
        config, console = ranks.share(config), console if ranks.first else Console(silent=True)
        if ranks.first and not LabelStore.exists(config.store):
            LabelStore.require_creatable(config.store)
        if config.dry_run:
            return dry_run(config, prepare(config, console, Ranks()), console) if ranks.first else {}
        if not ranks.first:
            return write_share(config, prepare(config, console, ranks), console, ranks)
        with (
            nothing_left(config),
            watching(config.progress_log, config.metrics_port, config.metrics_host, console) as watch,
        ):
            work = prepare(config, console, ranks)
            store = open_for(config, work)
            try:
                return write(config, work, store, console, ranks, watch)
            except Exception as error:
                # A new store in which nothing is lost goes: the next build may leave out what stopped this.
                if not (isinstance(error, InputError) and store.discard()) and store.begun:
                    error.add_note(KEPT)
                raise


@contextmanager
def nothing_left(config: BuildConfig) -> Iterator[None]:
    """A build that is refused before it has a store leaves no cache of its images, no log and no folder either.

    What was read is kept where single files are to be mended: reading all others again may take hours.
    """
    cache, log = config.manifest_cache, config.progress_log
    made = {cache: manifest_cache.CACHE, **({log: removing.EMPTY} if log else {})}
    made = {path: proof for path, proof in made.items() if not os.path.lexists(path)}
    folders = [folder for folder in cache.parents if not folder.exists()]
    try:
        yield
    except InputError as error:
        if not (isinstance(error, UnusableFilesError) or LabelStore.exists(config.store)):
            for path, proof in made.items():
                removing.remove(path, proof)
            for folder in folders:
                removing.remove_folder(folder)
        raise


def write(
    config: BuildConfig, work: Work, store: LabelStore, console: Console, ranks: Ranks, watch: Watch
) -> Mapping[str, Json]:
    """Write and seal what is missing, under the store's lease."""
    with closing(work.renderer), store.lease(take_over=config.take_over):
        require_same_engine(config, store, work, console)
        views = store.raise_target(config.views, engine=work.teacher.engine, renderer=work.renderer.id)
        whole = BlockGrid.of(work.identity).whole_views(config.views)
        if views > whole:
            console.line(f"views: the store has or wants {views} already, and --views {config.views} adds none")
        elif whole != config.views:
            console.line(f"views: {config.views} rounded up to {whole}, whole blocks of {work.identity.block.views}")
        calibrate(store, work, console)
        missing = store.missing()
        if not missing:
            console.line("labels: all are there, none is missing")
        ranks.tell(
            {"build": store.build, "missing": [list(block) for block in missing], "work": work.identity.to_json()}
        )
        with Stops(lambda _number: console.warn(STOPPING)) as stops:
            Filling(store, work, missing, ranks, console, watch, stops).fill()
        if stops.number:
            raise stops.error()
        store.seal()
    return summary(store, watch.so_far())


def write_share(config: BuildConfig, work: Work, console: Console, ranks: Ranks) -> Mapping[str, Json]:
    """Write this rank's share of what the first rank found missing, under its lease."""
    with closing(work.renderer):
        said: Any = ranks.tell()
        advice = "start all ranks with the same command, on devices of one model"
        require_same(f"rank {ranks.rank}", said["work"], work.identity.to_json(), advice)
        store = LabelStore.open(config.store)
        missing = [BlockIndex(*block) for block in said["missing"]]
        with Stops() as stops:
            filling = Filling(store, work, missing, ranks, console, Watch(), stops)
            with store.share_lease(said["build"]):
                filling.fill()
            filling.wait()  # when the lease is let go
    if stops.number:
        raise stops.error()
    return {}


def calibrate(store: LabelStore, work: Work, console: Console) -> None:
    """Calibrate the store's encoding where it takes that and has not been."""
    if not store.calibrated and isinstance(store.encoding, Transform):
        calibrator = Calibrator(work.identity, work.plan, work.renderer, work.teacher, store.target_columns)
        store.calibrate(calibrator.calibrate(store.encoding, console))


def open_for(config: BuildConfig, work: Work) -> LabelStore:
    """The store to write: a new one, or the one that is there when it is made of the same things.

    Raises:
        MismatchError: names the first difference between the store and this build.
    """
    if store := checked(config, work):
        return store
    return LabelStore.create(
        config.store,
        work.identity,
        image_digests=work.manifest.digests,
        targets=work.manifest.targets,
        views=BlockGrid.of(work.identity).whole_views(config.views),
    )


def checked(config: BuildConfig, work: Work) -> LabelStore | None:
    """The store that is there, None where it can be created: all that is refused before a store is written."""
    identity = work.identity
    views = BlockGrid.of(identity).whole_views(config.views)
    if not LabelStore.exists(config.store):
        LabelStore.require_creatable(config.store)
        require_free_space(config.store, store_bytes(identity, views))
        return None
    store = LabelStore.open(config.store)
    require_same_identity(store.identity, identity, explained(store.identity.images, work.manifest))
    store.require_writable(views, take_over=config.take_over)
    require_free_space(config.store, store_bytes(identity, views_to_write(store, views)))
    return store


def views_to_write(store: LabelStore, views: int) -> int:
    """Views that a build of ``views`` still has to write, unfinished ones included; whole blocks."""
    grid = BlockGrid.of(store.identity)
    unfinished = -(-len(store.missing()) // grid.runs) * store.identity.block.views
    return unfinished + max(views - store.state.views_target, 0)


def require_same_engine(config: BuildConfig, store: LabelStore, work: Work, console: Console) -> None:
    """Refuse to write views by another engine or renderer than the last, unless that is wanted and gives the same."""
    last = store.state.versions[-1]
    engine = work.identity.require("engine")
    ours: dict[str, Json] = {"engine": dict(engine), "renderer": dict(work.renderer.id)}
    theirs: dict[str, Json] = {name: last[name] for name in ours}
    found = first_difference(theirs, ours)
    if not found or not views_to_write(store, config.views):
        return
    audited = AUDIT_BLOCK not in store.missing()
    # the audit rows are there before their views are sealed
    source = Source(LabelStore.open(store.path, follow=True), work.manifest, work.plan.spec, work.renderer)
    if audited and only_threads_differ(theirs, ours) and labels_come_out_again(source, work.teacher):
        console.line(f"{found[0]}: {found[1]} in the store and {found[2]} here, with the same labels of the audit rows")
        return
    if not config.allow_engine_change:
        raise MismatchError(
            f"another engine at {found[0]}: the store has {found[1]!r}, this run has {found[2]!r}; run where and "
            f"as the store was begun (--dtype, --batch, --threads, --fold, --compile, --cuda-graph), or say "
            f"--allow-engine-change, which the store records for the views to come"
        )
    if audited:
        require_same_labels(source, work.teacher, console)


def only_threads_differ(theirs: Mapping[str, Json], ours: Mapping[str, Json]) -> bool:
    """Whether two descriptions of engine and renderer are the same but for the number of CPU threads."""
    engine: Any = theirs["engine"]
    other: Any = ours["engine"]
    return first_difference({**theirs, "engine": {**engine, "threads": other.get("threads")}}, dict(ours)) is None


def require_same_identity(stored: Identity, given: Identity, found: str = "") -> None:
    """Refuse to continue a store with other images, another teacher, another plan or another shape.

    Args:
        stored: the store's identity.
        given: what this build would make.
        found: why the images may be others.
    """
    advice = {
        "images": f"give the images that the store was made of, or another --store{found}",
        "teacher": "give the teacher that the store was made with (--weights, --mean, --std), or another --store",
        "plan": "give the crop, mix, size and seed flags of the store, or another --store",
        "label encoding": "give the store's --encoding, --codec, --fidelity or --step, or another --store",
    }
    parts: dict[str, tuple[str, ...]] = {
        "images": ("images", "classes", "skipped", "manifest"),
        "teacher": ("class_columns", "columns", "teacher"),
        "plan": ("size", "seed", "group", "plan", "crop_columns", "block"),
        "label encoding": ("encoding",),
    }
    ours, theirs = stored.to_json(), given.to_json()
    for what, names in parts.items():
        require_same(what, {n: ours.get(n) for n in names}, {n: theirs.get(n) for n in names}, advice[what])


def dry_run(config: BuildConfig, work: Work, console: Console) -> Mapping[str, Json]:
    """What the build would make and take, from a probe of a few batches; writes nothing."""
    identity = work.identity
    views = BlockGrid.of(identity).whole_views(config.views)
    if config.progress_log is not None:
        require_log(config.progress_log)
    if store := checked(config, work):
        require_same_engine(config, store, work, console)
        views = views_to_write(store, views)
    size = store_bytes(identity, views)
    with watching(None, config.metrics_port, config.metrics_host, console):
        pass  # the port is free
    with closing(work.renderer):
        probed = probing.probe(work)
    report_agreement(work, probed.data, console)
    crops, seconds = work.crops(views), work.crops(views) / probed.rate
    unchecked = [
        f"that images decode, but for those of {probed.crops:,} crops",
        *(() if work.identity.manifest else ("their digests",)),
        "that a whole batch fits memory",
        *(("--compile",) if config.engine.compile != "off" else ()),
        *(("--cuda-graph",) if config.engine.cuda_graph else ()),
    ]
    values: dict[str, Json] = {
        "store": str(config.store),
        "crops": crops,
        "views": views,
        "bytes": size,
        "crops_per_second": round(probed.rate, 1),
        "seconds": round(seconds, 1),
        "encoding": dict(identity.encoding),
        "not_checked": [*unchecked],
    }
    console.line(f"not checked: {', '.join(unchecked)}")
    console.summary(
        values,
        f"dry run: {crops:,} crops ({identity.images:,} images x {views} views), at most {byte_count(size)}, "
        f"about {duration(seconds)} at {probed.rate:,.0f} crops/s; nothing was written",
    )
    return values


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
