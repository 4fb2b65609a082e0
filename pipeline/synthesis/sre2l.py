"""SRe2L: images optimised so that a teacher classifies them, and its batch norms see the statistics of real images.

Yin, Xing, Shen: Squeeze, Recover and Relabel (arXiv 2306.13092). With ``--statistics class`` each batch holds one class
and is fitted to that class's own statistics: Xiao, He, Are Large-scale Soft Labels Necessary (LPLD, arXiv 2410.15919).
Weights, schedule and augmentation are those of the authors' code. Different here:

* pixels are rounded and stored as PNG, where that code cuts off fractions and stores JPEG;
* draws are counter-based: they do not depend on what was made before;
* a batch of fewer classes than it holds images is filled with the next image of each, where that code makes batches
  of at most one image a class;
* below 64 px the box shown is the whole image, as in that code, but it is flipped half of the time too;
* a class's statistics are means over all its images, one random crop each, where LPLD's are running means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.device.faults import device_faults
from pipeline.networks.normalisation import LEVELS
from pipeline.plan import draws
from pipeline.plan.plan import Plan
from pipeline.plan.spec import PlanSpec
from pipeline.render import Renderer, make_renderer
from pipeline.synthesis.config import Sre2lOptions
from pipeline.synthesis.fit import Fit
from pipeline.synthesis.gradients import Networks, make_networks
from pipeline.synthesis.method import Job, Made, Method, Pixels, Setting, Working
from pipeline.synthesis.recovering import Steps, recover
from pipeline.synthesis.statistics import Statistics, pooled
from pipeline.synthesis.views import draw_views, show

BATCH = 100  # images optimised together, as published
WHOLE_BELOW = 64  # side in pixels; the authors' code shows boxes of larger images alone
SCALE = (0.08, 1.0)
JITTER = 7  # a shift is at most this part of the side

Indexes: TypeAlias = npt.NDArray[np.int64]


def make_sre2l(setting: Setting) -> Method:
    """The method, from the flags."""
    return Sre2l(setting)


class Sre2l:
    """Makes batches of images; see `pipeline.synthesis.method.Method`.

    Attributes:
        parameters: every number in effect.
        jobs: the batches.
    """

    def __init__(self, setting: Setting) -> None:
        """Load the teacher and divide the images among batches."""
        config, own = setting.config, setting.config.sre2l
        self._setting, self._options = setting, own
        self._size = size = _size(setting)
        self._batch = config.engine.batch or BATCH
        self._scale = own.crop_scale or (SCALE if size >= WHOLE_BELOW else (1.0, 1.0))
        self._jitter = min(size // JITTER if own.jitter is None else own.jitter, size - 1)
        found: dict[str, Json] = {"crop_scale": list(self._scale), "jitter": self._jitter, "betas": list(own.betas)}
        self.parameters: Mapping[str, Json] = {"size": size, "batch": self._batch, **asdict(own), **found}
        self._class_statistics: tuple[int, list[Statistics]] | None = None
        self.jobs: Sequence[Job] = divide(setting, own, self._batch)
        self._networks: Networks | None = None
        if not setting.checking:
            self._networks = make_networks(
                config.teacher,
                config.engine,
                config.render,
                classes=setting.manifest.classes,
                size=size,
                batch=max(len(job.targets) for job in self.jobs),
                console=setting.console,
            )

    @property
    def teacher(self) -> Mapping[str, Json] | None:
        """Identity of the teacher (P3), and under ``engine`` what runs it."""
        found = self._networks
        return None if found is None else {**found.teacher.identity, "engine": dict(found.engine)}

    @device_faults("images are optimised", "a smaller --batch")
    def make(self, job: Job, working: Working, /) -> Made:
        """The images of a batch.

        Raises:
            InputError: names what stops it.
            StopRequestedError: as `Working.stopping` says.
        """
        networks = self._networks
        if networks is None:
            raise InputError("sre2l: expected a teacher, found none; give --teacher and --weights")
        with networks.exact():
            begin, pieces = self._begin(job, networks)
            columns = networks.columns(torch.from_numpy(job.targets).to(networks.device))
            fit = Fit(networks, self._options, columns, self._wanted(job, networks))
            key = f"{self._name(job, 0)} {job.numbers[0]}"
            views = draw_views(
                key, self._setting.config.seed, self._options.iterations, self._size, self._scale, self._jitter
            )

            def loss(images: Tensor, step: int) -> Tensor:
                matrices = torch.from_numpy(views.matrices(step)).to(images.device)
                return fit.loss(show(images, matrices))

            images = recover(begin, loss, self._steps(networks), working)
            pixels = _pixels(images, networks)
            return Made(images=list(pixels), pieces={**pieces, **fit.report(pixels)})

    def again(self, pieces: Mapping[str, npt.NDArray[np.generic]], /) -> Sequence[Pixels | int] | None:
        """None: an image depends on the teacher's weights and on all images of its batch, at each of many steps."""
        del pieces
        return None

    def close(self) -> None:
        """Release what renders."""
        for name in ("_fitted", "_cropped"):
            if name in self.__dict__:
                self.__dict__[name][1].close()

    def _name(self, job: Job, image: int) -> str:
        return self._setting.manifest.classes[int(job.targets[image])]

    def _steps(self, networks: Networks) -> Steps:
        """How images are moved: within what black and white are after the normalisation."""
        black_and_white = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 1, 3)
        low, high = networks.images(black_and_white)
        own = self._options
        return Steps(count=own.iterations, lr=own.lr, betas=own.betas, low=low, high=high)

    def _begin(self, job: Job, networks: Networks) -> tuple[Tensor, dict[str, npt.NDArray[np.generic]]]:
        """Where images begin, float32 ``[n, 3, S, S]``, and which real ones these are."""
        seed = self._setting.config.seed
        if self._options.start == "noise":
            noise = [
                draw_noise(self._name(job, image), seed, number, self._size)
                for image, number in enumerate(job.numbers.tolist())
            ]
            return torch.from_numpy(np.stack(noise)).to(networks.device), {}
        sources = np.array(
            [
                draw_order(self._name(job, image), seed, self._setting.images_of(target))[number]
                for image, (target, number) in enumerate(zip(job.targets.tolist(), job.numbers.tolist(), strict=True))
            ]
        )
        plan, renderer, place = self._fitted
        rows = plan.rows_at(0, place[sources])
        boxes = rows.boxes().astype(np.int64)
        return networks.images(renderer.render(rows)), {"sources": sources[:, None], "boxes": boxes[:, None]}

    def _wanted(self, job: Job, networks: Networks) -> list[Statistics]:
        """The statistics that a batch is fitted to, of each network."""
        if self._options.statistics == "batch":
            return [measured.running for measured in networks.measured]
        target = int(job.targets[0])
        if self._class_statistics is None or self._class_statistics[0] != target:
            self._class_statistics = target, self._measure(target, networks)
        return self._class_statistics[1]

    def _measure(self, target: int, networks: Networks) -> list[Statistics]:
        """The statistics of a class: of a random crop of each of its images, of each network."""
        plan, renderer, place = self._cropped
        images = self._setting.images_of(target)
        batches: list[list[tuple[int, Statistics]]] = [[] for _ in networks.measured]
        for start in range(0, len(images), self._batch):
            rows = plan.rows_at(0, place[images[start : start + self._batch]])
            with torch.no_grad():
                seen = networks.see(networks.images(renderer.render(rows)))
            for each, found in zip(batches, seen, strict=True):
                each.append((len(rows), found.statistics))
        return [pooled(each) for each in batches]

    @cached_property
    def _fitted(self) -> tuple[Plan, Renderer, Indexes]:
        """Real images, fitted centrally."""
        return self._rendering(PlanSpec(size=self._size, seed=self._setting.config.seed, crop="center", flip=0.0))

    @cached_property
    def _cropped(self) -> tuple[Plan, Renderer, Indexes]:
        """Real images, cropped as steps show the others."""
        return self._rendering(PlanSpec(size=self._size, seed=self._setting.config.seed, scale=self._scale))

    def _rendering(self, spec: PlanSpec) -> tuple[Plan, Renderer, Indexes]:
        """A plan, what renders its crops, and the position of each image in its first view."""
        manifest, options = self._setting.manifest, self._setting.config.render
        plan = Plan(spec, manifest.heights, manifest.widths)
        renderer = make_renderer(
            manifest,
            spec,
            device=options.device,
            decoder=options.decoder,
            augmenter=options.augmenter,
            threads=options.threads,
            cache_bytes=0,  # no image is rendered twice
        )
        return plan, renderer, np.argsort(plan.order(0)).astype(np.int64)


