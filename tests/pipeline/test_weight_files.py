"""Checkpoints as people have them: which of several sets is taken, which names are one, and what is no checkpoint."""

from __future__ import annotations

import argparse
import collections
import datetime
import gzip
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from labelstore.errors import InputError
from pipeline.networks import Weights, build_network, load_network, read_weights
from pipeline.networks.torch_files import read_content
from pipeline.networks.weight_sets import choose_set
from pipeline.networks.weights import state_digest
from pipeline.teacher.teacher import Teacher, TeacherSpec, make_members, make_teacher, stored_members

ARGS: dict[str, Any] = {"width": 4, "norm": "batch"}
State = dict[str, Tensor]


def state(seed: int = 0) -> State:
    torch.manual_seed(seed)
    return build_network("convnet-d2", ARGS, 3, size=8).state_dict()


def plain_digest(tensors: Mapping[str, Tensor]) -> str:
    """The digest that stores of the first versions have: of the names as the network has them, without counters."""
    return state_digest({name: tensor for name, tensor in tensors.items() if "num_batches_tracked" not in name})


def load(path: Path, key: str | None = None) -> Weights:
    """The weights as a build reads them, held against those of the network that it runs."""
    network, weights = load_network("convnet-d2", ARGS, str(path), classes=3, size=8, key=key)
    own = network.state_dict()
    assert weights.tensors.keys() == {name for name in own if "num_batches_tracked" not in name}
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.tensors.items())
    return weights


