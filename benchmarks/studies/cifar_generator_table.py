"""The tables of the study of generated CIFAR-10 images, of the cells that are finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.studies import image_sets_cells
from benchmarks.studies.cifar_generator_cells import GENERATED, METHODS, Cell, Scale
from benchmarks.studies.image_sets_cells import LABELS
from benchmarks.studies.image_sets_table import NAMES
from benchmarks.studies.ledger import Ledger
from benchmarks.studies.tables import markdown, spread
from labelstore.durable.newfile import write_over
from labelstore.durable.removing import Proof

TITLE = "# Generated CIFAR-10 images"


class Results(Ledger[Cell]):
    """Lines of finished cells, which are not done again; those of real images may be another study's.

    Args:
        path: of the file.
        scale: of the study.
        others: lines of the study of image sets; None: there are none.
    """

    def __init__(self, path: Path, scale: Scale, others: Ledger[image_sets_cells.Cell] | None) -> None:
        super().__init__(path)
        self._scale, self._others = scale, others

    def of(self, cell: Cell) -> Mapping[str, Any] | None:
        """The line of a cell, of this study or of the other."""
        line = super().of(cell)
        if line is None and self._others and not cell.model and cell.per_class == self._scale.several:
            return self._others.of(cell.of_sets(self._scale.data))
        return line

    @property
    def models(self) -> list[str]:
        """The generators that have a line."""
        return list(dict.fromkeys(line["cell"]["model"] for line in self.lines if line["cell"]["model"]))

    def top1(self, method: str, model: str, per_class: int, labels: str) -> list[float]:
        """Top-1 in percent of the finished students of all seeds."""
        cells = [
            Cell(kind="student", method=method, model=model, per_class=per_class, seed=seed, labels=labels)
            for seed in self._scale.sets.seeds
        ]
        return [line["top1"] for cell in cells if (line := self.of(cell))]


def report(scale: Scale, results: Results) -> str:
    """Write the tables beside the results; their text."""
    text = "\n\n".join([TITLE, *sections(scale, results)]) + "\n"
    write_over(results.path.with_suffix(".md"), text.encode(), Proof("the tables of this study", _is_table))
    return text


def _is_table(path: Path) -> bool:
    return path.read_bytes().startswith(TITLE.encode())


def sections(scale: Scale, results: Results) -> Iterator[str]:
    """The generators, what the judge makes of their images, and students by images a class."""
    if table := generators(results):
        yield f"## Generators\n\n{table}"
    if table := judged(results):
        yield (
            f"## {scale.judge} on the images\n\n"
            f"The distance is the squared Fréchet distance between Gaussians in the {scale.judge}'s features, to the "
            f"{scale.images:,} training images. It is not FID. Its floor is that of the {scale.data.tests:,} test "
            f"images, or of as many of them as there are generated images.\n\n{table}"
        )
    for per_class in scale.sets.epochs:
        if table := students(results, per_class):
            yield f"## {per_class} images a class, top-1 in %\n\n{table}"


def generators(results: Results) -> str:
    """A row for each: its length and its loss."""
    found = [(model, results.of(Cell(kind="generator", model=model))) for model in results.models]
    rows = [
        [
            model,
            f"{line['parameters'] / 1e6:.1f} M",
            f"{line['steps']:,}",
            f"{line['loss']:.4f}",
            f"{line['seconds']:,.0f}",
        ]
        for model, line in found
        if line
    ]
    return markdown(["generator", "parameters", "steps", "loss", "seconds, with latents"], rows)


def judged(results: Results) -> str:
    """A row for each: agreement with the requested class, and distances."""
    rows = []
    for model in results.models:
        if line := results.of(Cell(kind="judged", model=model)):
            numbers = [line[name] for name in ("agreement", "agreement_on_real")]
            distances = [line[name] for name in ("distance", "floor_of_as_many", "floor")]
            rows.append(
                [model, f"{line['images']:,}", *(f"{value:.1f}" for value in numbers), *map("{:.3f}".format, distances)]
            )
    header = ["generator", "images", "agreement, %", "on test images, %", "distance", "floor, as many", "floor, all"]
    return markdown(header, rows)


def students(results: Results, per_class: int) -> str:
    """Rows of images, columns of labels."""
    rows = []
    for method in METHODS:
        for model in results.models if method == GENERATED else [""]:
            found = [spread(results.top1(method, model, per_class, labels)) for labels in LABELS]
            rows.append([f"{method}, {model}" if model else method, *found])
    return markdown(["images", *(NAMES[labels] for labels in LABELS)], rows)
