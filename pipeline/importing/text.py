"""Text embeddings of class names, by the text tower of a CLIP model of open_clip."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelstore.durable.newfile import write_new
from labelstore.errors import InputError, reason
from pipeline.images.class_names import entries
from pipeline.images.opening import open_images
from pipeline.importing.config import TextConfig
from pipeline.networks.weights import packed

AT_ONCE = 256  # prompts


def text_embeddings(config: TextConfig) -> tuple[int, int]:
    """Write the text embeddings of flags; returns their number of classes and their width.

    Raises:
        InputError: when there is no open_clip, no such model, or no class.
    """
    open_clip = library()
    names = class_names(config.classes)
    model, _, weights = config.model.partition(":")[2].rpartition("/")
    try:
        network = open_clip.create_model(model, pretrained=weights).eval()
        tokenizer = open_clip.get_tokenizer(model)
        rows = embed(network, tokenizer, names, config.template)
    except Exception as error:  # a download, a damaged cache, a name that is none
        raise InputError(f"--model {config.model}: cannot be had ({type(error).__name__}: {reason(error)})") from error
    write_new(config.out, as_file(rows, names, config.out))
    return len(rows), int(rows.shape[1])


def library() -> Any:
    """open_clip.

    Raises:
        InputError: names the line that installs it.
    """
    try:
        return importlib.import_module("open_clip")
    except ModuleNotFoundError as error:
        raise InputError("text-embeddings needs open_clip: pip install 'giftwrap[clip]'") from error


def class_names(given: str) -> list[str]:
    """The names that --classes gives: those of folders, of lines, or between commas."""
    if Path(given).is_dir():
        return [*open_images(Path(given), "bytes").listing.classes]
    names = entries(given, (), "--classes")
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"--classes: expected different names, found {twice!r} twice")
    return names


@torch.no_grad()
def embed(network: Any, tokenizer: Any, names: list[str], templates: tuple[str, ...]) -> Tensor:
    """The embedding of each class, of length 1: the mean over its prompts, each of length 1; float32 ``[C, d]``."""
    prompts = [template.format(name) for name in names for template in templates]
    parts = [
        torch.nn.functional.normalize(network.encode_text(tokenizer(prompts[first : first + AT_ONCE])).float())
        for first in range(0, len(prompts), AT_ONCE)
    ]
    means = torch.cat(parts).reshape(len(names), len(templates), -1).mean(1)
    return torch.nn.functional.normalize(means)


def as_file(rows: Tensor, names: list[str], path: Path) -> bytes:
    """The bytes of a file of embeddings, by the ending of its name."""
    if path.suffix == ".safetensors":
        return packed({"text": rows}, names)
    content = io.BytesIO()
    np.save(content, rows.numpy())
    return content.getvalue()
