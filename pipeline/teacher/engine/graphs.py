"""One CUDA graph of a teacher's batch: all of its kernels started at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3


class CudaGraph:
    """A function from images to logits, replayed as a CUDA graph.

    Args:
        run: the function; must not wait for the device, and always start the same kernels. It is kept, and with it the
            weights whose addresses the graph has: once they are freed, their memory is given to other tensors.
        images: of the shape, dtype, layout and device that all calls have.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], images: Tensor) -> None:
        self._run, self._images = run, images.clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(images.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    run(self._images)
            torch.cuda.current_stream().wait_stream(stream)
            # other threads may take memory meanwhile
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._logits = run(self._images)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of other images."""
        self._images.copy_(images)
        self._graph.replay()
        return self._logits.clone()
