"""Networks as people write them label crops: built, extended, verified, against their own logits."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from labelstore import LabelStore
from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from pipeline.build.build import build
from pipeline.config import BuildConfig, VerifyConfig
from pipeline.networks import build_network, save_weights
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.networks.outputs import logits_of
from pipeline.render.normalise import normalise
from pipeline.replay.source import open_source
from pipeline.replay.verify import verify
from pipeline.teacher.engine.spec import Member, TeacherSpec
from pipeline.teacher.teacher import make_teacher
from tests.journeys.world import CLASSES, SIDE, World
from tests.user_networks import FLATTENING

HOME = "tests.user_networks"
CONTIGUOUS = (*FLATTENING, "MergesCrops", "lazy")
CHANNELS_LAST = ("ViewsInTraining", "Auxiliary", "WithFeatures", "Named", "Attributed", "parallel")


def weights_of(name: str, folder: Path) -> tuple[torch.nn.Module, str]:
    torch.manual_seed(0)
    network = build_network(f"{HOME}:{name}", {}, classes=len(CLASSES), size=SIDE)
    path = folder / f"{name}.safetensors"
    save_weights(network.state_dict(), path)
    return network.eval(), str(path)


@pytest.mark.parametrize("name", [*CONTIGUOUS, *CHANNELS_LAST])
def test_each_labels_what_it_says(name: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, weights = weights_of(name, tmp_path)
    config = from_flags(
        BuildConfig,
        images=world.images, teacher=(f"{HOME}:{name}",), weights=(weights,), size=SIDE, views=100, batch=20, threads=1,
        store=tmp_path / "store", encoding="float16",
    )  # fmt: skip
    build(config, Console(silent=True))
    build(changed(config, views=150), Console(silent=True))
    store = LabelStore.open(config.store)
    engine = store.identity.require("engine")
    # lazy ends in Flatten, which copies where it must
    assert engine["channels_last"] is (name not in CONTIGUOUS or name == "lazy")
    with closing(open_source(store, world.images, threads=1)) as source:
        crops = source.crops(store.state.views_sealed - 1, 0, 24)
    with torch.no_grad():
        wanted = logits_of(network(normalise(crops, IMAGENET_MEAN, IMAGENET_STD, torch.float32, channels_last=False)))
    found = store.read(store.state.views_sealed - 1, slice(0, 24)).logits
    np.testing.assert_allclose(found, wanted.numpy(), rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))
    capsys.readouterr()
    ok, values = verify(
        from_flags(VerifyConfig, store=config.store, images=world.images, weights=(weights,), threads=1), Console()
    )
    assert ok
    assert values["equal_codes"] == 1.0
    assert "another than the store's" not in capsys.readouterr().err


def test_one_member_that_flattens_makes_an_ensemble_contiguous(tmp_path: Path) -> None:
    kinds = [[name] for name in ("Small", "conv_net")] + [["Small", "conv_net"]]
    found = []
    for names in kinds:
        members = tuple(
            Member(name=f"{HOME}:{name}", weights=weights_of(name, tmp_path)[1], share=1 / len(names)) for name in names
        )
        teacher = make_teacher(TeacherSpec(members=members, batch=4, threads=1), size=SIDE, classes=CLASSES)
        found.append(teacher.engine["channels_last"])
        assert teacher.spec.channels_last is teacher.engine["channels_last"]
    assert found == [True, False, False]


def test_a_teacher_goes_on_in_the_layout_of_its_store(tmp_path: Path) -> None:
    spec = TeacherSpec(members=(Member(name=f"{HOME}:Small", weights=weights_of("Small", tmp_path)[1]),), batch=4)
    assert spec.like({"channels_last": True}).channels_last
    assert not spec.like({"channels_last": False}).channels_last
    assert spec.like({}).channels_last