def behind(prefix: str, tensors: State) -> State:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def inside(word: str, tensors: State) -> State:
    """A wrapper around a part of the network."""
    return {name.replace("features.0.", f"features.0.{word}."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        *(
            lambda one, p=p: behind(p, one)
            for p in ("module.", "model.", "net.", "network.", "backbone.", "_orig_mod.")
        ),
        lambda one: behind("module._orig_mod.", one),
        lambda one: behind("model._orig_mod.module.", one),
        lambda one: behind("student.backbone.", one),
        lambda one: inside("_orig_mod", one),
        lambda one: inside("module", one),
        lambda one: behind("_fsdp_wrapped_module.", inside("_checkpoint_wrapped_module", one)),
        lambda one: {"n_averaged": torch.tensor(7), **behind("module.", one)},
        lambda one: {"step": torch.tensor([7]), "initted": torch.tensor(True), **behind("ema_model.module.", one)},
        lambda one: {"state_dict": behind("model.", one), "optimizer_states": [{"state": {0: {"step": 3.0}}}]},
        lambda one: {"model": one, "optimizer": {"state": {0: {"exp_avg": one["classifier.bias"]}}, "exp_avg": one}},
        lambda one: {"state_dict": {"model": one}, "mean": torch.zeros(3), "epoch": 3},
        lambda one: {"a name of one's own": {"inner": one}},
    ],
)
def test_one_network_is_one_whatever_its_names_are_behind(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    torch.save(wrap(state()), tmp_path / "w.pt")
    weights = load(tmp_path / "w.pt")
    assert weights.digest == plain_digest(state())
    assert weights.warnings == ()


def test_a_network_whose_own_names_have_wrappers() -> None:
    network = nn.DataParallel(nn.Sequential(nn.Linear(2, 3)))
    from pipeline.networks import load_weights

    load_weights(network, Weights("w", {"0.weight": torch.ones(3, 2), "0.bias": torch.zeros(3)}))
    assert network.state_dict()["module.0.weight"].sum() == 6


# (what a checkpoint has, the set that is taken, the others)
SEVERAL: list[tuple[Callable[[State, State], Any], str, str]] = [
    (lambda a, b: {"state_dict": b, "state_dict_ema": a}, "state_dict_ema", "state_dict"),
    (lambda a, b: {"model": b, "model_ema": a}, "model_ema", "model"),
    (lambda a, b: {"params": b, "params_ema": a}, "params_ema", "params"),
    (lambda a, b: {"model": b, "ema": {"decay": 0.9, "module": a}}, "ema.module", "model"),
    (lambda a, b: {"model": b, "ema": {"decay": 0.9, "shadow": a}}, "ema.shadow", "model"),
    (lambda a, b: {"student": behind("module.", b), "teacher": behind("module.", a)}, "teacher", "student"),
    (lambda a, b: {"target": b, "online": a}, "online", "target"),
    (lambda a, b: {"swa_model": {"n_averaged": torch.tensor(3), **behind("module.", a)}, "net": b}, "swa_model", "net"),
    (lambda a, b: {"discriminator": b, "model_state_dict": a}, "model_state_dict", "discriminator"),
    (lambda a, b: {"best": a, "last": b}, "best", "last"),
    (lambda a, b: {**behind("target_encoder.", b), **behind("online_encoder.", a)}, "online_encoder", "target_encoder"),
    (lambda a, b: {"models": [a, b]}, "models.0", "models.1"),
    (lambda a, b: {"models": [{"net": b, "ema": a}]}, "models.0.ema", "models.0.net"),
    (lambda a, b: {**behind("online_model.", b), **behind("ema_model.", a)}, "ema_model", "online_model"),
    (
        lambda a, b: {"state_dict": {**behind("net_ema.", a), **behind("net.", b)}},
        "state_dict.net_ema",
        "state_dict.net",
    ),
    (lambda a, b: {**b, **behind("ema.module.", a)}, "ema", "the file itself"),
    (lambda a, b: {"model": b, "modelema": a}, "modelema", "model"),
    (lambda a, b: {"model": b, "model_avg": a}, "model_avg", "model"),
    (lambda a, b: {"net": b, "polyak": a}, "polyak", "net"),
    (lambda a, b: {"schema": b, "model": a}, "model", "schema"),  # not every word that ends in ema
]


@pytest.mark.parametrize(("wrap", "taken", "other"), SEVERAL)
@pytest.mark.parametrize("turned", [False, True])
def test_of_several_sets_one_is_taken_and_said(
    wrap: Callable[[State, State], Any], taken: str, other: str, turned: bool, tmp_path: Path
) -> None:
    content = wrap(state(1), state(2))
    if turned and taken != "best":  # the order in the file decides only between names that say nothing
        content = dict(reversed(content.items()))
    torch.save(content, tmp_path / "w.pt")
    weights = load(tmp_path / "w.pt")
    assert weights.digest == plain_digest(state(1))
    (warning,) = weights.warnings
    assert f"holds 2 sets of weights; taken: those under '{taken}'; also there: {other};" in warning
    assert "--weights-key" in warning
    if other != "the file itself":
        chosen = load(tmp_path / "w.pt", other)
        assert chosen.digest == plain_digest(state(2))
        assert chosen.warnings == ()
    with pytest.raises(InputError, match=f"--weights-key absent: no such set of weights; found: .*{taken}"):
        load(tmp_path / "w.pt", "absent")


def test_a_safetensors_file_of_several_sets(tmp_path: Path) -> None:
    tensors = {**behind("online_model.", state(2)), **behind("ema_model.", state(1))}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "w.bin", {"classes": '["a"]'})
    weights = load(tmp_path / "w.bin")
    assert weights.digest == plain_digest(state(1))
    assert weights.class_names == ("a",)
    assert load(tmp_path / "w.bin", "online_model").digest == plain_digest(state(2))


def test_sets_that_do_not_fit_are_no_choice(tmp_path: Path) -> None:
    torch.manual_seed(3)
    deeper = build_network("convnet-d3", ARGS, 3, size=8).state_dict()
    torch.save({"teacher": deeper, "model": state(), "stats": {"mean": torch.zeros(3)}}, tmp_path / "w.pt")
    weights = load(tmp_path / "w.pt")
    assert weights.digest == plain_digest(state())
    assert weights.warnings == ()
    assert "'model'" in weights.notes[0]
    with pytest.raises(InputError, match="do not fit the network"):
        load(tmp_path / "w.pt", "teacher")


