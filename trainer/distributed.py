"""Training on several processes: gradients are averaged; the network is compiled if requested."""

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
    """Convert batch norms to synchronised ones if --sync-bn is given; called before the student is tried."""
    device = torch.device(config.render.device)
    if config.sync_bn and device.type == "cpu":
        raise InputError("--sync-bn: works on GPUs; leave it out, or take instance norm")
    if config.sync_bn and ranks.world > 1:
        norm: Any = nn.SyncBatchNorm
        student = norm.convert_sync_batchnorm(student, connected(ranks, device))
    return student


def connected(ranks: Ranks, device: torch.device) -> ProcessGroup:
    """The process group between the devices of all processes, created on first use: NCCL for GPUs, gloo for CPUs.

    Norms and gradients share it. Otherwise norms would use `Ranks.group`, which communicates through host memory.
    """
    make_current(device)
    return _group(ranks, "nccl" if device.type == "cuda" else "gloo")


@cache
def _group(ranks: Ranks, backend: str) -> ProcessGroup:  # noqa: ARG001  the cache key; there is one `Ranks` a process
    from torch import distributed

    return cast("ProcessGroup", distributed.new_group(backend=backend, timeout=WORK_TIMEOUT))


def spread(network: nn.Module, config: RunConfig, ranks: Ranks, *, some_unused: bool) -> DistributedDataParallel | None:
    """The network wrapped so that gradients are averaged over processes; None if there is only one process.

    Args:
        network: the one that a step calls.
        config: of the run.
        ranks: the processes.
        some_unused: whether a step may leave parameters without a gradient; torch then searches for them.
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
            f"train it in one process"
        ) from error
    trained = trained_parameters(network)

    def require_same(*_: object) -> None:
        if trained_parameters(network) != trained:
            raise InputError(
                f"{config.subject}: its forward changed which parameters are trained (requires_grad); several "
                f"processes cannot train it; train it in one process"
            )

    spread.register_forward_hook(require_same)
    return spread


@contextmanager
def explain_missing_gradients(config: TrainConfig) -> Iterator[None]:
    """Replace torch's error about a parameter without a gradient by one that a user can act on."""
    try:
        yield
    except RuntimeError as error:
        if "finished reduction in the prior iteration" not in str(error):
            raise
        raise InputError(
            f"student {config.student}: a step left a parameter without a gradient, which no step of the trial did; "
            f"several processes cannot train it; train it in one process"
        ) from error


def compile_network(network: nn.Module, config: RunConfig) -> nn.Module:
    """The network that a step calls: compiled with --compile."""
    if not config.compile:
        return network
    compilers(torch.device(config.render.device))
    # One graph for each shape: a graph with dynamic shapes would depend on which shape came first.
    return cast("nn.Module", torch.compile(network, dynamic=False))


def autocast(config: RunConfig) -> AbstractContextManager[Any]:
    """The autocast context of --dtype."""
    if config.dtype == "bfloat16":
        return torch.autocast(torch.device(config.render.device).type, torch.bfloat16)
    return nullcontext()


def seed_rank(seed: int, rank: int, step: int) -> None:
    """Seed the random numbers that this process draws (such as dropout), differently on each rank."""
    digest = hashlib.sha256(f"{seed} {rank} {step}".encode()).digest()
    seed_all(int.from_bytes(digest[:8], "little") >> 1)
