"""The tables and the picture of the study of early teachers, of the cells that are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev, variance
from typing import TYPE_CHECKING, Any

from benchmarks.studies.tables import markdown, spread, write_picture, write_tables
from benchmarks.studies.thousand_cells import Cell, Scale, student
from benchmarks.studies.thousand_results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "# Early teachers on random real images"
# Of the paper, CIFAR-10: top-1 in percent and the epoch of the expert, by images a class.
PUBLISHED = {1: (21.1, 20), 10: (46.3, 44), 50: (62.1, 128)}
MARGIN = 0.5  # points, besides two standard errors, by which experts may differ from those of the plain loop


def report(scale: Scale, results: Results) -> str:
    """Write the tables and the picture beside the results; the text of the tables."""
    text = write_tables(results.path, TITLE, sections(scale, results))
    return text + write_picture(results.path, TITLE, lambda: draw(scale, results))


def sections(scale: Scale, results: Results) -> list[str]:
    """A title and a table for each question; those without a finished cell are left out."""
    parts = {
        "Experts": experts(scale, results),
        "Experts beside a plain PyTorch loop": compared(scale, results),
        "Student top-1 by the epoch of the expert": by_expert(scale, results),
        f"Changed labels: 1 image a class, expert of epoch {scale.early}": structure(scale, results),
        f"Temperature, labels of the expert of epoch {scale.experts[-1]}": softer(scale, results),
        f"{scale.missing} missing classes: {scale.several[-1]} images a class, expert of epoch {scale.early}": absent(
            scale, results
        ),
        f"Images a class by kept probabilities, expert of epoch {scale.early}": plane(scale, results),
        "AdamW (1e-3, cosine), the best expert by SGD": adamw(scale, results),
    }
    return [f"## {title}\n\n{table}" for title, table in parts.items() if table]


def experts(scale: Scale, results: Results) -> str:
    """How the expert does at each kept epoch."""
    rows = results.expert((scale.experts[-1], scale.later))
    names = ("top1", "loss", "entropy")
    return markdown(
        ["epoch", "top-1, %", "test loss", "entropy, nats"],
        [[str(epoch), *(f"{row[name]:.3f}" for name in names)] for epoch, row in sorted(rows.items())],
    )


def compared(scale: Scale, results: Results) -> str:
    """Experts of giftwrap and of the plain loop, and whether their means agree."""
    ours, plain = comparison(scale, results)
    table = markdown(
        [f"{scale.compared} epochs", "top-1, %"], [["giftwrap", spread(ours)], ["plain loop", spread(plain)]]
    )
    if not table or min(len(ours), len(plain)) < 2:
        return table
    apart, allowed = abs(fmean(ours) - fmean(plain)), agreement(ours, plain)
    verdict = "within" if apart <= allowed else "NOT within"
    return (
        f"{table}\n\nThe means are {apart:.2f} points apart, {verdict} two standard errors + {MARGIN} ({allowed:.2f})."
    )


def comparison(scale: Scale, results: Results) -> tuple[list[float], list[float]]:
    """Top-1 of experts of all seeds after the same number of epochs: giftwrap's, and the plain loop's."""
    first = results.expert((scale.experts[-1], scale.later)).get(scale.compared)
    ours = [first["top1"]] if first else []
    for kind, found in (("expert", ours), ("plain", plain := list[float]())):
        for seed in scale.seeds:
            line = results.of(Cell(kind=kind, epochs=scale.compared, seed=seed))  # type: ignore[arg-type]  # one of two kinds
            found += [line["epochs"][-1]["top1"]] if line else []
    return ours, plain


def agreement(ours: Sequence[float], others: Sequence[float]) -> float:
    """How far two means may be apart: two standard errors of their difference, and a margin."""
    return 2 * sqrt(variance(ours) / len(ours) + variance(others) / len(others)) + MARGIN


def by_expert(scale: Scale, results: Results) -> str:
    """Hard labels, then the labels of each expert, and the paper's figures."""
    counts = (*scale.several, *scale.single)
    names: dict[int | None, str] = {None: "hard labels"}
    names |= {epoch: f"expert, epoch {epoch}" for epoch in (*scale.experts, scale.later)}
    rows = [[name, *(spread(results.top1(scale, count, expert)) for count in counts)] for expert, name in names.items()]
    table = markdown(["labels", *(f"{count} a class" for count in counts)], rows)
    if table and all(count in PUBLISHED for count in counts):
        cells = " | ".join("{} (expert of epoch {})".format(*PUBLISHED[count]) for count in counts)
        table += f"\n| the paper, best expert | {cells} |"
    return table


def structure(scale: Scale, results: Results) -> str:
    """The labels as they are, top-k and swap."""
    count = scale.several[0]
    rows = [["as they are", spread(results.top1(scale, count, scale.early))]]
    for operator in ("topk", "swap"):
        for k in scale.largest:
            word = f"{operator}={k}"
            rows.append([word, spread(results.top1(scale, count, scale.early, relabel=(word,)))])
    return markdown(["--relabel", "top-1, %"], rows)


