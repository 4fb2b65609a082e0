"""Networks by name, a family a file; teachers and students alike. Torch is imported when one of these is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.networks.load import build_network, load_network
    from pipeline.networks.weights import Weights, load_weights, read_weights, save_weights

__all__ = ["Weights", "build_network", "load_network", "load_weights", "read_weights", "save_weights"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "load" if name.endswith("network") else "weights"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
