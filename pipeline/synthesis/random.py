"""Real images drawn at random: the control of every comparison.

The draw of a class depends only on the seed, the name of the class and the number of its images. So other classes do
not change it, and the first 10 of 50 images are the 10 images of ``--ipc 10``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from labelstore.command.names import same_form
from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.build.stages import Busy
from pipeline.config import require_labels
from pipeline.plan import draws
from pipeline.plan.augment import CROPS
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import Renderer, make_renderer
from pipeline.synthesis.config import SynthesizeConfig, require_size
from pipeline.synthesis.method import Job, Made, Method, Pixels, Setting, StopRequestedError, Working
from pipeline.synthesis.scoring import cross_entropies
from pipeline.synthesis.teaching import described, has_teacher, load_teacher
from pipeline.teacher.labeller import Labeller

DECILES = 10
SCALE, RATIO, FLIP = (0.08, 1.0), (3 / 4, 4 / 3), 0.5  # of torchvision's ClassificationPresetTrain

Indexes = npt.NDArray[np.int64]


def require_flags(config: SynthesizeConfig) -> None:
    """Refuse flags that do not go together.

    Raises:
        InputError: names them; also where images are drawn by the choice of a teacher, and none is named.
    """
    options = config.random
    cut = options.take in ("center", "crop")
    decile = options.ce_decile
    if decile is not None and not 1 <= decile <= DECILES:
        raise InputError(f"--ce-decile: expected 1 (easiest) to {DECILES} (hardest), found {decile}")
    if cut or decile is not None:
        require_size(config, f"--take {options.take}" if cut else "--ce-decile")
    elif config.size is not None and not has_teacher(config.teacher):
        raise InputError(
            f"--size {config.size}: has an effect with --take center or crop, or a teacher; found --take {options.take}"
        )
    if decile is not None:
        require_labels(config.teacher)


def make_random(setting: Setting) -> Method:
    """The method ``random`` as the flags choose it.

    Raises:
        InputError: flags or images that do not go together, or no teacher where images are drawn by its choice.
    """
    config = setting.config
    decile = config.random.ce_decile
    if not setting.checking:
        require_flags(config)
    found = np.bincount(setting.manifest.targets, minlength=len(setting.manifest.classes))
    if decile is not None:
        found = np.array([len(np.array_split(np.arange(count), DECILES)[decile - 1]) for count in found])
    what = "images" if decile is None else f"images of decile {decile}"
    counts = setting.counts(what, found=found)
    teacher = None
    if decile is not None and not setting.checking:
        assert config.size is not None  # noqa: S101  required above
        teacher = load_teacher(setting, config.size)
    return Random(setting, counts, teacher)


class Random:
    """Draws real images of each class; a job is a class."""

    def __init__(self, setting: Setting, counts: Indexes, teacher: Labeller | None) -> None:
        """Draw so many images of each class; by the teacher's cross-entropy where there is one."""
        self._setting, self._teacher = setting, teacher
        self._take = setting.config.random.take
        classes = setting.manifest.classes
        self.jobs: Sequence[Job] = tuple(
            Job(f"class {classes[target]}", np.full(count, target, np.int64), np.arange(count))
            for target, count in zip(setting.targets, counts, strict=True)
        )
        self._renderer: Renderer | None = None
        if setting.config.size is not None and (teacher or self._take in ("center", "crop")):
            spec = PlanSpec(size=setting.config.size, crop="center", flip=0.0)
            self._plan = Plan(spec, setting.manifest.heights, setting.manifest.widths)
            self._renderer = make_renderer(setting.manifest, spec, **setting.config.render.arguments)

    @property
    def parameters(self) -> Mapping[str, Json]:
        """See `Method.parameters`."""
        numbers: dict[str, Json] = {"take": self._take, "ce_decile": self._setting.config.random.ce_decile}
        if self._take == "crop":
            numbers |= {"scale": list(SCALE), "ratio": list(RATIO), "flip": FLIP}
        if self._renderer:
            numbers |= {"interpolation": "bilinear", "renderer": self._renderer.id}
        return numbers

    @property
    def teacher(self) -> Mapping[str, Json] | None:
        """See `Method.teacher`."""
        return None if self._teacher is None else described(self._teacher)

    def make(self, job: Job, working: Working, /) -> Made:
        """See `Method.make`."""
        target, count = int(job.targets[0]), len(job.targets)
        images = self._setting.images_of(target)
        places, scores = np.arange(len(images)), None
        if self._teacher is not None:
            scores = self._cross_entropies(images, job, working)
            decile = self._setting.config.random.ce_decile or 1
            places = np.sort(np.array_split(np.lexsort([places, scores]), DECILES)[decile - 1])
        name = same_form(self._setting.manifest.classes[target])
        chosen = places[draw_order(name, self._setting.config.seed, len(places))][:count]
        pieces = self._pieces(name, images[chosen], chosen)
        if scores is not None:
            pieces["scores"] = scores[chosen, None]
        made = self.again(pieces)
        working.progress(count, count)
        return Made(made, pieces, linked=self._take == "link")

    def _pieces(self, name: str, images: Indexes, places: Indexes) -> dict[str, npt.NDArray[Any]]:
        """Sources, boxes and flips of images of a class, which have these places within it."""
        manifest = self._setting.manifest
        heights, widths = manifest.heights[images], manifest.widths[images]
        flips = np.zeros(len(images), np.bool_)
        boxes = np.stack([np.zeros_like(heights), np.zeros_like(heights), heights, widths], axis=1).astype(np.int64)
        if self._take == "center":
            boxes = self._plan.unmixed(0, images).boxes().astype(np.int64)
        elif self._take == "crop":
            counters, seed = places.astype(np.uint32), self._setting.config.seed
            key = draws.key(f"random crop of {name}", seed)
            boxes = CROPS["resized"].boxes(key, counters, heights, widths, scale=SCALE, ratio=RATIO).T
            words = draws.philox(draws.key(f"random flip of {name}", seed), counters)
            flips = draws.uniform(words[0]) < FLIP
        return {"sources": images[:, None], "boxes": boxes[:, None], "flips": flips[:, None]}

    def again(self, pieces: Mapping[str, npt.NDArray[Any]], /) -> Sequence[Pixels | int]:
        """See `Method.again`."""
        sources = pieces["sources"][:, 0]
        if self._take in ("copy", "link"):
            return [int(source) for source in sources]
        assert self._renderer is not None  # noqa: S101  made where crops are cut
        return list(self._renderer.render(rows_of(sources, pieces["boxes"][:, 0], pieces["flips"][:, 0])).cpu().numpy())

    def _cross_entropies(self, images: Indexes, job: Job, working: Working) -> npt.NDArray[np.float64]:
        """The teacher's cross-entropy of each image, centre fit, float64 ``[n]``."""
        teacher, renderer = self._teacher, self._renderer
        assert teacher is not None  # noqa: S101  --ce-decile needs both
        assert renderer is not None  # noqa: S101  likewise

        def done(count: int) -> None:
            working.progress(count, len(images), busy.text())
            if count < len(images) and working.stopping():
                raise StopRequestedError

        rows, targets, busy = self._plan.unmixed(0, images), self._setting.manifest.targets, Busy()
        return cross_entropies(teacher, renderer, [rows], targets, names=[job.name], busy=busy, done=done).losses

    def close(self) -> None:
        """See `Method.close`."""
        if self._renderer:
            self._renderer.close()


def draw_order(name: str, seed: int, count: int) -> Indexes:
    """The order in which the images of a class are taken, by their places within it: a permutation, int64 ``[n]``.

    Args:
        name: of the class, in one form of Unicode.
        seed: of all draws.
        count: how many there are.
    """
    return draws.permutation(draws.key(f"random image of {name}", seed), count)


def rows_of(sources: Indexes, boxes: Indexes, flips: npt.NDArray[np.bool_]) -> CropRows:
    """The rows of crops: images ``[n]``, boxes ``[n, 4]`` in their pixels, and whether they are flipped ``[n]``."""
    columns = PlanSpec(size=1).columns
    values = np.stack([sources & 0xFFFF, sources >> 16, *boxes.T, flips.astype(np.int64)])
    return CropRows(columns, values.astype(np.uint16))
