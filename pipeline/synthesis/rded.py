"""RDED (arXiv 2312.03526): of each class the crops of real images that a teacher recognises best, put into collages.

Crop v of an image is what a plan draws for it in view v. The teacher scores all crops of a class; the best crop of each
image stays, and of these the ``ipc * factor ** 2`` with the lowest cross-entropy. Equal ones are taken in the order of
the images, and of the crops of an image. With n images a class, cell j of image k (row by row) holds piece
``j * n + k`` in ascending order of the scores, as in the authors' code: each image gets one of the n best pieces in its
first cell. With factor 1 the images of a smaller --ipc are therefore the first ones of a larger; with a larger factor
its pieces are among those of the larger, in other images.

What the authors' code does otherwise (LINs-lab/RDED): its pool is in the order of a shuffled directory listing, without
a seed; it resizes tensors, where this resizes as Pillow does; it normalises all data with ImageNet's numbers, this with
the teacher's; it truncates values to bytes and stores JPEG of Pillow's default quality, so that most pixels change; it
takes the logarithm of a float32 softmax, where hopeless crops are all infinite; and it stretches cells by a pixel where
the factor does not divide the size, which is refused here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable, same_form
from labelstore.errors import InputError
from labelstore.format.columns import CROP_COLUMNS, CropRows
from labelstore.spec import Json
from pipeline.build.stages import TEACHER, Busy
from pipeline.config import require_labels
from pipeline.plan import draws
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import Renderer, make_renderer
from pipeline.render.passing import in_passing
from pipeline.synthesis.config import RdedOptions, SynthesizeConfig, require_size
from pipeline.synthesis.method import Job, Made, Pixels, Setting, StopRequestedError, Working
from pipeline.synthesis.scoring import cross_entropies
from pipeline.synthesis.teaching import described, load_teacher
from pipeline.teacher.labeller import Labeller

LARGE = 128  # side in pixels from which the authors make collages of 2 x 2
SCALE = (0.08, 1.0)
RATIO = (1.0, 1.0)
RENDERED = 512  # cells that are rendered at a time

Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Numbers:
    """The sizes of crops and collages.

    Attributes:
        size: side of an image in pixels.
        factor: cells a side.
        pool: images of each class at most.
        crops: of each image of the pool.
        pads: whether the teacher gets a cell with zeros around it, and not a crop of the size.
    """

    size: int
    factor: int
    pool: int
    crops: int
    pads: bool

    @property
    def cells(self) -> int:
        """Number of cells of an image."""
        return self.factor**2

    @property
    def side(self) -> int:
        """Side of a cell in pixels."""
        return self.size // self.factor

    @property
    def scored_side(self) -> int:
        """Side of the teacher's crops in pixels."""
        return self.side if self.pads else self.size


def require_flags(config: SynthesizeConfig) -> None:
    """Refuse flags that do not go together.

    Raises:
        InputError: names them.
    """
    numbers = numbers_of(require_size(config, "rded"), config.rded)
    require_labels(config.teacher)
    needed = numbers.cells * config.ipc
    if numbers.pool < needed and not config.allow_fewer:
        raise InputError(
            f"--pool {numbers.pool:,}: expected at least {needed:,} images, one for each of the {numbers.cells} cells "
            f"of --ipc {config.ipc:,}; give a larger --pool, a smaller --ipc or --factor 1"
        )


def make_rded(setting: Setting) -> Rded:
    """The method, from the flags.

    Raises:
        InputError: when the numbers, the images or the teacher do not fit.
    """
    config, manifest = setting.config, setting.manifest
    numbers = numbers_of(require_size(config, "rded"), config.rded)
    spec = PlanSpec(size=numbers.scored_side, seed=config.seed, scale=SCALE, ratio=RATIO, flip=0)
    plan = Plan(spec, manifest.heights, manifest.widths)
    if setting.checking:
        return Rded(setting=setting, numbers=numbers, plan=plan, cut=_renderer(setting, spec.at_side(numbers.side)))
    require_flags(config)
    pools = {int(target): draw_pool(setting, int(target), numbers.pool) for target in setting.targets}
    counts = _counts(setting, numbers, pools)
    _warn_of_small(setting, numbers, pools)
    padded = numbers.scored_side < numbers.size
    scorer = load_teacher(
        setting,
        numbers.scored_side,
        pad_to=numbers.size if padded else None,
        block=max(map(len, pools.values())) * numbers.crops,
    )
    scored = _renderer(setting, spec)
    # both renderers would keep the same images
    cut = scored if numbers.side == numbers.scored_side else _renderer(setting, spec.at_side(numbers.side), 0)
    return Rded(
        setting=setting, numbers=numbers, plan=plan, cut=cut, pools=pools, counts=counts, scored=scored, scorer=scorer
    )


