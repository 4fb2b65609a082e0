"""The table of families of networks: which networks each has; read without importing torch.

A family is a file whose ``NETWORKS`` has a constructor for each of its names, and a line here.
"""

from __future__ import annotations

PROJECTOR = "projector"  # the name of the networks of `pipeline.networks.projector`
FAMILIES: dict[str, tuple[str, ...]] = {
    "pipeline.networks.convnet": tuple(f"convnet-d{depth}" for depth in range(1, 7)),
    "pipeline.networks.cifar_resnet": tuple(f"cifar-resnet{depth}" for depth in (20, 32, 44, 56, 110)),
    "pipeline.networks.resnet_modified": ("resnet18-modified", "resnet101-modified"),
    "pipeline.networks.projector": (PROJECTOR,),
}
"""The names of the networks of each family, by its module."""


def network_names() -> list[str]:
    """All networks that have a name of ours."""
    return [name for names in FAMILIES.values() for name in names]


def student_names() -> list[str]:
    """Those of them that can be trained alone."""
    return [name for name in network_names() if name != PROJECTOR]


def family_of(name: str) -> str | None:
    """The module of the family that has a network of that name."""
    return next((family for family, names in FAMILIES.items() if name in names), None)
