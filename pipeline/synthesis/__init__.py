"""Small image sets made from large ones: one file a method.

A new method is one new file, and one line in `METHODS`. Numbers of its own are fields of `pipeline.synthesis.config`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labelstore.tables import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.synthesis.config import SynthesizeConfig
    from pipeline.synthesis.method import MakeMethod

METHODS: Table[MakeMethod] = Table(
    {
        "random": "pipeline.synthesis.random:make_random",
        "rded": "pipeline.synthesis.rded:make_rded",
        "sre2l": "pipeline.synthesis.sre2l:make_sre2l",
        "diffusion": "pipeline.synthesis.diffusion:make_diffusion",
    }
)
CLASSES: Table[Callable[[SynthesizeConfig], tuple[str, ...]]] = Table(
    {"diffusion": "pipeline.synthesis.diffusion:classes_of"}
)
"""Of the methods that need no images: what gives the names of the classes, in target order."""
