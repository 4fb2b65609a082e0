"""The flags of every command that renders crops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.render.identity import AugmenterName, DecoderName, augmenter_of, decoder_of


class RenderArguments(TypedDict):
    """The keyword arguments of `pipeline.render.make_renderer`."""

    device: str
    decoder: str | None
    augmenter: str | None
    threads: int | None
    cache_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderOptions:
    """Device, threads and memory for rendering crops."""

    device: str = "cpu"
    """Where crops are rendered and networks run: cpu, cuda or cuda:N."""
    decoder: DecoderName | None = None
    """Decoder of image files: cpu; gpu, in software; gpu-hw, the GPU's JPEG hardware. Left out, the store's decoder;
    without a store, cpu on a CPU and gpu on a GPU."""
    augmenter: AugmenterName | None = None
    """Library that cuts and resizes crops: pillow, bit for bit as Pillow does; dali, which streams files through DALI,
    for sets that do not fit into memory. Left out, the store's augmenter; without a store, pillow."""
    threads: int | None = None
    """CPU threads; all cores when left out. On a CPU the last bits of labels depend on it: a store records it, and
    verify uses the store's."""
    cache_gib: float | None = None
    """GiB for decoded images, in the memory of the device that renders; it never changes pixels. Left out, 2 on a CPU,
    and on a GPU half of the free memory less 2."""

    def __post_init__(self) -> None:
        """Refuse invalid numbers."""
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads: expected at least 1, found {self.threads}")
        if self.cache_gib is not None and not (math.isfinite(self.cache_gib) and self.cache_gib >= 0):
            raise InputError(f"--cache-gib: expected a number of GiB that is not negative, found {self.cache_gib}")

    @property
    def cache_bytes(self) -> int | None:
        """The memory budget of decoded images, in bytes; None for the device's default."""
        return None if self.cache_gib is None else int(self.cache_gib * 2**30)

    @property
    def arguments(self) -> RenderArguments:
        """What a renderer is made with."""
        return {
            "device": self.device,
            "decoder": self.decoder,
            "augmenter": self.augmenter,
            "threads": self.threads,
            "cache_bytes": self.cache_bytes,
        }

    def like(self, renderer: Mapping[str, Json]) -> RenderArguments:
        """The same, with the decoder and the augmenter that the id of a renderer names."""
        return {**self.arguments, "decoder": decoder_of(renderer), "augmenter": augmenter_of(renderer)}
