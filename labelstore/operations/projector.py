"""Read the folder of a projector to count its bytes, without torch.

A projector replaces stored labels: what it takes is stated beside what a store takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labelstore.command.console import byte_count
from labelstore.errors import InputError
from labelstore.spec import Json

RECORD, PROJECTOR_WEIGHTS = "projector.json", "projector.safetensors"
PARTS = ("lora", "norms", "head")
NUMBER_BYTES = 4  # float32
FORMAT = 1
SHOWN = 40  # characters of a value in a message


def _one_of(*values: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in values, " or ".join(values)


def _whole(least: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: type(value) is int and value >= least, f"a whole number from {least}"


TEXT: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, str), "a text")
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rank": _whole(0),
    "alpha": (lambda value: type(value) in (int, float) and math.isfinite(value) and value >= 0, "a number from 0"),
    "lora_on": (lambda value: value is None or isinstance(value, str), "a regular expression or null"),
    "head": _one_of("text", "means", "zero"),
    "head_rank": _whole(1),
    "adapt_norms": (lambda value: isinstance(value, bool), "true or false"),
    "encoder.name": TEXT,
    "encoder.args": (lambda value: isinstance(value, dict), "an object"),
    "encoder.weights": TEXT,
    "encoder.features": _one_of("penultimate", "output"),
    "encoder.width": _whole(1),
    "encoder.sha256": TEXT,
    "encoder.bytes": _whole(0),
    "trained.size": _whole(1),
    "trained.columns": _whole(1),
}
"""Fields of a record: what holds of their values, and what that is."""


def part_of(name: str) -> str:
    """The part that a tensor of a projector belongs to."""
    return name.partition(".")[0]


def is_projector(folder: Path) -> bool:
    """Whether a folder holds a projector."""
    return (folder / RECORD).is_file()


def read_record(path: Path) -> dict[str, Any]:
    """The record at ``path``, whose `FIELDS` are as they must be.

    Raises:
        InputError: when there is none; names the first field that is something else.
    """
    expected = f"{path}: expected the record of a projector"
    advice = "give the folder that `giftwrap train-projector` made"
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            f"{path.parent}: expected the folder of a projector, found no {RECORD} in it ({error.strerror}); {advice}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{expected}, found no JSON; {advice}") from error
    if not isinstance(record, dict):
        raise InputError(f"{expected}, found {_short(record)}; {advice}")
    if record.get("format") != FORMAT:
        raise InputError(f"{expected} of format {FORMAT}, found {_short(record.get('format'))}; {advice}")
    for name, (holds, words) in FIELDS.items():
        part, _, key = name.rpartition(".")
        inside = record.get(part) if part else record
        if not isinstance(inside, dict) or key not in inside:
            raise InputError(f"{expected} with {name}, {words}, found none; {advice}")
        if not holds(inside[key]):
            raise InputError(f"{path}: {name}: expected {words}, found {_short(inside[key])}; {advice}")
    return record


def _short(value: Any) -> str:
    """A value of a record, for messages."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def projector_info(folder: Path) -> dict[str, Json]:
    """Bytes and parameters of a projector by part, and those of its encoder, which is not in the folder.

    Raises:
        InputError: when the folder's files are no projector.
    """
    record = read_record(folder / RECORD)
    try:
        file = folder / PROJECTOR_WEIGHTS
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header: dict[str, Any] = json.loads(content.read(min(length, file.stat().st_size)))
        tensors = {name: each["data_offsets"] for name, each in header.items() if name != "__metadata__"}
        parts = dict.fromkeys(PARTS, 0)
        for name, (begin, end) in tensors.items():
            parts[part_of(name)] += end - begin
        if 8 + length + max(end for _, end in tensors.values()) != file.stat().st_size:
            raise ValueError("tensors that are not all of the file")
        encoder, design = record["encoder"], {name: record[name] for name in ("rank", "head", "head_rank", "lora_on")}
        sizes = {RECORD: (folder / RECORD).stat().st_size, PROJECTOR_WEIGHTS: file.stat().st_size}
        header_bytes = sizes[PROJECTOR_WEIGHTS] - sum(parts.values())
        return {
            "projector": str(folder),
            "columns": record["trained"]["columns"],
            "size": record["trained"]["size"],
            **design,
            "parameters": {name: count // NUMBER_BYTES for name, count in parts.items()},
            "bytes": {**parts, "header": header_bytes, "record": sizes[RECORD]},
            "total_bytes": sum(sizes.values()),
            "encoder": {name: encoder[name] for name in ("name", "weights", "sha256", "bytes")},
            "total_bytes_with_encoder": sum(sizes.values()) + encoder["bytes"],
        }
    except OSError as error:
        raise InputError(
            f"{folder}: expected {PROJECTOR_WEIGHTS} beside {RECORD}, which cannot be read ({error.strerror}); "
            f"copy both"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{folder / PROJECTOR_WEIGHTS}: expected the weights of a projector, found something else, or a file that "
            f"is not whole; copy it again"
        ) from error


def projector_lines(values: Any) -> list[str]:
    """The result of `projector_info` as text."""
    encoder, parameters = values["encoder"], values["parameters"]
    names = {"lora": "matrices", "norms": "norms", "head": "head"}
    shown = {
        "columns": f"{values['columns']:,}, crops of {values['size']} px",
        "ranks": f"{values['rank']} in the encoder, {values['head_rank']} in the head",
        "head begins": f"from {values['head']}",
        **{
            label: f"{byte_count(values['bytes'][part])}, {parameters[part]:,} parameters"
            for part, label in names.items()
            if parameters[part]
        },
        "names": f"{byte_count(values['bytes']['header'] + values['bytes']['record'])} of names and {RECORD}",
        "bytes": byte_count(values["total_bytes"]),
        "encoder": f"{byte_count(encoder['bytes'])} more, not copied: {encoder['name']}, {encoder['weights']}",
        "with encoder": byte_count(values["total_bytes_with_encoder"]),
    }
    return [f"{name:<16} {text}" for name, text in shown.items()]
