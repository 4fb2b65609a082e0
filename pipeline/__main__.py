"""`python -m pipeline build | verify | show | import`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from labelstore.console import Console, duration, run_command
from labelstore.fidelity import beside
from pipeline import ranks, recipes
from pipeline.build import build
from pipeline.config import BuildConfig
from pipeline.importing import import_tensors
from pipeline.show import ShowConfig, show
from pipeline.verify import VerifyConfig, verify


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Turn a published tensor file (a dict of images and labels) into a class folder of lossless PNG."""

    data: tyro.conf.Positional[Path]
    """The file, as GIFT and other distillation repositories publish it: data.pt."""
    out: Path
    """Class folder to make."""
    mean: tuple[float, ...] | None = None
    """Channel means that the images were normalised with; needed for float images."""
    std: tuple[float, ...] | None = None
    """Channel standard deviations that the images were normalised with."""
    json: bool = False
    """Print the summary as one JSON object on standard output and all else on standard error."""


def main() -> int:
    """Run the command that the arguments name."""
    arguments: list[str] = []
    if code := run_command("pipeline", lambda: arguments.extend(recipes.typed(sys.argv[1:]))):
        return code
    config: Any = tyro.extras.subcommand_cli_from_dict(
        {"build": BuildConfig, "verify": VerifyConfig, "show": ShowConfig, "import": ImportConfig},
        prog="python -m pipeline",
        description="Images in, labels out.",
        args=arguments,
    )
    console = Console(as_json=config.json)

    def command() -> int:
        if isinstance(config, BuildConfig):
            return build_command(config, console)
        if isinstance(config, VerifyConfig):
            return verify_command(config, console)
        if isinstance(config, ShowConfig):
            count = show(config)
            console.summary({"out": str(config.out), "crops": count}, f"{count} crops drawn to {config.out}")
            return 0
        return import_command(config, console)

    python = ranks.python()
    return run_command("pipeline", command, resumes=isinstance(config, BuildConfig) and bool(python), python=python)


def build_command(config: BuildConfig, console: Console) -> int:
    """Build and say what came out."""
    done = build(config, console)
    if config.dry_run or not done:
        return 0
    console.summary(done, say(done))
    return 0


def say(done: Mapping[str, Any]) -> str:
    """The summary of a build for people."""
    sizes = done["bytes_per_label"]
    fidelity = "; ".join(
        f"{kind} {values['mean']:.5f}{beside(values)}"
        for kind, values in done["fidelity"].items()
        if values is not None
    )
    return (
        f"store {done['store']}: {done['images']:,} images x {done['views']:,} views sealed; {done['crops']:,} crops "
        f"labelled in {duration(done['seconds'])}; {sum(sizes.values()):.1f} B a label ({sizes['labels']:.1f} labels, "
        f"{sizes['columns']:.1f} columns, {sizes['side']:.1f} side); fidelity {fidelity}"
    )


def verify_command(config: VerifyConfig, console: Console) -> int:
    """Verify and say whether the store holds."""
    ok, values = verify(config, console)
    console.summary(values, f"{config.store}: {'verified' if ok else 'NOT verified: the labels are not those'}")
    return 0 if ok else 1


def import_command(config: ImportConfig, console: Console) -> int:
    """Import and say what was rounded."""
    with console.progress("images", 1, "images") as progress:
        report = import_tensors(config.data, config.out, mean=config.mean, std=config.std, progress=progress.reach)
    if report.clipped_share > 0.01:
        console.warn("more than 1 % of the values lie outside of 0 to 255: --mean and --std may be others")
    console.summary(
        {
            "out": str(config.out),
            "images": report.images,
            "classes": report.classes,
            "max_rounding_error": report.max_rounding_error,
            "clipped_share": report.clipped_share,
        },
        f"{report.images:,} images in {report.classes:,} classes written to {config.out}; largest rounding error "
        f"{report.max_rounding_error:.4f} levels, {100 * report.clipped_share:.4f} % of values clipped",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
