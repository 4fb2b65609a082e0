"""The cells of the study of generated CIFAR-10 images, in the order in which they are worth their time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from benchmarks.studies import image_sets_cells
from benchmarks.studies.image_sets_cells import LABELS

Kind = Literal["teacher", "generator", "judged", "set", "student"]
MEANINGS: Mapping[Kind, str] = {
    "teacher": "teacher trained on hard labels",
    "generator": "generator trained",
    "judged": "generated images shown to the judge",
    "set": "images made",
    "student": "student trained",
}
GENERATED = "generated"
METHODS = (GENERATED, "random", "rded")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The generator, and how its images are drawn."""

    backbone: str = "uvit-xs"
    """The backbone of train-generator."""
    backbone_args: str = "{}"
    """Other numbers of it, as JSON."""
    patch: int = 2
    """Side of its patches."""
    vae: str = "taef2"
    """The autoencoder of train-generator: taef2 or none."""
    side: int = 64
    """Side of the images in pixels; 32 px of CIFAR-10 are enlarged to it."""
    training: float = 20.0
    """Minutes of training, besides those in which latents are made."""
    lr: float = 1e-3
    """Learning rate of the training."""
    batch_size: int = 128
    """Images a step."""
    prediction: Literal["epsilon", "v"] = "v"
    """What the generator predicts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone."""
    steps: int = 25
    """Calls of the backbone for each image."""

    @property
    def name(self) -> str:
        """Every number, in words, safe as the name of a folder."""
        args = "" if self.backbone_args == "{}" else f"-{self.backbone_args}"
        words = (
            f"{self.backbone}{args}-patch{self.patch}-{self.vae}-{self.side}px-{self.prediction}-{self.dtype}-"
            f"lr{self.lr:g}-batch{self.batch_size}-{self.training:g}min-{self.steps}steps"
        )
        return "".join(letter for letter in words.replace("/", "-") if letter not in '{}"": ')


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of the study.

    Attributes:
        sets: images a class, students and their teacher, as the study of image sets has them.
        judge: network that judges generated images.
        weights: its weights, in the folder of all data; None: the teacher judges.
        shown: images a class that it judges.
        images: how many training images there are.
        several: images a class that all seeds have; for more, only the first seed.
        image_batch: images that are generated at a time.
        flags: further ones of train-generator.
    """

    sets: image_sets_cells.Scale
    judge: str
    weights: str | None
    shown: int
    images: int
    several: int
    image_batch: int
    flags: tuple[object, ...] = ()

    @property
    def data(self) -> image_sets_cells.Data:
        """The data set."""
        return self.sets.data[0]


# Of 10 images a class everything is as in the study of image sets, whose students of real images are not trained again.
REAL = Scale(
    sets=replace(
        image_sets_cells.REAL,
        data=(image_sets_cells.REAL.named("cifar10"),),
        epochs={10: image_sets_cells.REAL.epochs[10], 50: 30},
        batches={10: image_sets_cells.REAL.batches[10], 50: 50},
    ),
    judge="cifar-resnet56",
    weights="models/cifar10-resnet56.safetensors",
    shown=100,
    images=10_000,
    several=10,
    image_batch=100,
)
TOY = Scale(
    sets=replace(image_sets_cells.TOY, epochs={1: 2}, seeds=(0,)),
    judge=image_sets_cells.TOY.data[0].teacher,
    weights=None,
    shown=2,
    images=40,
    several=1,
    image_batch=10,
    flags=("--steps", 2),
)
TOY_MODEL = Model(
    backbone_args='{"dim": 8, "depth": 2, "heads": 2}', patch=8, vae="none", side=16, batch_size=20, steps=2
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One piece of work.

    Attributes:
        kind: what is done.
        model: name of the generator; empty of real images.
        method: that makes the images.
        per_class: images a class.
        seed: of the images and of the student.
        labels: hard (cross-entropy on targets), kl or gift (a store of the teacher's labels).
    """

    kind: Kind
    model: str = ""
    method: str = ""
    per_class: int = 0
    seed: int = 0
    labels: str = ""

    def to_json(self) -> dict[str, Any]:
        """Its fields, as a line of results has them."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @property
    def name(self) -> str:
        """In words; unique beside cells of the same model."""
        if self.kind in ("set", "student"):
            words = f"{self.method}-ipc{self.per_class}-seed{self.seed}"
            return f"{words}-{self.labels}" if self.labels else words
        return self.kind

    def of_sets(self, data: image_sets_cells.Data) -> image_sets_cells.Cell:
        """The same as a cell of the study of image sets, which has no generated images."""
        assert self.kind in ("teacher", "set", "student")  # noqa: S101  the others have no such cell
        return image_sets_cells.Cell(
            kind=self.kind,
            data=data.name,
            method=f"{self.method}-{self.model}" if self.model else self.method,
            per_class=self.per_class,
            seed=self.seed,
            labels=self.labels,
            student=next(iter(data.students)) if self.kind == "student" else "",
        )


def cells(scale: Scale, model: str) -> list[Cell]:
    """All cells, the most important ones first."""
    found = [Cell(kind="teacher")] if scale.data.weights is None else []
    found += [Cell(kind="generator", model=model), Cell(kind="judged", model=model)]
    for seed in scale.sets.seeds:
        found += compared(model, scale.several, seed)
    for per_class in scale.sets.epochs:
        if per_class != scale.several:
            found += compared(model, per_class, scale.sets.seeds[0])
    return found


def compared(model: str, per_class: int, seed: int) -> Iterator[Cell]:
    """Generated, random and RDED images of one seed, and students of each by every kind of label."""
    for method in METHODS:
        made = Cell(
            kind="set", model=model if method == GENERATED else "", method=method, per_class=per_class, seed=seed
        )
        yield made
        for labels in LABELS:
            yield replace(made, kind="student", labels=labels)
