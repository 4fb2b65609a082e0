"""The dry run of a build: label a few crops, without the slow setup of a full build."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch

from labelstore.command.console import Console, byte_count, duration, quantity
from labelstore.format.blocks import BlockGrid
from labelstore.format.columns import CropRows
from labelstore.spec import Json
from labelstore.store import BlockData, LabelStore, store_bytes
from pipeline.build.continuing import require_buildable, require_same_engine, views_to_write
from pipeline.build.filling import Work, report_agreement
from pipeline.build.watching import require_log, watching
from pipeline.config import BuildConfig
from pipeline.render.batches import render_batches
from pipeline.teacher.class_order import MIN_ROWS
from pipeline.teacher.engine.compiling import compilers
from pipeline.teacher.engine.spec import TeacherSpec

PROBE_SECONDS = 4.0
PROBE_CROPS = 512  # at most
CPU_BATCH, GPU_BATCH = 16, 128


@dataclass(frozen=True, eq=False)
class Probe:
    """Crops that a dry run has labelled.

    Attributes:
        data: their rows and logits, in the form of a block.
        rate: crops a second.
    """

    data: BlockData
    rate: float

    @property
    def crops(self) -> int:
        """Number of crops."""
        return int(self.data.logits.shape[1])


def shortened(spec: TeacherSpec) -> TeacherSpec:
    """The teacher with small batches and uncompiled: as fast for each crop on a CPU, and ready at once."""
    most = GPU_BATCH if spec.device.startswith("cuda") else CPU_BATCH
    return replace(spec, batch=min(spec.batch or most, most), compile="off", cuda_graph=False)


def engine_of(spec: TeacherSpec, probed: Mapping[str, Json]) -> dict[str, Json]:
    """The engine of a build, from the engine of ``shortened``.

    Raises:
        CompileError: when the teacher must be compiled, and there is no compiler.
    """
    engine = {**probed, "batch": spec.batch or probed["batch"]}
    if spec.cuda_graph:
        engine["cuda_graph"] = True
    if spec.compile == "require":
        versions = probed["versions"]
        known = versions if isinstance(versions, dict) else {}
        engine |= {"compile": "inductor", "versions": {**known, **compilers(torch.device(spec.device))}}
    return engine


def probe(work: Work) -> Probe:
    """Label the first crops of view 0 for some seconds, and at least as many as the agreement with the folders needs.

    Raises:
        InputError: when an image cannot be decoded, or a logit is not finite.
    """
    labeller, group, images = work.labeller, work.identity.group, work.identity.images
    count = min(-(-PROBE_CROPS // group) * group, images)
    rows: list[CropRows] = []
    logits: list[torch.Tensor] = []
    done = timed = 0
    begun = start = time.monotonic()
    for crops, each in render_batches(work.renderer, [work.plan.rows(0, 0, count)], labeller.batch, group):
        logits.append(labeller.start(crops, each).result().cpu())
        rows.append(each)
        now = time.monotonic()
        if done == 0 and count > len(crops):
            start = now  # the first one warms up
        else:
            timed += len(crops)
        done += len(crops)
        if timed and done >= MIN_ROWS and now - begun >= PROBE_SECONDS:
            break
    rate = timed / max(time.monotonic() - start, 1e-9)
    values = np.concatenate([each.values for each in rows], axis=1)
    return Probe(BlockData(logits=torch.cat(logits).numpy()[None], rows=values[None], pixels_digest=""), rate)


def dry_run(config: BuildConfig, work: Work, console: Console, store: LabelStore | None = None) -> Mapping[str, Json]:
    """Estimate the size and time of a build from a few batches; writes nothing."""
    identity = work.identity
    views = BlockGrid.of(identity).whole_views(config.views)
    if config.progress_log is not None:
        require_log(config.progress_log)
    require_buildable(config, work, store)
    if store:
        require_same_engine(config, store, work, console)
        views = views_to_write(store, views)
    size = store_bytes(identity, views)
    with watching(None, config.metrics_port, config.metrics_host, console):
        pass  # the port is free
    with closing(work.renderer):
        probed = probe(work)
    report_agreement(work, probed.data, console)
    crops, seconds = work.crops(views), work.crops(views) / probed.rate
    unchecked = [
        f"whether images decode (except those of {quantity(probed.crops, 'crop')})",
        *(() if work.identity.manifest else ("their digests",)),
        "whether a whole batch fits memory",
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
        f"dry run: {quantity(crops, 'crop')} ({quantity(identity.images, 'image')} x {quantity(views, 'view')}), at "
        f"most {byte_count(size)}, "
        f"about {duration(seconds)} at {probed.rate:,.0f} crops/s; nothing was written",
    )
    return values
