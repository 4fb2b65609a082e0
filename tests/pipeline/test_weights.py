"""Weights: read without executing anything, digested by P3, loaded completely or not at all."""

from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from labelstore.errors import InputError
from pipeline.networks import Weights, build_network, load_network, load_weights, read_weights, save_weights
from pipeline.networks.weights import state_digest


def transcription(arrays: dict[str, np.ndarray]) -> str:
    """P3's digest once more, with struct and numpy."""
    parts = []
    for name in sorted(arrays):
        array = arrays[name]
        dtype = str(array.dtype).encode()
        parts.append(struct.pack("<Q", len(name.encode())) + name.encode())
        parts.append(struct.pack("<Q", len(dtype)) + dtype)
        parts.append(struct.pack(f"<Q{array.ndim}Q", array.ndim, *array.shape))
        parts.append(struct.pack("<Q", array.nbytes) + array.astype(array.dtype.newbyteorder("<")).tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 100, shape).astype(dtype),
    st.sampled_from(["float32", "float16", "int64", "uint8", "bool"]),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 9),
)


@given(st.dictionaries(st.text(max_size=4), arrays, max_size=4), st.randoms())
def test_digest_is_its_transcription_in_any_order(named: dict[str, np.ndarray], random: Any) -> None:
    shuffled = list(named)
    random.shuffle(shuffled)
    assert state_digest({name: torch.from_numpy(named[name]) for name in shuffled}) == transcription(named)


