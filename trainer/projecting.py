"""`train-projector`: train a projector, then compare it with its teachers on the test images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelstore.command.console import Console, byte_count
from labelstore.encodings.fidelity import quality
from labelstore.spec import Json
from pipeline.build.defaults import settle_teacher
from pipeline.networks import load_network
from pipeline.networks.families import PROJECTOR
from pipeline.networks.trained import recorded_in
from pipeline.networks.weights import save_weights
from trainer import train as loop
from trainer.evaluate import EvalResult, measure
from trainer.evaluate_config import EvaluateConfig
from trainer.projector import make_projector_run, settle_encoder
from trainer.projector_config import ProjectorConfig
from trainer.subject import settle
from trainer.summary import summarise as of_run

MERGED = "merged.safetensors"


def train_projector(config: ProjectorConfig, console: Console) -> Mapping[str, Json]:
    """Train a projector, continue it, or report a finished one; returns the summary, on the first process."""
    setup = settle_encoder(config)
    run = config.as_train(setup.size)
    values = loop.train(run, console, partial(make_projector_run, config, setup))
    if values and config.projector.merge:
        network, _ = load_network(PROJECTOR, {}, str(config.run), classes=0, size=setup.size)
        save_weights(network.state_dict(), config.run / MERGED, trained=recorded_in(str(config.run)))
        console.line(f"merged: {config.run / MERGED}, {byte_count((config.run / MERGED).stat().st_size)}")
    if values and config.test_images:
        return {**values, **beside_teachers(config, setup.size, console)}
    return values


def summarise(values: Mapping[str, Any]) -> str:
    """The summary for people."""
    found = values["projector"]
    count = found["parameters"]
    parts = ", ".join(
        f"{name} {number:,}, {byte_count(found['bytes'][name])}" for name, number in count.items() if number
    )
    bytes_ = f"{byte_count(found['total_bytes'])}; its encoder, not copied, has {byte_count(found['encoder']['bytes'])}"
    lines = [
        of_run(values),
        f"projector: {sum(count.values()):,} parameters ({parts}), {bytes_} more",
    ]
    if "teachers" in values:
        teachers = "; ".join(f"{each['top1']:.2f} % {each['weights']}" for each in values["teachers"])
        lines.append(f"test top-1 of the projector {values['top1']:.2f} %; of its teachers: {teachers}")
    if "agreement" in values:
        lines.append(
            f"beside the teachers' mean logits ({values['teachers_top1']:.2f} %): agreement "
            f"{100 * values['agreement']:.2f} %, fidelity {values['fidelity']:.5f}"
        )
    return "\n".join(lines)


class Kept:
    """Collects the logits of all images."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def __call__(self, logits: Tensor) -> None:
        """Add the logits of a batch, ``[n, C]``."""
        self._parts.append(logits.float().cpu())

    @property
    def logits(self) -> Tensor:
        """The logits of all images, ``[N, C]``."""
        return torch.cat(self._parts)


def beside_teachers(config: ProjectorConfig, size: int, console: Console) -> dict[str, Json]:
    """Top-1 of a projector and of each of its teachers on the test images, and its agreement with their mean logits.

    Args:
        config: configuration of the finished run.
        size: side of the projector's crops.
        console: shows progress.
    """
    subjects = [settle(flags) for flags in evaluations(config, size)]
    images = subjects[0].scan()
    found: list[EvalResult] = []
    logits: list[Tensor] = []
    quiet = Console(silent=True)
    with console.progress("compare", len(subjects) * len(images), "images") as progress:
        for subject in subjects:
            kept = Kept()
            found.append(measure(subject, images, quiet, advance=progress.advance, see=kept))
            logits.append(kept.logits)
    values: dict[str, Json] = {"top1": found[0].top1}
    if not subjects[1:]:  # a user's labeller
        return values
    values["teachers"] = [
        {"name": subject.member.name, "weights": subject.member.weights, "top1": each.top1}
        for subject, each in zip(subjects[1:], found[1:], strict=True)
    ]
    mean = torch.stack([share * each for share, each in zip(shares(config), logits[1:], strict=True)]).sum(0)
    close = quality(mean.numpy(), logits[0].numpy(), images.targets)
    hits = mean.argmax(1).numpy() == images.targets
    return {
        **values,
        "teachers_top1": 100 * float(np.mean(hits)),
        "agreement": float(np.mean(close.top1)),
        "fidelity": float(np.mean(close.fidelity)),
        "kl_1": float(np.mean(close.kl_1)),
    }


def shares(config: ProjectorConfig) -> list[float]:
    """The weight of each teacher in the mean."""
    return [member.share for member in config.teacher.spec(config.engine, config.render).members]


def evaluations(config: ProjectorConfig, size: int) -> list[EvaluateConfig]:
    """The flags of `evaluate` for the projector and each of its teachers, each at its own size and normalisation."""
    same: dict[str, Any] = {"images": config.test_images, "render": config.render, "class_order": config.class_order}
    ours = EvaluateConfig(
        weights=(str(config.run),),
        student_args=None,
        resize=config.test_resize,
        dtype=config.dtype,
        **same,
    )
    if config.teacher.labeller:
        return [ours]
    teacher, side = config.teacher, config.teacher.size or size
    settled = settle_teacher(teacher, side, "bilinear").teacher
    members = settled.spec(config.engine, config.render).members
    dtype = "float32" if config.engine.dtype == "tf32" else config.engine.dtype
    flags: dict[str, Any] = {"size": side, "mean": settled.mean, "std": settled.std, "dtype": dtype, **same}
    return [
        ours,
        *(
            EvaluateConfig(
                weights=(member.weights,),
                student=member.name,
                student_args=json.dumps(dict(member.args)),
                weights_key=member.key,
                classes=teacher.class_columns or teacher.classes,
                **flags,
            )
            for member in members
        ),
    ]
