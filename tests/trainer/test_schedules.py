"""Schedules against torch's own and against the released code's milestones; optimisers by name."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch.nn import Parameter

from labelstore.command.flags import flags_of
from labelstore.errors import InputError
from trainer.optimisers import OPTIMISERS, OptimiserSpec
from trainer.run_folder import lengthened
from trainer.schedules import SCHEDULES, ScheduleSpec, lr_factor


def torch_rates(make: Any, total: int) -> list[float]:
    """The learning rates that a scheduler of torch gives from a first rate of 1."""
    optimiser = torch.optim.SGD([Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimiser)
    rates = []
    for _ in range(total):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("total", [1, 7, 300])
@pytest.mark.parametrize("final", [0.0, 0.3])
def test_cosine_is_torchs(total: int, final: float) -> None:
    schedule = ScheduleSpec(name="cosine", final=final)
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total, eta_min=final), total)
    assert [schedule.factor(done, total) for done in range(total)] == pytest.approx(expected, abs=1e-9)
    assert schedule.factor(total, total) == pytest.approx(final)


def test_step_is_torchs() -> None:
    schedule = ScheduleSpec(name="step", milestones=(0.3, 0.5, 0.9), drop=0.1)
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [30, 50, 90], gamma=0.1), 100)
    assert [schedule.factor(done, 100) for done in range(100)] == pytest.approx(expected)


def test_default_step_drops_where_the_released_code_does() -> None:
    schedule = ScheduleSpec(name="step", per="epoch")
    for epochs in range(6, 2000):
        rates = [schedule.factor(epoch, epochs) for epoch in (0, 2 * epochs // 3 - 1, 2 * epochs // 3)]
        assert rates == pytest.approx([1, 1, 0.2])
        rates = [schedule.factor(epoch, epochs) for epoch in (5 * epochs // 6 - 1, 5 * epochs // 6)]
        assert rates == pytest.approx([0.2, 0.04])


def test_constant() -> None:
    assert {ScheduleSpec(name="constant").factor(done, 9) for done in range(9)} == {1.0}


def test_per_epoch_and_per_step() -> None:
    by_epoch = ScheduleSpec(name="cosine", per="epoch")
    by_step = ScheduleSpec(name="cosine", per="step")
    rates = [lr_factor(by_epoch, step, 12, steps_per_epoch=4) for step in range(12)]
    assert rates == [by_epoch.factor(step // 4, 3) for step in range(12)]
    rates = [lr_factor(by_step, step, 12, steps_per_epoch=4) for step in range(12)]
    assert rates == [by_step.factor(step, 12) for step in range(12)]
    assert len(set(rates)) == 12


@pytest.mark.parametrize("total", [30, 47])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_can_be_lengthened_does_not_depend_on_the_total(name: str, total: int) -> None:
    whole, half = (
        [ScheduleSpec(name=name, warmup=3).factor(done, length, 3) for done in range(20)] for length in (total, 20)
    )
    assert (whole == half) == SCHEDULES[name].can_be_lengthened


def test_a_schedule_from_outside_knows_the_warm_up_and_can_be_lengthened(monkeypatch: pytest.MonkeyPatch) -> None:
    added = SimpleNamespace(
        numbers=("per",),
        can_be_lengthened=True,
        factor=lambda _spec, done, _total, rise: ((rise + 1) / (rise + 1 + done)) ** 0.5,
    )
    monkeypatch.setitem(SCHEDULES, "added", added)
    assert get_args(flags_of(ScheduleSpec)["schedule"].kind)[-1] == "added"
    spec = ScheduleSpec(name="added", per="epoch", warmup=3)
    rates = [lr_factor(spec, step, 24, steps_per_epoch=2) for step in range(0, 24, 2)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[3:] == pytest.approx([math.sqrt(4 / (4 + done)) for done in range(9)])
    assert spec.to_json() == {"name": "added", "per": "epoch", "warmup": 3}
    known = " or ".join(name for name, each in SCHEDULES.items() if each.can_be_lengthened)
    assert known.endswith(" or added")
    run: dict[str, Any] = {"epochs": 3, "schedule": "added", "eval_from": 0.0}
    assert lengthened({"run": run}, {"run": {**run, "epochs": 5}})["run"]["epochs"] == 5
    with pytest.raises(InputError, match=f"a run of --schedule {known} can be lengthened"):
        lengthened({"run": {**run, "schedule": "no-such"}}, {"run": {**run, "epochs": 5}})


def test_schedules_name_the_numbers_in_effect() -> None:
    assert ScheduleSpec(name="constant").to_json() == {"name": "constant"}
    assert ScheduleSpec(name="cosine").to_json() == {"name": "cosine", "per": "step", "final": 0.0}
    assert ScheduleSpec(name="step", milestones=(0.5,)).to_json()["milestones"] == [0.5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "no-such"}, f"name: expected one of {', '.join(SCHEDULES)}, found 'no-such'"),
        ({"per": "batch"}, "per: expected one of epoch, step"),
        ({"milestones": (0.5, 0.5)}, "milestones: expected increasing"),
        ({"milestones": (0.5, 1.5)}, "milestones"),
        ({"drop": 0.0}, "drop"),
        ({"final": -0.1}, "final"),
    ],
)
def test_what_is_no_schedule_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScheduleSpec(**fields)


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_every_optimiser_takes_a_step(name: str) -> None:
    torch.manual_seed(0)
    parameter = Parameter(torch.randn(4, 3))
    before = parameter.detach().clone()
    decay = 0.0 if name == "Rprop" else 1e-4
    optimiser = OptimiserSpec(name=name, lr=0.1, weight_decay=decay).make([("weight", parameter)])
    assert type(optimiser).__name__ == name
    assert optimiser.param_groups[0]["lr"] == 0.1
    assert optimiser.param_groups[0].get("weight_decay", 0) == decay
    parameter.square().sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of torch's own steps use deprecated calls
        optimiser.step()
    assert not torch.equal(parameter.detach(), before)


def test_arguments_reach_the_optimiser_and_every_default_is_named() -> None:
    spec = OptimiserSpec(name="AdamW", lr=2e-3, weight_decay=0.02, args={"betas": [0.8, 0.95]})
    group = spec.make([("weight", Parameter(torch.zeros(1)))]).param_groups[0]
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.8, 0.95), 0.02, 2e-3)
    plain = spec.to_json()
    assert plain["name"] == "AdamW"
    assert plain["betas"] == [0.8, 0.95]
    assert (plain["lr"], plain["weight_decay"], plain["eps"]) == (2e-3, 0.02, 1e-8)
    assert "params" not in plain


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adamw"}, "expected one of .*AdamW.*, found 'adamw'"),
        ({"name": "LBFGS"}, "found 'LBFGS'"),
        ({"args": {"momentum": 0.9}}, "AdamW: unknown arguments momentum; it takes betas, eps"),
        ({"args": {"lr": 0.9}}, "unknown arguments lr; .* lr and weight_decay by --lr"),
        ({"args": {"betas": [2, 3]}}, "AdamW: Invalid beta"),
        ({"args": {"betas": "high"}}, "AdamW: "),
        ({"name": "Rprop"}, "Rprop: has no weight decay; give a weight decay of 0"),
        ({"lr": -1.0}, "lr: expected a number >= 0"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"name": "SGD", "args": {"nesterov": True}}, "SGD: Nesterov momentum requires"),
    ],
)
def test_what_is_no_optimiser_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OptimiserSpec(**fields)
