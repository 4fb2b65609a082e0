"""Images drawn from a model of `train-generator`, as in DEG (arXiv 2409.03929).

An image depends only on the model, the numbers of its sampling, the seed, its class and its number, and on the fixed
batch that it is made in: always the same images, of which surplus ones are left out. So the first 10 of 50 images are
the 10 images of ``--ipc 10``, bit for bit on one device. How DEG chose its images is not known; ``--select`` is ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from labelstore.command.console import duration
from labelstore.durable.newfile import new_version
from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from labelstore.operations.generator import read_description
from labelstore.spec import Json
from pipeline.device.choosing import choose_device
from pipeline.device.faults import device_faults
from pipeline.plan.plan import PlanSpec
from pipeline.synthesis.config import DiffusionOptions, SynthesizeConfig
from pipeline.synthesis.generator import Generation, Generator, load_generator
from pipeline.synthesis.method import Job, Made, Method, Pixels, Setting, StopRequestedError, Working
from pipeline.synthesis.scoring import scores_of
from pipeline.synthesis.teaching import described, has_teacher, load_teacher
from pipeline.teacher.labeller import Labeller, label_crops

CHALLENGE_SECONDS = 600  # for the images of the ECCV 2024 challenge's generative track
TIMED_CALLS = 3
KEPT_BYTES = 512 << 20  # of batches, for images that are made again in another order

Indexes: TypeAlias = npt.NDArray[np.int64]
Batch: TypeAlias = tuple[int, int]
"""Key of a batch: the only class in it, or -1 for all classes, and its number."""


def classes_of(config: SynthesizeConfig) -> tuple[str, ...]:
    """The classes of the model."""
    return tuple(map(str, read_description(_folder(config))["classes"]))


def _folder(config: SynthesizeConfig) -> Path:
    if config.diffusion.model is None:
        raise InputError("--model: missing; diffusion needs the folder of a model, which train-generator makes")
    return Path(config.diffusion.model)


def make_diffusion(setting: Setting) -> Method:
    """The method ``diffusion`` as the flags choose it.

    Raises:
        InputError: there is no such model, it has other classes, or flags do not go together.
    """
    config, options = setting.config, setting.config.diffusion
    device = choose_device(config.render.device)
    if config.render.threads is not None:
        torch.set_num_threads(config.render.threads)
    model = load_generator(_folder(config), vae=options.vae)
    if model.classes != setting.manifest.classes:
        raise InputError(
            f"--model {options.model}: has the classes {', '.join(model.classes[:3])}, ..., and not those of the set; "
            f"give the model that the set was made by"
        )
    if config.size not in (None, model.size) and (options.select != "none" or not has_teacher(config.teacher)):
        raise InputError(
            f"--size: expected {model.size}, the side of the model's images, found {config.size}; another one is for a "
            f"--teacher that only checks the finished set"
        )
    model.spec.times(options.steps)
    model.backbone.to(device)
    model.vae.to(device)
    teacher = None
    if options.select != "none" and not setting.checking:
        if not has_teacher(config.teacher):
            raise InputError(f"--select {options.select}: needs a teacher; give --teacher, --weights and --size")
        teacher = load_teacher(setting, model.size)
    return Diffusion(setting, model, device, teacher)


class Diffusion:
    """Draws images in fixed batches; a job is a batch, or a class whose images are chosen among candidates."""

    def __init__(self, setting: Setting, model: Generator, device: torch.device, teacher: Labeller | None) -> None:
        """Plan the jobs; nothing is drawn yet."""
        options = setting.config.diffusion
        self._setting, self._model, self._device, self._teacher = setting, model, device, teacher
        self._batch, self._classes = batch_of(setting.config.ipc, options), len(model.classes)
        self._how = Generation(
            steps=options.steps, guidance=options.guidance, sampler=options.sampler, dtype=options.model_dtype
        )
        self._chosen, self._candidates = options.select, options.candidates
        self.jobs: Sequence[Job] = tuple(self._by_class() if options.candidates > 1 else self._by_batch())
        self._began = self._first = time.monotonic()
        self._images, self._ceiling, self._decoding = 0, 0.0, 0.0
        self._noise = lru_cache(2)(self._first_noise)
        self._drawn = lru_cache(max(KEPT_BYTES // (3 * self._batch * model.size**2), 1))(self._draw)

    def _by_batch(self) -> Iterator[Job]:
        """All classes batch by batch, so that the images of a smaller set come first."""
        ipc, wanted = self._setting.config.ipc, np.zeros(self._classes, np.bool_)
        wanted[self._setting.targets] = True
        for number in range(-(-ipc * self._classes // self._batch)):
            targets, numbers = self._members((-1, number))
            kept = wanted[targets] & (numbers < ipc)
            if kept.any():
                yield Job(f"batch {number + 1}", targets[kept], numbers[kept])

    def _by_class(self) -> Iterator[Job]:
        ipc = self._setting.config.ipc
        for target in self._setting.targets.tolist():
            yield Job(f"class {self._model.classes[target]}", np.full(ipc, target, np.int64), np.arange(ipc))

    def _members(self, batch: Batch) -> tuple[Indexes, Indexes]:
        """Class and number of each image of a batch, int64 ``[B]``."""
        target, number = batch
        places = np.arange(number * self._batch, (number + 1) * self._batch)
        if target >= 0:
            return np.full(len(places), target), places
        return places % self._classes, places // self._classes

    def _place(self, target: int, number: int) -> tuple[Batch, int]:
        """The batch of an image, and its slot."""
        if self._candidates > 1:
            batch, slot = divmod(number, self._batch)
            return (target, batch), slot
        batch, slot = divmod(number * self._classes + target, self._batch)
        return (-1, batch), slot

    @property
    def parameters(self) -> Mapping[str, Json]:
        """See `Method.parameters`."""
        model, how = self._model, self._how
        return {
            "weights": model.weights,
            "vae": dict(model.vae.identity),
            "diffusion": model.spec.to_json(),
            "side": model.size,
            "steps": how.steps,
            "guidance": how.guidance,
            "sampler": how.sampler,
            "dtype": how.dtype,
            "batch": self._batch,
            "candidates": self._candidates,
            "select": self._chosen,
            "device": self._device.type,
        }

    @property
    def teacher(self) -> Mapping[str, Json] | None:
        """See `Method.teacher`."""
        return None if self._teacher is None else described(self._teacher)

    def make(self, job: Job, working: Working, /) -> Made:
        """See `Method.make`."""
        if self._candidates > 1:
            return self._choose(job, working)
        images = self._images_of(job.targets, job.numbers)
        working.progress(len(images), len(images))
        return Made(images, {"labels": job.targets[:, None], "draws": job.numbers[:, None]})

    def _choose(self, job: Job, working: Working) -> Made:
        """Keep some of a class's candidates."""
        target, count = int(job.targets[0]), len(job.targets) * self._candidates
        numbers, teacher = np.arange(count), self._teacher
        assert teacher is not None  # noqa: S101  loaded with --select
        found: list[Pixels] = [*np.load(working.file)] if working.file.exists() else []
        for start in range(len(found), count, self._batch):
            if working.stopping():
                save_images(working, found)
                raise StopRequestedError
            part = numbers[start : start + self._batch]
            found += self._images_of(np.full(len(part), target), part)
            working.progress(len(found), count)
        logits = label_crops(teacher, torch.from_numpy(np.stack(found)).to(self._device), rows_of(count))
        scores = scores_of(torch.from_numpy(logits), np.full(count, target), teacher.class_columns).losses
        if self._chosen == "ce":
            kept = np.sort(np.lexsort([numbers, scores])[: len(job.targets)])
        else:
            kept = k_centers(logits.astype(np.float64), len(job.targets))
        pieces = {"labels": job.targets[:, None], "draws": kept[:, None], "scores": scores[kept, None]}
        return Made([found[each] for each in kept], pieces)

    def again(self, pieces: Mapping[str, npt.NDArray[Any]], /) -> Sequence[Pixels]:
        """See `Method.again`."""
        return self._images_of(pieces["labels"][:, 0], pieces["draws"][:, 0])

    def _images_of(self, targets: Indexes, numbers: Indexes) -> list[Pixels]:
        """Images by class and number."""
        places = [self._place(*each) for each in zip(targets.tolist(), numbers.tolist(), strict=True)]
        found: dict[int, Pixels] = {}
        for image in sorted(range(len(places)), key=places.__getitem__):  # batch by batch
            batch, slot = places[image]
            found[image] = self._drawn(batch)[slot]
        return [found[image] for image in range(len(places))]

    def _first_noise(self, batch: Batch) -> torch.Tensor:
        """The noise that a batch begins with, on the CPU, and so the same for every device."""
        return self._model.noise(self._setting.config.seed, *self._members(batch))

    @device_faults("images are generated", "a smaller --image-batch")
    def _draw(self, batch: Batch) -> npt.NDArray[np.uint8]:
        """All images of a batch, uint8 ``[B, S, S, 3]``."""
        if not self._ceiling:
            self._ceiling = self._backbone_alone()
            self._first = time.monotonic()
        targets, _ = self._members(batch)
        noise = self._noise(batch).to(self._device)
        latents = self._model.latents(noise, torch.from_numpy(targets).to(self._device), self._how)
        if self._device.type == "cuda":  # meanwhile
            self._noise((batch[0], batch[1] + 1))
        if not bool(latents.isfinite().all()):
            raise InputError(
                f"--model {self._setting.config.diffusion.model}: expected finite latents, found others; take another "
                f"model, a smaller --guidance or --model-dtype float32"
            )
        decoding = time.monotonic()
        images = self._model.images(latents)
        self._decoding, self._images = self._decoding + time.monotonic() - decoding, self._images + len(images)
        return images

    def _backbone_alone(self) -> float:
        """Images a second, counting only the backbone's calls."""
        rows = self._batch if self._how.guidance == 1 else 2 * self._batch
        side = self._model.size // self._model.vae.factor
        x = torch.zeros(rows, self._model.vae.channels, side, side, device=self._device)
        labels = torch.zeros(rows, dtype=torch.int64, device=self._device)
        start = 0.0
        with torch.no_grad(), self._model.precision(self._device, self._how.dtype):
            for call in range(TIMED_CALLS + 1):
                if call == 1:  # a device prepares in the first one, and is given all others at once
                    start = self._now()
                self._model.backbone(x, labels, labels)
        return self._batch * TIMED_CALLS / (self._how.steps * (self._now() - start))

    def _now(self) -> float:
        """The time when the device has done what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.monotonic()

    def close(self) -> None:
        """Print how fast images were made and written, where some were."""
        if not self._images or self._setting.checking:
            return
        now = time.monotonic()
        seconds = now - self._first
        rate = self._images / seconds
        self._setting.console.line(
            f"generated: {rate:,.1f} images/s in full batches of {self._batch}, files included, "
            f"{rate / self._ceiling:.2f} of what {self._how.steps} calls of the backbone alone allow; "
            f"{100 * self._decoding / seconds:.0f} % of the time is decoding; {duration(now - self._began)} in all in "
            f"this process, and the ECCV 2024 challenge allows {duration(CHALLENGE_SECONDS)}"
        )


def batch_of(ipc: int, options: DiffusionOptions) -> int:
    """Images that are made at a time: with candidates no more than a class has, in batches of one size."""
    if options.candidates == 1:
        return options.image_batch
    count = ipc * options.candidates
    return -(-count // -(-count // options.image_batch))


def save_images(working: Working, images: Sequence[Pixels]) -> None:
    """Keep what there is of a job's candidates."""
    if images:
        with new_version(working.file, working.proof) as file:
            np.save(file, np.stack(images))


def k_centers(features: npt.NDArray[np.float64], count: int) -> Indexes:
    """Rows far from each other, int64 ``[count]``, ascending: first the one nearest to the mean, then the farthest.

    Args:
        features: float64 ``[n, d]``.
        count: at most n.
    """
    chosen = [int(np.argmin(np.square(features - features.mean(axis=0)).sum(axis=1)))]
    nearest = np.square(features - features[chosen[0]]).sum(axis=1)
    while len(chosen) < count:
        nearest[chosen[-1]] = -1.0
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.square(features - features[chosen[-1]]).sum(axis=1))
    return np.sort(np.array(chosen, np.int64))


def rows_of(count: int) -> CropRows:
    """Rows of whole images, whose numbers the teacher does not use."""
    columns = PlanSpec(size=1).columns
    return CropRows(columns, np.zeros((len(columns), count), np.uint16))
