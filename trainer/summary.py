"""The summary of a run as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labelstore.command.console import duration, quantity


def summarise(values: Mapping[str, Any]) -> str:
    """The summary as text, with epochs counted from 1."""
    steps, now = values["steps"], values["steps_now"]
    text = f"run {values['run']}: {quantity(steps, 'step')}{'' if now == steps else f', {now:,} of them now,'} in "
    text += duration(values["seconds"])
    last, best = values["last"], values["best"]
    name = next(iter(last), None)  # the first of the objective's numbers
    if name is None:
        return f"{text}; nothing was evaluated"
    if not values["evaluations"]:
        return f"{text}; no test images were given"
    return (
        f"{text}; test {shown(name, last[name])} at the last epoch, {shown(name, best[name], named=False)} at the best "
        f"(epoch {best['epoch'] + 1}) of {quantity(values['evaluations'], 'evaluation')}"
    )


def shown(name: str, value: float | None, *, named: bool = True) -> str:
    """A number of an evaluation as text, with its name; top-k in percent."""
    share = name.startswith("top") and name[3:].isdecimal()
    text = "no number" if value is None else f"{value:.2f} %" if share else f"{value:.4g}"
    return f"{f'top-{name[3:]}' if share else name} {text}" if named else text
