"""One optimiser step on one batch."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from trainer.batch import TrainBatch
from trainer.losses.fused import backward
from trainer.optimisers import first_rate
from trainer.run import Run
from trainer.schedules import lr_factor


def step(run: Run, batch: TrainBatch) -> Tensor:
    """Update the weights with one batch; returns this process's part of the mean loss, detached."""
    config = run.config
    factor = lr_factor(config.schedule, run.step, run.total_steps, steps_per_epoch=len(run.replay))
    for group in run.optimizer.param_groups:
        group["lr"] = first_rate(config.optimiser) * factor
    run.optimizer.zero_grad(set_to_none=True)
    loss = gradients(run, batch)
    run.stop_conditions.see(loss, run.step)
    if run.logs_step:
        found = [each.grad for each in run.objective.network.parameters() if each.grad is not None]
        run.gradient = float(torch.nn.utils.get_total_norm(found))
    if config.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(run.objective.network.parameters(), config.clip_norm)
    run.optimizer.step()
    if run.average:
        run.average.update(run.objective.network)
    run.step += 1
    return loss


def gradients(run: Run, batch: TrainBatch) -> Tensor:
    """Accumulate the gradients of a batch, piece by piece; returns this process's part of the mean loss."""
    total: Tensor | None = None
    pieces = list(batch.pieces(run.config.accumulate))
    for number, piece in enumerate(pieces, 1):
        # processes average their gradients once, with the last piece
        unsynchronised = nullcontext() if number == len(pieces) or run.spread is None else run.spread.no_sync()
        with unsynchronised:
            loss = run.objective.loss(run.network, piece)
            if piece.share != 1:
                loss = loss * piece.share
            backward(loss)
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None  # noqa: S101  a batch has a crop at least
    return total
