"""A command as one process, or as the processes of a launcher. Ray is imported only where --ray is given."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from labelstore.command.console import Console
from labelstore.errors import InputError
from pipeline.launch.place import place_of, started

PROGRAM = "giftwrap"


def launched(command: Callable[[Any, Console], int]) -> Callable[[Any, Console], int]:
    """A command that with --ray runs as several processes under Ray.

    Each of them gets the words that were typed, and the environment that torchrun would give it.

    Args:
        command: takes its flags, with a `LaunchOptions` in ``launch`` and a device in ``render``, and the console.
    """

    @wraps(command)
    def run(config: Any, console: Console) -> int:
        if config.launch.ray is None:
            return command(config, console)
        place = place_of(os.environ)
        if place.launcher == "ray":
            from labelstore.command.flags import changed

            return command(changed(config, ray=None, workers=None, gpus_per_worker=None), console)
        if place.world > 1:
            raise InputError(f"--ray: starts the processes, found those of {place.launcher}; start one command")
        gpus = config.launch.gpus(config.render.device)
        from pipeline.launch.ray_cluster import connected
        from pipeline.launch.ray_ranks import run_ranks

        with connected(config.launch, gpus) as cluster:
            return run_ranks(cluster, sys.argv[1:], started(PROGRAM, place, os.environ), console)

    return run
