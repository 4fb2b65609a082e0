"""Files read many at a time by DALI's threads: Python's own wait for each other after each call of the system."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.render.dali import load


class FileReader:
    """Reads files; calls from several threads take turns.

    A file takes some 10 us of a thread of Python, where reading them one by one on 16 cores let through 5,000 a second.
    """

    def __init__(self, threads: int, batch: int) -> None:
        """Nothing is made yet.

        Args:
            threads: of DALI.
            batch: most files at a time.
        """
        self._threads, self._batch = threads, batch
        self._pipeline: Any = None
        self._lock = threading.Lock()

    def read(self, paths: Sequence[str]) -> list[memoryview] | None:
        """The bytes of each file; None if any cannot be read: which one, and why, is not known.

        They stay valid, and hold the memory of all files of the call.
        """
        if not paths:
            return []
        with self._lock:
            # One array, since each array of a list takes DALI as long as its file; zeros end a path.
            names = np.array([*map(os.fsencode, paths)]).view(np.uint8).reshape(len(paths), -1)
            self._pipeline = self._pipeline or self._made()
            try:
                (files,) = self._pipeline.run(files=names)
            except RuntimeError:  # a file that is gone, mostly; the pipeline cannot be used any more
                self._pipeline = None
                return None
            return [np.asarray(file).data for file in files]

    def close(self) -> None:
        """Release its threads."""
        self._pipeline = None

    def _made(self) -> Any:
        """A pipeline, on the CPU, whose results are not overwritten while anything refers to them."""
        dali = load()
        pipeline = dali.Pipeline(
            batch_size=self._batch,
            num_threads=self._threads,
            device_id=None,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with pipeline:
            names = dali.fn.external_source(name="files", dtype=dali.types.UINT8, ndim=1, no_copy=True)
            # A mapped file that is cut short meanwhile would end the process.
            pipeline.set_outputs(dali.fn.io.file.read(names, dont_use_mmap=True))
        pipeline.build()
        return pipeline
