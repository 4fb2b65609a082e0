"""The picture of the rate-distortion claim."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.studies.rate_labels import KINDS
from benchmarks.studies.rate_point import Point
from labelstore.durable.newfile import new_file

COLOURS = {
    "transform, pcodec": "tab:red",
    "transform, zstd": "tab:orange",
    "transform, store": "black",
    "float16": "tab:gray",
    "int8": "tab:blue",
    "int4": "tab:cyan",
    "top-k logits": "tab:green",
    "top-k probabilities": "tab:olive",
    "product quantiser": "tab:purple",
    "product quantiser after means": "tab:pink",
}
STORES, ALONE, BOUNDED = "transform, store", "means alone", "transform, pcodec"
NUMBERED = (BOUNDED, "top-k logits", "top-k probabilities")
FIDELITY_TICKS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999)
BEST_FIDELITY = 1 - 3e-5  # above, at the upper edge
LEAST_KL = {"KL at T = 1": 1e-6, "KL at T = 20": 1e-8}
PANELS = ("fidelity", *LEAST_KL, "top-1 agreement")


def draw(points: Sequence[Point], path: Path) -> None:
    """Draw bytes a label against each metric, unmixed crops above mixed ones, into a PNG."""
    figure = Figure(figsize=(22, 11))
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.12, top=0.96, wspace=0.14, hspace=0.24)
    panels = figure.subplots(len(KINDS), len(PANELS), squeeze=False)
    for mixed, row in enumerate(panels):
        for metric, axes in zip(PANELS, row, strict=True):
            draw_panel(axes, [point for point in points if point.mixed == bool(mixed)], metric)
        row[0].set_ylabel(f"{KINDS[mixed]} crops\nfidelity")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=6, frameon=False)
    with new_file(path) as file:
        figure.savefig(file, dpi=100, format="png")


def draw_panel(axes: Axes, points: Sequence[Point], metric: str) -> None:
    """One metric of one kind of crops."""
    for family, colour in COLOURS.items():
        found = sorted((p for p in points if p.family == family), key=lambda p: p.figures["bytes"])
        sizes, heights = [p.figures["bytes"] for p in found], [height(p, metric) for p in found]
        look = {"linestyle": "none", "marker": "*", "markersize": 14} if family == STORES else {"marker": "o"}
        axes.plot(sizes, heights, color=colour, label=family, markersize=look.pop("markersize", 4), **look)
        if family == BOUNDED:
            bounds = [p.figures["entropy"] for p in found]
            axes.plot(bounds, heights, color=colour, linestyle=":", label="entropy of the transform's codes")
        if metric == "fidelity" and family in NUMBERED:
            for p, x, y in zip(found, sizes, heights, strict=True):
                axes.annotate(p.label, (x, y), (3, -9), textcoords="offset points", fontsize=7, color=colour)
    for p in points:
        if p.family == ALONE:
            axes.axhline(height(p, metric), color="tab:brown", linestyle="--", linewidth=1, label=f"{ALONE}, 0 B")
    axes.set(title=metric, xscale="log", xlabel="bytes a label")
    axes.grid(visible=True, which="both", alpha=0.2)
    if metric == "fidelity":
        axes.set_yscale("log")
        axes.set_yticks([1 - tick for tick in FIDELITY_TICKS], [f"{tick:g}" for tick in FIDELITY_TICKS])
        axes.minorticks_off()
        axes.invert_yaxis()
    elif metric in LEAST_KL:
        axes.set_yscale("log")


def height(point: Point, metric: str) -> float:
    """Where a point is drawn; what is exact, where the axis ends."""
    value = point.figures[metric]
    return 1 - min(value, BEST_FIDELITY) if metric == "fidelity" else max(value, LEAST_KL.get(metric, 0))
