"""What a store says of itself."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from labelstore import LabelStore
from labelstore.__main__ import info_command
from labelstore.command.console import Console
from labelstore.config import InfoConfig
from labelstore.durable.places import require_apart
from labelstore.errors import FormatError, InputError
from labelstore.operations.convert import convert
from labelstore.operations.generator import generator_info, generator_lines
from labelstore.operations.info import info, lines
from tests.labelstore.making import GOLDEN, Content, build, make_identity


def text_of(values: dict[str, Any]) -> dict[str, str]:
    return {line[:16].strip(): line[17:] for line in lines(values)}


def test_sizes_stand_beside_float16_and_the_teacher(tmp_path: Path) -> None:
    store = build(tmp_path / "store", Content(make_identity(images=64, columns=500, block=(2, 64)), 4), 4)
    weights = tmp_path / "weights"
    weights.write_bytes(b"x" * 2500)
    values = info(store, weights)
    assert values == json.loads(json.dumps(values))
    sizes = store.bytes_per_label()
    assert 500 < sizes["labels"] < 510
    assert values["as_float16"] == {
        "labels": 1000, "columns": sizes["columns"], "side": 0,
        "ratio": round(1000 / (sizes["labels"] + sizes["side"]), 2),
    }  # fmt: skip
    assert values["teacher_bytes"] == 2500
    assert "teacher_bytes" not in info(store)
    told = text_of(values)
    assert told["encoding"] == "int8, codec raw"
    assert told["views"] == "4 of 4 sealed, complete"
    assert told["as float16"] == f"1000.0 for labels: {values['as_float16']['ratio']} times as many"
    assert told["teacher bytes"] == "2.5 kB"
    assert "64 rows" in told["fidelity"]
    with pytest.raises(InputError, match="expected a file"):
        info(store, tmp_path)


def test_what_its_labels_were_requested_with_is_in_words(tmp_path: Path) -> None:
    zipfile.ZipFile(GOLDEN / "format-2/transform-top1.zip").extractall(tmp_path)
    assert text_of(info(LabelStore.open(tmp_path / "transform-top1")))["encoding"] == (
        "transform, codec pcodec, step 1.0 requested, 8 steps of mean labels in one of labels, first choices kept"
    )


def test_an_unfinished_store_says_what_is_missing(tmp_path: Path) -> None:
    store = build(tmp_path / "store", Content(make_identity(), 4), 4, 0)
    values = info(store)
    assert (values["complete"], values["missing_blocks"], values["fidelity"]) == (False, 6, None)
    assert values["as_float16"]["ratio"] is None
    told = text_of(values)
    assert told["views"] == "0 of 4 sealed, 6 blocks missing"
    assert told["fidelity"] == "not measured before the first block"
    assert "as float16" not in told


def test_a_converted_store_says_from_what(tmp_path: Path) -> None:
    first = build(tmp_path / "a", Content(make_identity(encoding="float16"), 2), 2)
    last = convert(convert(first, tmp_path / "b", {"name": "int8"}), tmp_path / "c", {"name": "float16"})
    values = info(last)
    assert values["converted_from"]["converted_from"]["encoding"] == {"name": "float16"}
    assert text_of(values)["converted from"].startswith("int8, whose own fidelity was unmixed ")
    assert "; that one from float16" in text_of(values)["converted from"]
    assert info(first)["converted_from"] is None


def describe_generator(folder: Path, **changes: object) -> Path:
    record = {"format": 1, "version": "0.2.0", "classes": ["ant", "bee"], "size": 32,
              "backbone": {"name": "uvit-xs", "dim": 8}, "vae": {"place": "none", "name": "none"},
              "diffusion": {"noise_steps": 10}, "latents": {"mean": [0.5], "std": [0.5]}, **changes}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "generator.json").write_text(json.dumps(record))
    return folder


def test_a_generator_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = describe_generator(tmp_path / "model")
    values: Any = generator_info(folder)
    assert (values["size"], values["classes"], values["bytes"]) == (32, ["ant", "bee"], None)
    assert "weights          none: no epoch is finished" in generator_lines(values)
    (folder / "last.safetensors").write_bytes(bytes(2500))
    assert info_command(InfoConfig(store=folder), Console()) == 0
    assert capsys.readouterr().out.splitlines() == [
        "images           32 px, of 2 classes",
        "backbone         uvit-xs: dim 8",
        "autoencoder      none: pixels",
        "noise            noise_steps 10",
        "weights          2.5 kB",
        "giftwrap         0.2.0",
    ]
    with pytest.raises(InputError, match="is a generator, which has no teacher; leave it out"):
        info_command(InfoConfig(store=folder, weights=tmp_path / "w"), Console())


@pytest.mark.parametrize("changes", [{"backbone": []}, {"backbone": {}}, {"vae": 3}, {"size": "x"}, {"classes": 1}])
def test_a_description_of_something_else_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"generator\.json: expected the description of a generator"):
        generator_info(describe_generator(tmp_path, **changes))


def test_a_folder_of_none_of_these_is_refused_with_all_that_info_takes(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"expected a label store, a projector, a generator or an image set"):
        info_command(InfoConfig(store=tmp_path), Console())


def test_nothing_is_written_into_an_image_set_that_no_flag_names(tmp_path: Path) -> None:
    (tmp_path / "set" / "ant").mkdir(parents=True)
    (tmp_path / "set" / "synthesis.json").write_text("{}")
    with pytest.raises(InputError, match=r"--out .*: lies in the image set .*set, where nothing else may be written"):
        require_apart({"--out": tmp_path / "set" / "ant" / "sheet.png"}, {})
    require_apart({"--out": tmp_path / "set"}, {})
