"""The table of what would make a label smaller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.studies.rate_labels import KINDS
from benchmarks.studies.tables import markdown

TITLE = "# Fewer bytes a label"
COLUMNS = ("bytes", "entropy", "contexts", "classes", "side", "fidelity", "kl_1", "kl_20", "top1", "cpu_seconds")
TEXT = """\
MobileNetV2, 1,000 columns, 1,000 photographs; 3,000 rows measured, 9,000 to fit to, all searched to fidelity 0.95.
Made by `python -m benchmarks.studies.fewer_bytes`, whose text explains the columns. Bytes a label; KL in nats; CPU
seconds of one thread on a busy machine. Crops that are exact show what is possible: their bytes are not counted.
What came of it is in [fewer-bytes-built.md](fewer-bytes-built.md)."""


def sections(lines: Iterable[Mapping[str, Any]], ideas: Sequence[str]) -> list[str]:
    """All lines as Markdown, a table a kind, in the order of the ideas."""
    places = {idea: place for place, idea in enumerate(ideas)}
    ordered = sorted(lines, key=lambda line: places.get(line["cell"]["idea"], len(places)))
    header = ["idea", *(name.replace("_", " ") for name in COLUMNS)]
    parts = [TEXT]
    for kind in KINDS:
        rows = [
            [line["cell"]["idea"], *(f"{line[name]}" for name in COLUMNS)]
            for line in ordered
            if line["cell"]["kind"] == kind
        ]
        parts.append(f"## {kind}\n\n{markdown(header, rows)}")
    return parts
