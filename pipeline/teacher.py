"""The teacher: a network in eval mode that maps crops to logits, the same bits every time on one engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.class_order import CLASS_COLUMNS, TEACHER_CLASSES, check_classes, select_columns
from pipeline.networks.load import library_version, load_network
from pipeline.render.normalise import normalise

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Instructions that decide which kernels of one capability are taken.
CPU_FEATURES = ("avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "amx_fp16")


class BrokenLogitsError(InputError):
    """A teacher gave NaN or Inf for a crop.

    Args:
        name: of the teacher.
        row: of the first such crop in its batch.
        column: of its first such logit.
        value: of the logit.
    """

    def __init__(self, name: str, row: int, column: int, value: float) -> None:
        super().__init__(
            f"the teacher {name} gave {value} for class {column} of row {row} of a batch; "
            f"look at its weights, --mean/--std and --dtype"
        )
        self.row, self.column, self.value = row, column, value


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSpec:
    """Which teacher, and how it is run.

    Attributes:
        name: network, as ``build_network`` takes it.
        args: keyword arguments of its constructor.
        weights: a file, ``torchvision:ENUM`` or ``timm:pretrained``.
        classes: columns to keep, as ``select_columns`` takes them; None keeps all.
        class_columns: of those that are kept, the columns of the class folders, likewise; None where all are.
        mean: channel means of the pixels in [0, 1].
        std: channel standard deviations of the pixels in [0, 1].
        dtype: precision of weights and activations; float32 means float32, without TF32.
        batch: crops a batch; fewer are padded, so that the shape never changes.
        device: "cpu", "cuda" or "cuda:N".
        threads: CPU threads of torch; None leaves torch's number.
        channels_last: memory format of weights and activations.
    """

    name: str
    weights: str
    args: Mapping[str, Json] = field(default_factory=dict)
    classes: str | None = None
    class_columns: str | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch: int = 128
    device: str = "cpu"
    threads: int | None = None
    channels_last: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.dtype not in DTYPES:
            raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, found {self.dtype!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise InputError(f"{name}: expected three finite numbers, found {values}")
        if min(self.std) <= 0:
            raise InputError(f"std: expected numbers above 0, found {self.std}")
        for name, number in (("batch", self.batch), ("threads", self.threads)):
            if number is not None and number < 1:
                raise InputError(f"{name}: expected at least 1, found {number}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Teacher:
    """A network ready to label crops; made by ``make_teacher``.

    Attributes:
        spec: what it was made from.
        network: the network in eval mode, on its device, in its dtype.
        device: where it runs.
        size: side S of the crops in pixels.
        selected: columns of the network that are kept, in order; None keeps all.
        columns: number of columns C of a label.
        class_names: their class names, where known.
        class_columns: the column of each class folder in a label; empty where folder k has column k.
        identity: what the teacher is (P3).
        engine: what makes its bytes (P4).
        warnings: what the user should look at before trusting the labels.
    """

    spec: TeacherSpec
    network: nn.Module
    device: torch.device
    size: int
    selected: tuple[int, ...] | None
    columns: int
    class_names: tuple[str, ...] | None
    class_columns: tuple[int, ...]
    identity: Mapping[str, Json]
    engine: Mapping[str, Json]
    warnings: tuple[str, ...] = ()

    @property
    def batch(self) -> int:
        """The largest number of crops that ``logits`` takes."""
        return self.spec.batch

    def logits(self, pixels: Tensor) -> Tensor:
        """Label crops.

        Args:
            pixels: uint8 ``[n, S, S, 3]``, n at most ``batch``; the rest of the batch is filled with zeros.

        Returns:
            float32 ``[n, C]`` on the CPU.

        Raises:
            BrokenLogitsError: when a logit is NaN or infinite; names the first.
        """
        shape = (self.size, self.size, 3)
        rows = len(pixels)
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != shape or rows > self.batch:
            raise InputError(
                f"crops: expected uint8 [at most {self.batch}, {', '.join(map(str, shape))}], "
                f"found {pixels.dtype} {list(pixels.shape)}"
            )
        if rows < self.batch:
            padding = pixels.new_zeros(self.batch - rows, *shape)
            pixels = torch.cat([pixels, padding])
        logits = _forward(self.network, self.spec, pixels.to(self.device).contiguous())[:rows]
        if self.selected is not None:
            logits = logits[:, list(self.selected)]
        logits = logits.cpu()
        broken = (~logits.isfinite()).nonzero()
        if len(broken):
            row, column = broken[0].tolist()
            raise BrokenLogitsError(self.spec.name, row, column, float(logits[row, column]))
        return logits


def _forward(network: nn.Module, spec: TeacherSpec, pixels: Tensor) -> Tensor:
    """Logits, float32 ``[n, columns]`` on the device of ``pixels``."""
    # cuDNN must neither time its algorithms nor shorten float32, or a second run gives other bits.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), exact:
        images = normalise(pixels, spec.mean, spec.std, DTYPES[spec.dtype], spec.channels_last)
        logits: Tensor = network(images)
        return logits.float()


def make_teacher(
    spec: TeacherSpec,
    *,
    size: int,
    classes: Sequence[str],
    flags: tuple[str, ...] = (TEACHER_CLASSES, CLASS_COLUMNS),
) -> Teacher:
    """Load a teacher and check its columns against the class folders.

    Args:
        spec: which teacher, and how it is run.
        size: side S of the crops in pixels.
        classes: folder names in target order.
        flags: the flag that selects columns, and the one that keeps the others too, for messages.
    """
    device = _device(spec.device)
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    network, weights = load_network(spec.name, spec.args, spec.weights, classes=len(classes), size=size)
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    network = network.eval().requires_grad_(False).to(device, DTYPES[spec.dtype]).to(memory_format=layout)
    total = _count_columns(network, spec, device, size)
    names = weights.class_names
    if names is not None and len(names) != total:
        raise InputError(f"weights {spec.weights} name {len(names)} classes, the network has {total} columns")
    selected = None if spec.classes is None else select_columns(spec.classes, names, total, flag=flags[0])
    kept = tuple(range(total)) if selected is None else selected
    kept_names = None if names is None else tuple(names[column] for column in kept)
    class_columns: tuple[int, ...] = ()
    if spec.class_columns is None:
        warning = check_classes(kept, names, classes, flags=flags[:1] if selected else flags)
    else:
        class_columns = select_columns(spec.class_columns, kept_names, len(kept), flag=CLASS_COLUMNS)
        warning = check_classes(class_columns, kept_names, classes, flags=(CLASS_COLUMNS,))
    return Teacher(
        spec=spec,
        network=network,
        device=device,
        size=size,
        selected=selected,
        columns=len(kept),
        class_names=kept_names,
        class_columns=class_columns,
        identity={
            "name": spec.name,
            "args": dict(sorted(spec.args.items())),
            "weights": weights.digest,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "columns": None if selected is None else list(selected),
            "size": size,
        },
        engine=_engine(spec, device),
        warnings=() if warning is None else (warning,),
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device: expected cpu, cuda or cuda:N, found {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device: expected cpu, cuda or cuda:N, found {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name}: torch sees {torch.cuda.device_count()} GPUs; give --device cpu")
    return device


def _count_columns(network: nn.Module, spec: TeacherSpec, device: torch.device, size: int) -> int:
    """Columns of the network, from one black crop."""
    crop = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device)
    try:
        logits: Any = _forward(network, spec, crop)
    except Exception as error:  # a network may raise anything at a size that it does not take
        raise InputError(f"network {spec.name} gives no logits for crops of {size} x {size} px: {error}") from error
    if logits.ndim != 2 or len(logits) != 1:
        raise InputError(f"network {spec.name}: expected logits [1, C] for one crop, found {list(logits.shape)}")
    return int(logits.shape[1])


def _engine(spec: TeacherSpec, device: torch.device) -> dict[str, Json]:
    """What makes the bytes of the labels (P4)."""
    libraries: dict[str, Json] = {"torch": str(torch.__version__), **library_version(spec.name)}
    if device.type == "cuda":
        model = torch.cuda.get_device_name(device)
        cudnn_version: Callable[[], int | None] = torch.backends.cudnn.version
        libraries["cudnn"] = cudnn_version()
    else:
        has: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch that we admit
        features = [feature for feature in CPU_FEATURES if has.get(feature)]
        model = " ".join(["cpu", torch.backends.cpu.get_cpu_capability(), *features])
    return {
        "device": model,
        "dtype": spec.dtype,
        "batch": spec.batch,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "channels_last": spec.channels_last,
        "folding": "none",
        "compile": "none",
        "versions": libraries,
    }
