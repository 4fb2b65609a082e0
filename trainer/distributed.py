"""A student on one of several processes: gradients averaged, compiled where that is wanted."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from labelstore.errors import InputError
from pipeline.engine.compiling import compilers
from pipeline.ranks import WORK_TIMEOUT, Ranks
from trainer.checkpoint import seed_all
from trainer.config import TrainConfig

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel


def prepare(student: nn.Module, config: TrainConfig, ranks: Ranks) -> nn.Module:
    """The student before its optimiser is made: on its device, with norms over all processes where that is wanted."""
    device = torch.device(config.device)
    if config.sync_bn and device.type == "cpu":
        raise InputError("--sync-bn: works on GPUs; leave it out, or take instance norm")
    if config.sync_bn and ranks.world > 1:
        norm: Any = nn.SyncBatchNorm
        student = norm.convert_sync_batchnorm(student)
    return student.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def spread(student: nn.Module, config: TrainConfig, ranks: Ranks) -> DistributedDataParallel | None:
    """The student with its gradients averaged over the processes; None when there is one."""
    if ranks.world == 1:
        return None
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    device = torch.device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group = distributed.new_group(backend="nccl" if device.type == "cuda" else "gloo", timeout=WORK_TIMEOUT)
    return DistributedDataParallel(
        student, device_ids=[device.index] if device.type == "cuda" else None, process_group=group
    )


def compiled(network: nn.Module, config: TrainConfig) -> nn.Module:
    """The network as it is called in a step."""
    if not config.compile:
        return network
    compilers(torch.device(config.device))
    # For each shape alone, since what is compiled for all of them depends on which one came first.
    return cast("nn.Module", torch.compile(network, dynamic=False))


def seed_rank(seed: int, rank: int, step: int) -> None:
    """Seed what this process draws (dropout), apart from what the others draw."""
    digest = hashlib.sha256(f"{seed} {rank} {step}".encode()).digest()
    seed_all(int.from_bytes(digest[:8], "little") >> 1)
