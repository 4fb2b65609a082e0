"""The flags of the commands: a frozen dataclass for each command, with a field for each flag.

Nothing slow is imported here, so that help and usage errors are printed at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal

from labelstore.command.cache_options import StoreCacheOptions
from labelstore.command.flags import Addressable, First, Group, Named, Words, flags_of, values_of
from labelstore.durable.places import require_apart
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.config import EngineOptions, json_object
from pipeline.images.source_table import ImageOptions
from pipeline.networks.families import student_names
from pipeline.plan.spec import CropOptions, PlanSpec
from pipeline.recipes import RecipeName
from trainer.choices import NUMBERS, LossSpec
from trainer.label_choices import LabelOptions, OnlineTeacher, require_together, unused_flags
from trainer.phases import Phase, phases_of, plays_fresh
from trainer.relabel import known_words, require_loss
from trainer.run_config import SCHEDULE_NUMBERS, RunConfig
from trainer.temperatures import TemperatureOptions

LABELS = {
    "stored": "raw logits of the teacher, made after mixing",
    "online": "raw logits of the teacher, made after mixing, during training",
    "image": "raw logits of the teacher for each image; for mixed crops the logarithm of mean probabilities",
    "none": "none: hard targets",
}
# The flag key of each number of a loss, by field name.
LOSS_NUMBERS = {flag.path[-1]: flag.key for flag in flags_of(LossSpec).values() if flag.path[-1] in NUMBERS}


@dataclass(frozen=True, kw_only=True)
class ImageRunConfig(RunConfig):
    """Further flags of a run on crops of images: the images, their crops and labels, and the test images."""

    images: Annotated[Path, Group("images"), Addressable(), First()]
    """The images of the store, or those from which fresh crops are cut: a class folder, tar shards or another
    container, as for build."""
    source: Annotated[ImageOptions, Group("images"), First()] = field(default_factory=ImageOptions)
    crops: Annotated[CropOptions, Group("crops")] = field(default_factory=CropOptions)
    plan_seed: Annotated[int | None, Group("crops")] = None
    """Seed of the plan of fresh crops: the order in each view, boxes, flips and mixes; --seed when left out."""
    class_order: Annotated[Literal["auto", "bytes", "numeric"], Group("crops")] = "auto"
    """Fresh crops: order of classes that have no numbers: bytes; numeric, class_2 before class_10; auto, bytes, which
    stops where the two would differ."""
    teacher: Annotated[OnlineTeacher, Group("teacher")] = field(default_factory=OnlineTeacher)
    engine: Annotated[EngineOptions, Group("teacher"), Named("teacher")] = field(default_factory=EngineOptions)
    test_images: Annotated[Path | None, Group("evaluation"), Addressable()] = None
    """Test images of the same classes, in any container; nothing is evaluated when left out."""
    test_source: Annotated[ImageOptions, Group("evaluation"), Named("test")] = field(default_factory=ImageOptions)
    test_resize: Annotated[int | None, Group("evaluation")] = None
    """Length in pixels to which the short side of a test image is resized before the centre crop; the side of the crop
    when left out."""
    eval_every: Annotated[int | None, Group("evaluation")] = None
    """Epochs between evaluations; a tenth of the run when left out. The last epoch is always evaluated."""
    eval_from: Annotated[float, Group("evaluation")] = 0.0
    """Fraction of the run, 0 to 1, before the first evaluation."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ImageRunConfig):
    """Flags of `train`."""

    store: Annotated[Path | None, Addressable(), First()] = None
    """Folder of the store, or its address: s3://BUCKET/FOLDER, https://HOST/FOLDER, .... Left out, crops are fresh:
    drawn for each epoch from --images, and not stored."""
    more_stores: tuple[Path, ...] = ()
    """Further stores, of other images labelled by the same teacher, to train on together with --store; `--store A B` is
    the same."""
    more_images: Annotated[tuple[Path, ...], Group("images")] = ()
    """The images of --more-stores, in the same order; `--images A B` is the same."""
    store_cache: StoreCacheOptions = field(default_factory=StoreCacheOptions)
    recipe: RecipeName | None = None
    """A published protocol in full; its values are printed, and flags override them."""
    student: Annotated[str, Group("student"), First(), Words(student_names)]
    """torchvision:NAME, timm:NAME, module:attribute, or one of"""
    student_args: Annotated[str, Group("student")] = "{}"
    """Keyword arguments of the student's constructor, as JSON."""
    student_weights: Annotated[str | None, Group("student")] = None
    """Initial weights: of an earlier run, a file, torchvision:IMAGENET1K_V1 or timm:pretrained; random when left
    out."""
    new_head: Annotated[bool, Group("student")] = False
    """With --student-weights of other classes: replace their classifier by a new one."""
    size: Annotated[int | None, Group("student")] = None
    """Side of the student's crops in pixels; the store's when left out. Fresh crops need it."""
    labels: Annotated[LabelOptions, Group("labels")] = field(default_factory=LabelOptions)
    loss: Annotated[LossSpec, Group("loss")] = field(default_factory=LossSpec)
    temperatures: Annotated[TemperatureOptions, Group("loss")] = field(default_factory=TemperatureOptions)
    phase: Annotated[str | None, Group("loss")] = None
    """Instead of --loss: several losses, one after the other, each with its number of epochs, such as
    kl:75,ce:150,kl:75. Epochs of a loss that reads no labels (ce) take fresh crops, by --crop, --mix and so on."""
    relabel: Annotated[tuple[str, ...], Group("loss"), Words(known_words)] = ()
    """Operators on labels before the loss, in order:"""
    views: Annotated[int | None, Group("schedule")] = None
    """Use only the first V views. Left out, all views of the store, or with fresh crops a new view in each epoch."""
    view_order: Annotated[Literal["shuffle", "cycle"] | None, Group("schedule")] = None
    """Order of views over the epochs: shuffle, drawn by --seed, or cycle, in stored order. Left out, shuffle; cycle
    with --follow, and for fresh crops without --views."""
    follow: Annotated[bool, Group("schedule")] = False
    """Train from a store while it is being built: play views in stored order, and wait for each."""
    skip_broken: Annotated[bool, Group("evaluation")] = False
    """Leave out test images, and images of fresh crops, that cannot be decoded; they are listed, counted and
    recorded."""
    seeds: Annotated[tuple[int, ...] | None, Group("running")] = None
    """Instead of --seed: train one run for each of these seeds, one after the other, in --run-folder/seed-S."""
    sync_bn: Annotated[bool, Group("running")] = False
    """Compute batch norms over the whole batch of all processes (GPUs only)."""

    def __post_init__(self) -> None:
        """Refuse numbers that no run can have."""
        keeps = {"--images": self.images, "--test-images": self.test_images, "--store": self.store}
        require_apart({"--run": self.run, "--cache-dir": self.store_cache.cache_dir}, keeps)
        self.store_cache.require_address(self.store)
        self.require_numbers()
        for name in ("size", "views", "test_resize", "eval_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')}: expected at least 1, found {value}")
        self.require_length()
        self._require_losses()
        require_together(self)
        self._require_joint()
        if self.follow and self.view_order == "shuffle":
            raise InputError("--view-order shuffle: --follow plays views in stored order; leave one of them out")
        if self.new_head and not self.student_weights:
            raise InputError("--new-head: has an effect only with --student-weights; leave it out")
        if not 0 <= self.eval_from <= 1:
            raise InputError(f"--eval-from: expected a fraction between 0 and 1, found {self.eval_from}")
        if self.seeds is not None:
            self._require_seeds(self.seeds)

    def _require_losses(self) -> None:
        """Refuse losses, and numbers of losses, that do not fit each other or the run."""
        if self.phase is not None and self.loss.name != LossSpec().name:
            raise InputError(f"--loss {self.loss.name}: has no effect with --phase {self.phase}; leave one of them out")
        total = sum(phase.epochs for phase in self.phases)
        if total != self.epochs:
            raise InputError(
                f"--phase {self.phase}: has {total} epochs in all, and --epochs {self.epochs}; give as many in both"
            )
        used = {number for loss in self.losses for number in loss.numbers}
        given = f"--phase {self.phase}" if self.phase else f"--loss {self.loss.name}"
        for number, flag in LOSS_NUMBERS.items():
            if number not in used and getattr(self.loss, number) != getattr(LossSpec(), number):
                raise InputError(f"{given} does not use --{flag.replace('_', '-')}; leave it out")
        for number in json_object("--loss-args", self.loss.args):
            if number not in used:
                known = ", ".join(number for loss in self.losses for number in loss.kind.own_numbers) or "none"
                raise InputError(f"--loss-args: {given} takes {known}, found {number}; leave it out")
        for loss in self.losses:
            if self.phase is None or loss.reads_labels:
                require_loss(self.relabel, loss)
        self.temperatures.require(self.losses)
        if self.temperatures.calibrate and self.relabel:
            raise InputError(
                f"--calibrate-student: compares the student with the original labels, before --relabel "
                f"{self.relabel[0]}; leave one of them out"
            )
        if self.follow and self.hard_phases:
            raise InputError(
                f"--follow: waits for views, and --phase {self.phase} plays fresh crops in between; leave it out"
            )

    def _require_joint(self) -> None:
        """Refuse flags that do not work with several stores."""
        if len(self.more_stores) != len(self.more_images):
            raise InputError(
                f"--store, --images: expected the images of each store, in the same order, found "
                f"{1 + len(self.more_stores)} stores and {1 + len(self.more_images)} of images"
            )
        for flag, given in (
            ("--recipe", self.recipe),
            ("--follow", self.follow),
            ("--phase", self.phase),
            ("--store", self.store is None),
        ):
            if self.more_stores and given:
                reason = "needs the first one" if flag == "--store" else f"does not take {flag}; leave it out"
                raise InputError(f"--more-stores: a training from several stores {reason}")
        if self.more_stores and self.labels.source != "stored":
            raise InputError(
                f"--more-stores: plays stored labels, found --labels {self.labels.source}; leave it out (--loss ce "
                "trains on hard labels)"
            )

    def _require_seeds(self, seeds: tuple[int, ...]) -> None:
        """Refuse seeds that are not valid or not distinct."""
        if self.seed != 0:
            raise InputError(f"--seed {self.seed}, --seeds: expected one of them, found both; leave one of them out")
        if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**63 for seed in seeds):
            found = " ".join(map(str, seeds)) or "none"
            raise InputError(f"--seeds: expected different seeds of 0 <= seed < 2**63, found {found}")

    def in_effect(self) -> dict[str, Any]:
        """The flags that have an effect, by key, with the values that are used."""
        from trainer.optimisers import optimiser_of  # takes seconds to import

        optimiser = optimiser_of(self.optimiser)
        used: dict[str, Any] = {
            "lr": optimiser.lr,
            "weight_decay": optimiser.weight_decay,
            "optimizer_args": dumps(dict(optimiser.args)),
            "view_order": self.play_order,
            "plan_seed": self.seed if self.plan_seed is None else self.plan_seed,
            "eval_every": self.evaluation_interval,
        }
        numbers = {number for loss in self.losses for number in loss.numbers}
        unused = [flag for number, flag in LOSS_NUMBERS.items() if number not in numbers]
        unused += [*self.temperatures.unused, "phase" if self.phase is None else "loss"]
        if not any(loss.own_numbers for loss in self.losses):
            unused.append("loss_args")
        unused += [flag for number, flag in SCHEDULE_NUMBERS.items() if number not in self.schedule.kind.numbers]
        if not self.student_weights:
            unused.append("new_head")
        unused += unused_flags(self)
        if not self.relabel:
            unused.append("relabel")
        if not self.more_stores:
            unused += ["more_stores", "more_images"]
        if self.schedule.warmup_steps is None:
            unused.append("warmup_steps")
        return {name: used.get(name, value) for name, value in values_of(self).items() if name not in unused}

    @property
    def subject(self) -> str:
        """The student, for messages."""
        return f"student {self.student}"

    @property
    def made_with(self) -> dict[str, Json]:
        """The paths of the store, images and test images, and what is reported."""
        return {
            "store": str(self.store) if self.store else None,
            "images": str(self.images),
            **({"more_stores": [*map(str, self.more_stores)]} if self.more_stores else {}),
            "test_images": str(self.test_images) if self.test_images else None,
            **({} if self.test_source == ImageOptions() else {"test_source": asdict(self.test_source)}),
            "reported": "top-1 and top-5 in percent, after the last epoch and at the best evaluated epoch",
            "labels": LABELS[self.labels.source],
        }

    @property
    def fresh(self) -> bool:
        """Whether all crops are fresh, and none come from a store."""
        return self.store is None or self.labels.source == "image"

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the run, each a loss and its epochs; a single one without --phase."""
        return (Phase(self.loss, self.epochs),) if self.phase is None else phases_of(self.phase, self.loss)

    @property
    def losses(self) -> tuple[LossSpec, ...]:
        """The losses of the phases."""
        return tuple(phase.loss for phase in self.phases)

    @property
    def hard_phases(self) -> bool:
        """Whether some phases, but not all, use no labels."""
        return plays_fresh(self.phases)

    @property
    def draws_crops(self) -> bool:
        """Whether some crops are fresh."""
        return self.fresh or self.hard_phases

    @property
    def any_scale(self) -> bool:
        """Whether all losses are invariant to the scale of a label; see `LossSpec.any_scale`."""
        return not self.relabel and all(loss.any_scale for loss in self.losses if loss.reads_labels or not self.phase)

    def require_content(self, content: str) -> None:
        """Refuse labels that lack what a loss of the run needs; see `LossSpec.require_content`."""
        for loss in self.losses:
            loss.require_content(content)

    def loss_to_json(self) -> dict[str, Json]:
        """The name of the loss, or the phases, and every number in effect."""
        values = {name: value for loss in self.losses for name, value in loss.numbers.items()}
        return {"name": self.phase or self.loss.name, **values, **self.temperatures.to_json()}

    def plan(self, size: int) -> PlanSpec:
        """The plan of fresh crops of ``size`` pixels a side.

        Raises:
            InputError: names the flag of the first invalid number.
        """
        seed = self.seed if self.plan_seed is None else self.plan_seed
        return PlanSpec(size=size, seed=seed, **asdict(self.crops))

    @property
    def play_order(self) -> Literal["shuffle", "cycle"]:
        """How epochs choose their view. Views of a running build, and of an unbounded plan, are played in order."""
        unbounded = self.fresh and self.views is None
        return "cycle" if self.follow or unbounded else self.view_order or "shuffle"

    @property
    def evaluation_interval(self) -> int:
        """Epochs between evaluations."""
        return self.eval_every or max(self.epochs // 10, 1)

    def evaluates(self, epoch: int) -> bool:
        """Whether the student is evaluated after ``epoch`` (counted from 0)."""
        due = (epoch + 1) % self.evaluation_interval == 0 and epoch + 1 > self.eval_from * self.epochs
        return due or epoch + 1 == self.epochs
