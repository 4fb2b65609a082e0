"""The cells of the study of early teachers, in the order in which they are worth their time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.studies.ledger import Recorded

EXPERT_BATCH = 256
Kind = Literal["expert", "plain", "student"]
MEANINGS: Mapping[Kind, str] = {
    "expert": "expert trained by giftwrap",
    "plain": "expert trained by a plain PyTorch loop",
    "student": "student",
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the study is.

    Attributes:
        network: of experts and students.
        args: keyword arguments of its constructor.
        side: of the crops in pixels.
        images: that experts train on.
        tests: test images.
        experts: epochs after which the weights of an expert are kept, the last one its length.
        later: a longer expert, at the end of the study; only its length is kept.
        compared: epochs after which experts are compared with those of the plain loop.
        early: epoch of the expert whose labels are changed.
        epochs: of students, by images a class.
        batches: crops a step of students, by images a class.
        seeds: of experts and students.
        several: images a class of the main comparison, with all seeds.
        single: the same, with only the first seed.
        plane: images a class that are crossed with `largest`.
        largest: K of top-k and swap.
        temperatures: above 1, for the labels of the last expert.
        missing: classes that are left out, the last ones.
    """

    network: str
    args: Mapping[str, Any]
    side: int
    images: int
    tests: int
    experts: tuple[int, ...]
    later: int
    compared: int
    early: int
    epochs: Mapping[int, int]
    batches: Mapping[int, int]
    seeds: tuple[int, ...]
    several: tuple[int, ...]
    single: tuple[int, ...]
    plane: tuple[int, ...]
    largest: tuple[int, ...]
    temperatures: tuple[int, ...]
    missing: int


CIFAR = Scale(
    network="convnet-d3",
    args={},
    side=32,
    images=10_000,
    tests=10_000,
    experts=(1, 2, 4, 8, 16),
    later=32,
    compared=2,
    early=2,
    epochs={1: 150, 3: 100, 10: 75, 50: 25},
    batches={1: 10, 3: 15, 10: 25, 50: 50},
    seeds=(0, 1, 2),
    several=(1, 10),
    single=(50,),
    plane=(1, 3, 10),
    largest=(1, 3),
    temperatures=(2, 4),
    missing=3,
)
TOY = Scale(
    network="convnet-d1",
    args={"width": 8},
    side=16,
    images=40,
    tests=40,
    experts=(1, 2),
    later=3,
    compared=1,
    early=1,
    epochs={1: 2, 2: 1},
    batches={1: 10, 2: 10},
    seeds=(0, 1),
    several=(1,),
    single=(2,),
    plane=(1, 2),
    largest=(1,),
    temperatures=(2,),
    missing=3,
)


@dataclass(frozen=True, kw_only=True)
class Cell(Recorded):
    """One training.

    Attributes:
        kind: what is trained.
        epochs: how long.
        batch: crops a step.
        seed: of the network, its crops, and the choice of its images.
        per_class: images a class of a student.
        expert: epoch of the expert that labels them; None trains on hard labels.
        relabel: what is done to labels before the loss; ``drop`` and ``drop-others`` mean the missing classes.
        missing: whether the missing classes have no images.
        optimizer: of a student: SGD as published, or AdamW.
    """

    kind: Kind
    epochs: int
    batch: int = EXPERT_BATCH
    seed: int = 0
    per_class: int = 0
    expert: int | None = None
    relabel: tuple[str, ...] = ()
    missing: bool = False
    optimizer: Literal["SGD", "AdamW"] = "SGD"

    @property
    def name(self) -> str:
        """In words; unique in the study, and safe as the name of a folder."""
        if self.kind != "student":
            return f"{self.kind}-seed{self.seed}-{self.epochs}-epochs"
        labels = "hard" if self.expert is None else f"expert{self.expert}"
        changes = [
            *self.relabel,
            *(["missing"] if self.missing else []),
            *([self.optimizer] * (self.optimizer != "SGD")),
        ]
        return "-".join([f"ipc{self.per_class}", labels, *changes, f"seed{self.seed}"])


