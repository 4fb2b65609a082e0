"""Labels as FKD of SRe2L keeps and loads them: a pickle a batch, crops by Pillow in workers, mixed in the loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

from labelstore.format.columns import CropRows
from trainer.batch import TrainBatch
from trainer.replay import Replay
from trainer.run import Run


class Files:
    """The first view of a run's store as FKD has it.

    Args:
        run: whose student is trained.
        folder: to make, for the pickles.
        batch: crops of each.
        side: of crops in pixels.
        workers: processes that load.
    """

    def __init__(self, run: Run, folder: Path, *, batch: int, side: int, workers: int) -> None:
        folder.mkdir()
        self._run, replay = run, run.replay
        assert isinstance(replay, Replay)  # noqa: S101  what a student's run plays
        source, identity = replay.source, replay.store.identity
        spans = [slice(start, start + batch) for start in range(0, identity.images, batch)]
        batches = [replay.store.read(0, span) for span in spans]
        for number, labels in enumerate(batches):
            torch.save(record(labels.rows, labels.logits, side), folder / f"batch_{number}.tar")
        teacher: Any = identity.require("teacher")
        crops = Crops(
            [[Path(source.manifest.place(image)) for image in labels.rows.image.tolist()] for labels in batches],
            folder,
            side,
            (list(teacher["mean"]), list(teacher["std"])),
        )
        self._targets = [torch.from_numpy(labels.targets) for labels in batches]
        self._loader: DataLoader[Any] = DataLoader(
            crops,
            batch_size=None,
            num_workers=workers,
            persistent_workers=bool(workers),
            multiprocessing_context="forkserver" if workers else None,
        )

    def batches(self) -> Iterator[TrainBatch]:
        """An epoch."""
        device = torch.device(self._run.config.render.device)
        for targets, (images, (_, _, partners, lam, (top, left, height, width), logits)) in zip(
            self._targets, self._loader, strict=True
        ):
            pixels = images.to(device, memory_format=torch.channels_last)
            rows, columns = slice(top, top + height), slice(left, left + width)
            mixed = pixels.clone()
            mixed[:, :, rows, columns] = pixels[partners.to(device)][:, :, rows, columns]
            own = targets.to(device)
            yield TrainBatch(
                images=mixed,
                logits=logits.to(device),
                targets=own,
                targets2=own[partners.to(device)],
                lam=torch.full((len(own),), lam, device=device),
                index=own,
                view=own,
                position=own,
                total=len(own),
            )


def record(rows: CropRows, logits: Any, size: int) -> list[Any]:
    """What FKD saves of a batch: boxes, flips, partners, weight, CutMix box, float16 logits."""
    own = float(rows.weights(size)[0])
    boxes = torch.from_numpy(rows.boxes())
    mix_box = [int(edge) for edge in rows.mix_boxes()[0]]
    partners = torch.from_numpy(rows.partners(len(rows)))
    return [boxes, torch.from_numpy(rows.flip), partners, own, mix_box, torch.from_numpy(logits).half()]


class Crops(Dataset[tuple[Tensor, list[Any]]]):
    """Batches of crops from image files, by their records."""

    def __init__(
        self, files: list[list[Path]], folder: Path, side: int, normalisation: tuple[list[float], list[float]]
    ) -> None:
        self._files, self._folder, self._side, self._normalisation = files, folder, side, normalisation

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> tuple[Tensor, list[Any]]:
        """Crops before mixing, float32 ``[n, 3, S, S]``, and the record."""
        saved = torch.load(self._folder / f"batch_{number}.tar")
        crops = []
        for file, box, flip in zip(self._files[number], saved[0].tolist(), saved[1].tolist(), strict=True):
            with Image.open(file) as picture:
                crop = functional.resized_crop(picture.convert("RGB"), *box, [self._side, self._side])
            pixels = functional.to_tensor(functional.hflip(crop) if flip else crop)
            crops.append(functional.normalize(pixels, *self._normalisation))
        return torch.stack(crops), saved
