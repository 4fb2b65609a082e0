"""The record of a synthesised image set as text, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labelstore.command.console import quantity
from labelstore.durable import disk, documents
from labelstore.durable.places import SYNTHESIS
from labelstore.errors import DamagedError
from labelstore.spec import Json

MARK = "giftwrap_synthesis"  # the key of its format
MAX_JSON = 64 << 20
SHOWN = 16  # characters of a digest


def set_info(folder: Path) -> dict[str, Json]:
    """The record of a set.

    Raises:
        DamagedError: it was changed, or is another file.
    """
    path = folder / SYNTHESIS
    values = documents.parse(path, disk.read_file(path, MAX_JSON))
    documents.require_stamp(path, values)
    if MARK not in values:
        raise DamagedError.of(path, "expected the record of a synthesised set, found another file")
    return {"set": str(folder), **{key: value for key, value in values.items() if key not in (MARK, "crc32c")}}


def set_lines(values: Mapping[str, Any]) -> list[str]:
    """The result of `set_info`, one line for each fact; `--json` has all of it."""
    source, teacher, versions = (_object(values, name) for name in ("images", "teacher", "versions"))
    found = teacher.get("members")
    members = [
        each for each in (found if isinstance(found, list) else [teacher]) if isinstance(each, dict) and "name" in each
    ]
    encoder = _object(teacher, "encoder")
    shown = {
        "images": made_by(values),
        "classes": len(classes) if isinstance(classes := values.get("classes"), list) else None,
        "made of": f"{quantity(source['images'], 'image')}, digest {str(source.get('manifest'))[:SHOWN]}"
        if source.get("images")
        else None,
        "teacher": "; ".join(f"{each['name']}, weights {str(each.get('weights'))[:SHOWN]}" for each in members),
        "encoder": f"{encoder['name']}, weights {str(encoder.get('sha256'))[:SHOWN]}" if "name" in encoder else None,
        "flags": json.dumps(_object(values, "flags")),
        "giftwrap": versions.get("giftwrap"),
    }
    return [f"{name:<16} {text}" for name, text in shown.items() if text]


def made_by(record: Mapping[str, Any]) -> str:
    """The number of images and their method, as text, from the record of their set."""
    flags, teacher = _object(record, "flags"), _object(record, "teacher")
    seed = f", seed {flags['seed']}" if "seed" in flags else ""
    by = f", teacher {teacher['name']}" if "name" in teacher else ""
    return f"{record.get('count', 'unknown')} images made by {record.get('method', 'an unknown method')}{seed}{by}"


def _object(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a record; empty if it has none."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}