def numbers_of(size: int, options: RdedOptions) -> Numbers:
    """The numbers in effect.

    Raises:
        InputError: names one that makes no sense.
    """
    factor = (2 if size >= LARGE else 1) if options.factor is None else options.factor
    for name, value in (("pool", options.pool), ("crops", options.crops), ("factor", factor)):
        if value < 1:
            raise InputError(f"--{name}: expected at least 1, found {value}")
    if size % factor:
        raise InputError(
            f"--factor {factor}: expected a divisor of --size, found {size} px; give --size "
            f"{max(size // factor, 1) * factor}, or another --factor"
        )
    return Numbers(size=size, factor=factor, pool=options.pool, crops=options.crops, pads=options.fit == "pad")


def draw_pool(setting: Setting, target: int, most: int) -> Indexes:
    """The images of a class whose crops are scored, as ascending indexes of the manifest, int64 ``[n]``.

    Drawn by a key of the seed and the name of the class: other classes do not change it, and a smaller pool is part of
    a larger one.
    """
    images, name = setting.images_of(target), same_form(setting.manifest.classes[target])
    order = draws.permutation(draws.key(f"rded pool of class {name}", setting.config.seed), len(images))
    return np.sort(images[order[:most]])


def crops_of(plan: Plan, pool: Indexes, crops: int) -> CropRows:
    """The crops of a pool, all of an image one after the other: row ``i * crops + v`` is crop v of image i."""
    views = [plan.unmixed(view, pool) for view in range(crops)]
    values = np.stack([view.values for view in views], axis=2)
    return CropRows(views[0].names, values.reshape(len(values), -1))


def best(losses: npt.NDArray[np.float64], count: int) -> tuple[Indexes, Indexes]:
    """The ``count`` images whose best crops have the lowest losses, in ascending order, and these crops.

    Args:
        losses: of each crop of each image ``[images, crops]``.
        count: of images, at most as many as there are.

    Returns:
        Images and crops, int64 ``[count]``; of equal losses the first image, and the first crop.
    """
    crops = losses.argmin(axis=1)
    images = losses.min(axis=1).argsort(kind="stable")[:count]
    return images, crops[images]


