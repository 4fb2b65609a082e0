"""The tables and the picture of the study of image sets, of the cells that are finished."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from benchmarks.studies.image_sets_cells import LABELS, METHODS, Cell, Data, Scale, student_cell
from benchmarks.studies.ledger import Ledger
from benchmarks.studies.tables import markdown, spread, write_picture, write_tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "# Image sets by labels"
NAMES = {"hard": "hard labels", "kl": "KL (T = 20)", "gift": "GIFT"}
# RDED's Table 2, a ConvNet on CIFAR-10, KL by RDED's own protocol: top-1 in percent, by images a class.
PUBLISHED = {("cifar10", 1): "23.5 ± 0.3", ("cifar10", 10): "50.2 ± 0.3"}


class Results(Ledger[Cell]):
    """Lines of finished cells, which are not done again."""

    def top1(self, scale: Scale, data: Data, method: str, per_class: int, labels: str, student: str) -> list[float]:
        """Top-1 in percent of the finished students of all seeds."""
        cells = [student_cell(data.name, method, per_class, seed, labels, student) for seed in scale.seeds]
        return [line["top1"] for cell in cells if (line := self.of(cell))]

    def best(self, scale: Scale) -> dict[tuple[str, int], tuple[str, str]]:
        """For each data set and number of images the method and labels of the best students, when all are trained."""
        found = {}
        for data in scale.data:
            for per_class in scale.epochs:
                first = next(iter(data.students))
                means = {
                    (method, labels): self.top1(scale, data, method, per_class, labels, first)
                    for method in METHODS
                    for labels in LABELS
                }
                if all(len(values) == len(scale.seeds) for values in means.values()):
                    found[data.name, per_class] = max(means, key=lambda key: fmean(means[key]))
        return found


def report(scale: Scale, results: Results) -> str:
    """Write the tables and the picture beside the results; the text of the tables."""
    text = write_tables(results.path, TITLE, sections(scale, results))
    return text + write_picture(results.path, TITLE, lambda: draw(scale, results))


def sections(scale: Scale, results: Results) -> Iterator[str]:
    """A title and a table for each data set and number of images, then other networks, then the sets."""
    for data in scale.data:
        if (teacher := results.of(Cell(kind="teacher", data=data.name))) is not None:
            yield f"The teacher of {data.name}, {data.teacher}: {teacher['top1']:.2f} % of the test images."
        for per_class in scale.epochs:
            if table := by_labels(scale, results, data, per_class):
                yield f"## {data.name}, {per_class} image{'s' * (per_class > 1)} a class\n\n{table}"
    if table := other_networks(scale, results):
        yield f"## Other networks\n\n{table}"
    if table := sets(scale, results):
        yield f"## The sets by their teacher\n\n{table}"


def by_labels(scale: Scale, results: Results, data: Data, per_class: int) -> str:
    """Rows of methods, columns of labels."""
    student = next(iter(data.students))
    rows = [
        [method, *(spread(results.top1(scale, data, method, per_class, labels, student)) for labels in LABELS)]
        for method in METHODS
    ]
    table = markdown(["images", *(NAMES[labels] for labels in LABELS)], rows)
    if table and (published := PUBLISHED.get((data.name, per_class))):
        table += f"\n| RDED's paper, its own protocol |  | {published} |  |"
    return table


def other_networks(scale: Scale, results: Results) -> str:
    """The best cell of the most images, by other networks."""
    most, rows = max(scale.epochs), []
    for data in scale.data:
        chosen = results.best(scale).get((data.name, most))
        if chosen is None:
            continue
        for student in list(data.students)[1:]:
            found = results.top1(scale, data, chosen[0], most, chosen[1], student)
            rows.append([f"{student}, {data.name}, {chosen[0]}, {NAMES[chosen[1]]}, {most} a class", spread(found)])
    return markdown(["student", "top-1, %"], rows)


def sets(scale: Scale, results: Results) -> str:
    """What the teacher makes of each set, and how long it takes to make."""
    rows = []
    for data in scale.data:
        for per_class in scale.epochs:
            for method in METHODS:
                cells = [
                    Cell(kind="set", data=data.name, method=method, per_class=per_class, seed=seed)
                    for seed in scale.seeds
                ]
                lines = [line for cell in cells if (line := results.of(cell))]
                columns = [[line.get(name) for line in lines] for name in ("agreement", "cross_entropy", "seconds")]
                rows.append([f"{data.name}, {method}, {per_class} a class", *map(_spread, columns)])
    return markdown(["set", "teacher agrees with the target, %", "cross-entropy, nats", "made in, s"], rows)


def _spread(values: list[Any]) -> str:
    return spread([value for value in values if value is not None])


def draw(scale: Scale, results: Results) -> Figure:
    """For each data set and number of images a group of bars for each method, one for each kind of label."""
    import matplotlib.figure  # takes a second to import, and need not be there

    figure = matplotlib.figure.Figure(figsize=(5 * len(scale.data), 4 * len(scale.epochs)), layout="constrained")
    every = figure.subplots(len(scale.epochs), len(scale.data), squeeze=False)
    for row, per_class in zip(every, scale.epochs, strict=True):
        for axes, data in zip(row, scale.data, strict=True):
            for number, labels in enumerate(LABELS):
                student = next(iter(data.students))
                found = [results.top1(scale, data, method, per_class, labels, student) for method in METHODS]
                places = [place + (number - 1) * 0.27 for place, values in enumerate(found) if values]
                means = [fmean(values) for values in found if values]
                bars = [stdev(values) if len(values) > 1 else 0.0 for values in found if values]
                axes.bar(places, means, 0.25, yerr=bars, label=NAMES[labels], color=f"C{number}", capsize=2)
            axes.set(title=f"{data.name}, {per_class} a class", ylabel="test top-1, %")
            axes.set_xticks(range(len(METHODS)), METHODS)
    figure.legend(*every[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(LABELS))
    return figure
