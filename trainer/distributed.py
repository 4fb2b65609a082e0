"""A student on one of several processes: gradients averaged, compiled where that is wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from labelstore.errors import InputError
from pipeline.device.current import make_current
from pipeline.networks.state import trained_parameters
from pipeline.ranks import WORK_TIMEOUT, Ranks
from pipeline.teacher.engine.compiling import compilers
from trainer.checkpoint import seed_all
from trainer.config import TrainConfig
from trainer.run_config import RunConfig

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.nn.parallel import DistributedDataParallel


def prepare(student: nn.Module, config: TrainConfig, ranks: Ranks) -> nn.Module:
    """The student before it is tried: with norms over all processes where that is wanted."""
    device = torch.device(config.render.device)
    if config.sync_bn and device.type == "cpu":
        raise InputError("--sync-bn: works on GPUs; leave it out, or take instance norm")
    if config.sync_bn and ranks.world > 1:
        norm: Any = nn.SyncBatchNorm
        student = norm.convert_sync_batchnorm(student, connected(ranks, device))
    return student


def connected(ranks: Ranks, device: torch.device) -> ProcessGroup:
    """What connects the devices of all processes, made at its first use: NCCL between GPUs, gloo between CPUs.

    Norms and gradients go through the same one. Without it norms would go through `Ranks.group`, and so through memory.
    """
    make_current(device)
    return _group(ranks, "nccl" if device.type == "cuda" else "gloo")


@cache
def _group(ranks: Ranks, backend: str) -> ProcessGroup:  # noqa: ARG001  of these ranks there is one
    from torch import distributed

    return cast("ProcessGroup", distributed.new_group(backend=backend, timeout=WORK_TIMEOUT))


def spread(network: nn.Module, config: RunConfig, ranks: Ranks, *, some_unused: bool) -> DistributedDataParallel | None:
    """The network with its gradients averaged over the processes; None when there is one.

    Args:
        network: as a step calls it.
        config: of the run.
        ranks: the processes.
        some_unused: whether steps leave some parameters without a gradient, which is looked for then.
    """
    if ranks.world == 1:
        return None
    from torch.nn.parallel import DistributedDataParallel

    device = torch.device(config.render.device)
    try:
        spread = DistributedDataParallel(
            network,
            device_ids=[device.index] if device.type == "cuda" else None,
            process_group=connected(ranks, device),
            find_unused_parameters=some_unused,
        )
    except RuntimeError as error:
        if "Invalid scalar type" not in str(error):
            raise
        raise InputError(
            f"{config.subject}: has parameters or buffers of a type that processes cannot send each other; "
            f"train it alone"
        ) from error
    trained = trained_parameters(network)

    def require_same(*_: object) -> None:
        if trained_parameters(network) != trained:
            raise InputError(
                f"{config.subject}: its forward changed which parameters are trained (requires_grad); several "
                f"processes cannot train it: train it alone"
            )

    spread.register_forward_hook(require_same)
    return spread


@contextmanager
def explain_missing_gradients(config: TrainConfig) -> Iterator[None]:
    """Explain torch's error about a parameter that got no gradient."""
    try:
        yield
    except RuntimeError as error:
        if "finished reduction in the prior iteration" not in str(error):
            raise
        raise InputError(
            f"student {config.student}: a step left a parameter without a gradient, which no step of the trial did; "
            f"several processes cannot train it: train it alone"
        ) from error


def compiled(network: nn.Module, config: RunConfig) -> nn.Module:
    """The network as it is called in a step."""
    if not config.compile:
        return network
    compilers(torch.device(config.render.device))
    # For each shape alone, since what is compiled for all of them depends on which one came first.
    return cast("nn.Module", torch.compile(network, dynamic=False))


def autocast(config: RunConfig) -> AbstractContextManager[Any]:
    """The network's precision."""
    if config.dtype == "bfloat16":
        return torch.autocast(torch.device(config.render.device).type, torch.bfloat16)
    return nullcontext()


def seed_rank(seed: int, rank: int, step: int) -> None:
    """Seed what this process draws (dropout), apart from what the others draw."""
    digest = hashlib.sha256(f"{seed} {rank} {step}".encode()).digest()
    seed_all(int.from_bytes(digest[:8], "little") >> 1)
