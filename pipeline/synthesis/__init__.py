"""Small image sets made from large ones: one file a method.

A new method is one new file, and one line in `METHODS`. Its numbers are fields of a class in
`pipeline.synthesis.config`.
"""

from __future__ import annotations

from typing import Any

from labelstore.tables import Table

METHODS: Table[Any] = Table(
    {
        "random": "pipeline.synthesis.random:make_random",
        "rded": "pipeline.synthesis.rded:make_rded",
        "sre2l": "pipeline.synthesis.sre2l:make_sre2l",
        "diffusion": "pipeline.synthesis.diffusion:make_diffusion",
        "hello-update": "pipeline.synthesis.hello_update:make_hello_update",
    }
)
"""By name: each a `MakeMethod` of `pipeline.synthesis.method`, which reads the flags, whose choices are these names."""
REFUSING: Table[Any] = Table(
    {
        "random": "pipeline.synthesis.random:require_flags",
        "rded": "pipeline.synthesis.rded:require_flags",
        "sre2l": "pipeline.synthesis.sre2l:require_flags",
    }
)
"""Checks of flags, for methods that have one, before images are read."""
CLASSES: Table[Any] = Table({"diffusion": "pipeline.synthesis.diffusion:classes_of"})
"""For methods that need no images: functions from the flags to the class names, in target order."""
WITHOUT_IPC = ("hello-update",)
"""Methods that make one image of each of --images, unless --ipc is given."""
