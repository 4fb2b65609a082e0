"""What the numbers of a recipe depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from labelstore.spec import Identity, Json

Value: TypeAlias = "Json | tuple[float, ...] | tuple[str, ...]"
Flags: TypeAlias = dict[str, Value]

# ImageNet-1K and Tiny-ImageNet are known by their number of classes, as the papers' own code knows them by name.
IMAGENET, TINY, CIFAR100 = 1_000, 200, 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What the numbers of a recipe depend on.

    Attributes:
        images: number of images N, those that do not decode included: see `listed`.
        classes: number of class folders C.
        size: side of the crops.
        student: the network that is trained; the teacher's where it is not known yet.
        teacher: the network that made the labels.
        epochs: of the run, where they are given; else the recipe has them.
        side: side of the student's crops, where it is another one.
    """

    images: int
    classes: int
    size: int
    student: str
    teacher: str
    epochs: int | None = None
    side: int | None = None

    @classmethod
    def of(cls, identity: Identity, student: str, epochs: int | None = None, side: int | None = None) -> Setting:
        """Of a store, a student, the epochs that it is trained for, and the side of its crops."""
        return cls(
            images=listed(identity.images, identity.skipped),
            classes=len(identity.classes),
            size=identity.size,
            student=student,
            teacher=str(identity.require("teacher").get("name")),
            epochs=epochs,
            side=side,
        )

    @property
    def per_class(self) -> int:
        """Images a class, rounded up."""
        return -(-self.images // self.classes)

    @property
    def architecture(self) -> str:
        """The student's name without its library."""
        return self.student.rpartition(":")[2]

    @property
    def convnet(self) -> bool:
        """Whether the student is a ConvNet."""
        return self.architecture.startswith("convnet-d")

    @property
    def crop_side(self) -> int:
        """Side of the student's crops."""
        return self.side or self.size

    @property
    def conv3(self) -> bool:
        """RDED's exception: ConvNet-D3 from ConvNet-D3 on CIFAR-100."""
        return self.classes == CIFAR100 and self.student == self.teacher == "convnet-d3"


def listed(kept: int, skipped: Sequence[str]) -> int:
    """The number of images that a recipe's numbers follow from: of all that the set has, left out or not.

    A build must know it before it decodes, and a run finds it in the store: both count here.
    """
    return kept + len(skipped)


def batch_norm(setting: Setting) -> Flags:
    """Flags of the student: ConvNets have batch norm in the papers that train them."""
    return {"student_args": '{"norm": "batch"}'} if setting.convnet else {}
