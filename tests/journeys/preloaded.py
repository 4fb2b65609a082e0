"""What commands import, for the process that theirs are forked from: see `SERVER` in world.py."""

from __future__ import annotations

import gc
import pkgutil
from importlib import import_module

from labelstore.command.flags import flags_of

LIBRARIES = (
    "multiprocessing.synchronize",
    "numpy.ctypeslib",
    "numpy.ma",
    "nvidia.dali._debug_mode",
    "nvidia.dali.fn",
    "nvidia.dali.types",
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.PpmImagePlugin",
    "PIL.WebPImagePlugin",
    "pytest",
    "torch.distributed",
    "torch.utils.data",
    "torch.utils.serialization.config",
    "tyro._cli",
    "tyro._parsers",
    "typeguard",
)
WHOLE = ("tyro._backends", "tyro.constructors", "labelstore", "pipeline", "trainer")

for name in (*LIBRARIES, "tests.journeys.world"):
    import_module(name)
for name in WHOLE:
    for module in pkgutil.walk_packages(import_module(name).__path__, f"{name}."):
        if not module.name.endswith(("__main__", "kernels")):  # Triton's kernels are slow to import, and rarely needed
            import_module(module.name)
for package in WHOLE[2:]:
    for command in import_module(f"{package}.__main__").COMMANDS.values():
        flags_of(command.config)  # reads sources, once a process
gc.collect()
gc.freeze()  # a collection in a child would write to the pages of all that, and so copy them