def divide(setting: Setting, options: Sre2lOptions, batch: int) -> list[Job]:
    """The batches: of images number 0 of each class, then 1 and so on, or of one class after the other."""
    every = np.full(len(setting.targets), setting.config.ipc)
    counts = setting.counts("images") if options.start == "real" else every
    targets = np.repeat(setting.targets, counts)
    numbers = np.concatenate([np.arange(count) for count in counts.tolist()])
    if options.statistics == "batch":
        order = np.argsort(numbers, kind="stable")
        parts = [order[start : start + batch] for start in range(0, len(order), batch)]
        names = [f"batch {index} of {len(parts)}" for index in range(1, len(parts) + 1)]
    else:
        parts = [
            part[start : start + batch]
            for part in (np.flatnonzero(targets == target) for target in setting.targets)
            for start in range(0, len(part), batch)
        ]
        names = [f"class {setting.manifest.classes[targets[part[0]]]}" for part in parts]
    return [Job(name, targets[part], numbers[part]) for name, part in zip(names, parts, strict=True)]


def draw_noise(name: str, seed: int, number: int, size: int) -> npt.NDArray[np.float32]:
    """Where an image begins: independent normal numbers, float32 ``[3, S, S]``, keyed by its class and number."""
    count = 3 * size * size
    words = draws.uniform(draws.philox(draws.key(f"sre2l noise {name}", seed), np.arange(-(-count // 4)), number))
    radius, angle = np.sqrt(-2 * np.log(words[:2])), 2 * np.pi * words[2:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=None)
    return normal[:count].reshape(3, size, size).astype(np.float32)


def draw_order(name: str, seed: int, images: Indexes) -> Indexes:
    """The images of a class in the order in which `--start real` takes them, keyed by its name."""
    return images[draws.permutation(draws.key(f"sre2l start {name}", seed), len(images))]


def _pixels(images: Tensor, networks: Networks) -> npt.NDArray[np.uint8]:
    """Normalised images ``[n, 3, S, S]`` as pixels, rounded, uint8 ``[n, S, S, 3]``."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (networks.teacher.mean, networks.teacher.std))
    levels = (images.permute(0, 2, 3, 1).cpu().double() * std + mean) * LEVELS
    pixels: npt.NDArray[np.uint8] = levels.round().clamp(0, LEVELS).to(torch.uint8).numpy()
    return pixels


def _size(setting: Setting) -> int:
    """Side of the images: --size, or that of the real ones where all are squares of one size."""
    if setting.config.size is not None:
        return setting.config.size
    sides = {*setting.manifest.heights.tolist(), *setting.manifest.widths.tolist()}
    if len(sides) > 1:
        raise InputError(
            f"--size: missing; the images have sides of {min(sides)} to {max(sides)} px, give the side that the "
            f"teacher takes"
        )
    return int(sides.pop())
