"""Top-1, top-5, loss and accuracy by class of a network on test images, rendered by the renderer of a plan."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from labelstore.command.console import Console
from labelstore.command.names import printable
from labelstore.durable.newfile import write_over
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from pipeline.device.faults import device_faults
from pipeline.device.memory import keep_freed_memory
from pipeline.images.manifest import Manifest
from pipeline.images.remarks import report_left_out
from pipeline.networks.layout import takes_channels_last
from pipeline.networks.normalisation import require_normalisation
from pipeline.networks.outputs import logits_of
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import Renderer, make_renderer
from pipeline.render.normalise import normalise
from pipeline.teacher.engine.device import DTYPES
from pipeline.teacher.engine.spec import DTypeName
from trainer.evaluate_config import EvaluateConfig
from trainer.measured import LESS, TESTED, load_measured
from trainer.metrics import ranks
from trainer.subject import Subject, settle

TABLE = ["class", "images", "hits", "top1"]
BATCH = 128


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The accuracy of a network on test images.

    Attributes:
        images: number of images.
        top1: percentage of images whose class has the largest logit.
        top5: percentage of images whose class is among the five largest logits.
        loss: mean cross-entropy of the logits.
        class_images: number of images of each class.
        class_hits: number of top-1 hits of each class.
    """

    images: int
    top1: float
    top5: float
    loss: float
    class_images: tuple[int, ...]
    class_hits: tuple[int, ...]

    @property
    def numbers(self) -> dict[str, float | None]:
        """Top-1, top-5 and loss for the log; a loss that is not finite is None."""
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss if math.isfinite(self.loss) else None}


def evaluate(
    network: nn.Module,
    images: Manifest,
    spec: PlanSpec,
    renderer: Renderer,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch: int = BATCH,
    dtype: DTypeName = "float32",
    device: str = "cpu",
    columns: Sequence[int] | None = None,
    channels_last: bool | None = None,
    advance: Callable[[int], None] = lambda _: None,
    see: Callable[[Tensor], None] = lambda _: None,
) -> EvalResult:
    """Evaluate a network in eval mode; the modes of its modules are restored afterwards.

    Args:
        network: a network on ``device``.
        images: test images.
        spec: plan of the crops: the centre fit, nothing random, nothing mixed.
        renderer: made of ``images`` and ``spec``.
        mean: channel means of the normalisation.
        std: channel standard deviations of the normalisation.
        batch: images a batch.
        dtype: with bfloat16 and float16 the network runs under autocast.
        device: device of the network.
        columns: output column of each class; None takes all columns.
        channels_last: memory layout of its input; found by a trial on the first batch when None.
        advance: called with the number of images after each batch.
        see: called with the logits ``[n, C]`` of each batch; images come in the order of ``images``.
    """
    require_normalisation(mean, std, "evaluate: ")
    kept = slice(None) if columns is None else torch.tensor(columns, device=device)
    autocast = torch.autocast(torch.device(device).type, DTYPES[dtype], enabled=dtype != "float32")

    def run(pixels: Tensor, layout: bool) -> Tensor:
        inputs = normalise(pixels.to(device), mean, std, torch.float32, channels_last=layout)
        with autocast, torch.no_grad():
            return logits_of(network(inputs))[:, kept]

    def logits(pixels: Tensor) -> Tensor:
        nonlocal channels_last
        if channels_last is not None:
            return run(pixels, channels_last)
        made: dict[bool, Tensor] = {}
        channels_last = takes_channels_last(lambda layout: made.update({layout: run(pixels, layout)}))
        return made[channels_last]

    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        return count_hits(logits, images, spec, renderer, batch, advance, see)
    finally:
        for module, training in modes:
            module.training = training


