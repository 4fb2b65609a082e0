"""What `train` is told: one frozen dataclass whose fields are the command's flags."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from labelstore.errors import InputError
from labelstore.places import require_apart
from pipeline.config import gibibytes, json_object
from pipeline.render import Decoder
from trainer.losses import LossName, LossSpec
from trainer.losses.gift import GiftForm
from trainer.optimisers import Decay, OptimiserSpec
from trainer.schedules import ScheduleName, SchedulePer, ScheduleSpec

# The field of each number of a loss.
LOSS_NUMBERS = {
    "form": "gift_form",
    "gamma": "gamma",
    "smoothing": "smoothing",
    "weight": "w",
    "temperature": "temperature",
    "t_squared": "t_squared",
    "hard_weight": "hard_weight",
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a student from a label store.

    Typing the same command again resumes a stopped run exactly, and only reports a finished one.
    """

    store: Path
    """Folder of the store."""
    images: Path
    """Class folder that the store was made of."""
    recipe: Literal["gift", "rded", "sre2l"] | None = None
    """A published protocol in full; its values are printed, and flags override them."""
    student: str
    """torchvision:NAME, timm:NAME, convnet-dN, cifar-resnetN, resnet18/101-modified or module:attribute."""
    epochs: int
    """Epochs; each plays one view of the store."""
    run: Annotated[Path, tyro.conf.arg(aliases=["--run-folder"])]
    """Folder of the run: config.json, log.jsonl, checkpoint.pt, last.safetensors, best.safetensors."""
    student_args: str = "{}"
    """Keyword arguments of the student's constructor, as JSON."""
    size: int | None = None
    """Side of the student's crops, from the same boxes; the store's when left out."""
    test_images: Path | None = None
    """Class folder of test images, with the same classes; without it nothing is evaluated."""
    test_resize: int | None = None
    """Short side of a test image before the central crop; the student's crop size when left out."""
    skip_broken: bool = False
    """Leave out test images that do not decode; they are listed, counted and recorded."""
    eval_every: int | None = None
    """Epochs between evaluations; a tenth of the run when left out. The last epoch is always evaluated."""
    eval_from: float = 0.0
    """Fraction of the run before the first evaluation."""
    loss: LossName = "gift"
    """gift, cosine, kl, soft_ce, mse, ce, mse+ce or soft_ce+ce, each on raw logits."""
    gift_form: GiftForm = "released"
    """gift: released (t/|t| + gamma s/|s|) or convex ((1 - w) t/|t| + w s/|s|)."""
    gamma: float = 0.1
    """gift, released form: weight of the hard label."""
    smoothing: float = 0.1
    """gift: smoothing of the hard label."""
    w: float = 0.1
    """gift, convex form: weight of the hard label."""
    temperature: float = 20.0
    """kl: temperature of both softmaxes."""
    t_squared: bool = False
    """kl: multiply by the square of the temperature."""
    hard_weight: float = 0.1
    """mse+ce, soft_ce+ce: weight of the hard cross-entropy."""
    batch_size: int = 128
    """Crops a step, over all processes; any number, the last batch of an epoch may be short."""
    accumulate: int = 1
    """Pieces that a batch is taken in, one after the other, for its gradient."""
    optimizer: str = "AdamW"
    """Any optimiser of torch.optim by its name."""
    lr: float = 1e-3
    """First learning rate; the schedule multiplies it."""
    weight_decay: float = 1e-4
    """Weight decay."""
    decay: Decay = "all"
    """What decays: all parameters, or weights of more than one dimension alone."""
    optimizer_args: str = "{}"
    """More keyword arguments of the optimiser, as JSON."""
    fused: bool = False
    """The fused kernel of Adam, AdamW, SGD and Adagrad."""
    clip_norm: float | None = None
    """Largest norm of the gradient, over all parameters; it is scaled down to that."""
    ema: float | None = None
    """Decay of a running mean of the weights, over steps; the mean is what is evaluated and saved."""
    schedule: ScheduleName = "cosine"
    """How the learning rate falls: cosine, step or constant."""
    schedule_per: SchedulePer = "step"
    """Whether the rate changes once a step or once an epoch."""
    final: float = 0.0
    """cosine: fraction of --lr that is reached at the end of its half wave."""
    horizon: float = 1.0
    """cosine: length of the half wave in runs; 2 ends the run at half of --lr."""
    milestones: tuple[float, ...] = (2 / 3, 5 / 6)
    """step: fractions of the run at which the rate drops."""
    drop: float = 0.2
    """step: what the rate is multiplied by at each milestone."""
    views: int | None = None
    """Play the first V views of the store alone; all that are there when left out."""
    view_order: Literal["shuffle", "cycle"] = "shuffle"
    """Which view an epoch plays: drawn by the seed, or in stored order."""
    follow: bool = False
    """Train from a store that is still being built: views in stored order, each waited for."""
    seed: int = 0
    """The run's seed: the student's first weights, dropout, and which view each epoch plays."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the student under autocast; the loss stays in float32."""
    compile: bool = False
    """torch.compile the student."""
    sync_bn: bool = False
    """Batch norms take the whole batch of all processes; on GPUs."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    decoder: Decoder | None = None
    """What decodes files: cpu, gpu or gpu-hw; on a GPU what decoded the store's when left out."""
    threads: int | None = None
    """CPU threads; all cores when left out."""
    cache_gib: float = 2.0
    """Memory for decoded images."""
    checkpoint_every: int | None = None
    """Epochs between checkpoints; when left out, as many as keep saving at a twentieth of the time."""
    checkpoint_steps: int | None = None
    """Steps between further checkpoints, within epochs."""
    tensorboard: bool = False
    """Write the numbers of each epoch as TensorBoard scalars too, into tensorboard/ of the run."""
    anyway: bool = False
    """Continue a run though code, test images, versions or the renderer have changed; config.json records it."""
    json: bool = False
    """Print the summary as one JSON object on standard output and all else on standard error."""

    def __post_init__(self) -> None:
        """Refuse numbers that no run can have."""
        keeps = {"--images": self.images, "--test-images": self.test_images, "--store": self.store}
        require_apart({"--run": self.run}, keeps)
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag}: expected at least 1, found {getattr(self, name)}")
        for name in ("size", "views", "test_resize", "eval_every", "checkpoint_every", "checkpoint_steps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')}: expected at least 1, found {value}")
        used = self.loss_spec().numbers
        for number, name in LOSS_NUMBERS.items():
            if number not in used and getattr(self, name) != getattr(type(self), name):
                raise InputError(
                    f"--{name.replace('_', '-')}: not a number of --loss {self.loss} in this form; leave it out"
                )
        if not 0 <= self.eval_from <= 1:
            raise InputError(f"--eval-from: expected a fraction between 0 and 1, found {self.eval_from}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed: expected 0 <= seed < 2**63, found {self.seed}")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise InputError(f"--clip-norm: expected a number > 0, found {self.clip_norm}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"--ema: expected a decay between 0 and 1, found {self.ema}")

    def loss_spec(self) -> LossSpec:
        """The loss's part of the flags."""
        numbers: dict[str, Any] = {number: getattr(self, name) for number, name in LOSS_NUMBERS.items()}
        return LossSpec(name=self.loss, **numbers)

    def optimiser_spec(self) -> OptimiserSpec:
        """The optimiser's part of the flags."""
        return OptimiserSpec(
            name=self.optimizer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            decay=self.decay,
            args={**json_object("--optimizer-args", self.optimizer_args), **({"fused": True} if self.fused else {})},
        )

    def schedule_spec(self) -> ScheduleSpec:
        """The schedule's part of the flags."""
        return ScheduleSpec(
            name=self.schedule,
            per=self.schedule_per,
            milestones=self.milestones,
            drop=self.drop,
            final=self.final,
            horizon=self.horizon,
        )

    @property
    def play_order(self) -> Literal["shuffle", "cycle"]:
        """Which view an epoch plays; a build that goes on is followed in stored order."""
        return "cycle" if self.follow else self.view_order

    @property
    def cache_bytes(self) -> int:
        """The memory budget of decoded images, in bytes."""
        return gibibytes("--cache-gib", self.cache_gib)

    @property
    def evaluation_interval(self) -> int:
        """Epochs between evaluations."""
        return self.eval_every or max(self.epochs // 10, 1)

    def evaluates(self, epoch: int) -> bool:
        """Whether the student is evaluated after ``epoch`` (counted from 0)."""
        due = (epoch + 1) % self.evaluation_interval == 0 and epoch + 1 > self.eval_from * self.epochs
        return due or epoch + 1 == self.epochs
