"""`python -m benchmarks list | run NAME | gpu`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tyro

from benchmarks import crash, gpu, loss, plan, precompute, rate_distortion, read, render, resume, step, teacher, write
from benchmarks.harness import Report
from labelstore.console import Console, run_command
from labelstore.errors import InputError
from labelstore.places import require_apart
from labelstore.spec import Json


class Claim(Protocol):
    """What the file of a claim holds: the claim in the first line of its docstring, and its measurement."""

    __doc__: str | None

    def run(self, report: Report, *, quick: bool = False) -> dict[str, Json]:
        """Measure, reporting each figure as it comes; the summary, with ``kept`` where something is promised.

        Args:
            report: takes a line for every contender and metric.
            quick: the same at toy size, in seconds.
        """


CLAIMS: dict[str, Claim] = {
    "plan": plan,
    "render": render,
    "precompute": precompute,
    "teacher": teacher,
    "rate-distortion": rate_distortion,
    "read": read,
    "write": write,
    "crash": crash,
    "loss": loss,
    "step": step,
    "resume": resume,
}


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """Name every claim that can be measured."""

    json: bool = False
    """Print the summary as one JSON object on standard output and all else on standard error."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Measure a claim beside what a user would run instead."""

    name: tyro.conf.Positional[str]
    """Name of the claim, from `list`."""
    out: Path | None = None
    """Folder for NAME.jsonl, one line for each figure and the summary last, and for plots."""
    quick: bool = False
    """The same at toy size, in seconds."""
    json: bool = False
    """Print the summary as one JSON object on standard output and all else on standard error."""


@dataclass(frozen=True, kw_only=True)
class GpuConfig:
    """Every check and figure that needs a GPU, in under 8 minutes; without one all parts run small on the CPU."""

    out: Path | None = None
    """Folder for gpu.jsonl: a line for each figure as it is found, one for each part's end, and the summary last."""
    json: bool = False
    """Print the summary as one JSON object on standard output and all else on standard error."""


def main() -> int:
    """Run the command that the arguments name."""
    config = tyro.extras.subcommand_cli_from_dict(
        {"list": ListConfig, "run": RunConfig, "gpu": GpuConfig},
        prog="python -m benchmarks",
        description="Every claim, measured.",
    )
    console = Console(as_json=config.json)

    def command() -> int:
        if isinstance(config, ListConfig):
            claims: dict[str, Json] = {name: (claim.__doc__ or "").splitlines()[0] for name, claim in CLAIMS.items()}
            console.summary(claims, lines(claims))
            return 0
        if isinstance(config, GpuConfig):
            if config.out is not None:
                require_apart({"--out": config.out}, {})
            values = gpu.measure(config.out)
            console.summary(values, lines(values))
            return 0 if values["kept"] else 1
        if config.name not in CLAIMS:
            raise InputError(f"claim: expected one of {', '.join(CLAIMS)}, found {config.name!r}")
        if config.out is not None:
            require_apart({"--out": config.out}, {})
        report = Report(config.name, config.out)
        values = CLAIMS[config.name].run(report, quick=config.quick)
        report.end(values)
        console.summary(values, lines(values))
        return 0 if values.get("kept", True) else 1

    return run_command("benchmarks", command)


def lines(values: dict[str, Json]) -> str:
    """The values as one line a fact."""
    return "\n".join(f"{name:<20} {readable(value)}" for name, value in values.items())


def readable(value: Json) -> str:
    """A value as people read it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {readable(inner)}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