def kept(scale: Scale, expert: Cell) -> list[int]:
    """The epochs of an expert whose weights are kept: of those that label nothing, the last one."""
    earlier = (epoch for epoch in scale.experts if epoch < expert.epochs and expert.seed == scale.seeds[0])
    return [*earlier, expert.epochs]


def cells(scale: Scale, best: Mapping[int, int]) -> list[Cell]:
    """All cells, the most important ones first.

    Args:
        scale: of the study.
        best: of each number of images a class the epoch of the expert whose students are best, where it is known.
    """
    first, *others = scale.seeds
    found = [*experts(scale), *by_expert(scale), *hard(scale), *structure(scale, first), *softer(scale)]
    found += [*absent(scale, first), *plane(scale), *adamw(scale, best)]
    found += [cell for seed in others for cell in structure(scale, seed)]
    found += [*late(scale), *(cell for seed in others for cell in absent(scale, seed))]
    return list(dict.fromkeys(found))


def student(scale: Scale, per_class: int, expert: int | None, seed: int = 0, **more: Any) -> Cell:
    """A student of so many images a class."""
    epochs, batch = scale.epochs[per_class], scale.batches[per_class]
    return Cell(kind="student", epochs=epochs, batch=batch, seed=seed, per_class=per_class, expert=expert, **more)


def ladder(scale: Scale, seed: int) -> Sequence[int]:
    """The numbers of images a class of which this seed is trained."""
    return (*scale.several, *scale.single) if seed == scale.seeds[0] else scale.several


def experts(scale: Scale) -> Iterator[Cell]:
    """1. The expert of the study, and experts of all seeds beside those of a plain loop."""
    yield Cell(kind="expert", epochs=scale.experts[-1])
    for seed in scale.seeds:
        if seed:
            yield Cell(kind="expert", epochs=scale.compared, seed=seed)
        yield Cell(kind="plain", epochs=scale.compared, seed=seed)


def by_expert(scale: Scale) -> Iterator[Cell]:
    """2. Accuracy against the epoch of the expert; all of the first seed come before the others."""
    for seed in scale.seeds:
        for per_class in ladder(scale, seed):
            yield from (student(scale, per_class, epoch, seed) for epoch in scale.experts)


def hard(scale: Scale) -> Iterator[Cell]:
    """3. The baseline of hard labels."""
    for seed in scale.seeds:
        yield from (student(scale, per_class, None, seed) for per_class in ladder(scale, seed))


def structure(scale: Scale, seed: int) -> Iterator[Cell]:
    """4. One image a class: only the K largest probabilities, and the K-th largest swapped with the smallest."""
    for k in scale.largest:
        for operator in ("topk", "swap"):
            yield student(scale, scale.several[0], scale.early, seed, relabel=(f"{operator}={k}",))


def softer(scale: Scale) -> Iterator[Cell]:
    """5. Whether temperature repairs the labels of a late expert."""
    for per_class in scale.several:
        for temperature in scale.temperatures:
            yield student(scale, per_class, scale.experts[-1], relabel=(f"temperature={temperature}",))


def absent(scale: Scale, seed: int) -> Iterator[Cell]:
    """6. Classes without images; classes without a column in the labels of other classes' images, and in all labels."""
    per_class = scale.several[-1]
    yield student(scale, per_class, scale.early, seed, missing=True)
    for operator in ("drop-others", "drop"):
        yield student(scale, per_class, scale.early, seed, relabel=(operator,))


def plane(scale: Scale) -> Iterator[Cell]:
    """7. Images a class by the number of largest probabilities that are kept, at one expert."""
    for per_class in scale.plane:
        yield student(scale, per_class, scale.early)
        yield from (student(scale, per_class, scale.early, relabel=(f"topk={k}",)) for k in scale.largest)


def adamw(scale: Scale, best: Mapping[int, int]) -> Iterator[Cell]:
    """8. AdamW, at the best expert of each number of images a class."""
    for per_class in scale.several:
        yield student(scale, per_class, best.get(per_class, scale.early), optimizer="AdamW")


def late(scale: Scale) -> Iterator[Cell]:
    """9. A longer expert and its students."""
    yield Cell(kind="expert", epochs=scale.later)
    yield from (student(scale, per_class, scale.later) for per_class in ladder(scale, scale.seeds[0]))
