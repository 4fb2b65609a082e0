"""Crops by ``--augmenter dali`` on a GPU: correct, and as fast as DALI's decoding; on a CPU at toy size."""

from __future__ import annotations

import os
from contextlib import closing
from functools import partial

import numpy as np
import torch

from benchmarks.dali_alone import BATCH, all_steps, alone, regions_apart, stored
from benchmarks.gpu_inputs import SkippedError, folder_of, images, rate
from benchmarks.harness import Report
from benchmarks.read import exhaust
from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import dali, make_renderer
from pipeline.render.audit import MAX_DIFFERENCE, MAX_MEAN_DIFFERENCE
from pipeline.render.batches import render_batches

STREAMED = 0.9  # of what DALI decodes alone


def augmenter(report: Report, device: torch.device) -> dict[str, Json]:
    """Crops by DALI's own resize: how far from its CPU's, the same in every run, order and company; how fast beside it.

    What is streamed must be 0.9 of what DALI decodes alone, whole files that lie in memory.
    """
    if dali.load() is None:
        raise SkippedError("no DALI here: --augmenter dali needs it")
    on_gpu = device.type == "cuda"
    manifest = images(folder_of(report), device)
    spec = PlanSpec(size=224 if on_gpu else 24)
    plan = Plan(spec, manifest.heights, manifest.widths)
    rows = plan.rows(0, 0, len(manifest))
    few = rows.take(slice(0, min(len(rows), 32)))
    make = partial(make_renderer, manifest, spec, augmenter="dali")
    with closing(make()) as reference:
        expected = reference.render(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    views = [plan.rows(view, 0, len(manifest)) for view in range(16 if on_gpu else 1)]
    count = len(views) * len(rows)
    with closing(make(device=str(device))) as renderer, closing(make(device=str(device))) as other:
        crops = renderer.render(rows)
        equal: dict[str, Json] = {
            "run to run": torch.equal(crops, renderer.render(rows)),
            "another order": torch.equal(crops[order], renderer.render(rows.take(order))),
            "other neighbours, another history": torch.equal(
                torch.cat([other.render(few.take(np.array([at]))) for at in range(len(few))]), crops[: len(few)]
            ),
        }
        streamed = rate(
            report, "augmenter dali, streamed", lambda: exhaust(render_batches(renderer, views, 512, 1)), count, device
        )
    files, boxes = stored(manifest, CropRows(rows.names, np.concatenate([view.values for view in views], axis=1)))
    threads = len(os.sched_getaffinity(0))
    region = regions_apart(files[:BATCH], boxes[:BATCH], device, threads)
    ceilings = {
        name: rate(report, f"DALI alone, {name}", alone(files, given, device, threads, size=side), len(files), device)
        for name, given, side in (
            ("whole images", None, None),
            ("boxes", boxes, None),
            ("boxes resized", boxes, spec.size),
        )
    }
    steps = all_steps(files, boxes, device, threads, size=spec.size)
    ceilings["all steps, from memory"] = rate(report, "DALI alone, all steps", steps, len(files), device)
    apart = (crops.cpu().short() - expected.short()).abs()
    mean, most = float(apart.float().mean()), int(apart.max())
    shares: dict[str, Json] = {name: streamed / ceiling for name, ceiling in ceilings.items()}
    band = mean <= MAX_MEAN_DIFFERENCE and most <= MAX_DIFFERENCE
    fast = streamed >= STREAMED * ceilings["whole images"] or not on_gpu
    found: dict[str, Json] = {"equal": equal, "mean": mean, "most": most, "in band": band}
    found["boxes decoded alone, from boxes of whole images"] = {"mean": region[0], "most": region[1]}
    return {**found, "share of DALI alone": shares, "kept": all(equal.values()) and band and fast}
