"""HALD (arXiv 2512.15647; Jiacheng8/HALD, relabel/relabel_slc.py, validate/train_fkd.py and validate/hyper.yaml).

Few labels an image, and hard ones between them: a quarter of the epochs on stored labels, half of them on fresh crops
with CutMix and smoothed hard labels, a quarter on stored labels again; all with the same crops, in batches of 16.
"""

from __future__ import annotations

from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.recipes import sre2l
from pipeline.recipes.crops import cutmix_crops
from pipeline.recipes.setting import CIFAR100, IMAGENET, TINY, Flags, Setting

EPOCHS, BATCH = 300, 16
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
# First rate and horizon of the cosine, by classes and network, for up to 1, up to 40 and more images a class.
RATES: dict[tuple[int, str], tuple[tuple[float, float], ...]] = {
    (CIFAR100, "resnet18"): ((5e-4, 2), (1e-3, 2), (1e-3, 1)),
    (CIFAR100, "resnet50"): ((1e-3, 1), (1e-3, 2), (1e-3, 1)),
    (CIFAR100, "resnet101"): ((5e-4, 1), (5e-4, 1), (5e-4, 1)),
    (TINY, "resnet18"): ((1e-3, 2), (1e-3, 2), (1e-3, 1)),
    (TINY, "resnet50"): ((5e-4, 2), (5e-4, 2), (5e-4, 1)),
    (TINY, "resnet101"): ((5e-4, 2), (5e-4, 2), (5e-4, 1)),
    (IMAGENET, "resnet18"): ((1e-3, 2), (1e-3, 2), (1e-3, 1)),
    (IMAGENET, "resnet50"): ((5e-4, 2), (1e-3, 2), (1e-3, 1)),
    (IMAGENET, "resnet101"): ((3.5e-3, 2), (1e-3, 2), (5e-4, 1)),
    (IMAGENET, "mobilenet_v2"): ((1e-3, 2), (1e-3, 2), (1e-3, 2)),
    (IMAGENET, "densenet121"): ((1e-3, 2), (1e-3, 2), (1e-3, 2)),
}
OTHERS = ((1e-3, 2), (1e-3, 2), (1e-3, 1))  # ours: those of ResNet-18 on ImageNet-1K
build_differs = (
    "teachers in training mode, whose batch norms take the statistics of each batch of 16 (the authors' code does so "
    "for all images but RDED's); labels are stored as softmax at T = 20 there, as logits here; the paper counts labels "
    "a class: give --views that number divided by the images a class, such as 10"
)
train_differs = (
    "the stored batches drawn one by one (views come whole here), the last crop of an odd hard batch left out, "
    "rates of ImageNette and ImageWoof; where no rate is published for a set and a network, it is ours; only the "
    "best evaluation is reported there"
)
few_views = True


def build(setting: Setting) -> Flags:
    """SRe2L's crops; CIFAR-100 has its own mean and deviation. The fresh crops of hard epochs are the same."""
    cifar = setting.classes == CIFAR100 and setting.size <= 32
    return {
        **cutmix_crops(0.08, min(BATCH, setting.images)),
        "mean": CIFAR100_MEAN if cifar else IMAGENET_MEAN,
        "std": CIFAR100_STD if cifar else IMAGENET_STD,
    }


def train(setting: Setting) -> Flags:
    """KL at T = 20, hard labels smoothed by 0.8, KL again; AdamW with decay on weights only, half or whole cosine."""
    lr, horizon = rate(setting)
    return {
        **phases(setting.epochs or EPOCHS),
        "temperature": 20.0,
        "t_squared": False,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "optimizer": "AdamW",
        "lr": lr,
        "weight_decay": 0.01,
        "decay": "weights",
        "schedule": "cosine",
        "schedule_per": "epoch",
        "final": 0.0,
        "horizon": horizon,
        "eval_every": 10,
        "eval_from": 0.0,
        "test_resize": sre2l.resize(setting),
    }


def phases(epochs: int) -> Flags:
    """A quarter on labels, half of the epochs on hard labels, the rest on labels; one epoch is one on labels."""
    soft = (epochs + 1) // 2
    hard = epochs - soft
    if not hard:
        return {"loss": "kl"}
    parts = [("kl", soft // 2), ("ce", hard), ("kl", soft - soft // 2)]
    return {"phase": ",".join(f"{loss}:{count}" for loss, count in parts if count), "hard_smoothing": 0.8}


def rate(setting: Setting) -> tuple[float, float]:
    """The first rate, and the horizon of the cosine."""
    network = setting.architecture.removesuffix("-modified")
    place = 0 if setting.per_class <= 1 else 1 if setting.per_class <= 40 else 2
    return RATES.get((setting.classes, network), OTHERS)[place]
