"""The cells of the study of HeLlO, in the order in which they are worth their time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.studies.label_cost_cells import MEAN, MOBILE, SMALL, STD, Network
from benchmarks.studies.ledger import Recorded

Kind = Literal["teacher", "projector", "set", "student"]
MEANINGS: Mapping[Kind, str] = {
    "teacher": "weak teachers trained, one run",
    "projector": "projector trained",
    "set": "images made",
    "student": "student trained",
}
SETS = ("random", "rded", "updated")
STORED = ("hard", "weak", "strong")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A projector of the ablation.

    Attributes:
        adds: what it has and the one before has not.
        rank: rank of its matrices; 0 for only the head.
        head: what its head starts from.
        teacher: weak, the checkpoints, or strong.
        hard_weight: of the hard cross-entropy.
    """

    adds: str
    rank: int
    head: Literal["zero", "means"]
    teacher: Literal["weak", "strong"]
    hard_weight: float


ABLATION: Mapping[str, Step] = {
    "probe": Step(adds="linear probe on hard labels", rank=0, head="zero", teacher="weak", hard_weight=1e4),
    "taught": Step(adds="+ weak teachers", rank=0, head="zero", teacher="weak", hard_weight=0.1),
    "lora": Step(adds="+ LoRA", rank=8, head="zero", teacher="weak", hard_weight=0.1),
    "means": Step(adds="+ head from class means", rank=8, head="means", teacher="weak", hard_weight=0.1),
    "of strong": Step(adds="the same by the strong teacher", rank=8, head="means", teacher="strong", hard_weight=0.1),
}
"""A weight of 10,000 leaves the mean squared error without an effect, since AdamW is invariant to the scale of a
loss."""
WHOLE = "means"  # the method as published, with means in the place of text


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of the study.

    Attributes:
        train: class folder of real images, in the folder of all data.
        test: class folder of test images.
        images: how many real images there are.
        tests: how many test images.
        encoder: of the projectors.
        strong: the strong teacher.
        student: network of students and of the weak teachers.
        student_args: keyword arguments of its constructor.
        size: side of the crops of students and teachers in pixels.
        teacher_epochs: of the run of weak teachers.
        keep_every: epochs from one weak teacher to the next.
        projector_epochs: of each projector.
        epochs: of students; as many views are stored.
        per_class: images a class.
        pool: images a class from which RDED takes crops.
        update_steps: of the image update.
        batch: crops a step.
        seeds: of students.
    """

    train: str
    test: str
    images: int
    tests: int
    encoder: Network
    strong: Network
    student: str
    student_args: Mapping[str, Any]
    size: int
    teacher_epochs: int
    keep_every: int
    projector_epochs: int
    epochs: int
    per_class: int
    pool: int
    update_steps: int
    batch: int
    seeds: tuple[int, ...]

    @property
    def weak(self) -> int:
        """How many weak teachers there are."""
        return self.teacher_epochs // self.keep_every


REAL = Scale(
    train="cifar10/train",
    test="cifar10/test",
    images=10_000,
    tests=9_980,
    encoder=MOBILE,
    strong=Network(
        name="cifar-resnet56",
        args={},
        weights="models/cifar10-resnet56.safetensors",
        size=32,
        mean=MEAN,
        std=STD,
    ),
    student="convnet-d3",
    student_args={"width": 64},
    size=32,
    teacher_epochs=18,
    keep_every=2,
    projector_epochs=2,
    epochs=80,
    per_class=10,
    pool=300,
    update_steps=100,
    batch=50,
    seeds=(0, 1, 2),
)
TOY = Scale(
    train="train",
    test="test",
    images=40,
    tests=40,
    encoder=SMALL,
    strong=SMALL,
    student="convnet-d1",
    student_args={"width": 8},
    size=16,
    teacher_epochs=2,
    keep_every=1,
    projector_epochs=1,
    epochs=2,
    per_class=1,
    pool=4,
    update_steps=2,
    batch=10,
    seeds=(0,),
)


@dataclass(frozen=True, kw_only=True)
class Cell(Recorded):
    """One piece of work.

    Attributes:
        kind: what is done.
        set: of images.
        labels: one of `STORED`, or a projector.
        seed: of the student.
    """

    kind: Kind
    set: str = ""
    labels: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """In words; unique in the study, and safe as the name of a folder."""
        parts = [self.kind, self.set, self.labels, f"seed{self.seed}" if self.kind == "student" else ""]
        return "-".join(part for part in parts if part).replace(" ", "-")


def cells(scale: Scale) -> list[Cell]:
    """All cells, the most important ones first: the comparison, then the ablation, of one seed after the other."""
    found = [Cell(kind="teacher")]
    for seed in scale.seeds:
        found += compared(seed)
        found += ablated(seed)
    return list(dict.fromkeys(found))


def needs(scale: Scale, cell: Cell) -> list[Cell]:
    """What has to be finished before a cell begins; stores of labels are made by students of the first seed."""
    if cell.kind == "projector":
        return [Cell(kind="teacher")] if ABLATION[cell.labels].teacher == "weak" else []
    if cell.kind == "set":
        return [Cell(kind="set", set="rded")] if cell.set == "updated" else []
    if cell.kind == "teacher":
        return []
    found = [Cell(kind="set", set=cell.set)]
    if cell.labels == "weak":
        found.append(Cell(kind="teacher"))
    if cell.labels in ABLATION:
        found.append(Cell(kind="projector", labels=cell.labels))
    elif cell.labels != "hard" and cell.seed != scale.seeds[0]:
        found.append(replace(cell, seed=scale.seeds[0]))
    return found


def compared(seed: int) -> Iterator[Cell]:
    """Students of stored labels and of projectors, on random and on RDED's images."""
    for projector in (WHOLE, "of strong"):
        yield Cell(kind="projector", labels=projector)
    for images in ("random", "rded"):
        yield Cell(kind="set", set=images)
        for labels in (*STORED, WHOLE, "of strong"):
            yield Cell(kind="student", set=images, labels=labels, seed=seed)


def ablated(seed: int) -> Iterator[Cell]:
    """Students of each projector on RDED's images, and of the whole method on updated ones."""
    for projector in ("probe", "taught", "lora"):
        yield Cell(kind="projector", labels=projector)
        yield Cell(kind="student", set="rded", labels=projector, seed=seed)
    yield Cell(kind="set", set="updated")
    yield Cell(kind="student", set="updated", labels=WHOLE, seed=seed)
