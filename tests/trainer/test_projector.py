"""`train-projector`: what is trained, saved and counted, resumed bit for bit, and used as a labeller."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from labelstore import LabelStore
from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.errors import GiftwrapError, InputError, MismatchError
from labelstore.operations.projector import FIELDS, projector_info, projector_lines
from pipeline.networks import build_network, load_network, save_weights
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.networks.weights import read_weights
from pipeline.ranks import Ranks
from tests.journeys.test_torchrun import torchrun
from tests.journeys.world import CLASSES, SIDE, TEACHER, World, draw_images, giftwrap
from tests.pipeline.test_labeller import MeanColours
from tests.trainer.encoders import WIDTH, saved_encoder
from tests.trainer.interrupting import interrupted_after
from tests.trainer.test_online import MEAN, STD, by_pillow
from trainer.projecting import summarise, train_projector
from trainer.projector import ProjectorObjective, make_projector_run, settle_encoder
from trainer.projector_config import ProjectorConfig
from trainer.run import Run
from trainer.stopping import StopSignals

ARGS = TEACHER[-1]
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
FILES = ("projector.safetensors", "projector.json", "best.safetensors")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory, world: World) -> Mapping[str, Any]:
    """Of a run of two weak teachers, two checkpoints of one network."""
    folder = tmp_path_factory.mktemp("projector")
    torch.manual_seed(1)
    network = build_network("convnet-d2", json.loads(ARGS), classes=len(CLASSES), size=SIDE)
    save_weights(network.state_dict(), folder / "other.safetensors")
    return {
        "images": world.images, "test_images": draw_images(folder / "test", per_class=3),
        "teacher": ("convnet-d2",), "teacher_args": (ARGS,), "teacher_size": SIDE,
        "weights": (str(world.weights), str(folder / "other.safetensors")), "size": 8, "rank": 2, "epochs": 3,
        "batch_size": 10, "threads": 1, "encoder": "tests.trainer.encoders:Cnn", "run_folder": folder / "unused",
        "encoder_weights": str(saved_encoder("Cnn", folder / "cnn.safetensors")), "lr": 0.01,
        "encoder_mean": (0.4,) * 3, "encoder_std": (0.3,) * 3, "scale": (0.5, 1.0), "checkpoint_every": 1,
    }  # fmt: skip


def config_of(flags: Mapping[str, Any], run: Path, **more: Any) -> ProjectorConfig:
    return from_flags(ProjectorConfig, **{**flags, "run_folder": run, **more})


def opened(config: ProjectorConfig) -> Run:
    """A run before its first step."""
    setup = settle_encoder(config)
    return make_projector_run(config, setup, config.as_train(setup.size), Ranks(), StopSignals())


def with_encoder(flags: Mapping[str, Any], name: str, folder: Path, **more: Any) -> dict[str, Any]:
    weights = saved_encoder(name, folder / f"{name}.safetensors")
    return {**flags, "encoder": f"tests.trainer.encoders:{name}", "encoder_weights": str(weights), **more}


def quiet(config: ProjectorConfig) -> Any:
    return train_projector(config, Console(as_json=True))


def logits_of(folder: Path | str, images: Tensor, **args: Any) -> Tensor:
    network, _ = load_network("projector", args, str(folder), classes=len(CLASSES), size=8)
    with torch.no_grad():
        found: Tensor = network(images)
    return found


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_crops_and_labels_are_of_the_same_boxes_each_at_its_size_and_normalisation(
    flags: Mapping[str, Any], world: World, tmp_path: Path
) -> None:
    """Against Pillow and the teachers alone; labels are the mean of both."""
    shown = {"encoder_mean": MEAN, "encoder_std": STD, "flip": 0.5, "scale": (0.2, 1.0)}
    teachers = [
        load_network("convnet-d2", json.loads(ARGS), w, classes=3, size=SIDE)[0].eval() for w in flags["weights"]
    ]
    back, forth = ([torch.tensor(n)[:, None, None] for n in numbers] for numbers in ((MEAN, STD), IMAGENET))
    with closing(opened(config_of(flags, tmp_path / "run", **shown))) as run:
        for batch in run.replay:
            crops: Any = run.replay.crops
            rows = crops.rows(int(batch.view[0]), batch.position.numpy())
            torch.testing.assert_close(batch.images, by_pillow(world, rows, 8))
            images = (by_pillow(world, rows, SIDE) * back[1] + back[0] - forth[0]) / forth[1]
            with torch.no_grad():
                wanted = (teachers[0](images) + teachers[1](images)) / 2
            torch.testing.assert_close(batch.logits, wanted, rtol=1e-3, atol=1e-4)


def test_the_head_alone_without_training_is_the_zero_shot_classifier(flags: Mapping[str, Any], tmp_path: Path) -> None:
    """Text embeddings of length 1 times the features: the first step finds that, and labels of both files do."""
    text = np.random.default_rng(0).normal(size=(len(CLASSES), WIDTH)).astype(np.float32)
    np.save(tmp_path / "text.npy", text)
    with closing(opened(config_of(flags, tmp_path / "run", text=tmp_path / "text.npy", head_scale=10))) as run:
        run.objective.called.eval()
        with torch.no_grad():
            found = run.objective.called(IMAGES)
    encoder, _ = load_network(flags["encoder"], {}, flags["encoder_weights"], classes=1, size=8)
    with torch.no_grad():
        features = encoder.eval()(IMAGES)
    similarity = nn.functional.normalize(features) @ nn.functional.normalize(torch.from_numpy(text)).T
    lengths = features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, 10 * similarity * lengths, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.argmax(1), similarity.argmax(1))


@pytest.mark.parametrize("name", ["Cnn", "Vit", "Classifier"])
@pytest.mark.parametrize("adapt_norms", [False, True])
def test_only_what_is_trained_changes_and_is_saved(
    name: str, adapt_norms: bool, flags: Mapping[str, Any], tmp_path: Path
) -> None:
    more = {"features": "penultimate"} if name == "Classifier" else {}
    config = config_of(with_encoder(flags, name, tmp_path, **more), tmp_path / "run", adapt_norms=adapt_norms)
    with closing(opened(config)) as run:
        objective = run.objective
        assert isinstance(objective, ProjectorObjective)
        before = {name: value.clone() for name, value in objective.called.state_dict().items()}
        trained = {id(parameter) for parameter in objective.network.parameters()}
        batch = next(iter(run.replay))
        run.network.train()
        objective.loss(run.network, batch).backward()
        for parameter in objective.called.parameters():
            assert (parameter.grad is not None) == parameter.requires_grad == (id(parameter) in trained)
    values = quiet(config)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["state"]["projector"]
    saved = read_weights(tmp_path / "run" / "projector.safetensors").tensors
    head = state["head.start"] + state["head.lora.b"] @ state["head.lora.a"]
    kept = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    kept = {name: value for name, value in kept.items() if not name.startswith("head.")}
    kept |= {"head.bias": state["head.bias"], "head.weight": head}
    assert saved.keys() == kept.keys()
    assert all(torch.equal(kept[name], value) for name, value in saved.items())
    assert any(name.startswith("norms.") for name in saved) == adapt_norms
    assert not any("original" in name for name in saved)
    moved = {name for name, value in state.items() if not torch.equal(value, before[f"trained.{name}"])}
    assert moved == state.keys() - {"head.start"}
    assert values["projector"]["parameters"]["norms"] == sum(
        value.numel() for name, value in saved.items() if name.startswith("norms.")
    )


@pytest.mark.parametrize("adapt_norms", [False, True])
def test_the_frozen_encoder_keeps_its_statistics(adapt_norms: bool, flags: Mapping[str, Any], tmp_path: Path) -> None:
    """Those of norms that are adapted begin as they were."""
    with closing(opened(config_of(flags, tmp_path / "run", adapt_norms=adapt_norms))) as run:
        assert isinstance(run.objective, ProjectorObjective)
        encoder: Any = run.objective.called.encoder
        kept = read_weights(Path(flags["encoder_weights"])).tensors
        kept = {name: value for name, value in kept.items() if "running" in name}
        assert len(kept) == 4
        assert all(torch.equal(encoder.state_dict()[name], value) for name, value in kept.items())
        run.network.train()
        for batch in run.replay:
            run.objective.loss(run.network, batch).backward()
        for name, value in kept.items():
            assert torch.equal(encoder.state_dict()[name], value) != adapt_norms


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_run_is_resumed_bit_for_bit(ema: float | None, flags: Mapping[str, Any], tmp_path: Path) -> None:
    whole, stopped = (config_of(flags, tmp_path / name, ema=ema) for name in ("whole", "stopped"))
    wanted = quiet(whole)
    for steps in (4, 2):
        with interrupted_after(steps):
            quiet(stopped)
    found = quiet(stopped)
    for name in FILES:
        assert (whole.run / name).read_bytes() == (stopped.run / name).read_bytes()
    same = ("steps", "last", "best", "top1", "agreement", "fidelity")
    assert [found[name] for name in same] == [wanted[name] for name in same]
    assert quiet(stopped)["steps_now"] == 0
    with pytest.raises(MismatchError, match=r"--rank"):
        quiet(changed(stopped, rank=1))
    other = saved_encoder("Cnn", tmp_path / "other.safetensors", seed=5)
    with pytest.raises(MismatchError, match="sha256"):
        quiet(changed(stopped, encoder_weights=str(other)))


def test_a_projector_is_loaded_from_another_place_and_refuses_another_encoder(
    flags: Mapping[str, Any], tmp_path: Path
) -> None:
    shutil.copy(flags["encoder_weights"], tmp_path / "encoder.safetensors")
    config = config_of(flags, tmp_path / "run", encoder_weights=str(tmp_path / "encoder.safetensors"), merge=True)
    quiet(config)
    with closing(opened(config)) as run:
        state = torch.load(config.run / "checkpoint.pt", weights_only=True)["state"]
        run.objective.network.load_state_dict(state["projector"])
        run.objective.called.eval().to(memory_format=torch.contiguous_format)
        with torch.no_grad():
            wanted = run.objective.called(IMAGES)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in (*FILES, "merged.safetensors"):
        shutil.copy(config.run / name, moved / name)
    assert torch.equal(logits_of(moved, IMAGES), wanted)
    assert torch.equal(logits_of(moved / "merged.safetensors", IMAGES), wanted)
    (tmp_path / "encoder.safetensors").rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match=r"encoder\.safetensors: no such file"):
        logits_of(moved, IMAGES)
    place = str(tmp_path / "elsewhere.safetensors")
    assert torch.equal(logits_of(moved, IMAGES, encoder_weights=place), wanted)
    assert torch.equal(logits_of(moved / "merged.safetensors", IMAGES), wanted)
    shutil.copy(place, moved / "encoder.safetensors")
    assert torch.equal(logits_of(moved, IMAGES), wanted)
    other = saved_encoder("Cnn", tmp_path / "other.safetensors", seed=5)
    with pytest.raises(InputError, match=r"expected those that the projector .* was trained with"):
        logits_of(moved, IMAGES, encoder_weights=str(other))
    with pytest.raises(InputError, match="takes only encoder_weights, found width"):
        logits_of(moved, IMAGES, width=3)
    with pytest.raises(InputError, match=r"expected the folder of a projector, found no projector\.json"):
        logits_of(tmp_path, IMAGES)
    (moved / "projector.json").write_text("{}")
    with pytest.raises(InputError, match="expected the record of a projector"):
        logits_of(moved, IMAGES)


def test_files_of_a_folder_that_were_changed_are_refused_in_one_line(flags: Mapping[str, Any], tmp_path: Path) -> None:
    """Each field of the record, by another kind or none; numbers that would take all memory; other tensors."""
    config = config_of(flags, tmp_path / "run", epochs=1)
    quiet(config)
    folder = tmp_path / "changed"
    folder.mkdir()
    record, weights = ((config.run / name).read_bytes() for name in ("projector.json", "projector.safetensors"))
    tensors = read_weights(config.run / "projector.safetensors").tensors

    def refused(content: bytes, saved: bytes, message: str, *, counted: bool = True) -> None:
        (folder / "projector.json").write_bytes(content)
        (folder / "projector.safetensors").write_bytes(saved)
        reads: list[Callable[[], object]] = [lambda: logits_of(folder, IMAGES)]
        reads += [lambda: projector_lines(projector_info(folder))] if counted else []
        for read in reads:
            with pytest.raises(InputError, match=message) as found:
                read()
            assert "\n" not in str(found.value)

    for name in FIELDS:
        values: tuple[Any, ...] = ([], None, -1, float("nan"))
        for value in values:
            if name == "lora_on" and value is None:
                continue
            part, _, key = name.rpartition(".")
            changed_record = json.loads(record)
            (changed_record[part] if part else changed_record)[key] = value
            refused(json.dumps(changed_record).encode(), weights, rf"projector\.json: {name}: expected")
        changed_record = json.loads(record)
        (changed_record[part] if part else changed_record).pop(key)
        refused(json.dumps(changed_record).encode(), weights, f"expected the record of a projector with {name}")
    for content in (b"", b"text", b"\xff\xfe", b"[" * 100_000):
        refused(content, weights, "expected the record of a projector, found no JSON")
    refused(b"[]", weights, r"expected the record of a projector, found \[\]")
    refused(b'{"format": 2}', weights, "expected the record of a projector of format 1, found 2")
    for cut in (0, 4, 100, len(weights) - 1):
        refused(record, weights[:cut], r"projector\.safetensors: ")
    for name in ("trained.columns", "encoder.width"):
        part, _, key = name.rpartition(".")
        changed_record = json.loads(record)
        changed_record[part][key] = 10**12
        refused(json.dumps(changed_record).encode(), weights, "expected a head of .*1,000,000,000,000", counted=False)
    other = {"bias": torch.ones(3, dtype=torch.int64)}
    for changed_tensors in (
        {**tensors, "head.bias": other["bias"]}, {**tensors, "more": torch.ones(2)},
        {name: value for name, value in tensors.items() if not name.startswith("lora.layers/0")},
    ):  # fmt: skip
        refused(record, save(changed_tensors), "not of this projector; they differ in", counted=False)
    refused(record, save({"head.weight": tensors["head.weight"]}), "found no head", counted=False)


def test_the_file_of_a_projector_is_evaluated_as_its_folder_is(flags: Mapping[str, Any], tmp_path: Path) -> None:
    config = config_of(flags, tmp_path / "run", epochs=1)
    quiet(config)
    test = ("--images", flags["test_images"], "--threads", 1, "--json")
    places = (config.run, config.run / "projector.safetensors")
    found = [giftwrap("giftwrap", "evaluate", "--weights", place, *test) for place in places]
    assert [each.code for each in found] == [0, 0], found[1].err
    assert found[0].summary["loss"] == found[1].summary["loss"]


@pytest.mark.parametrize("head", ["text", "means", "zero", "low rank"])
def test_bytes_as_counted_are_those_on_the_disk(head: str, flags: Mapping[str, Any], tmp_path: Path) -> None:
    more: dict[str, Any] = {"head": head}
    if head == "text":
        np.save(tmp_path / "text.npy", np.random.default_rng(0).normal(size=(len(CLASSES), WIDTH)))
        more = {"text": tmp_path / "text.npy"}
    if head == "low rank":
        more = {"head": "zero", "head_rank": 1}
    config = config_of(flags, tmp_path / "run", **more)
    values = quiet(config)["projector"]
    files = [config.run / name for name in FILES[:2]]
    assert values["total_bytes"] == sum(values["bytes"].values()) == sum(file.stat().st_size for file in files)
    tensors = read_weights(files[0]).tensors
    assert sum(values["parameters"].values()) == sum(tensor.numel() for tensor in tensors.values())
    low_rank = len(CLASSES) + WIDTH
    assert values["parameters"]["head"] == len(CLASSES) + (low_rank if head == "low rank" else len(CLASSES) * WIDTH)
    with closing(opened(config)) as run:
        state = torch.load(config.run / "checkpoint.pt", weights_only=True)["state"]
        run.objective.network.load_state_dict(state["projector"])
        run.objective.called.eval().to(memory_format=torch.contiguous_format)
        with torch.no_grad():
            assert torch.equal(run.objective.called(IMAGES), logits_of(config.run, IMAGES))
    encoder = read_weights(Path(flags["encoder_weights"])).tensors
    assert values["encoder"]["bytes"] == sum(tensor.nbytes for tensor in encoder.values())
    assert values["total_bytes_with_encoder"] == values["total_bytes"] + values["encoder"]["bytes"]
    assert projector_info(config.run) == values


def test_the_end_line_states_what_evaluations_and_logits_give(flags: Mapping[str, Any], tmp_path: Path) -> None:
    config = config_of(flags, tmp_path / "run", teacher_weights=(1.0, 3.0))
    values = quiet(config)
    assert values["top1"] == pytest.approx(values["last"]["top1"])
    assert [each["weights"] for each in values["teachers"]] == list(flags["weights"])
    for each in values["teachers"]:
        ended = giftwrap(
            "giftwrap", "evaluate", "--weights", each["weights"], "--student", "convnet-d2", "--student-args", ARGS,
            "--size", SIDE, "--images", flags["test_images"], "--mean", 0.485, 0.456, 0.406, "--std", 0.229, 0.224,
            0.225, "--threads", 1, "--json",
        )  # fmt: skip
        assert each["top1"] == pytest.approx(ended.summary["top1"])
    text = summarise(values)
    assert f"test top-1 of the projector {values['top1']:.2f} %" in text
    assert "agreement" in text
    assert 0 <= values["agreement"] <= 1
    assert -1 <= values["fidelity"] <= 1


def test_processes_train_the_projector_that_one_trains(flags: Mapping[str, Any], tmp_path: Path) -> None:
    """In batches that they do not share evenly; the first one's means are every one's start."""
    folder = tmp_path / "whole"
    quiet(config_of(flags, folder, batch_size=7))
    words = [
        "giftwrap",
        "train-projector",
        "--config",
        folder / "config.toml",
        "--run-folder",
        tmp_path / "ranks",
        "--json",
    ]
    ended = torchrun(2, words, tmp_path / "out")
    assert [each.code for each in ended] == [0, 0], ended[0].err
    found, wanted = (read_weights(run / "projector.safetensors").tensors for run in (tmp_path / "ranks", folder))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    assert "top1" in ended[0].summary
    assert not ended[1].out


def test_grouped_convolutions_are_adapted_and_not_merged(flags: Mapping[str, Any], tmp_path: Path) -> None:
    """Layer 3 has a group for each channel, and is taken where it is named."""
    more = {"lora_on": r"layers\.3", "rank": 8}
    with pytest.raises(InputError, match=r"--merge: .* cannot be merged \(layers\.3\)"):
        quiet(config_of(flags, tmp_path / "run", merge=True, **more))
    quiet(config_of(flags, tmp_path / "run", **more))
    found = read_weights(tmp_path / "run" / "projector.safetensors").tensors
    assert found["lora.layers/3.b"].any()
    before = logits_of(tmp_path / "run", IMAGES)
    network, _ = load_network("projector", {}, str(tmp_path / "run"), classes=len(CLASSES), size=8)
    assert "encoder.layers.3.lora.a" in network.state_dict()
    assert torch.equal(network.double().float()(IMAGES), before)


def test_under_autocast(flags: Mapping[str, Any], tmp_path: Path) -> None:
    config = config_of(flags, tmp_path / "run", dtype="bfloat16", epochs=1)
    assert quiet(config)["top1"] is not None
    assert all(
        value.dtype == torch.float32 for value in read_weights(config.run / "projector.safetensors").tensors.values()
    )


def test_a_projector_learns_its_teachers(flags: Mapping[str, Any], tmp_path: Path) -> None:
    """More epochs at a higher rank come closer to the mean logits."""
    few, many = (
        quiet(config_of(flags, tmp_path / str(epochs), epochs=epochs, hard_weight=0.0, lr=0.02)) for epochs in (1, 25)
    )
    assert many["kl_1"] < few["kl_1"]
    losses = [json.loads(line)["loss"] for line in (tmp_path / "25" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]


def test_numbers_that_are_none_stop_the_run_and_keep_the_last_good(flags: Mapping[str, Any], tmp_path: Path) -> None:
    config = config_of(flags, tmp_path / "run")
    with interrupted_after(4):
        quiet(config)
    kept = (config.run / "checkpoint.pt").read_bytes()

    def broken(_self: object, called: nn.Module, batch: Any) -> Tensor:
        found: Tensor = called(batch.images).sum() * float("nan")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProjectorObjective, "loss", broken)
        with pytest.raises(GiftwrapError, match="the checkpoint of step 3 is kept"):
            quiet(config)
    assert (config.run / "checkpoint.pt").read_bytes() == kept
    assert logits_of(config.run, IMAGES).isfinite().all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rank": 9}, r"--rank 9: expected 1 to 8, the width of layers\.0"),
        ({"rank": -1}, "--rank: expected at least 0"),
        ({"head_rank": 4}, "--head-rank 4: expected 1 to 3, the width of a head of 3 x 12"),
        ({"lora_on": "nothing"}, "--lora-on 'nothing': expected convolutions or linear layers"),
        ({"rank": 0, "lora_on": "layers"}, "--lora-on: has no effect with --rank 0"),
        ({"text": "text.npy", "head": "zero"}, "--text, --head zero: expected one of them"),
        ({"text": Path("absent.npy")}, r"--text absent\.npy: no such file; `giftwrap text-embeddings` makes one"),
        ({"head": "zero", "head_scale": 2.0}, "--head-scale: has no effect with --head zero"),
        ({"size": None, "encoder_weights": "absent.pth"}, r"weights absent\.pth: no such file"),
        ({"size": None}, "--size: .* has no record of the crops it was trained on; give --size"),
        ({"teacher": ()}, "train-projector: needs a teacher; give --teacher and --weights"),
        ({"encoder_args": "[]"}, "--encoder-args: expected a JSON object"),
        ({"encoder_args": '{"depth": 3}'}, "cannot be made with"),
        ({"encoder_std": (0.0, 0.3, 0.3)}, "encoder: --std: expected numbers above 0"),
        ({"features": "penultimate"}, "expected a classifier that ends with a linear layer"),
        ({"teacher": ("convnet-d2",) * 3}, "--weights: expected one for each of the 3 networks"),
        ({"encoder": "tests.trainer.encoders:Vit"}, "do not fit the network Vit"),
    ],
)
def test_bad_input_ends_in_one_line(
    more: Mapping[str, Any], message: str, flags: Mapping[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as found:
        quiet(config_of(flags, tmp_path / "run", **more))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Maps", r"expected feature vectors \[2, d\] for 2 crops, found \[2, 8, 6, 6\]"),
        ("Idle", "--lora-on: the encoder does not use the weights of unused in a step"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(
    name: str, message: str, flags: Mapping[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        quiet(config_of(with_encoder(flags, name, tmp_path), tmp_path / "run"))


def test_text_of_other_classes_or_another_width_is_refused(flags: Mapping[str, Any], tmp_path: Path) -> None:
    for shape in ((len(CLASSES), WIDTH + 1), (len(CLASSES) + 1, WIDTH)):
        np.save(tmp_path / "text.npy", np.ones(shape))
        with pytest.raises(InputError, match=rf"expected text embeddings \[3, 12\].* found \[{shape[0]}, {shape[1]}\]"):
            quiet(config_of(flags, tmp_path / "run", text=tmp_path / "text.npy"))
    save_weights(
        {"text": torch.ones(len(CLASSES), WIDTH)}, tmp_path / "text.safetensors", classes=("ant", "cat", "bee")
    )
    with pytest.raises(InputError, match="expected the classes of the images, found 'cat' in the place of 'bee'"):
        quiet(config_of(flags, tmp_path / "run", text=tmp_path / "text.safetensors"))
    np.save(tmp_path / "zeros.npy", np.zeros((len(CLASSES), WIDTH)))
    with pytest.raises(InputError, match="expected rows of finite numbers that are not all 0"):
        quiet(config_of(flags, tmp_path / "run", text=tmp_path / "zeros.npy"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("text", "found a text file (a photo of a cat)"),
        ("empty", "found an empty file"),
        ("torch", "found one saved by torch, or something else"),
        ("npz", "found a NumPy archive (.npz)"),
        ("objects", "found one that ends early, or holds Python objects"),
        ("short", "found one that ends early"),
        ("claims", "found one that ends early"),
        ("words", "of numbers, found <U1"),
        ("names", "metadata 'classes' is not a JSON list"),
        ("complex", "expected a tensor of numbers, found torch.complex64"),
        ("bool", "expected a tensor of numbers, found torch.bool"),
    ],
)
def test_files_that_hold_no_text_embeddings_are_named_for_what_they_are(
    content: str, found: str, flags: Mapping[str, Any], tmp_path: Path
) -> None:
    rows = np.ones((len(CLASSES), WIDTH), np.float32)
    np.save(tmp_path / "whole.npy", rows)
    path = tmp_path / "text.npy"
    with path.open("wb") as file:
        if content == "text":
            file.write(b"a photo of a cat\na photo of a dog\n")
        elif content == "torch":
            torch.save({"text": torch.from_numpy(rows)}, file)
        elif content == "npz":
            np.savez(file, text=rows)
        elif content == "objects":
            np.save(file, np.array([{}, []], object), allow_pickle=True)
        elif content == "short":
            file.write((tmp_path / "whole.npy").read_bytes()[:-1])
        elif content == "claims":  # more than memory
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": (10**7, 10**6)}
            )
        elif content == "words":
            np.save(file, np.array([["a"]]))
        elif content in ("complex", "bool"):
            dtype = torch.complex64 if content == "complex" else torch.bool
            file.write(save({"text": torch.from_numpy(rows).to(dtype)}))
        elif content == "names":
            file.write(save({"text": torch.from_numpy(rows)}, {"classes": "{"}))
    with pytest.raises(InputError, match=re.escape(found)) as caught:
        quiet(config_of(flags, tmp_path / "run", text=path))
    assert str(caught.value).startswith(f"--text {path}: ")
    assert "pickle" not in str(caught.value)


def test_where_the_encoder_is_does_not_decide_what_a_store_is(
    flags: Mapping[str, Any], world: World, tmp_path: Path
) -> None:
    encoder = tmp_path / "encoder.safetensors"
    shutil.copy(flags["encoder_weights"], encoder)
    config = config_of(flags, tmp_path / "run", epochs=1, encoder_weights=str(encoder))
    quiet(config)
    moved = tmp_path / "folder" / "moved.safetensors"
    moved.parent.mkdir()
    encoder.rename(moved)
    place = json.dumps({"encoder_weights": str(moved)})
    words = ["giftwrap", "build", "--images", world.images, "--teacher", "projector", "--weights", config.run,
             "--size", 8, "--views", 2, "--batch", 8, "--threads", 1, "--store", tmp_path / "store"]  # fmt: skip
    ended = giftwrap(*words)
    assert ended.code == 2
    assert "encoder.safetensors: no such file; give them by --teacher-args" in ended.err
    ended = giftwrap(*words, "--teacher-args", place)
    assert ended.code == 0, ended.err
    assert LabelStore.open(tmp_path / "store").identity.require("teacher")["args"] == {}
    moved.rename(encoder)
    ended = giftwrap(*words, "--json")
    assert ended.code == 0, ended.err
    assert ended.summary["crops"] == 0
    encoder.rename(moved)
    verify = ("giftwrap", "verify", "--store", tmp_path / "store", "--images", world.images, "--threads", 1)
    ended = giftwrap(*verify, "--weights", config.run)
    assert (ended.code, "no such file; give them by --teacher-args" in ended.err) == (2, True)
    ended = giftwrap(*verify, "--weights", config.run, "--teacher-args", place, "--json")
    assert ended.code == 0, ended.err
    assert ended.summary["labels_compared"]
    ended = giftwrap(*verify, "--teacher-args", place)
    assert ended.code == 2
    assert "--teacher-args: belongs to --weights" in ended.err
    test = ("--images", flags["test_images"], "--threads", 1)
    ended = giftwrap("giftwrap", "evaluate", "--weights", config.run, "--student-args", place, *test)
    assert ended.code == 0, ended.err
    ended = giftwrap("giftwrap", "evaluate", "--weights", config.run, "--weights-key", "ema", *test)
    assert (ended.code, "--weights-key ema: chooses among" in ended.err) == (2, True)


def test_of_a_wide_teacher_all_columns_are_learnt(flags: Mapping[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = build_network("convnet-d2", json.loads(ARGS), classes=6, size=SIDE)
    save_weights(network.state_dict(), tmp_path / "wide.safetensors")
    wide = {"weights": (str(tmp_path / "wide.safetensors"),), "class_columns": "4,0,2"}
    config = config_of(flags, tmp_path / "run", head="means", **wide)
    values = quiet(config)
    assert values["projector"]["columns"] == 6
    assert values["top1"] == pytest.approx(values["last"]["top1"])
    assert len(values["teachers"]) == 1
    assert logits_of(config.run, IMAGES).shape == (4, 6)


def colours(size: int, classes: tuple[str, ...]) -> MeanColours:
    """A labeller of the user's."""
    assert len(classes) == 3
    return MeanColours(size=size)