def softer(scale: Scale, results: Results) -> str:
    """Late labels at several temperatures, beside those of the best expert."""
    last, best = scale.experts[-1], results.best(scale)
    rows = [["1", *(spread(results.top1(scale, count, last)) for count in scale.several)]]
    for temperature in scale.temperatures:
        word = f"temperature={temperature}"
        rows.append(
            [f"{temperature}", *(spread(results.top1(scale, count, last, relabel=(word,))) for count in scale.several)]
        )
    rows.append(
        [
            "1, best expert",
            *(spread(results.top1(scale, count, best[count])) if count in best else "" for count in scale.several),
        ]
    )
    return markdown(["temperature", *(f"{count} a class" for count in scale.several)], rows)


def absent(scale: Scale, results: Results) -> str:
    """All test images, those of the missing classes, and the others."""
    ways: dict[str, Mapping[str, Any]] = {
        "nothing": {},
        "images of the classes": {"missing": True},
        "columns of the classes, in labels of other classes' images": {"relabel": ("drop-others",)},
        "columns of the classes, in all labels": {"relabel": ("drop",)},
    }
    rows = []
    for name, more in ways.items():
        cells = [student(scale, scale.several[-1], scale.early, seed, **more) for seed in scale.seeds]
        lines = [line for cell in cells if (line := results.of(cell))]
        rows.append(
            [name, *(spread([share(line["hits"], part, scale.tests) for line in lines]) for part in parts_of(scale))]
        )
    return markdown(["missing", "top-1, all", "missing classes", "other classes"], rows)


def parts_of(scale: Scale) -> tuple[slice, slice, slice]:
    """All classes, the missing ones, and the others."""
    return slice(None), slice(-scale.missing, None), slice(None, -scale.missing)


def share(hits: Sequence[int], part: slice, tests: int) -> float:
    """Top-1 in percent of some classes, of ``tests`` test images that all classes share equally."""
    return 100 * sum(hits[part]) / (tests / len(hits) * len(hits[part]))


def plane(scale: Scale, results: Results) -> str:
    """Rows of images a class, columns of kept probabilities; then the best of all experts."""
    rows = []
    for count in scale.plane:
        kept = [results.top1(scale, count, scale.early, relabel=(f"topk={k}",)) for k in scale.largest]
        whole = results.top1(scale, count, scale.early)
        front = [found for epoch in (*scale.experts, scale.later) if (found := results.top1(scale, count, epoch))]
        best = max(front, key=fmean) if len(front) > 1 else []
        rows.append([str(count), *map(spread, kept), spread(whole), spread(best)])
    header = ["images a class", *(f"top {k}" for k in scale.largest), "all", "all, best expert"]
    return markdown(header, rows)


def adamw(scale: Scale, results: Results) -> str:
    """Both optimisers at the best expert."""
    rows = []
    for count, expert in results.best(scale).items():
        found = (results.top1(scale, count, expert, optimizer=name) for name in ("SGD", "AdamW"))
        rows.append([f"{count} (expert of epoch {expert})", *map(spread, found)])
    return markdown(["images a class", "SGD", "AdamW"], rows) if any(row[2] for row in rows) else ""


def draw(scale: Scale, results: Results) -> Figure:
    """Accuracy against the epoch of the expert, and against images a class for each number of probabilities."""
    import matplotlib.figure  # takes a second to import, and need not be there

    figure = matplotlib.figure.Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_experts(left, scale, results)
    draw_plane(right, scale, results)
    return figure


def draw_experts(axes: Axes, scale: Scale, results: Results) -> None:
    """The expert, its students with the deviation of their seeds, and hard labels as dashed lines."""
    every = (*scale.experts, scale.later)
    rows = results.expert((scale.experts[-1], scale.later))
    axes.plot(sorted(rows), [rows[epoch]["top1"] for epoch in sorted(rows)], ":", color="gray", label="expert")
    for number, count in enumerate((*scale.several, *scale.single)):
        found = {epoch: values for epoch in every if (values := results.top1(scale, count, epoch))}
        deviations = [stdev(values) if len(values) > 1 else 0.0 for values in found.values()]
        label = f"{count} image{'s' if count > 1 else ''} a class"
        means = [fmean(values) for values in found.values()]
        axes.errorbar(list(found), means, deviations, color=f"C{number}", marker="o", capsize=3, label=label)
        if baseline := results.top1(scale, count, None):
            axes.axhline(fmean(baseline), color=f"C{number}", linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel="epoch of the expert", ylabel="test top-1, %", title="dashed: hard labels")
    axes.set_xticks(every, [str(epoch) for epoch in every])
    axes.minorticks_off()
    axes.legend()


def draw_plane(axes: Axes, scale: Scale, results: Results) -> None:
    """A line for each number of kept probabilities, of the first seed that all have."""
    for number, k in enumerate((*scale.largest, None)):
        more = {} if k is None else {"relabel": (f"topk={k}",)}
        kept = {n: values[0] for n in scale.plane if (values := results.top1(scale, n, scale.early, **more))}
        label = "all probabilities" if k is None else f"top {k}"
        axes.plot(list(kept), list(kept.values()), color=f"C{number + 4}", marker="o", label=label)
    axes.set(xscale="log", xlabel="images a class", title=f"expert of epoch {scale.early}, one seed")
    axes.set_xticks(scale.plane, [str(count) for count in scale.plane])
    axes.minorticks_off()
    axes.legend()
