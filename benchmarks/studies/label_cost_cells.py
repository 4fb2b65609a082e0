"""The ways to have labels that the label-cost claim compares, and what it does for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from benchmarks.studies.ledger import Recorded

Kind = Literal["float16", "convert", "topk", "online", "projector"]
PEERS: tuple[Kind, ...] = ("topk", "online", "projector")


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to have labels.

    Attributes:
        name: name in tables.
        kind: float16: a store, built; convert: made from that one; topk: its largest columns alone; online: the
            teacher; projector: trained to stand for the teacher.
        encoding: of a converted store, as ``make_encoding`` takes it.
        part: one of so many views is kept, and played so many times.
        largest: columns that are kept of a label.
        rank: of a projector.
    """

    name: str
    kind: Kind
    encoding: Mapping[str, Any] | None = None
    part: int = 1
    largest: int = 0
    rank: int = 0


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network with weights.

    Attributes:
        name: as ``load_network`` takes it.
        args: keyword arguments of its constructor.
        weights: file, in the folder of all data.
        size: side of its crops in pixels.
        mean: of its normalisation, by channel.
        std: likewise, the standard deviation.
        class_columns: of its columns those of the folders; None: it has no others.
    """

    name: str
    args: Mapping[str, Any]
    weights: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_columns: str | None = None


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Ways that are compared on the same images, teacher, student and epochs.

    Attributes:
        name: wide or narrow, by the columns of a label.
        train: class folder of real images, in the folder of all data; projectors are trained on it.
        test: class folder of test images.
        per_class: images a class of the set that is labelled, drawn at random; None: all.
        teacher: of all labels.
        encoder: of the projectors; None if there are none.
        student: network.
        student_args: keyword arguments of its constructor.
        epochs: of a student; as many views are labelled.
        projector_epochs: of a projector.
        batch: crops a step.
        ways: that are compared.
    """

    name: str
    train: str
    test: str
    per_class: int | None
    teacher: Network
    encoder: Network | None
    student: str
    student_args: Mapping[str, Any]
    epochs: int
    projector_epochs: int
    batch: int
    ways: tuple[Way, ...]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is compared.

    Attributes:
        frontiers: the comparisons.
        there: the encoder whose projectors are counted beside the wide labels, for columns of that number.
        columns: of the wide labels.
        ranks: of these projectors.
        seeds: of students.
        enough: students of a way that suffice; those of further seeds are counted where they were trained.
    """

    frontiers: tuple[Frontier, ...]
    there: Network
    columns: int
    ranks: tuple[int, ...]
    seeds: tuple[int, ...]
    enough: int


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # with which the bundled CIFAR-10 teachers were trained
HALF = (0.5, 0.5, 0.5)
RANKS = (2, 8, 32)
MOBILE = Network(
    name="timm:mobilenetv2_100",
    args={"pad_type": "same"},
    weights="models/imagenet-mobilenetv2_100.fp16.safetensors",
    size=64,
    mean=HALF,
    std=HALF,
)
COLUMNS = "0,217,482,491,497,566,569,571,574,701"  # of Imagenette's classes among ImageNet's


def transform(fidelity: float, part: int = 1) -> Way:
    """A store in the encoding transform."""
    name = f"transform {fidelity}" + (f", one of {part} views" if part > 1 else "")
    return Way(name=name, kind="convert", encoding={"name": "transform", "fidelity": fidelity}, part=part)


FLOAT16 = Way(name="float16", kind="float16")
INT8 = Way(name="int8", kind="convert", encoding={"name": "int8"})
ONLINE = Way(name="teacher online", kind="online")


def top(largest: int, part: int = 1) -> Way:
    """The largest columns of some views, after LPQLD."""
    name = f"top {largest}" + (f", one of {part} views" if part > 1 else "")
    return Way(name=name, kind="topk", largest=largest, part=part)


def projector(rank: int) -> Way:
    """A projector."""
    return Way(name=f"projector of rank {rank}", kind="projector", rank=rank)


REAL = Scale(
    frontiers=(
        Frontier(
            name="wide",
            train="imagenette/train",
            test="imagenette/val",
            per_class=None,
            teacher=Network(**{**asdict(MOBILE), "class_columns": COLUMNS}),
            encoder=None,
            student="convnet-d4",
            student_args={"width": 32, "norm": "batch"},
            epochs=60,
            projector_epochs=0,
            batch=50,
            ways=(
                FLOAT16, INT8, transform(0.98), transform(0.95), transform(0.92), transform(0.95, 3),
                transform(0.92, 6), top(10), top(10, 6), ONLINE,
            ),
        ),
        Frontier(
            name="narrow",
            train="cifar10/train",
            test="cifar10/test",
            per_class=50,
            teacher=Network(
                name="cifar-resnet56", args={}, weights="models/cifar10-resnet56.safetensors", size=32, mean=MEAN,
                std=STD,
            ),
            encoder=MOBILE,
            student="convnet-d3",
            student_args={},
            epochs=100,
            projector_epochs=3,
            batch=50,
            ways=(FLOAT16, INT8, top(3), *map(projector, RANKS), ONLINE),
        ),
    ),
    there=MOBILE,
    columns=1_000,
    ranks=RANKS,
    seeds=(0, 1, 2),
    enough=2,
)  # fmt: skip
SMALL = Network(
    name="convnet-d1",
    args={"width": 8, "norm": "batch"},
    weights="toy.safetensors",
    size=16,
    mean=HALF,
    std=HALF,
)
TOY = Scale(
    frontiers=tuple(
        Frontier(
            name=name, train="train", test="test", per_class=None, teacher=SMALL, encoder=SMALL, student="convnet-d1",
            student_args={"width": 8}, epochs=2, projector_epochs=1, batch=20, ways=ways,
        )
        for name, ways in (("wide", (FLOAT16, INT8, top(2, 2))), ("narrow", (FLOAT16, projector(2), ONLINE)))
    ),
    there=SMALL,
    columns=20,
    ranks=(2,),
    seeds=(0,),
    enough=1,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell(Recorded):
    """One piece of work.

    Attributes:
        frontier: where it belongs.
        way: its name.
        seed: of the student; None: the labels are made, or timed.
        timed: whether their seconds are measured, while nothing else runs.
    """

    frontier: str
    way: str
    seed: int | None
    timed: bool = False

    @property
    def trains(self) -> bool:
        """Whether a student is trained."""
        return self.seed is not None

    @property
    def name(self) -> str:
        """In words; unique in the claim."""
        what = "seconds" if self.timed else "labels" if self.seed is None else f"student, seed {self.seed}"
        return f"{self.frontier}, {self.way}: {what}"


def cells(scale: Scale) -> Iterator[Cell]:
    """All cells: of each seed every way, labels before students; at the end what is timed."""
    for place, seed in enumerate(scale.seeds):
        for frontier in scale.frontiers:
            for way in frontier.ways:
                if not place:
                    yield Cell(frontier=frontier.name, way=way.name, seed=None)
                yield Cell(frontier=frontier.name, way=way.name, seed=seed)
    for frontier in scale.frontiers:
        for way in frontier.ways:
            yield Cell(frontier=frontier.name, way=way.name, seed=None, timed=True)


def needs(cell: Cell) -> list[Cell]:
    """What has to be finished before a cell begins: its labels, and before these the exact ones."""
    labels = Cell(frontier=cell.frontier, way=cell.way, seed=None)
    if cell != labels:
        return [labels]
    return [replace(labels, way=FLOAT16.name)] if cell.way != FLOAT16.name else []
