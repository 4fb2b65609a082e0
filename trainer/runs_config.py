"""The flags of the commands on several runs: `compare`, `plot` and `sweep`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from labelstore.command.flags import Group, Named, Positional
from labelstore.command.output import Output
from labelstore.durable.places import require_apart, require_new_file
from labelstore.errors import InputError

PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Flags of `compare`."""

    runs: Annotated[tuple[Path, ...], Positional()]
    """Folders of runs, folders that contain runs, or patterns such as 'runs/*'."""
    csv: Path | None = None
    """CSV file to write with all digits of the table; must not exist."""
    markdown: Path | None = None
    """Markdown file to write with the table; must not exist."""
    unfinished: bool = False
    """Average unfinished runs too, with the epochs that they have trained."""
    anyway: bool = False
    """Compare runs that were tested on different images; the table names the test images."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse an empty list of runs, and files that could not be written."""
        if not self.runs:
            raise InputError("compare: expected the folder of a run, found none")
        files = {"--csv": self.csv, "--markdown": self.markdown}
        require_apart(files, {})
        for flag, path in files.items():
            if path:
                require_new_file(flag, path)


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """Flags of `plot`."""

    runs: Annotated[tuple[Path, ...], Positional()]
    """Folders of runs, folders that contain runs, or patterns such as 'runs/*'."""
    out: Path = Path("curves.png")
    """Picture to write, .png, .svg or .pdf; must not exist."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse an empty list of runs."""
        if not self.runs:
            raise InputError("plot: expected the folder of a run, found none")
        require_apart({"--out": self.out}, {})
        require_new_file("--out", self.out)
        if self.out.suffix not in PICTURES:
            raise InputError(f"--out: expected a name that ends in {', '.join(PICTURES)}, found {self.out}")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Flags of `sweep`."""

    file: Annotated[Path, Positional()]
    """TOML file: flags in [build] and [train], lists of values for what varies, [[cell]] for values that vary
    together."""
    run_folder: Annotated[Path, Named("run-folder")]
    """Folder of the sweep: stores/ and runs/, with a folder and a log file for each combination."""
    jobs: int = 1
    """Number of commands that run at the same time, as processes; if they share a CPU, set threads in the file."""
    dry_run: bool = False
    """Check the flags of all combinations, print their commands and the remaining time, and start nothing."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse fewer than one process."""
        if self.jobs < 1:
            raise InputError(f"--jobs: expected at least 1, found {self.jobs}")
