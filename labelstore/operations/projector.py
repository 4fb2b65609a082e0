"""Read the folder of a projector to count its bytes, without torch.

A projector replaces stored labels: what it takes is stated beside what a store takes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labelstore.command.console import byte_count
from labelstore.errors import InputError
from labelstore.spec import Json

RECORD, PROJECTOR_WEIGHTS = "projector.json", "projector.safetensors"
PARTS = ("lora", "norms", "head")
NUMBER_BYTES = 4  # float32


def part_of(name: str) -> str:
    """The part that a tensor of a projector belongs to."""
    return name.partition(".")[0]


def is_projector(folder: Path) -> bool:
    """Whether a folder holds a projector."""
    return (folder / RECORD).is_file()


def projector_info(folder: Path) -> dict[str, Json]:
    """Bytes and parameters of a projector by part, and those of its encoder, which is not in the folder.

    Raises:
        InputError: when the folder's files are no projector.
    """
    try:
        record: Any = json.loads((folder / RECORD).read_text())
        file = folder / PROJECTOR_WEIGHTS
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header: dict[str, Any] = json.loads(content.read(min(length, file.stat().st_size)))
        tensors = {name: each["data_offsets"] for name, each in header.items() if name != "__metadata__"}
        parts = dict.fromkeys(PARTS, 0)
        for name, (begin, end) in tensors.items():
            parts[part_of(name)] += end - begin
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder}: expected the folder of a projector, {RECORD} and {PROJECTOR_WEIGHTS}, found something else "
            f"({error!r}); give one that `giftwrap train-projector` made"
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
