"""Initial weights of a student from an earlier run or a publication, with their classifier or a new one."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from labelstore.errors import InputError
from pipeline.config import json_object
from pipeline.networks import Weights, load_network, load_weights, read_weights
from pipeline.networks.trained import TIMM, TORCHVISION
from pipeline.networks.weights import head_classes
from trainer.config import TrainConfig


def begin_with(student: nn.Module, config: TrainConfig, columns: int, size: int) -> nn.Module:
    """Load --student-weights into the student, if they are given, and return it.

    Args:
        student: built for the labels of the store.
        config: of the run.
        columns: number of label columns.
        size: side of the student's crops.

    Raises:
        InputError: when they do not fit. With --new-head the classifier may differ.
    """
    if config.student_weights is None:
        return student
    weights = weights_of(config, columns, size)
    others = head_classes(student, columns, weights)
    if others is None:
        if config.new_head:
            raise InputError(
                f"--new-head: the classifier of {config.student_weights} has {columns} columns, as the labels have; "
                f"leave it out"
                if fits(student, weights)
                else f"--new-head: {config.student_weights} differs from {config.student} in more than the classifier; "
                f"give the weights of this network, or its --student-args"
            )
        load_weights(student, weights)
        return student
    if not config.new_head:
        raise InputError(
            f"--student-weights {config.student_weights}: expected a classifier of {columns} columns, as the labels "
            f"have, found {others}; --new-head keeps all else of them, and the student's own new classifier"
        )
    own = student.state_dict()
    kept = {name: own[name] if own[name].shape != found.shape else found for name, found in weights.tensors.items()}
    load_weights(student, Weights(weights.source, kept))
    return student


def weights_of(config: TrainConfig, columns: int, size: int) -> Weights:
    """The weights of --student-weights."""
    source = config.student_weights or ""
    if source.startswith((TORCHVISION, TIMM)):
        args = json_object("--student-args", config.student_args)
        return load_network(config.student, args, source, classes=columns, size=size)[1]
    return read_weights(Path(source))


def fits(student: nn.Module, weights: Weights) -> bool:
    """Whether the weights have the names and shapes of the student's."""
    own = {name: value.shape for name, value in student.state_dict().items() if name in weights.tensors}
    return own == {name: value.shape for name, value in weights.tensors.items()}