def test_digest_is_of_bytes_dtypes_shapes_and_names() -> None:
    base = torch.arange(6.0)
    variants = [
        {"a": base},
        {"b": base},
        {"a": base.reshape(2, 3)},
        {"a": base.reshape(3, 2)},
        {"a": base.half()},
        {"a": base.bfloat16()},
        {"a": base.view(torch.int32)},
        {"a": base, "b": torch.zeros(0)},
        {"a": -base},
    ]
    assert len({state_digest(variant) for variant in variants}) == len(variants)
    strided = torch.arange(6.0).reshape(2, 3).T.contiguous().T
    assert state_digest({"a": strided}) == state_digest({"a": base.reshape(2, 3)})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "best": 93.4},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"net": state},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model": {"state_dict": {f"module.{name}": t for name, t in state.items()}}},
        lambda state: {name: t for name, t in state.items() if "num_batches" not in name},
    ],
)
def test_wrappings_and_counters_change_nothing(wrap: Any, tmp_path: Path) -> None:
    network = build_network("convnet-d1", {"width": 4, "norm": "batch"}, 3, size=4)
    torch.save(wrap(network.state_dict()), tmp_path / "w.pt")
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.pt")
    assert found.digest == read_weights(tmp_path / "w.safetensors").digest
    other = build_network("convnet-d1", {"width": 4, "norm": "batch"}, 3, size=4)
    load_weights(other, found)
    for name, tensor in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_save_weights_keeps_class_names_and_shared_tensors(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    path = tmp_path / "w.safetensors"
    save_weights({"a": shared, "b": shared[1:]}, path, classes=["cat", "été", "a,b"])
    found = read_weights(path)
    assert found.class_names == ("cat", "été", "a,b")
    assert torch.equal(found.tensors["b"], shared[1:])
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
    first = path.read_bytes()
    save_weights({"a": shared, "b": shared[1:]}, path, classes=["cat", "été", "a,b"])
    assert path.read_bytes() == first
    save_weights({"a": shared}, path)
    assert read_weights(path).class_names is None


def test_what_does_not_fit_is_listed() -> None:
    network = build_network("convnet-d1", {"width": 4}, 3, size=4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    del state["features.0.bias"]
    state["fc.weight"] = torch.zeros(2)
    state["classifier.bias"] = torch.zeros(5)
    state["features.1.weight"] = torch.zeros(4, dtype=torch.int8)
    state |= {f"extra.{i}": torch.zeros(1) for i in range(20)}
    with pytest.raises(InputError) as caught:
        load_weights(network, Weights("file.pt", state))
    message = str(caught.value)
    for part in (
        "file.pt",
        "missing: features.0.bias;",
        "unexpected: fc.weight, extra.0",
        "and 13 more",
        "classifier.bias (network float32 [3], weights float32 [5])",
        "features.1.weight (network float32 [4], weights int8 [4])",
    ):
        assert part in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, write in (
        ("a.pt", torch.save),
        ("b.pt", lambda value, path: path.write_bytes(pickle.dumps(value))),
    ):
        write({"w": Bomb()}, tmp_path / name)
        with pytest.raises(InputError, match="which only code could make"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    state = {"a": torch.zeros(100)}
    for name, write in (("w.safetensors", save_file), ("w.pt", torch.save)):
        whole = tmp_path / name
        write(state, whole)
        content = whole.read_bytes()
        for damaged in (b"", b"text", content[:50], content[: len(content) // 2]):
            whole.write_bytes(damaged)
            with pytest.raises(InputError, match=name):
                read_weights(whole)
    with pytest.raises(InputError, match="no such file"):
        read_weights(tmp_path / "absent.pt")
    foreign: list[tuple[Any, str]] = [
        ([torch.zeros(1)], "found list"),
        ({"a": torch.zeros(1), "epoch": 3}, "epoch"),
        ({}, "nothing"),
        ({"a": torch.zeros(2).to_sparse()}, "dense tensors"),
    ]
    for value, message in foreign:
        torch.save(value, tmp_path / "foreign.pt")
        with pytest.raises(InputError, match=message):
            read_weights(tmp_path / "foreign.pt")
    save_file(state, tmp_path / "names.safetensors", {"classes": "cat,dog"})
    with pytest.raises(InputError, match="not a JSON list"):
        read_weights(tmp_path / "names.safetensors")


def test_torchvision_download(monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.squeezenet1_1().state_dict()
    calls: list[dict[str, Any]] = []

    def download(url: str, **options: Any) -> dict[str, Tensor]:
        calls.append({"url": url, **options})
        return published

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    name = "torchvision:squeezenet1_1"
    network, weights = load_network(name, {}, "torchvision:IMAGENET1K_V1", classes=10, size=64)
    assert calls[0]["weights_only"] is True
    assert all("squeezenet1_1" in call["url"] and call["check_hash"] for call in calls)
    assert weights.digest == state_digest(published)
    assert weights.class_names is not None
    assert weights.class_names[:2] == ("tench", "goldfish")
    assert torch.equal(network.state_dict()["features.0.weight"], published["features.0.weight"])
    with pytest.raises(InputError, match="squeezenet1_1 has IMAGENET1K_V1"):
        load_network(name, {}, "torchvision:IMAGENET1K_V9", classes=10, size=64)
    with pytest.raises(InputError, match="belong to torchvision:NAME, the network is convnet-d3"):
        load_network("convnet-d3", {}, "torchvision:DEFAULT", classes=10, size=64)
    with pytest.raises(InputError, match="resnet19"):
        load_network("torchvision:resnet19", {}, "torchvision:DEFAULT", classes=10, size=64)


def test_torchvision_without_a_network_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, **options: Any) -> dict[str, Tensor]:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with pytest.raises(InputError, match="cannot be had: no route to host"):
        load_network("torchvision:resnet18", {}, "torchvision:DEFAULT", classes=10, size=64)


def test_timm_download(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    published = timm.create_model("mobilenetv3_small_050").state_dict()
    save_file(published, tmp_path / "w.safetensors")
    # timm then reads this file instead of its download
    args = {"pretrained_cfg_overlay": {"file": str(tmp_path / "w.safetensors")}}
    name = "timm:mobilenetv3_small_050"
    network, weights = load_network(name, args, "timm:pretrained", classes=10, size=64)
    assert weights.digest == read_weights(tmp_path / "w.safetensors").digest
    assert network.num_classes == 1000
    with pytest.raises(InputError, match="num_classes 10 requested, but timm:pretrained has 1000"):
        load_network(name, {**args, "num_classes": 10}, "timm:pretrained", classes=10, size=64)
    with pytest.raises(InputError, match="belong to timm:NAME"):
        load_network("convnet-d3", {}, "timm:pretrained", classes=10, size=64)


def test_published_files_of_one_network_are_one_network(data: Path) -> None:
    models = data / "models"
    plain, published = (
        read_weights(models / name) for name in ("cifar10-resnet20.safetensors", "resnet20-12fca82f.th")
    )
    assert plain.digest == published.digest
    assert plain.digest != read_weights(models / "cifar10-resnet56.safetensors").digest
    for depth, file in ((20, "resnet20-12fca82f.th"), (56, "cifar10-resnet56.safetensors")):
        network, weights = load_network(f"cifar-resnet{depth}", {}, str(models / file), classes=10, size=32)
        names = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
        assert names == weights.tensors.keys()
    with pytest.raises(InputError, match=r"missing: layer1\.3"):
        load_network("cifar-resnet56", {}, str(models / "resnet20-12fca82f.th"), classes=10, size=32)
