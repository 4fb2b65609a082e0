"""SRe2L: images optimised so that a teacher classifies them, and its batch norms see the statistics of real images.

Yin, Xing, Shen: Squeeze, Recover and Relabel (arXiv 2306.13092). With ``--statistics class`` each batch holds one class
and is fitted to that class's own statistics: Xiao, He, Are Large-scale Soft Labels Necessary (LPLD, arXiv 2410.15919).
Weights, schedule and augmentation are those of the authors' code. Different here:

* pixels are rounded and stored as PNG, where that code cuts off fractions and stores JPEG;
* draws are counter-based: they do not depend on what was made before;
* a batch of fewer classes than it holds images is filled with the next image of each, where that code makes batches
  of at most one image a class;
* images of all sizes are shown by random boxes, as the paper has it, where that code shows whole ones for CIFAR;
* a class's statistics are means over all its images, one random crop each, where LPLD's are running means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.command.names import same_form
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.device.faults import device_faults
from pipeline.networks.normalisation import LEVELS
from pipeline.plan import draws
from pipeline.synthesis.config import Sre2lOptions, SynthesizeConfig, require_size
from pipeline.synthesis.fit import Fit
from pipeline.synthesis.gradients import Networks, make_networks, require_gradients
from pipeline.synthesis.method import Job, Made, Method, Pixels, Setting, Working
from pipeline.synthesis.real import RealImages
from pipeline.synthesis.recovering import Steps, not_fallen, recover
from pipeline.synthesis.statistics import Statistics, pooled
from pipeline.synthesis.views import draw_views, show

BATCH = 100  # images optimised together, as published
OTHER_RATE = "give another --lr, or more --iterations"
JITTER = 7  # a shift is at most this part of the side


def require_flags(config: SynthesizeConfig) -> None:
    """Refuse flags that do not go together.

    Raises:
        InputError: names them.
    """
    require_size(config, "sre2l")
    require_gradients(config.teacher, config.engine)


def make_sre2l(setting: Setting) -> Method:
    """The method, from the flags.

    Raises:
        InputError: flags, images or a teacher that do not go together.
    """
    config, own = setting.config, setting.config.sre2l
    size = require_size(config, "sre2l")
    jobs = divide(setting, own, config.engine.batch or BATCH)
    if setting.checking:
        return Sre2l(setting, size, jobs)
    networks = make_networks(setting, size, max(len(job.targets) for job in jobs))
    real = RealImages(setting, size, own.crop_scale) if own.start == "real" or own.statistics == "class" else None
    return Sre2l(setting, size, jobs, networks, real)


class Sre2l:
    """Makes batches of images; see `pipeline.synthesis.method.Method`.

    Attributes:
        jobs: the batches.
    """

    def __init__(
        self,
        setting: Setting,
        size: int,
        jobs: Sequence[Job],
        networks: Networks | None = None,
        real: RealImages | None = None,
    ) -> None:
        """Optimise images of a given size; without networks only `again` works."""
        self.jobs = jobs
        self._setting, self._options, self._size = setting, setting.config.sre2l, size
        self._jitter = size // JITTER if self._options.jitter is None else self._options.jitter
        self._networks, self._real = networks, real
        self._measured: tuple[int, list[Statistics]] | None = None
        self._warned = False

    @property
    def parameters(self) -> Mapping[str, Json]:
        """See `Method.parameters`."""
        own = self._options
        found: dict[str, Json] = {"crop_scale": list(own.crop_scale), "jitter": self._jitter, "betas": list(own.betas)}
        if self._real:
            found["renderer"] = self._real.renderer.id
        return {"batch": self._setting.config.engine.batch or BATCH, **asdict(own), **found}

    @property
    def teacher(self) -> Mapping[str, Json] | None:
        """See `Method.teacher`."""
        found = self._networks
        return None if found is None else {**found.teacher.identity, "engine": dict(found.engine)}

    @device_faults("images are optimised", "a smaller --batch")
    def make(self, job: Job, working: Working, /) -> Made:
        """See `Method.make`."""
        networks, seed = self._networks, self._setting.config.seed
        if networks is None:
            raise InputError("sre2l: expected a teacher, found none; give --teacher and --weights")
        with networks.exact():
            begin, pieces = self._begin(job, networks)
            fit = self._fit(job, networks)
            key = f"{self._name(int(job.targets[0]))} {job.numbers[0]}"
            own = self._options
            views = draw_views(key, seed, own.iterations, self._size, own.crop_scale, self._jitter)

            def loss(images: Tensor, step: int) -> Tensor:
                return fit.loss(show(images, torch.from_numpy(views.matrices(step)).to(images.device)))

            images = recover(begin, loss, self._steps(networks), working)
            self._warn(job, loss(begin.requires_grad_(), 0), loss(images.requires_grad_(), 0))  # as they were compiled
            pixels = _pixels(images.detach(), networks)
            return Made(images=list(pixels), pieces={**pieces, **fit.report(pixels)})

    def _warn(self, job: Job, before: Tensor, after: Tensor) -> None:
        """Warn, once, when the loss has not fallen; both are of the views of the first step."""
        warning = not_fallen(job.name, float(before.detach()), float(after.detach()), OTHER_RATE)
        if warning and not self._warned:
            self._setting.console.warn(warning)
            self._warned = True

    def again(self, pieces: Mapping[str, npt.NDArray[np.generic]], /) -> Sequence[Pixels | int] | None:
        """None: an image depends on the teacher's weights and on all images of its batch, at each of many steps."""
        del pieces
        return None

    def close(self) -> None:
        """See `Method.close`."""
        if self._real:
            self._real.renderer.close()

    def _name(self, target: int) -> str:
        return same_form(self._setting.manifest.classes[target])

    def _steps(self, networks: Networks) -> Steps:
        """The steps of the optimisation, within the normalised values of black and white."""
        black_and_white = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 1, 3)
        low, high = networks.images(black_and_white)
        own = self._options
        return Steps(count=own.iterations, lr=own.lr, betas=own.betas, low=low, high=high)

    def _begin(self, job: Job, networks: Networks) -> tuple[Tensor, dict[str, npt.NDArray[np.generic]]]:
        """Initial images, float32 ``[n, 3, S, S]``, and the indexes of real ones."""
        seed, places = self._setting.config.seed, zip(job.targets.tolist(), job.numbers.tolist(), strict=True)
        if self._options.start == "noise" or self._real is None:
            noise = [draw_noise(self._name(target), seed, number, self._size) for target, number in places]
            return torch.from_numpy(np.stack(noise)).to(networks.device), {}
        sources = np.array([self._real.drawn(self._name(target), target, number) for target, number in places])
        pixels, boxes = self._real.fitted(sources)
        return networks.images(pixels), {"sources": sources[:, None], "boxes": boxes[:, None]}

    def _fit(self, job: Job, networks: Networks) -> Fit:
        """The loss of a batch."""
        columns = networks.columns(torch.from_numpy(job.targets).to(networks.device))
        return Fit(networks, self._options, columns, self._wanted(job, networks))

    def _wanted(self, job: Job, networks: Networks) -> list[Statistics]:
        """The statistics that a batch is fitted to, of each network."""
        if self._options.statistics == "batch" or self._real is None:
            return [measured.running for measured in networks.measured]
        target = int(job.targets[0])
        if self._measured is None or self._measured[0] != target:  # batches of a class come one after the other
            self._measured = target, self._measure(target, networks, self._real)
        return self._measured[1]

    def _measure(self, target: int, networks: Networks, real: RealImages) -> list[Statistics]:
        """The statistics of a class, of each network."""
        batches: list[list[tuple[int, Statistics]]] = [[] for _ in networks.measured]
        for pixels in real.crops(target, self._setting.config.engine.batch or BATCH):
            with torch.no_grad():
                seen = networks.see(networks.images(pixels))
            for each, found in zip(batches, seen, strict=True):
                each.append((len(pixels), found.statistics))
        return [pooled(each) for each in batches]


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
    """Initial noise of an image: independent normal numbers, float32 ``[3, S, S]``, keyed by class and number."""
    count = 3 * size * size
    words = draws.uniform(draws.philox(draws.key(f"sre2l noise {name}", seed), np.arange(-(-count // 4)), number))
    radius, angle = np.sqrt(-2 * np.log(words[:2])), 2 * np.pi * words[2:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=None)
    return normal[:count].reshape(3, size, size).astype(np.float32)


def _pixels(images: Tensor, networks: Networks) -> npt.NDArray[np.uint8]:
    """Normalised images ``[n, 3, S, S]`` as pixels, rounded, uint8 ``[n, S, S, 3]``."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (networks.teacher.mean, networks.teacher.std))
    levels = (images.permute(0, 2, 3, 1).cpu().double() * std + mean) * LEVELS
    pixels: npt.NDArray[np.uint8] = levels.round().clamp(0, LEVELS).to(torch.uint8).numpy()
    return pixels