def test_a_labeller_of_the_users_is_learnt(flags: Mapping[str, Any], tmp_path: Path) -> None:
    own = {name: value for name, value in flags.items() if not name.startswith(("teacher", "weights"))}
    labeller = {"labeller": f"{__name__}:colours", "teacher_size": 8}
    values = quiet(config_of(own, tmp_path / "run", **labeller))
    assert "teachers" not in values
    assert "of its teachers" not in summarise(values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_the_projector_that_a_cpu_trains(flags: Mapping[str, Any], tmp_path: Path) -> None:
    runs = [config_of(flags, tmp_path / device, device=device) for device in ("cpu", "cuda")]
    for config in runs:
        quiet(config)
    wanted, found = (read_weights(config.run / "projector.safetensors").tensors for config in runs)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-3)


def test_a_projector_of_other_classes_is_refused(flags: Mapping[str, Any], tmp_path: Path) -> None:
    config = config_of(flags, tmp_path / "run", epochs=1)
    quiet(config)
    others = draw_images(tmp_path / "others", per_class=2, classes=("ant", "bee"))
    ended = giftwrap(
        "giftwrap", "build", "--images", others, "--teacher", "projector", "--weights", config.run, "--size", 8,
        "--views", 2, "--store", tmp_path / "store",
    )  # fmt: skip
    assert ended.code == 2
    assert "expected a column for each of the 2 class folders" in ended.err
    ended = giftwrap("giftwrap", "train", "--student", "projector", "--images", others, "--labels", "none", "--loss",
                     "ce", "--size", 8, "--epochs", 1, "--run-folder", tmp_path / "student")  # fmt: skip
    assert ended.code == 2
    assert "projector is made by `giftwrap train-projector`" in ended.err


