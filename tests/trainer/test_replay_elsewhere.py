"""A store inside a zip file is replayed as its folder is."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch

from labelstore import LabelStore
from labelstore.errors import InputError
from tests.journeys.world import World
from tests.labelstore.test_storage import ZipStorage
from trainer import Replay


def test_a_zipped_store_is_replayed_and_not_followed(world: World, tmp_path: Path) -> None:
    copy = shutil.copytree(world.store, tmp_path / "unpacked/store")
    archive = Path(shutil.make_archive(str(tmp_path / "store"), "zip", copy.parent, copy.name))
    zipped = LabelStore.open(ZipStorage(archive))
    before = sorted(tmp_path.iterdir())
    with (
        closing(Replay(zipped, world.images, batch_size=8, seed=3)) as ours,
        closing(Replay(world.store, world.images, batch_size=8, seed=3)) as theirs,
    ):
        for found, expected in zip(ours, theirs, strict=True):
            assert torch.equal(found.images, expected.images)
            assert torch.equal(found.logits, expected.logits)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(InputError, match=r"in a folder of this machine to follow, found one .* read with ZipStorage"):
        Replay(zipped, world.images, batch_size=8, view_order="cycle", follow=True)
