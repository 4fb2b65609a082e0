"""`python -m pipeline build | verify | show | import`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from labelstore.console import Console, duration, run_command
from labelstore.errors import InputError
from labelstore.fidelity import beside
from pipeline import ranks, recipes
from pipeline.build import build
from pipeline.config import BuildConfig
from pipeline.importing import import_tensors
from pipeline.show import ShowConfig, show
from pipeline.verify import VerifyConfig, verify


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Turn a published tensor file (images and labels) into a class folder of PNG, 8 bits a channel."""

    data: tyro.conf.Positional[Path]
    """The file, as GIFT and other distillation repositories publish it: data.pt."""
    out: Path
    """Class folder to make."""
    mean: tuple[float, ...] | None = None
    """Channel means that the images were normalised with; needed for float images."""
    std: tuple[float, ...] | None = None
    """Channel standard deviations that the images were normalised with."""
    normalise: Literal["mean-std", "per-image", "min-max"] | None = None
    """Stretch each image (per-image) or all alike (min-max) to 0 to 255 instead of --mean and --std; mean-std: take
    these though the numbers speak against them, as of ZCA-whitened images, which are refused when this is left out."""
    labels: Path | None = None
    """File of the labels, where they are not with the images (MTT, FTD, TESLA, DATM: labels_best.pt)."""
    argmax: bool = False
    """Of soft labels keep the class of the largest, and drop the rest; left out, they are refused."""
    index: int | None = None
    """Which of several sets of images in the file (DC, DSA, DM: one an experiment), from 0."""
    class_names: str | None = None
    """Names of the classes 0, 1, ..., comma-separated or a file with one a line; they name the folders, preceded by
    the index where their own order is another."""
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


def entries(given: str, flag: str) -> tuple[str, ...]:
    """Names that a flag was given: comma-separated, or the lines of a file."""
    try:
        path = Path(given)
        if "," not in given and path.is_file():
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{flag} {given}: not a readable text file") from error
    return tuple(name.strip() for name in given.split(","))


def import_command(config: ImportConfig, console: Console) -> int:
    """Import and say what was rounded."""
    with console.progress("images", 1, "images") as progress:
        report = import_tensors(
            config.data,
            config.out,
            mean=config.mean,
            std=config.std,
            normalise=config.normalise,
            labels=config.labels,
            argmax=config.argmax,
            index=config.index,
            class_names=None if config.class_names is None else entries(config.class_names, "--class-names"),
            progress=progress.reach,
        )
    for note in report.notes:
        console.line(note)
    if report.clipped_share > 0.01:
        console.warn("more than 1 % of the values lie outside of 0 to 255: --mean and --std may be others")
    console.summary(
        {
            "out": str(config.out),
            "images": report.images,
            "classes": report.classes,
            "max_rounding_error": report.max_rounding_error,
            "mean_rounding_error": report.mean_rounding_error,
            "clipped_share": report.clipped_share,
            "max_clipped": report.max_clipped,
            "mean_clipped": report.mean_clipped,
        },
        f"{report.images:,} images in {report.classes:,} classes written to {config.out}; rounded to 8 bits: by "
        f"{report.max_rounding_error:.4f} levels at most, {report.mean_rounding_error:.4f} on average; "
        f"{100 * report.clipped_share:.4f} % of values clipped, by {report.max_clipped:.1f} levels at most, "
        f"{report.mean_clipped:.1f} on average",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
