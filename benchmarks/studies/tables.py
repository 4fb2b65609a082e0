"""Tables and pictures of studies: Markdown, means over seeds, and files that replace only those of the same study."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from labelstore.durable.newfile import write_over
from labelstore.durable.removing import Proof

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Iterable[Sequence[str]]


def markdown(header: Sequence[str], rows: Rows) -> str:
    """A table; empty if no row has a figure."""
    lines = [row for row in rows if any(row[1:])]
    if not lines:
        return ""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *lines])


def spread(values: Sequence[float]) -> str:
    """Mean, and with several seeds the standard deviation (n - 1) and their number."""
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else ""
    return f"{fmean(values):.2f} ± {stdev(values):.2f} ({len(values)})"


def write_tables(results: Path, title: str, sections: Iterable[str]) -> str:
    """Write a title and sections beside the results of a study; their text."""
    text = "\n\n".join([title, *sections]) + "\n"
    proof = Proof("the tables of this study", lambda path: path.read_bytes().startswith(title.encode()))
    write_over(results.with_suffix(".md"), text.encode(), proof)
    return text


def write_picture(results: Path, title: str, draw: Callable[[], Figure]) -> str:
    """Write the picture of a study beside its results; nothing, or why there is none."""
    if importlib.util.find_spec("matplotlib") is None:
        return "\nno picture: matplotlib is missing: pip install 'giftwrap[plot]'"
    name, file = title.removeprefix("# "), io.BytesIO()
    draw().savefig(file, dpi=100, format="png", metadata={"Title": name})
    proof = Proof("the picture of this study", lambda path: name.encode() in path.read_bytes()[:1000])
    write_over(results.with_suffix(".png"), file.getvalue(), proof)
    return ""