def test_the_journey_from_teachers_to_students(tmp_path: Path) -> None:
    """Train a teacher, keep checkpoints, train a projector of two, train students by it, online and from a store."""
    images, test = draw_images(tmp_path / "images"), draw_images(tmp_path / "test", per_class=3)
    same = ("--threads", 1, "--batch-size", 8, "--test-images", test)
    student = ("--student", "convnet-d2", "--student-args", ARGS)
    words: list[tuple[object, ...]] = [
        ("train", "--images", images, *student, "--labels", "none", "--loss", "ce", "--size", SIDE, "--epochs", 4,
         "--keep-every", 1, "--run-folder", tmp_path / "teacher", *same),
        ("train-projector", "--images", images, "--encoder", "tests.trainer.encoders:Vit", "--encoder-weights",
         saved_encoder("Vit", tmp_path / "vit.safetensors"), "--size", 8, "--rank", 4, "--teacher", "convnet-d2",
         "--weights", *(tmp_path / "teacher" / f"epoch-000{k}.safetensors" for k in (2, 4)), "--teacher-size", SIDE,
         "--epochs", 2, "--run-folder", tmp_path / "projector", *same),
        ("info", tmp_path / "projector"),
        ("evaluate", "--run-folder", tmp_path / "projector"),
        ("train", "--images", images, *student, "--labels", "online", "--teacher", "projector", "--weights",
         tmp_path / "projector", "--teacher-size", 8, "--size", SIDE, "--loss", "mse+ce", "--hard-weight", 0.2,
         "--epochs", 1, "--run-folder", tmp_path / "online", *same),
        ("build", "--images", images, "--teacher", "projector", "--weights", tmp_path / "projector", "--size", 8,
         "--views", 2, "--batch", 8, "--threads", 1, "--store", tmp_path / "store"),
        ("verify", "--images", images, "--store", tmp_path / "store", "--weights", tmp_path / "projector"),
        ("train", "--images", images, *student, "--store", tmp_path / "store", "--loss", "gift", "--epochs", 1,
         "--run-folder", tmp_path / "stored", *same),
        ("compare", tmp_path / "online", tmp_path / "stored", tmp_path / "projector"),
    ]  # fmt: skip
    for each in words:
        ended = giftwrap("giftwrap", *each)
        assert ended.code == 0, (each, ended.err)
    folder = tmp_path / "projector"
    again = giftwrap("giftwrap", "train-projector", "--config", folder / "config.toml", "--json")
    assert again.code == 0, again.err
    assert again.summary["steps_now"] == 0
