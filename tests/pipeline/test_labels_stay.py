"""Labels stay on the device that made them: of most blocks only codes and the largest magnitude come to memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.encodings import Pairs, make_encoding
from labelstore.errors import InputError
from labelstore.store import LabelStore
from pipeline.build import build, filling
from pipeline.build.continuing import open_for
from pipeline.build.filling import OpenBlock, Work
from pipeline.build.labelling import label
from pipeline.config import BuildConfig
from pipeline.device.codes import DeviceCodes
from pipeline.ranks import Ranks
from tests.journeys.world import SIDE, TEACHER, World


def config_of(world: World, store: Path) -> BuildConfig:
    return from_flags(
        BuildConfig,
        images=world.images,
        teacher=(TEACHER[1],),
        teacher_args=(TEACHER[3],),
        weights=(str(world.weights),),
        size=SIDE,
        views=10,
        batch=32,
        store=store,
    )


def made(work: Work, place: Any) -> OpenBlock:
    block = OpenBlock(work, place)
    for each in label(work.renderer, work.labeller, work.identity.group, [block]):
        block.add(each.crops, each.logits)
    return block


@pytest.fixture
def opened(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Work, LabelStore]]:
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    config = config_of(world, tmp_path / "store")
    work = build.prepare(config, Console(silent=True), Ranks())
    with closing(work.renderer):
        yield work, open_for(config, work)


def test_blocks_whose_labels_stay_are_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    build.build(config_of(world, tmp_path / "plain"), Console(silent=True))
    seen: list[int] = []
    data_of = OpenBlock.data

    def as_on_a_gpu(block: OpenBlock, identity: Any, _coder: None, **how: Any) -> Any:
        coder = DeviceCodes(LabelStore.open(tmp_path / "other").encoding, block.logits.device)
        data = data_of(block, identity, coder, **how)
        seen.append(data.logits.size)
        return data

    monkeypatch.setattr(filling.OpenBlock, "data", as_on_a_gpu)
    build.build(config_of(world, tmp_path / "other"), Console(silent=True))
    assert seen[0] > 0  # for the agreement with the folders, the audit rows and the fidelity
    assert len(seen) > 1
    assert not any(seen[1:])
    for file in (tmp_path / "plain").glob("*/c.*"):
        assert file.read_bytes() == (tmp_path / "other" / file.relative_to(tmp_path / "plain")).read_bytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2e38, -2e38])
def test_what_no_encoding_holds_is_named_and_never_stored(value: float, opened: tuple[Work, LabelStore]) -> None:
    work, store = opened
    coder = DeviceCodes(store.encoding, torch.device("cpu"))
    block = made(work, store.missing()[1])
    block.logits[0, 3, 1] = value
    data = block.data(work.identity, coder, codes_only=True)
    with store.lease() as writer:
        with pytest.raises(InputError, match=r"position 3\W+class 1: expected a number"):
            writer.write(block.block, data)
        with pytest.raises(InputError, match=r"logits: expected numbers of at most 1e\+38, found"):
            writer.write(block.block, replace(data, largest=abs(value)))
    assert block.block in store.missing()


def test_the_largest_magnitude_alone_is_not_enough(opened: tuple[Work, LabelStore]) -> None:
    work, store = opened
    coder = DeviceCodes(store.encoding, torch.device("cpu"))
    first, second = (made(work, place) for place in store.missing()[:2])
    assert first.data(work.identity, coder, codes_only=True).logits.size
    data = second.data(work.identity, coder, codes_only=True)
    assert data.largest == float(second.logits.abs().max())
    with store.lease() as writer:
        for place, wrong in (
            (first.block, replace(first.data(work.identity, coder), largest=1.0)),
            (second.block, replace(data, codes=None)),
            (second.block, replace(data, largest=None)),
        ):
            with pytest.raises(InputError, match=f"block .*{place[-1]}.*logits"):
                writer.write(place, wrong)
        writer.write(second.block, data)
    assert store.missing() == [first.block]
    assert np.isfinite(data.largest)


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_largest_is_looked_for_in_every_row(name: str) -> None:
    coder = DeviceCodes(make_encoding({"name": name}, 5), torch.device("cpu"))
    logits, pairs = torch.randn(3, 2000, 5), Pairs.unmixed(np.zeros((3, 2000), int))
    codes, largest = coder.encode_measured(logits, pairs)
    assert largest == float(logits.abs().max())
    assert {*codes} == {*coder.encode(logits, pairs)}
    logits[2, -1, -1] = torch.nan
    assert math.isnan(coder.encode_measured(logits, pairs)[1])
