"""What one would write instead of a build, after FKD: a DataLoader, a teacher, torch.save a batch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomResizedCrop, functional

from labelstore.format.columns import CROP_COLUMNS, CropRows
from pipeline.networks import load_network

WORKERS = 2
SETTLE_SECONDS = 1.5  # in which workers finish the batches that they hold ready for the next round


class Pictures(Dataset[tuple[int, Tensor, Tensor]]):
    """Random crops of image files by Pillow, as a training loop makes them, and where they were cut.

    Args:
        files: of the images.
        size: side S of the crops.
        count: crops to draw, of one image after the other.
        mean: channel means of the pixels in [0, 1].
        std: channel standard deviations of the pixels in [0, 1].
    """

    def __init__(
        self, files: list[Path], size: int, count: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self._files, self._size, self._count, self._mean, self._std = files, size, count, list(mean), list(std)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        """Index of the image; top, left, height, width and flip, int64 ``[5]``; float32 ``[3, S, S]``."""
        index %= len(self._files)
        with Image.open(self._files[index]) as picture:
            image = picture.convert("RGB")
        box = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        crop = functional.resized_crop(image, *box, [self._size, self._size])
        flip = bool(torch.rand(1) < 0.5)
        if flip:
            crop = functional.hflip(crop)
        return (
            index,
            torch.tensor([*box, flip]),
            functional.normalize(functional.to_tensor(crop), self._mean, self._std),
        )


@dataclass(frozen=True, kw_only=True)
class Fkd:
    """FKD's whole script, run in a separate process so that the setup of a build neither helps nor hinders it.

    Attributes:
        files: of the images.
        network: name of the teacher.
        weights: its file.
        classes: its columns.
        size: side S of the crops.
        batch: crops of a batch.
        batches: that are labelled in a round.
        workers: processes of the loader.
        device: of the teacher, which is in float32 and in the layout that a network has by default.
        mean: channel means of the pixels in [0, 1].
        std: channel standard deviations of the pixels in [0, 1].
    """

    files: list[Path]
    network: str
    weights: str
    classes: int
    size: int
    batch: int
    batches: int
    workers: int
    device: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def serve(self, asked: Connection) -> None:
        """Answer ``compare`` with a batch and its labels; the name of a way to run the teacher with a round's times.

        These are ``eager``, ``compiled``, and ``bfloat16``, which is eager under autocast.
        """
        network, _ = load_network(self.network, {}, self.weights, classes=self.classes, size=self.size)
        networks: dict[str, Any] = {"eager": network.eval().to(self.device)}
        shortened = torch.autocast(torch.device(self.device).type, torch.bfloat16)
        loader = self._loader()
        with suppress(EOFError), tempfile.TemporaryDirectory() as folder:
            while True:
                name = asked.recv()
                if name == "compare":
                    images, boxes, pixels = next(loader)
                    with torch.inference_mode():
                        logits = networks["eager"](pixels.to(self.device)).cpu()
                    asked.send([part.numpy() for part in (images, boxes, pixels, logits)])
                    continue
                if name not in networks:
                    networks[name] = shortened(network.forward) if name == "bfloat16" else torch.compile(network)
                asked.send(self._label(loader, networks[name], Path(folder)))

    def _loader(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches without end: what its workers hold ready when a round begins, they hold ready when it ends."""
        context = "forkserver" if self.workers else None  # what is forked here would have threads
        pictures = Pictures(self.files, self.size, 1 << 40, self.mean, self.std)
        batches: DataLoader[Any] = DataLoader(
            pictures, self.batch, num_workers=self.workers, multiprocessing_context=context
        )
        return iter(batches)

    def _label(self, loader: Iterator[tuple[Tensor, Tensor, Tensor]], network: Any, folder: Path) -> dict[str, float]:
        """Crops a second, and the shares of the time for which it waited for crops, labelled and saved."""
        spent = {"loader": 0.0, "teacher": 0.0, "save": 0.0}
        start = now = time.perf_counter()
        for number in range(self.batches):
            images, boxes, pixels = next(loader)
            spent["loader"] += -now + (now := time.perf_counter())
            with torch.inference_mode():
                logits = network(pixels.to(self.device)).half().cpu()
            spent["teacher"] += -now + (now := time.perf_counter())
            torch.save({"images": images, "boxes": boxes, "logits": logits}, folder / f"batch_{number}.pt")
            spent["save"] += -now + (now := time.perf_counter())
        seconds = now - start
        if self.workers:
            time.sleep(SETTLE_SECONDS)
        return {"rate": self.batches * self.batch / seconds, **{name: part / seconds for name, part in spent.items()}}


@contextmanager
def apart(fkd: Fkd) -> Iterator[Callable[[str], Any]]:
    """Answers of a process that serves; it ends with the context."""
    ours, theirs = Pipe()
    process = get_context("spawn").Process(target=fkd.serve, args=(theirs,))
    process.start()
    theirs.close()

    def ask(name: str) -> Any:
        ours.send(name)
        return ours.recv()

    try:
        yield ask
    finally:
        ours.close()
        process.join()


def rows_of(images: npt.NDArray[np.int64], boxes: npt.NDArray[np.int64]) -> CropRows:
    """The same crops as rows of a plan."""
    values = {name: boxes[:, at] for at, name in enumerate(("top", "left", "height", "width", "bits"))}
    values |= {"image_low": images & 0xFFFF, "image_high": images >> 16}
    return CropRows(CROP_COLUMNS, np.stack([values[name] for name in CROP_COLUMNS]).astype(np.uint16))