def count_hits(
    logits: Callable[[Tensor], Tensor],
    images: Manifest,
    spec: PlanSpec,
    renderer: Renderer,
    batch: int,
    advance: Callable[[int], None] = lambda _: None,
    see: Callable[[Tensor], None] = lambda _: None,
) -> EvalResult:
    """Evaluate a function from pixels, uint8 ``[n, S, S, 3]``, to logits ``[n, C]``.

    Args:
        logits: the function; called with ``batch`` images at a time, the last time with fewer.
        images: test images.
        spec: plan of the crops.
        renderer: made of ``images`` and ``spec``.
        batch: images a batch.
        advance: called with the number of images after each batch.
        see: called with the logits of each batch.
    """
    rows = Plan(spec, images.heights, images.widths).rows(0, 0, len(images))
    rows = rows.take(np.argsort(rows.image))  # manifest order: adjacent on the disk
    targets = torch.from_numpy(images.targets)
    top1, top5, loss = torch.zeros(len(images), dtype=torch.bool), 0, 0.0
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        output = logits(renderer.render(rows.take(part)))
        if output.shape[1:] != (len(images.classes),):
            raise InputError(
                f"expected logits [n, {len(images.classes)}], one column a class of {images.location}, "
                f"found {list(output.shape)}; select columns, or give images of the network's classes"
            )
        own = targets[part].to(output.device)
        rank = ranks(output, own)
        top1[part] = (rank < 1).cpu()
        top5 += int((rank < 5).sum())
        loss += float(cross_entropy(output.float(), own, reduction="sum"))
        see(output)
        advance(len(output))
    classes = len(images.classes)
    return EvalResult(
        images=len(images),
        top1=100 * int(top1.sum()) / len(images),
        top5=100 * top5 / len(images),
        loss=loss / len(images),
        class_images=tuple(torch.bincount(targets, minlength=classes).tolist()),
        class_hits=tuple(torch.bincount(targets[top1], minlength=classes).tolist()),
    )


def write_classes(path: Path, classes: Sequence[str], result: EvalResult) -> None:
    """Write the accuracy of each class as CSV."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(TABLE)
    for name, images, hits in zip(classes, result.class_images, result.class_hits, strict=True):
        rows.writerow([printable(name), images, hits, f"{100 * hits / images:.2f}" if images else ""])
    write_over(path, text.getvalue().encode(), table_of(classes))


def table_of(classes: Sequence[str]) -> Proof:
    """Recognises a table of the same classes."""

    def holds(path: Path) -> bool:
        try:
            with path.open(newline="") as file:
                header, *rows = csv.reader(file)
        except (ValueError, csv.Error):
            return False
        return header == TABLE and [row[0] for row in rows if row] == [*map(printable, classes)]

    return Proof("a table of these classes", holds)


def evaluate_network(config: EvaluateConfig, console: Console) -> EvalResult:
    """Evaluate the network that the flags choose, the same way as `train` evaluates its student."""
    keep_freed_memory()
    subject = settle(config)
    console.report(subject.notes, subject.warnings)
    images = subject.scan()
    report_left_out(images, console)
    with console.progress("evaluate", len(images), "images") as progress:
        result = measure(subject, images, console, advance=progress.advance)
    if config.csv:
        write_classes(config.csv, images.classes, result)
    return result


def measure(
    subject: Subject,
    images: Manifest,
    console: Console,
    *,
    advance: Callable[[int], None] = lambda _: None,
    see: Callable[[Tensor], None] = lambda _: None,
) -> EvalResult:
    """Load the network of a subject and evaluate it; its description is printed.

    Args:
        subject: the network and how it is evaluated.
        images: the test images.
        console: prints notes and warnings.
        advance: as of `evaluate`.
        see: as of `evaluate`.

    Raises:
        InputError: when the network does not exist, or does not fit the images.
    """
    config = subject.config
    measured = load_measured(subject, images.classes)
    console.report(measured.notes, measured.warnings)
    renderer = make_renderer(images, subject.plan, **config.render.arguments)
    with closing(renderer), device_faults(TESTED, LESS):
        result = evaluate(
            measured.network,
            images,
            subject.plan,
            renderer,
            mean=subject.mean,
            std=subject.std,
            batch=config.batch,
            dtype=subject.dtype,
            device=config.render.device,
            columns=measured.columns,
            channels_last=measured.channels_last,
            advance=advance,
            see=see,
        )
    if not math.isfinite(result.loss):
        console.warn("some logits are no finite numbers; an image with NaN among its logits counts as missed")
    return result
