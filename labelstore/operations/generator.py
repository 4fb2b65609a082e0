"""Read the record in the folder of a generator, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labelstore.command.console import byte_count, quantity
from labelstore.command.names import printable
from labelstore.errors import InputError
from labelstore.spec import Json

FORMAT = 1
DESCRIPTION, GENERATOR_WEIGHTS = "generator.json", "last.safetensors"


def is_generator(folder: Path) -> bool:
    """Whether a folder holds a generator."""
    return (folder / DESCRIPTION).is_file()


def is_description(path: Path) -> bool:
    """Whether a file is a generator.json."""
    try:
        found = json.loads(path.read_text())
        whole = {"classes", "backbone", "vae", "diffusion", "latents"} <= found.keys()
        return bool(whole and found["format"] == FORMAT)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def read_description(folder: Path) -> dict[str, Any]:
    """The content of a generator's generator.json.

    Raises:
        InputError: there is none.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        raise InputError(f"{folder}: expected a folder of train-generator, found no {DESCRIPTION} in it")
    if not is_description(path):
        raise InputError(f"{path}: expected the description of a generator of format {FORMAT}, found another file")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def generator_info(folder: Path) -> dict[str, Json]:
    """The description of a generator, and the bytes of its weights, None until its training has saved some.

    Raises:
        InputError: when the folder's files are no generator.
    """
    made, weights = read_description(folder), folder / GENERATOR_WEIGHTS
    try:
        vae, backbone = dict(made["vae"]), dict(made["backbone"])
        return {
            "generator": str(folder),
            "classes": [*map(str, made["classes"])],
            "size": int(made["size"]),
            "backbone": {"name": backbone.pop("name"), **backbone},
            "vae": {"name": vae.pop("name"), **vae},
            "diffusion": dict(made["diffusion"]),
            "bytes": weights.stat().st_size if weights.is_file() else None,
            "giftwrap": made.get("version"),
        }
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder / DESCRIPTION}: expected the description of a generator, found something else ({error!r}); give "
            f"a folder that `giftwrap train-generator` made"
        ) from error


def generator_lines(values: Any) -> list[str]:
    """The result of `generator_info` as text."""
    backbone, vae = values["backbone"], values["vae"]
    shape = ", ".join(f"{name} {json.dumps(value)}" for name, value in backbone.items() if name != "name")
    shown = {
        "images": f"{values['size']} px, of {quantity(len(values['classes']), 'class')}",
        "backbone": f"{backbone['name']}: {shape}",
        "autoencoder": "none: pixels" if vae["name"] == "none" else str(vae.get("place", vae["name"])),
        "noise": ", ".join(f"{name} {value}" for name, value in values["diffusion"].items()).removeprefix("noise "),
        "weights": "none: no epoch is finished" if values["bytes"] is None else byte_count(values["bytes"]),
        "giftwrap": values["giftwrap"],
    }
    return [f"{name:<16} {printable(str(text))}" for name, text in shown.items() if text]
