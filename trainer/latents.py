"""Latents of every image and its mirror image, computed once: a file in the run folder, and a crop source from it.

The file is a ``.safetensors`` file: ``latents``, float16 ``[N, F, M, s, s]`` (F: plain, mirrored; M: channels of the
latents or of their moments), and their ``mean`` and ``std`` by channel, float64 ``[C]``. Its metadata has a digest of
everything on which they depend.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.durable.newfile import new_version
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from labelstore.format.columns import FLIP_BIT, CropRows
from labelstore.spec import Json
from pipeline.images.manifest import Manifest
from pipeline.networks.autoencoders import LOG_VARIANCES, Autoencoder, latent_side
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import Renderer
from pipeline.render.batches import render_each
from pipeline.render.normalise import normalise
from trainer.crops import CropSource, Int64Array

KEY, LONGEST_HEADER = "giftwrap.latents", 4096
BATCH = 16  # images encoded at a time, each with its mirror image
UNSCALED = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Latents:
    """The content of the file.

    Attributes:
        values: float16 ``[N, F, M, s, s]``, memory-mapped.
        mean: mean of latents by channel, float64 ``[C]``; for moments, of latents drawn from them.
        std: standard deviation, likewise.
    """

    values: npt.NDArray[np.float16]
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]


def key_of(manifest: Manifest, spec: PlanSpec, vae: Autoencoder, renderer: Mapping[str, Json]) -> str:
    """Digest (hex) of everything on which latents depend."""
    made: dict[str, Json] = {
        "version": 1,
        "manifest": manifest.digest,
        "size": spec.size,
        "interpolation": spec.interpolation,
        "mirrored": spec.flip > 0,
        "vae": dict(vae.identity),
        "renderer": dict(renderer),
    }
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def open_latents(
    path: Path,
    manifest: Manifest,
    spec: PlanSpec,
    vae: Autoencoder,
    renderer: Renderer,
    device: torch.device,
    progress: Callable[[int], None] = lambda _count: None,
) -> Latents:
    """The latents of all images, computed if the file is missing or of other images, autoencoder or renderer.

    Args:
        path: the file.
        manifest: the images.
        spec: their plan, of centre crops.
        vae: the autoencoder, on the device.
        renderer: id of the renderer.
        device: where images are encoded.
        progress: called with the number of images encoded since the last call.

    Raises:
        InputError: when another file has this name, or a latent is not finite.
    """
    key = key_of(manifest, spec, vae, renderer.id)
    if _key_in(path, whole=True) != key:
        flips = 2 if spec.flip > 0 else 1
        channels = vae.channels * (2 if vae.moments else 1)
        side = latent_side(vae, spec.size)
        shape = (len(manifest), flips, channels, side, side)
        plan = Plan(spec, manifest.heights, manifest.widths)
        parts = _encoded(plan, vae, renderer, device, flips)
        with new_version(path, LATENTS) as file:
            _write(file, key, shape, vae, parts, progress)
    return _read(path)


def _encoded(
    plan: Plan, vae: Autoencoder, renderer: Renderer, device: torch.device, flips: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Latents or moments of consecutive images, batch by batch, float32 ``[n, F, M, s, s]``."""
    firsts = range(0, plan.images, BATCH)
    rows = (_mirrored(plan.unmixed(0, np.arange(first, min(first + BATCH, plan.images))), flips) for first in firsts)
    for pixels in render_each(renderer, rows):
        images = normalise(pixels.to(device), *UNSCALED, torch.float32, channels_last=False)
        found = vae.encode(images).float().cpu().numpy()
        yield found.reshape(len(found) // flips, flips, *found.shape[1:])


def _mirrored(rows: CropRows, flips: int) -> CropRows:
    """Each row, followed by its mirrored copy if ``flips`` is 2."""
    values = np.repeat(rows.values, flips, axis=1)
    bits = rows.names.index("bits")
    values[bits] = values[bits] & ~np.uint16(FLIP_BIT) | np.tile(np.arange(flips, dtype=np.uint16), len(rows))
    return CropRows(rows.names, values)


def _write(
    file: BinaryIO,
    key: str,
    shape: tuple[int, ...],
    vae: Autoencoder,
    parts: Iterator[npt.NDArray[np.float32]],
    progress: Callable[[int], None],
) -> None:
    """Write the file, part by part; the statistics come last."""
    size, channels = 2 * int(np.prod(shape)), vae.channels
    header = json.dumps(
        {
            "__metadata__": {KEY: key},
            "latents": {"dtype": "F16", "shape": shape, "data_offsets": [0, size]},
            "mean": {"dtype": "F64", "shape": [channels], "data_offsets": [size, size + 8 * channels]},
            "std": {"dtype": "F64", "shape": [channels], "data_offsets": [size + 8 * channels, size + 16 * channels]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for part in parts:
        with np.errstate(over="ignore"):
            rounded = part.astype("<f2")
        if not np.isfinite(rounded).all():
            raise InputError(
                f"--vae {vae.place}: expected latents that float16 can hold, found others in the images after "
                f"{count // shape[1]:,}; take another autoencoder"
            )
        file.write(rounded.tobytes())
        plain = rounded.astype(np.float64)
        means, variances = plain[:, :, :channels], 0.0
        if vae.moments:
            variances = np.exp(plain[:, :, channels:].clip(*LOG_VARIANCES))
        count += part.shape[0] * part.shape[1] * part.shape[3] * part.shape[4]
        total += means.sum((0, 1, 3, 4))
        squares += (means**2 + variances).sum((0, 1, 3, 4))
        progress(len(part))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, np.finfo(np.float32).tiny))
    file.write(mean.astype("<f8").tobytes() + std.astype("<f8").tobytes())


def _header_of(path: Path) -> tuple[Any, int]:
    """The header of the file, and the offset of its data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(min(length, LONGEST_HEADER))), 8 + length


def _key_in(path: Path, *, whole: bool = False) -> str | None:
    """The key of the latents in a file; None if it has none, or, with ``whole``, if the file is truncated."""
    try:
        header, start = _header_of(path)
        size = start + int(header["std"]["data_offsets"][1])
        return None if whole and path.stat().st_size != size else str(header["__metadata__"][KEY])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _read(path: Path) -> Latents:
    """Map a complete file."""
    header, start = _header_of(path)
    shape = tuple(header["latents"]["shape"])
    values = np.memmap(path, "<f2", "r", start, shape)
    statistics = np.fromfile(path, "<f8", offset=start + values.nbytes)
    mean, std = statistics.reshape(2, -1)
    return Latents(values, mean, std)


LATENTS = Proof("the latents of a run's images", lambda path: _key_in(path) is not None)


class LatentCrops(CropSource):
    """The latents of a plan's images in place of their pixels, in the order and with the flips of the plan.

    Args:
        manifest: the images.
        spec: the plan of centre crops.
        latents: the latents of both.
        key: key of the latents: see `key_of`.
    """

    def __init__(self, manifest: Manifest, spec: PlanSpec, latents: Latents, key: str) -> None:
        self._plan, self._latents = Plan(spec, manifest.heights, manifest.widths), latents
        self.images, self.group, self.views = len(manifest), 1, None
        self.size = self.drawn_size = spec.size
        self.mean, self.std = UNSCALED
        self.targets = manifest.targets
        self.identity = {"manifest": manifest.digest, "plan": json.dumps(spec.to_json()), "latents": key}
        self.remark = f"latents of {self.images:,} images at {spec.size} px, by plan seed {spec.seed}"

    def rows(self, view: int, positions: Int64Array) -> CropRows:
        """The rows of the plan."""
        return self._plan.rows_at(view, positions)

    def pixels(self, rows: CropRows) -> Tensor:
        """Latents or their moments, float16 ``[n, M, s, s]``."""
        flips = rows.flip.astype(np.int64) if self._latents.values.shape[1] > 1 else 0
        return torch.from_numpy(np.array(self._latents.values[rows.image.astype(np.int64), flips]))