def test_what_lies_beside_the_network_is_named_and_what_lies_within_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {**behind("model.", state()), "criterion.weight": torch.ones(3)}}, tmp_path / "w.pt")
    weights = load(tmp_path / "w.pt")
    assert weights.digest == plain_digest(state())
    assert weights.warnings == (f"weights {tmp_path / 'w.pt'}: not of the network and left out: criterion.weight",)
    torch.save({"state_dict": {**behind("model.", state()), "model.head.weight": torch.ones(3)}}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"unexpected: head\.weight"):
        load(tmp_path / "w.pt")
    torch.save({**state(), "criterion.weight": torch.ones(3)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"unexpected: criterion\.weight"):
        load(tmp_path / "w.pt")


def test_the_head_of_another_number_of_classes_behind_a_prefix(tmp_path: Path) -> None:
    torch.save({"state_dict": behind("model.", state())}, tmp_path / "w.pt")
    network, _ = load_network("convnet-d2", ARGS, str(tmp_path / "w.pt"), classes=10, size=8)
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    with pytest.raises(InputError, match=r"different: classifier\.weight"):
        load_network("convnet-d2", ARGS, str(tmp_path / "w.pt"), classes=3, size=16)


def test_a_key_needs_a_file() -> None:
    for weights in ("torchvision:DEFAULT", "timm:pretrained"):
        with pytest.raises(InputError, match="--weights-key ema: chooses among the sets of weights in a file"):
            load_network("torchvision:resnet18", {}, weights, classes=3, size=8, key="ema")


BESIDE: dict[str, Any] = {
    "scalar": np.float64(71.3),
    "scalars": [np.float32(1), np.int64(3), np.bool_(True), np.float16(2)],
    "array": np.arange(6.0).reshape(2, 3),
    "big": np.arange(3, dtype=">i4"),
    "objects": np.array(["a", "b"]),
    "dtype": np.dtype("float32"),
    "args": argparse.Namespace(lr=0.1, path=Path("x")),
    "date": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "counts": collections.Counter("abca"),
    "lists": collections.defaultdict(list, a=[1]),
    "ordered": collections.OrderedDict(a=1),
    "set": {1, 2},
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_values_beside_the_tensors_are_no_code(name: str, zipped: bool, tmp_path: Path) -> None:
    content = {"state_dict": state(), name: BESIDE[name]}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    assert load(tmp_path / "w.pt").digest == plain_digest(state())
    before = {*torch.serialization.get_safe_globals()}
    found: Any = read_content(tmp_path / "w.pt", "w", "")
    assert {*torch.serialization.get_safe_globals()} == before
    for value, read in {
        "scalar": 71.3,
        "scalars": [1.0, 3, True, 2.0],
        "array": torch.arange(6.0, dtype=torch.float64).reshape(2, 3),
        "big": torch.arange(3, dtype=torch.int32),
        "lists": {"a": [1]},
        "counts": {"a": 2, "b": 1, "c": 1},
    }.items():
        if value == name:
            equal = torch.equal(found[name], read) if isinstance(read, Tensor) else found[name] == read
            assert equal


class Harm:
    """Runs a function when it is unpickled as Python does it."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.made = function, args

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (Harm(os.system, "touch exploded"), "posix.system"),
        (Harm(eval, "open('exploded', 'w')"), "builtins.eval"),
        (Harm(getattr, Path("exploded"), "touch"), "builtins.getattr"),
        (Harm(shutil.rmtree, "kept"), "shutil.rmtree"),
        (nn.Linear(2, 3), "torch.nn.modules.linear.Linear"),
        (nn.Sequential(nn.Linear(2, 3)), "torch.nn.modules.container.Sequential"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_code_beside_the_tensors_is_named_and_not_run(
    harm: Any, name: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    for content in (harm, {"state_dict": state(), "more": harm}):
        torch.save(content, "w.pt", _use_new_zipfile_serialization=zipped)
        assert f"found a pickled {name}" in one_line(lambda: read_weights(Path("w.pt")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "w.pt"]


def one_line(read: Callable[[], object]) -> str:
    """The message of the error: one line, printable, without advice to load unsafely."""
    with pytest.raises(InputError) as caught:
        read()
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 500, message
    for word in ("weights_only", "Errno", "trust", "add_safe_globals"):
        assert word not in message
    return message


def tensor_bytes(folder: Path, *, zipped: bool = True) -> bytes:
    torch.save(state(), folder / "whole", _use_new_zipfile_serialization=zipped)
    return (folder / "whole").read_bytes()


def archive(folder: Path, names: list[str]) -> bytes:
    with zipfile.ZipFile(folder / "archive", "w") as made:
        for name in names:
            made.writestr(name, b"x" * 10)
    return (folder / "archive").read_bytes()


def packed(folder: Path) -> bytes:
    (folder / "member").write_bytes(b"1")
    with tarfile.open(folder / "tar", "w") as made:
        made.add(folder / "member", "storages")
    return (folder / "tar").read_bytes()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
INDEX = json.dumps({"metadata": {}, "weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}})
KINDS: list[tuple[Callable[[Path], bytes], str]] = [
    (lambda _: b"", "an empty file"),
    (lambda _: LFS, "a git-LFS pointer"),
    (lambda _: b"<!DOCTYPE html><title>Quota\n\x1b[1mexceeded</title>", "an HTML page (Quota "),
    (lambda _: b"\n  <HTML lang='en'>", "an HTML page"),
    (lambda _: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML page"),
    (lambda _: b'{"error": "Not Found"}', "a JSON file"),
    (lambda _: INDEX.encode(), "the index of weights in 2 files (model-1-of-2.safetensors"),
    (lambda _: b"Entry not found", "a text file (Entry not found)"),
    (lambda _: "Datei \u2009 nicht\x85gefunden".encode(), "a text file (Datei"),
    (lambda _: bytes(5000), "nothing but zeros"),
    (lambda folder: tensor_bytes(folder)[:-400], "a zip archive that ends early"),
    (lambda folder: tensor_bytes(folder)[:60], "a zip archive that ends early"),
    (lambda folder: tensor_bytes(folder, zipped=False)[:-40], "a damaged file"),
    (lambda folder: tensor_bytes(folder, zipped=False)[:400], "a damaged file"),
    (lambda folder: gzip.compress(tensor_bytes(folder)), "a gzip file"),
    (lambda folder: archive(folder, ["a.npy", "b.npy"]), "a NumPy archive (.npz)"),
    (lambda folder: archive(folder, ["config.json", "model.weights.h5"]), "a Keras archive"),
    (lambda folder: archive(folder, ["model/best.pth", "a", "b", "c"]), "a zip archive of model/best.pth, a, b, ..."),
    (lambda folder: archive(folder, []), "a zip archive of nothing"),
    (lambda folder: archive(folder, ["m/data.pkl", "m/constants.pkl", "m/code/net.py"]), "a TorchScript archive"),
    (packed, "a tar archive"),
    (lambda _: b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    (lambda _: b"GGUF\x03\0\0\0", "a GGUF file"),
    (lambda _: b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "an ONNX or TensorFlow graph"),
    (lambda _: b"\x1c\0\0\0TFL3\0\0", "a TensorFlow Lite file"),
    (lambda _: b"\x82\xa6params\x81", "what looks like a Flax file"),
    (lambda _: b"\x93NUMPY\x01\0", "a NumPy array"),
    (lambda _: b"\x89PNG\r\n\x1a\n\0", "a PNG image"),
    (lambda _: struct.pack("<Q", 4000) + b'{"a":', "a .safetensors file that ends early"),
    (lambda _: struct.pack("<Q", 12) + b'{"a": 1, "b"' + bytes(9), "a damaged .safetensors file"),
    (lambda _: np.random.default_rng(0).bytes(3000), "something else, or a damaged file"),
    (lambda _: pickle.dumps({"weight": np.ones(3)}, 2), "a pickle that torch did not write"),
    (lambda _: pickle.dumps({"weight": [1.0]}), "a pickle that torch did not write"),
    (lambda _: pickle.dumps(nn.ReLU()), "a pickled torch.nn.modules.activation.ReLU"),
    (lambda _: b"\x80\x02}q\x00.", "a pickle that torch did not write"),
    (lambda _: b"\x80\x04\x95\x12\0\0\0", "a damaged file"),
]


@pytest.mark.parametrize(("make", "found"), KINDS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_checkpoint_is_named_in_one_line(
    make: Callable[[Path], bytes], found: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(make(tmp_path))
    assert found in one_line(lambda: read_weights(path))
    assert found in one_line(lambda: read_content(path, "data", "save tensors"))


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "pytorch_model.bin")
    torch.save(state(), tmp_path / "w.safetensors")
    torch.save(state(), tmp_path / "legacy.onnx", _use_new_zipfile_serialization=False)
    for name in ("pytorch_model.bin", "w.safetensors", "legacy.onnx"):
        assert load(tmp_path / name).digest == plain_digest(state())
    with pytest.raises(InputError, match="found a folder; give the file in it"):
        read_weights(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="expected a file, found a pipe or a device"):
        read_weights(tmp_path / "pipe")


@pytest.mark.parametrize("key", [None, "c\nd"])
def test_names_from_a_file_do_not_write_on_the_terminal(key: str | None, tmp_path: Path) -> None:
    hostile, path = "\x1b[2Ka\nb" * 50, tmp_path / "w.pt"
    torch.save({hostile: 3, "x": torch.ones(3)}, path)
    one_line(lambda: load(path, key))
    for content in ({hostile: state(), "b": state()}, {**behind(f"{hostile}.", state()), "x\ny": torch.ones(3)}):
        torch.save(content, path)
        if key:
            one_line(lambda: load(path, key))
        else:
            weights = load(path)
            assert weights.warnings
            assert all(text.isprintable() for text in (*weights.notes, *weights.warnings))


def test_each_network_of_a_teacher_has_a_key_or_all_have_one() -> None:
    names, weights = ("a", "b"), ("a.pt", "b.pt")
    for keys, expected in (((), [None, None]), (("ema",), ["ema", "ema"]), (("ema", ""), ["ema", None])):
        members = make_members(names, weights, [{}], (), keys)
        assert [member.key for member in members] == expected
        stored = {"members": [{"name": member.name, "args": {}, "share": 0.5} for member in members]}
        assert [member.key for member in stored_members(stored, weights, keys)] == expected
    for make in (
        lambda: make_members(names, weights, [{}], (), ("a", "b", "c")),
        lambda: stored_members({"members": [{"name": "a"}, {"name": "b"}]}, weights, ("a", "b", "c")),
    ):
        with pytest.raises(InputError, match="--weights-key: expected one for each of"):
            make()


def test_a_teacher_says_which_weights_it_has(tmp_path: Path) -> None:
    torch.save({"state_dict": state(2), "state_dict_ema": state(1)}, tmp_path / "w.pt")

    def teacher(*keys: str) -> Teacher:
        members = make_members(("convnet-d2",), (str(tmp_path / "w.pt"),), [ARGS], (), keys)
        return make_teacher(TeacherSpec(members=members, batch=2), size=8, classes=["a", "b", "c"])

    assert any("taken: those under 'state_dict_ema'" in warning for warning in teacher().warnings)
    assert teacher().identity["weights"] == plain_digest(state(1))
    chosen = teacher("state_dict")
    assert not any("sets of weights" in warning for warning in chosen.warnings)
    assert chosen.notes == (f"weights {tmp_path / 'w.pt'}: those under 'state_dict' are taken",)
    assert chosen.identity["weights"] == plain_digest(state(2))


def test_a_running_mean_that_is_the_network_keeps_its_digest() -> None:
    """Of a network that is itself an AveragedModel all tensors count, as in stores of the first versions."""
    tensors = {"n_averaged": torch.tensor(3), **behind("module.", state())}
    found = choose_set(tensors, "w", None, tensors).chosen
    assert Weights("w", found.tensors).digest == plain_digest(tensors)


def test_a_list_that_is_held_many_times_is_looked_at_once(tmp_path: Path) -> None:
    """2**40 members, in 1,500 bytes."""
    members: Any = state()
    for _ in range(40):
        members = {"a": members, "b": members}
    torch.save({"model": state(), "more": members}, tmp_path / "w.pt")
    assert load(tmp_path / "w.pt").digest == plain_digest(state())


BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "numbers repeated": (
        lambda at: torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, at),
        "a tensor of 4,000,000,000,000 bytes that repeats 4 bytes",
    ),
    "numbers compressed": (lambda at: compressed({"w": torch.zeros(1 << 25)}, at), "a compressed archive that unpacks"),
}


def compressed(content: object, path: Path) -> None:
    torch.save(content, path.with_suffix(".whole"))
    with zipfile.ZipFile(path.with_suffix(".whole")) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for entry in whole.infolist():
            out.writestr(entry.filename, whole.read(entry))


@pytest.mark.parametrize("what", BOMBS)
def test_what_takes_much_more_memory_than_its_file_is_refused(what: str, tmp_path: Path) -> None:
    write, message = BOMBS[what]
    write(tmp_path / "w.pt")
    assert (tmp_path / "w.pt").stat().st_size < 1 << 20
    with pytest.raises(InputError, match=rf"w.pt: expected nothing but tensors, .*, found {message}"):
        read_weights(tmp_path / "w.pt")


def test_a_position_index_that_repeats_itself_is_read(tmp_path: Path) -> None:
    """Some networks save a buffer as a view of one row."""
    torch.save({"w": torch.arange(8.0), "index": torch.arange(8).expand(1, -1)}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt").tensors["index"].tolist() == [[*range(8)]]
