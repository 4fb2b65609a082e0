"""How crops are rendered: the flags shared by every command that renders them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from labelstore.errors import InputError
from pipeline.render.identity import AugmenterName, DecoderName


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderOptions:
    """Where crops are rendered, and with how much of the machine."""

    device: str = "cpu"
    """cpu, cuda or cuda:N, for the renderer and the network."""
    decoder: DecoderName | None = None
    """What decodes files: cpu; gpu, in software; gpu-hw, by its JPEG hardware. Left out, what decoded the store's, and
    otherwise the default of the device: gpu on a GPU."""
    augmenter: AugmenterName | None = None
    """What cuts and resizes crops: pillow, as Pillow does, bit for bit; dali, which streams files through DALI and
    keeps no decoded images, for sets that no memory holds. Left out, what made the store's, and otherwise pillow."""
    threads: int | None = None
    """CPU threads; all cores when left out. On a CPU, labels depend on it: a store records it, and verify uses the
    store's."""
    cache_gib: float | None = None
    """Memory for decoded images, on the rendering device: as many as fit are decoded once, with the same pixels. 2 on a
    CPU when left out; on a GPU half of what is free, less 2."""

    def __post_init__(self) -> None:
        """Refuse what no machine has."""
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads: expected at least 1, found {self.threads}")
        if self.cache_gib is not None and not (math.isfinite(self.cache_gib) and self.cache_gib >= 0):
            raise InputError(f"--cache-gib: expected a number of GiB that is not negative, found {self.cache_gib}")

    @property
    def cache_bytes(self) -> int | None:
        """The memory budget of decoded images, in bytes; None for the device's default."""
        return None if self.cache_gib is None else int(self.cache_gib * 2**30)