def collages(cells: Pixels, factor: int) -> list[Pixels]:
    """Images of ``factor ** 2`` cells each, row by row.

    Args:
        cells: uint8 ``[images * factor ** 2, s, s, 3]``, those of an image one after the other.
        factor: cells a side.
    """
    side = cells.shape[1]
    grid = cells.reshape(-1, factor, factor, side, side, 3).transpose(0, 1, 3, 2, 4, 5)
    return [*np.ascontiguousarray(grid).reshape(-1, factor * side, factor * side, 3)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rded:
    """The method, a `Method`; made by `make_rded`.

    Attributes:
        setting: what it was made with.
        numbers: what is cut and composed.
        plan: draws the crops.
        cut: renders cells.
        pools: of each class the images that crops are taken from.
        counts: of each class the images that are made.
        scored: renders the crops that are scored; None if nothing is made.
        scorer: scores them; None if nothing is made.
        pace: how fast crops were scored.
    """

    setting: Setting
    numbers: Numbers
    plan: Plan
    cut: Renderer
    pools: Mapping[int, Indexes] = field(default_factory=dict)
    counts: Mapping[int, int] = field(default_factory=dict)
    scored: Renderer | None = None
    scorer: Labeller | None = None
    pace: Pace = field(default_factory=lambda: Pace())

    @property
    def parameters(self) -> Mapping[str, Json]:
        """Every number in effect."""
        spec = self.plan.spec
        return {
            **asdict(self.numbers),
            "scale": list(spec.scale),
            "ratio": list(spec.ratio),
            "interpolation": spec.interpolation,
            "renderer": dict(self.cut.id),
        }

    @property
    def teacher(self) -> Mapping[str, Json] | None:
        """The scoring teacher."""
        return None if self.scorer is None else described(self.scorer)

    @property
    def jobs(self) -> Sequence[Job]:
        """One for each class."""
        names = self.setting.manifest.classes
        return [
            Job(f"class {printable(names[target])}", np.full(count, target, np.int64), np.arange(count, dtype=np.int64))
            for target, count in self.counts.items()
        ]

    def make(self, job: Job, working: Working, /) -> Made:
        """The collages of a class; what stops it halfway begins it again, for it takes a minute at most."""
        began = time.perf_counter()
        pool, crops = self.pools[int(job.targets[0])], self.numbers.crops
        rows = crops_of(self.plan, pool, crops)
        losses = self._losses(job, rows, working).reshape(len(pool), crops)
        images, chosen = best(losses, len(job.targets) * self.numbers.cells)
        # piece j * n + k is cell j of image k
        order = np.arange(len(images)).reshape(self.numbers.cells, len(job.targets)).T
        images, chosen = images[order], chosen[order]
        cells = rows.take((images * crops + chosen).ravel())
        made = self._collages(cells)
        self.pace.add(len(rows), time.perf_counter() - began)
        return Made(
            images=made,
            pieces={
                "sources": pool[images],
                "boxes": cells.boxes().astype(np.int64).reshape(*images.shape, 4),
                "crops": chosen.astype(np.int64),
                "scores": losses[images, chosen],
            },
        )

    def _losses(self, job: Job, rows: CropRows, working: Working) -> npt.NDArray[np.float64]:
        """Cross-entropy of each crop of a class, float64 ``[n]``."""
        assert self.scored is not None and self.scorer is not None  # noqa: S101, PT018  but for checking

        def done(count: int) -> None:
            working.progress(count, len(rows), self.pace.busy.text())
            if count < len(rows) and working.stopping():
                raise StopRequestedError

        scores = cross_entropies(
            self.scorer,
            in_passing(self.scored),
            [rows],
            self.setting.manifest.targets,
            names=[job.name],
            together=self.numbers.crops,
            busy=self.pace.busy,
            done=done,
        )
        return scores.losses

    def again(self, pieces: Mapping[str, npt.NDArray[np.generic]], /) -> Sequence[Pixels | int]:
        """Collages cut again.

        Raises:
            InputError: these are no pieces of such collages, or a box is not within its image.
        """
        found = [list(pieces[name].shape[1:]) if name in pieces else None for name in ("sources", "boxes")]
        if found != [[self.numbers.cells], [self.numbers.cells, 4]]:
            raise InputError(
                f"pieces: expected sources and boxes of {self.numbers.cells} cells an image, found {found}; the record "
                f"is not that of this set"
            )
        images = pieces["sources"].astype(np.int64).ravel()
        boxes = pieces["boxes"].astype(np.int64).reshape(-1, 4)
        values = np.stack([images & 0xFFFF, images >> 16, *boxes.T, np.zeros_like(images)])
        return self._collages(CropRows(CROP_COLUMNS, values.astype(np.uint16)))

    def _collages(self, rows: CropRows) -> list[Pixels]:
        """The images of some cells."""
        parts = [rows.take(slice(start, start + RENDERED)) for start in range(0, len(rows), RENDERED)]
        cells = np.concatenate([self.cut.render(part).cpu().numpy() for part in parts])
        return collages(cells, self.numbers.factor)

    def close(self) -> None:
        """Release both renderers, and state the pace."""
        for renderer in {id(each): each for each in (self.cut, self.scored) if each is not None}.values():
            renderer.close()
        if self.pace.crops and self.scorer is not None:
            shared = " in this process" if self.setting.ranks.world > 1 else ""
            self.setting.console.line(f"scores{shared}: {self.pace.text(self.scorer.batch)}")


class Pace:
    """The speed of scoring crops, compared with the speed of the teacher alone.

    Attributes:
        busy: seconds at work of each stage.
        crops: that were scored.
        seconds: from their files to finished images.
    """

    def __init__(self) -> None:
        self.busy = Busy()
        self.crops, self.seconds = 0, 0.0
        self._classes: list[int] = []

    def add(self, crops: int, seconds: float) -> None:
        """Count a class."""
        self.crops += crops
        self.seconds += seconds
        self._classes.append(crops)

    def share(self, batch: int) -> float:
        """Of the rate that the teacher has in full batches: less by what it waits, and by what fills its batches."""
        filled = sum(-(-crops // batch) * batch for crops in self._classes)
        return self.crops / self.seconds / (filled / self.busy.seconds()[TEACHER])

    def text(self, batch: int) -> str:
        """For people."""
        return (
            f"{self.crops:,} crops, {self.crops / self.seconds:,.1f} crops/s, {100 * self.share(batch):.0f} % of the "
            f"teacher's rate"
        )


def _renderer(setting: Setting, spec: PlanSpec, cache_bytes: int | None = None) -> Renderer:
    """Of crops of a plan, with the flags' memory for decoded images or another one."""
    flags = setting.config.render
    return make_renderer(
        setting.manifest,
        spec,
        device=flags.device,
        decoder=flags.decoder,
        augmenter=flags.augmenter,
        threads=flags.threads,
        cache_bytes=flags.cache_bytes if cache_bytes is None else cache_bytes,
    )


def _counts(setting: Setting, numbers: Numbers, pools: Mapping[int, Indexes]) -> dict[int, int]:
    """Images that each class gets.

    Raises:
        InputError: names classes of which fewer can be made.
    """
    found = np.zeros(len(setting.manifest.classes), np.int64)
    for target, pool in pools.items():
        found[target] = len(pool)
    counts = setting.counts("images of the pool", each=numbers.cells, found=found)
    return dict(zip(pools, counts.tolist(), strict=True))


def _warn_of_small(setting: Setting, numbers: Numbers, pools: Mapping[int, Indexes]) -> None:
    """Warn of images that are smaller than a cell."""
    manifest, every = setting.manifest, np.concatenate([*pools.values()])
    small = every[np.minimum(manifest.heights, manifest.widths)[every] < numbers.side]
    if len(small):
        first = int(small[0])
        setting.console.warn(
            f"{len(small):,} of {len(every):,} images of the pool are smaller than a crop of {numbers.side} px, which "
            f"is then enlarged: {printable(manifest.place(first))} has {manifest.heights[first]} x "
            f"{manifest.widths[first]} px; a smaller --size avoids that"
        )
