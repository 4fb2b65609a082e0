"""Text embeddings by a stand-in of open_clip: prompts, means, files, and what is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from pipeline.importing.config import TextConfig
from pipeline.importing.text import text_embeddings
from pipeline.networks.torch_files import read_safetensors
from tests.journeys.world import draw_images

WIDTH = 6


class Tower:
    """Embeds a prompt by its letters."""

    def eval(self) -> Tower:
        return self

    def encode_text(self, tokens: Tensor) -> Tensor:
        table = torch.randn(256, WIDTH, generator=torch.Generator().manual_seed(0))
        embedded: Tensor = table[tokens].sum(1)
        return embedded


def tokens(prompts: list[str]) -> Tensor:
    found = torch.zeros(len(prompts), 40, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        found[row, : len(prompt)] = torch.tensor([*prompt.encode()])
    return found


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The models that were asked for."""
    calls: list[tuple[str, str]] = []
    module: Any = ModuleType("open_clip")

    def create_model(name: str, pretrained: str) -> Tower:
        if name == "none":
            raise RuntimeError("no such model")
        calls.append((name, pretrained))
        return Tower()

    module.create_model, module.get_tokenizer = create_model, lambda _name: tokens
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return calls


def config_of(out: Path, classes: object, **more: Any) -> TextConfig:
    return from_flags(TextConfig, **{"model": "open_clip:RN50/openai", "classes": str(classes), "out": out, **more})


def test_the_mean_of_prompts_of_length_one(made: list[tuple[str, str]], tmp_path: Path) -> None:
    """In float64, prompt by prompt; many prompts come in several batches."""
    names = [f"class {number}" for number in range(200)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    templates = ("a {}.", "the {} there")
    shape = text_embeddings(config_of(tmp_path / "text.npy", tmp_path / "names.txt", template=templates))
    assert made == [("RN50", "openai")]
    assert shape == (200, WIDTH)
    found = np.load(tmp_path / "text.npy")
    for name, row in zip(names, found, strict=True):
        each = [Tower().encode_text(tokens([template.format(name)]))[0].double().numpy() for template in templates]
        mean = sum(vector / np.linalg.norm(vector) for vector in each)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-5)


def test_classes_of_a_folder_are_kept_in_the_file(made: list[tuple[str, str]], tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images", per_class=1)
    text_embeddings(config_of(tmp_path / "text.safetensors", images))
    tensors, metadata = read_safetensors(tmp_path / "text.safetensors", "text")
    assert metadata["classes"] == '["ant", "bee", "cat"]'
    text_embeddings(config_of(tmp_path / "text.npy", "ant,bee,cat"))
    assert np.array_equal(tensors["text"].numpy(), np.load(tmp_path / "text.npy"))


def test_without_open_clip_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match=r"pip install 'giftwrap\[clip\]'"):
        text_embeddings(config_of(tmp_path / "text.npy", "a,b"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "RN50/openai"}, "--model: expected open_clip:MODEL/WEIGHTS, found RN50/openai"),
        ({"model": "open_clip:RN50"}, "--model: expected open_clip:MODEL/WEIGHTS"),
        ({"template": ("a photo",)}, "--template: expected a prompt with one {} for the class, found 'a photo'"),
        ({"template": ("a {{}}",)}, "--template: expected a prompt with one {} for the class"),
        ({"template": ("a {} of {style}",)}, "--template: expected a prompt with one {} for the class"),
        ({"template": ("a {} {",)}, "--template: expected a prompt with one {} for the class"),
        ({"template": ()}, "--template: expected at least one"),
        ({"out": Path("text.txt")}, r"--out: expected a name that ends in \.npy or \.safetensors"),
        ({"classes": "a,a"}, "--classes: expected different names, found 'a' twice"),
        ({"model": "open_clip:none/openai"}, "cannot be had .*no such model"),
    ],
)
def test_bad_input(more: dict[str, Any], message: str, made: list[tuple[str, str]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        text_embeddings(from_flags(
            TextConfig, **{"model": "open_clip:RN50/openai", "classes": "a,b", "out": tmp_path / "text.npy", **more}
        ))  # fmt: skip
    assert not (tmp_path / "text.npy").exists()
