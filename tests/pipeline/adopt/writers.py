"""What SRe2L, G-VBSM, EDC and FKD do to write their labels, with torchvision and torch's own loader, on a CPU.

Each is the same sequence of draws and operations as in the authors' programs (relabel/generate_soft_label.py and
utils_fkd.py of SRe2L; generate_soft_label_with_db.py of G-VBSM and EDC; FKD_SLG of FKD), written for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, RandomResizedCrop, functional

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Numbers of a relabelling.

    Attributes:
        images: class folder.
        network: labels float32 ``[B, 3, S, S]``.
        size: side S.
        mean: of the normalisation.
        std: of the normalisation.
        layout: whose list is written.
        mix: cutmix, mixup or None.
        batch: crops of a file.
        seed: of the sampler.
        scale: of RandomResizedCrop.
        half: store logits in float16.
        drop_last: as LPLD prunes.
    """

    images: Path
    network: Network
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: Literal["sre2l", "g-vbsm", "edc"] = "sre2l"
    mix: Literal["cutmix", "mixup"] | None = "cutmix"
    batch: int = 10
    seed: int = 42
    scale: tuple[float, float] = (0.08, 1.0)
    half: bool = True
    drop_last: bool = False

    def write(self, folder: Path, epochs: int) -> Path:
        """Write epoch_*/batch_*.tar."""
        crops = _Crops(self)
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        sampler = RandomSampler(crops, generator=generator)
        loader: DataLoader[Any] = DataLoader(
            crops, batch_size=self.batch, shuffle=False, sampler=sampler, drop_last=self.drop_last
        )
        for epoch in range(epochs):
            place = folder / f"epoch_{epoch}"
            place.mkdir(parents=True)
            for number, (images, flips, coordinates, indexes) in enumerate(loader):
                mixed, partners, lam, box = self._mixed(images)
                with torch.no_grad():
                    logits = self.network(mixed)
                value = [coordinates, flips, partners, lam, box, logits.half() if self.half else logits]
                if self.layout != "sre2l":
                    value.append(indexes)
                if self.layout == "edc":
                    value.append(torch.zeros(len(indexes), 2, 2).int())
                torch.save(value, place / f"batch_{number}.tar")
        return folder

    def _mixed(self, images: Tensor) -> tuple[Tensor, Tensor | None, float | None, list[Any] | None]:
        if self.mix is None:
            return images, None, None, None
        partners = torch.randperm(images.size(0))
        lam = np.random.beta(*((0.8, 0.8) if self.mix == "mixup" else (1.0, 1.0)))  # noqa: NPY002  as they draw it
        if self.mix == "mixup":
            return lam * images + (1 - lam) * images[partners], partners, lam, None
        box = cut_box(images.size(), lam)
        top, left, bottom, right = box
        images[:, :, top:bottom, left:right] = images[partners, :, top:bottom, left:right]
        return images, partners, lam, [top, left, bottom, right]


def cut_box(size: torch.Size, lam: float) -> tuple[Any, Any, Any, Any]:
    """Their box: the first two edges are of axis 2, of which they speak as x."""
    first, second = size[2], size[3]
    ratio = np.sqrt(1.0 - lam)
    cut_first, cut_second = int(first * ratio), int(second * ratio)
    at_first, at_second = np.random.randint(first), np.random.randint(second)  # noqa: NPY002  as they draw it
    return (
        np.clip(at_first - cut_first // 2, 0, first),
        np.clip(at_second - cut_second // 2, 0, second),
        np.clip(at_first + cut_first // 2, 0, first),
        np.clip(at_second + cut_second // 2, 0, second),
    )


class _Crops(Dataset[Any]):
    """Crop, flip and normalise an image of a class folder."""

    def __init__(self, writer: Writer) -> None:
        self._writer, self._folder = writer, ImageFolder(writer.images)

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, index: int) -> tuple[Tensor, bool, Tensor, int]:
        writer = self._writer
        image: Any = self._folder.loader(self._folder.samples[index][0])
        tensors = writer.layout == "edc"
        if tensors:
            image = functional.to_tensor(image)
        i, j, h, w = RandomResizedCrop.get_params(image, list(writer.scale), [3 / 4, 4 / 3])
        # sizes of Pillow are (width, height); EDC indexes the shape [3, H, W] of a tensor instead
        by_i, by_j = (image.shape[2], image.shape[1]) if tensors else (image.size[1], image.size[0])
        coordinates = torch.FloatTensor((i / by_i, j / by_j, h / by_i, w / by_j))
        crop = functional.resized_crop(image, i, j, h, w, [writer.size] * 2, InterpolationMode.BILINEAR, antialias=True)
        flip = bool(torch.rand(1) < 0.5)
        if flip:
            crop = functional.hflip(crop)
        pixels = crop if tensors else functional.to_tensor(crop)
        return functional.normalize(pixels, list(writer.mean), list(writer.std)), flip, coordinates, index


def write_fkd(
    images: Path,
    network: Network,
    folder: Path,
    *,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crops: int,
    kept: int,
    half: bool = False,
) -> Path:
    """FKD's one file an image: crops of it, with the largest probabilities of each."""
    files = ImageFolder(images)
    for path, _ in files.samples:
        image = files.loader(path)
        boxes, flips, pixels = [], [], []
        for _ in range(crops):
            i, j, h, w = RandomResizedCrop.get_params(image, [0.08, 0.936], [3 / 4, 4 / 3])
            boxes.append([i / image.size[1], j / image.size[0], h / image.size[1], w / image.size[0]])
            crop = functional.resized_crop(image, i, j, h, w, [size] * 2, InterpolationMode.BICUBIC)
            flips.append(bool(torch.rand(1) < 0.5))
            crop = functional.hflip(crop) if flips[-1] else crop
            pixels.append(functional.normalize(functional.to_tensor(crop), list(mean), list(std)))
        with torch.no_grad():
            probabilities = torch.softmax(network(torch.stack(pixels)), dim=1)
        largest = torch.topk(probabilities, kept, dim=1)
        label = torch.stack([largest.indices.float(), largest.values], dim=1)
        place = folder / Path(path).parent.name / f"{Path(path).name.split('.')[0]}.tar"
        place.parent.mkdir(parents=True, exist_ok=True)
        coordinates = np.array(boxes, np.float32)
        state: list[Any] = [coordinates, np.array(flips), label]
        if half:
            state = [coordinates.astype(np.float16), np.array(flips), label.numpy().astype(np.float16)]
        torch.save(state, place)
    return folder
