"""`python -m benchmarks list | run NAME | gpu | evidence`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends quietly until a command runs

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from labelstore.command.commands import Command
from labelstore.command.console import Console
from labelstore.command.program import run_program
from labelstore.durable.places import require_apart
from labelstore.errors import InputError
from labelstore.spec import Json

if TYPE_CHECKING:
    from benchmarks.config import EvidenceConfig, GpuConfig, ListConfig, RunConfig
    from benchmarks.harness import Report


CLAIMS = (
    "plan",
    "images",
    "scale",
    "render",
    "precompute",
    "teacher",
    "rate-distortion",
    "read",
    "remote",
    "write",
    "adopt",
    "crash",
    "loss",
    "step",
    "resume",
    "generate",
    "kernels",
    "synthesis",
    "label-cost",
)
STUDIES = ("rate-distortion", "crash", "label-cost")
"""The claims; each is a file: its claim is the first line of the docstring, and its measurement is ``run``. Those that
take long are in benchmarks/studies."""


class Claim(Protocol):
    """What the file of a claim holds."""

    __doc__: str | None

    def run(self, report: Report, *, quick: bool = False) -> dict[str, Json]:
        """Measure, reporting each figure as it comes; the summary, with ``kept`` where something is promised.

        Args:
            report: takes a line for every contender and metric.
            quick: the same at toy size, in seconds.
        """


def claim(name: str) -> Claim:
    """The file of a claim; what it needs is imported with it."""
    folder = "benchmarks.studies" if name in STUDIES else "benchmarks"
    return cast("Claim", import_module(f"{folder}.{name.replace('-', '_')}"))


def list_command(_config: ListConfig, console: Console) -> int:
    """Name the claims."""
    claims: dict[str, Json] = {name: (claim(name).__doc__ or "").splitlines()[0] for name in CLAIMS}
    console.summary(claims, lines(claims))
    return 0


def run_command(config: RunConfig, console: Console) -> int:
    """Measure a claim; 1 when it is not kept."""
    if config.name not in CLAIMS:
        raise InputError(f"claim: expected one of {', '.join(CLAIMS)}, found {config.name!r}")
    if config.out is not None:
        require_apart({"--out": config.out}, {})
    from benchmarks.harness import Report

    report = Report(config.name, config.out)
    values = claim(config.name).run(report, quick=config.quick)
    report.end(values)
    console.summary(values, lines(values))
    return 0 if values.get("kept", True) else 1


def gpu_command(config: GpuConfig, console: Console) -> int:
    """Measure what needs a GPU; 1 when something is not kept."""
    if config.out is not None:
        require_apart({"--out": config.out}, {})
    from benchmarks import gpu

    values = gpu.measure(config.out, config.seconds, config.only)
    console.summary(values, lines(values))
    return 0 if values["kept"] else 1


def evidence_command(config: EvidenceConfig, console: Console) -> int:
    """Make the page of a suite."""
    require_apart({"--out": config.out, "--folder": config.folder, "--results": config.results}, {})
    from benchmarks.evidence.assembling import Places, make_page
    from benchmarks.evidence.suite import read_suite

    suite = read_suite(config.suite)
    places = Places.of(suite, config.out, config.results, config.folder)
    values = make_page(suite, places, console, only=config.only, minutes=config.minutes, dry=config.dry_run)
    console.summary(values, lines(values))
    return 0


COMMANDS = {
    "list": Command(
        "Print the name of every claim that can be measured.",
        "benchmarks.config:ListConfig",
        list_command,
    ),
    "run": Command(
        "Measure one claim, beside what a user would run instead.",
        "benchmarks.config:RunConfig",
        run_command,
    ),
    "gpu": Command(
        "Run every check and measurement that needs a GPU, in about 7 minutes; without a GPU, small ones on the CPU.",
        "benchmarks.config:GpuConfig",
        gpu_command,
    ),
    "evidence": Command(
        "Make one page of all claims, each judged by a rule; run the cells of the studies that have no results yet.",
        "benchmarks.config:EvidenceConfig",
        evidence_command,
        more="A cell is one measured row of a study, such as a run of one loss and one seed. Cells and how long they "
        "take are printed first. The same command continues.",
    ),
}


def main(invocation: str = "python -m benchmarks") -> int:
    """Run the command that the arguments name."""
    return run_program(invocation, "Measure what docs/PERFORMANCE.md claims.", COMMANDS)


def lines(values: dict[str, Json]) -> str:
    """The values as one line a fact."""
    return "\n".join(f"{name:<20} {readable(value)}" for name, value in values.items())


def readable(value: Json) -> str:
    """A value as people read it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {readable(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(readable, value))}]"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
