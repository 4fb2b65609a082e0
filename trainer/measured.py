"""Load the network that `evaluate` measures, try it on crops, and choose its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from labelstore.errors import InputError, reason
from pipeline.device.faults import device_faults, is_fault
from pipeline.networks import load_network
from pipeline.networks.layout import memory_format, takes_channels_last
from pipeline.networks.outputs import Logits
from pipeline.render.normalise import normalise
from pipeline.teacher.class_order import Choice, check_classes, choose, require_known_columns
from pipeline.teacher.engine.batches import require_weights_fit
from pipeline.teacher.engine.device import DTYPES, teacher_device
from pipeline.teacher.engine.neighbours import require_independent
from trainer.subject import Subject

CLASSES = "--classes"
TESTED, LESS = "the network is tested", "a smaller --batch or --cache-gib"  # arguments of `device_faults`
PROBE_CROPS = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """A network in eval mode, and how it is called.

    Attributes:
        network: maps images to logits ``[n, C]``, on its device.
        channels_last: memory layout of its weights and images.
        columns: output column of each class; None takes all columns.
        notes: which weights were taken from the file, and how columns were matched with folders, if they were.
        warnings: what to check before trusting the results.
    """

    network: nn.Module
    channels_last: bool
    columns: tuple[int, ...] | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def load_measured(subject: Subject, classes: Sequence[str]) -> Measured:
    """Load the network of `evaluate` and choose its columns; the dtypes of its weights are kept.

    Args:
        subject: the network and how it is evaluated.
        classes: classes of the test images, in target order.

    Raises:
        InputError: when the network does not exist, does not accept the crops, or its columns do not match the classes.
    """
    config, member = subject.config, subject.member
    device = teacher_device(config.render.device, subject.dtype)
    if config.render.threads is not None:
        torch.set_num_threads(config.render.threads)
    spec = subject.spec(classes)
    require_weights_fit(spec, device)
    loaded, weights = load_network(
        member.name, member.args, member.weights, classes=len(classes), size=subject.size, key=member.key
    )
    network = Logits(loaded).eval().requires_grad_(False)
    with device_faults(TESTED, LESS):
        network = network.to(device)
        probe = Probe(network, subject, device)
        channels_last = takes_channels_last(probe.count_columns)
        total = probe.count_columns(channels_last)
        columns, notes, warnings = choose_columns(spec.classes, weights.class_names, total, classes)
        try:
            require_independent(
                member.name, network, lambda pixels: probe.logits(pixels, channels_last), subject.size, config.batch
            )
        except InputError as error:
            warnings.append(f"{error}; its results are for batches of {config.batch}, and depend on --batch")
    return Measured(
        network=network,
        channels_last=channels_last,
        columns=columns,
        notes=(*weights.notes, *notes),
        warnings=(*weights.warnings, *warnings),
    )


@dataclass(frozen=True, eq=False)
class Probe:
    """Runs a network on a few crops, as `evaluate` runs it."""

    network: nn.Module
    subject: Subject
    device: torch.device

    def logits(self, pixels: Tensor, channels_last: bool) -> Tensor:
        """Logits of uint8 ``[n, S, S, 3]``."""
        mean, std, dtype = self.subject.mean, self.subject.std, self.subject.dtype
        inputs = normalise(pixels.to(self.device), mean, std, torch.float32, channels_last=channels_last)
        with torch.no_grad(), torch.autocast(self.device.type, DTYPES[dtype], enabled=dtype != "float32"):
            found: Tensor = self.network(inputs)
        return found

    def count_columns(self, channels_last: bool) -> int:
        """Convert the network to a layout, and count its columns."""
        name, size, columns = self.subject.member.name, self.subject.size, 0
        self.network.to(memory_format=memory_format(channels_last))
        for count in range(1, min(self.subject.config.batch, PROBE_CROPS) + 1):
            try:
                logits: Any = self.logits(torch.zeros(count, size, size, 3, dtype=torch.uint8), channels_last)
            except Exception as error:  # a network may raise anything for a size that it does not accept
                if is_fault(error):
                    raise
                raise InputError(
                    f"network {name} gives no logits for crops of {size} x {size} px in {self.subject.dtype}: "
                    f"{reason(error)}"
                ) from error
            if logits.ndim != 2 or len(logits) != count:
                raise InputError(
                    f"network {name}: expected logits [{count}, C] for {count} crops, found {list(logits.shape)}"
                )
            columns = int(logits.shape[1])
        return columns


def choose_columns(
    selection: str | None, names: tuple[str, ...] | None, total: int, classes: Sequence[str]
) -> tuple[tuple[int, ...] | None, list[str], list[str]]:
    """The columns that --classes selects, checked against the class folders, with notes and warnings.

    Args:
        selection: value of the flag, or of the run.
        names: class names of all columns, if the weights record them.
        total: columns of the network.
        classes: folder names in target order.
    """
    if names is not None and len(names) != total:
        raise InputError(f"the weights name {len(names)} classes, the network has {total} columns")
    chosen = Choice(None) if selection is None else choose(selection, names, total, classes, flag=CLASSES)
    if selection is None:
        require_known_columns(classes, names, total, (CLASSES,))
    if chosen.mapping is not None:
        return chosen.columns, [f"columns of the folders, by ImageNet's public list: {chosen.mapping.text}"], []
    kept = tuple(range(total)) if chosen.columns is None else chosen.columns
    warning = check_classes(kept, names, classes, flags=(CLASSES,))
    return chosen.columns, [], [] if warning is None else [warning]
