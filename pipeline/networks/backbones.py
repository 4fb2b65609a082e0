"""The sizes of the backbones that generate images; read by commands before torch is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from labelstore.errors import InputError, reason


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a U-ViT besides its input.

    Attributes:
        dim: width of a token.
        depth: blocks besides the one in the middle, even: half before it, half after it.
        heads: of the attention.
        patch: side of a patch.
        conv: whether a 3 x 3 convolution follows the last layer.
    """

    dim: int
    depth: int
    heads: int
    patch: int = 2
    conv: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers that no U-ViT has."""
        for name in ("dim", "depth", "heads", "patch"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"backbone {name}: expected a whole number of at least 1, found {value!r}")
        if self.depth % 2:
            raise InputError(f"backbone depth: expected an even number of blocks, found {self.depth}")
        if self.dim % (2 * self.heads):
            raise InputError(f"backbone dim: expected a multiple of 2 x {self.heads} heads, found {self.dim}")


BACKBONES: Mapping[str, Shape] = {
    "uvit-xs": Shape(192, 6, 6),
    "uvit-s": Shape(512, 12, 8),
    "uvit-s-deep": Shape(512, 16, 8),
    "uvit-m": Shape(768, 16, 12),
    "uvit-l": Shape(1024, 20, 16),
    "uvit-h": Shape(1152, 28, 16, conv=False),
}
"""The published sizes, and ``uvit-xs`` of a few million parameters for a machine without a GPU."""


def shape_of(name: str, args: Mapping[str, Any]) -> Shape:
    """A backbone of `BACKBONES`, some of whose numbers may be others.

    Raises:
        InputError: there is none of that name, or a number is unknown or impossible.
    """
    if name not in BACKBONES:
        raise InputError(f"--backbone: expected one of {', '.join(BACKBONES)}, found {name!r}")
    known = asdict(BACKBONES[name])
    if unknown := [key for key in args if key not in known]:
        raise InputError(f"--backbone-args: expected {', '.join(known)}, found {unknown[0]!r}")
    try:
        return replace(BACKBONES[name], **args)
    except TypeError as error:
        raise InputError(f"--backbone-args: {reason(error)}") from error
