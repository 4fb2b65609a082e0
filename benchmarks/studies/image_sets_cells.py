"""The cells of the study of image sets, in the order in which they are worth their time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.studies.ledger import Recorded

Kind = Literal["teacher", "set", "student"]
MEANINGS: Mapping[Kind, str] = {
    "teacher": "teacher trained on hard labels",
    "set": "images made",
    "student": "student trained",
}
METHODS = ("random", "rded", "sre2l")
LABELS = ("hard", "kl", "gift")


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set and what is trained on it.

    Attributes:
        name: of the data set.
        train: class folder of real images, in the folder of all data.
        test: class folder of test images.
        side: of the crops in pixels.
        tests: how many test images there are.
        teacher: network of the teacher.
        teacher_args: keyword arguments of its constructor.
        weights: file of its weights, in the folder of all data; None trains it.
        teacher_epochs: of that training.
        students: networks by name, each with its arguments; the first one is compared, the others are trained on the
            best cell of each number of images.
        pool: images a class that crops are taken from.
        factor: cells a side of a collage.
    """

    name: str
    train: str
    test: str
    side: int
    tests: int
    teacher: str
    teacher_args: Mapping[str, Any]
    weights: str | None
    teacher_epochs: int
    students: Mapping[str, Mapping[str, Any]]
    pool: int
    factor: int


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the study is.

    Attributes:
        data: the data sets.
        epochs: of students, by images a class; as many views are labelled.
        batches: crops a step of students, by images a class.
        iterations: of SRe2L.
        seeds: of images and students.
    """

    data: tuple[Data, ...]
    epochs: Mapping[int, int]
    batches: Mapping[int, int]
    iterations: int
    seeds: tuple[int, ...]

    def named(self, name: str) -> Data:
        """A data set."""
        return next(each for each in self.data if each.name == name)


REAL = Scale(
    data=(
        Data(
            name="cifar10",
            train="cifar10/train",
            test="cifar10/test",
            side=32,
            tests=9_980,
            teacher="cifar-resnet20",
            teacher_args={},
            weights="models/cifar10-resnet20.safetensors",
            teacher_epochs=0,
            students={"convnet-d3": {"norm": "batch"}, "cifar-resnet20": {}},
            pool=300,
            factor=1,
        ),
        Data(
            name="imagenette",
            train="imagenette/train",
            test="imagenette/val",
            side=64,
            tests=500,
            teacher="convnet-d4",
            teacher_args={"width": 32, "norm": "batch"},
            weights=None,
            teacher_epochs=60,
            students={"convnet-d4": {"width": 32, "norm": "batch"}},
            pool=100,
            factor=2,
        ),
    ),
    epochs={1: 150, 10: 75},
    batches={1: 10, 10: 50},
    iterations=300,
    seeds=(0, 1, 2),
)
TOY = Scale(
    data=(
        Data(
            name="drawn",
            train="train",
            test="test",
            side=16,
            tests=40,
            teacher="convnet-d1",
            teacher_args={"width": 8, "norm": "batch"},
            weights=None,
            teacher_epochs=1,
            students={"convnet-d1": {"width": 8, "norm": "batch"}, "convnet-d2": {"width": 8, "norm": "batch"}},
            pool=4,
            factor=1,
        ),
    ),
    epochs={1: 2, 2: 1},
    batches={1: 10, 2: 10},
    iterations=2,
    seeds=(0, 1),
)


@dataclass(frozen=True, kw_only=True)
class Cell(Recorded):
    """One piece of work.

    Attributes:
        kind: what is done.
        data: name of the data set.
        method: that makes the images.
        per_class: images a class.
        seed: of the images and of the student.
        labels: hard (cross-entropy on targets), kl or gift (a store of the teacher's labels).
        student: network of the student.
    """

    kind: Kind
    data: str
    method: str = ""
    per_class: int = 0
    seed: int = 0
    labels: str = ""
    student: str = ""

    @property
    def set_name(self) -> str:
        """Of the image set."""
        return f"{self.data}-{self.method}-ipc{self.per_class}-seed{self.seed}"

    @property
    def name(self) -> str:
        """In words; unique in the study, and safe as the name of a folder."""
        if self.kind == "teacher":
            return f"{self.data}-teacher"
        return self.set_name if self.kind == "set" else f"{self.set_name}-{self.labels}-{self.student}"


def cells(scale: Scale, best: Mapping[tuple[str, int], tuple[str, str]]) -> list[Cell]:
    """All cells, the most important ones first.

    Args:
        scale: of the study.
        best: of each data set and number of images a class the method and the labels whose students are best, where
            that is known.
    """
    found = [Cell(kind="teacher", data=each.name) for each in scale.data if each.weights is None]
    for seed in scale.seeds:
        found += compared(scale, seed)
    found += others(scale, best)
    return list(dict.fromkeys(found))


def made(data: Data, method: str, per_class: int, seed: int) -> Iterator[Cell]:
    """A set, and the students of its images by each kind of label."""
    yield Cell(kind="set", data=data.name, method=method, per_class=per_class, seed=seed)
    student = next(iter(data.students))
    for labels in LABELS:
        yield student_cell(data.name, method, per_class, seed, labels, student)


def student_cell(data: str, method: str, per_class: int, seed: int, labels: str, student: str) -> Cell:
    """A student."""
    return Cell(
        kind="student", data=data, method=method, per_class=per_class, seed=seed, labels=labels, student=student
    )


def compared(scale: Scale, seed: int) -> Iterator[Cell]:
    """Every method, number of images and kind of label, of one seed."""
    for per_class in scale.epochs:
        for data in scale.data:
            for method in METHODS:
                yield from made(data, method, per_class, seed)


def others(scale: Scale, best: Mapping[tuple[str, int], tuple[str, str]]) -> Iterator[Cell]:
    """The other networks, on the best cell of the most images a class."""
    most = max(scale.epochs)
    for data in scale.data:
        chosen = best.get((data.name, most))
        if chosen is None:
            continue
        for student in list(data.students)[1:]:
            for seed in scale.seeds:
                yield student_cell(data.name, chosen[0], most, seed, chosen[1], student)
