"""Crops rendered from image files and crop rows: ``pixels = render(image bytes, crop row, renderer id)`` (P1)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.device.choosing import choose_device
from pipeline.render.identity import DECODERS, AugmenterName, DecoderName, augmenter_of, decoder_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

    from labelstore.format.columns import CropRows
    from pipeline.images.manifest import Manifest
    from pipeline.plan.plan import PlanSpec

__all__ = ["AugmenterName", "DecoderName", "Renderer", "augmenter_of", "decoder_of", "make_renderer"]


class Renderer(Protocol):
    """Turns crop rows into pixels."""

    @property
    def id(self) -> dict[str, Json]:
        """All that the pixels depend on besides images and rows."""

    def render(self, rows: CropRows) -> Tensor:
        """The crops of n rows (whole groups when they are mixed), uint8 ``[n, S, S, 3]``, after mixing."""

    def close(self) -> None:
        """Release threads and memory."""


@runtime_checkable
class StreamRenderer(Renderer, Protocol):
    """A renderer that makes crops ahead of those that are used."""

    def render_all(self, parts: Iterable[CropRows]) -> Iterator[Tensor]:
        """The crops of each of ``parts``, as by `render`; parts are taken ahead of their crops."""


@runtime_checkable
class KeepingRenderer(Renderer, Protocol):
    """A renderer that keeps decoded images: the first that are needed, until its memory for them is full."""

    def make_room(self, images: npt.NDArray[np.int64]) -> None:
        """Release the decoded images that are kept, if these ``[n]`` do not fit beside them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How crops are rendered on a type of device: an entry of `RENDERERS`.

    Attributes:
        make: called with the manifest, the plan, the device, a decoder, CPU threads, and bytes for decoded images.
        decoders: keys of `pipeline.render.identity.DECODERS` that it can use, the default first.
        advice: what to do about another decoder.
    """

    make: Callable[[Manifest, PlanSpec, torch.device, str, int, int | None], Renderer]
    decoders: tuple[str, ...]
    advice: str = ""


def _on_cpu(
    manifest: Manifest, spec: PlanSpec, _device: torch.device, _decoder: str, threads: int, cache_bytes: int | None
) -> Renderer:
    from pipeline.render.cache import CACHE_BYTES  # takes a second to import
    from pipeline.render.crops import CropRenderer

    return CropRenderer(manifest, spec, threads, CACHE_BYTES if cache_bytes is None else cache_bytes)


def _on_gpu(
    manifest: Manifest, spec: PlanSpec, device: torch.device, decoder: str, threads: int, cache_bytes: int | None
) -> Renderer:
    from pipeline.render.device import DeviceRenderer  # takes a second to import

    return DeviceRenderer(manifest, spec, device, decoder, threads, cache_bytes)


def _by_dali(
    manifest: Manifest, spec: PlanSpec, device: torch.device, decoder: str, threads: int, _cache_bytes: int | None
) -> Renderer:
    from pipeline.render.dali_crops import DaliRenderer  # takes a second to import

    return DaliRenderer(manifest, spec, device, decoder, threads)


_ON_GPU = "works on a GPU; add --device cuda, or take --decoder cpu"
RENDERERS: dict[tuple[str, str], Choice] = {
    ("pillow", "cpu"): Choice(_on_cpu, ("cpu",), _ON_GPU),
    ("pillow", "cuda"): Choice(_on_gpu, ("gpu", "cpu", "gpu-hw")),
    ("dali", "cpu"): Choice(_by_dali, ("cpu",), _ON_GPU),
    ("dali", "cuda"): Choice(_by_dali, ("gpu", "cpu", "gpu-hw")),
}
"""By the augmenter, and the type of the device that crops are made on."""
AUGMENTERS = tuple(dict.fromkeys(augmenter for augmenter, _ in RENDERERS))


def make_renderer(
    manifest: Manifest,
    spec: PlanSpec,
    *,
    device: str = "cpu",
    decoder: str | None = None,
    augmenter: str | None = None,
    threads: int | None = None,
    cache_bytes: int | None = None,
) -> Renderer:
    """The renderer of the crops of a plan.

    Args:
        manifest: the images.
        spec: the plan: side, interpolation, padding and mixing of the crops.
        device: ``cpu``, ``cuda`` or ``cuda:N``; the crops are made and returned there.
        decoder: of image files: ``cpu``; ``gpu``, in software with the help of a GPU; ``gpu-hw``, in its hardware where
            that takes a file. The CPU's on a CPU, ``gpu`` on a GPU when None.
        augmenter: ``pillow``, whose crops are Pillow's, bit for bit, or ``dali``, whose crops DALI resizes and which
            keeps no decoded images; ``pillow`` when None.
        threads: CPU threads; all cores of this process when None. Has no effect on pixels.
        cache_bytes: memory for decoded images on that device: as many as fit are decoded once and kept, the others
            when crops of them are rendered. Has no effect on pixels. 2 GiB on a CPU, and on a GPU half of what is free
            less 2 GiB, when None. The current chunks take up to a GiB more, or a few times the largest image.

    Raises:
        InputError: the device is unknown or absent, the decoder does not work on it, a number makes no sense, or DALI,
            where it is needed, is not installed.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads: expected at least 1, found {threads}")
    if cache_bytes is not None and cache_bytes < 0:
        raise InputError(f"memory for decoded images: expected at least 0 bytes, found {cache_bytes}")
    where = choose_device(device)
    if decoder not in (None, *DECODERS):
        raise InputError(f"decoder: expected one of {', '.join(DECODERS)}, found {decoder!r}")
    if augmenter not in (None, *AUGMENTERS):
        raise InputError(f"augmenter: expected one of {', '.join(AUGMENTERS)}, found {augmenter!r}")
    choice = RENDERERS[augmenter or AUGMENTERS[0], where.type]
    if decoder not in (None, *choice.decoders):
        raise InputError(f"decoder {decoder}: {choice.advice}")
    if augmenter == "dali":
        decoder = _decoder_by_dali(spec, decoder)
    threads = threads or len(os.sched_getaffinity(0))
    return choice.make(manifest, spec, where, decoder or choice.decoders[0], threads, cache_bytes)


def _decoder_by_dali(spec: PlanSpec, decoder: str | None) -> str | None:
    """The decoder of ``--augmenter dali``; InputError for one that it does not use for these crops."""
    from pipeline.render.dali_crops import decodes_whole  # takes a second to import

    if not decodes_whole(spec):
        return decoder
    if decoder not in (None, "cpu"):
        raise InputError(
            f"decoder {decoder}: with --augmenter dali, padded crops and those of shuffled patches are decoded on the "
            f"CPU; leave --decoder out, or take --augmenter pillow"
        )
    return "cpu"
