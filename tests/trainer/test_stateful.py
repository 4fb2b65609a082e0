"""A replay in the protocols of others: torchdata's stateful one, trees of tensors, batches on a device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from tests.journeys.world import World
from trainer import Replay, TrainBatch

BATCH = 5
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the other libraries


@pytest.fixture
def make(world: World) -> Iterator[Callable[[], Replay]]:
    made: list[Replay] = []

    def new() -> Replay:
        made.append(Replay(world.store, world.images, batch_size=BATCH, seed=3))
        return made[-1]

    yield new
    for replay in made:
        replay.close()


def places(batches: Any) -> list[tuple[int, int]]:
    """View and position of every crop, in order."""
    return [(int(v), int(p)) for batch in batches for v, p in zip(batch.view, batch.position, strict=True)]


def of_stateful_loader(replay: Replay) -> Any:
    module = pytest.importorskip("torchdata.stateful_dataloader")
    return module.StatefulDataLoader(replay, batch_size=None)


def of_nodes(replay: Replay) -> Any:
    nodes = pytest.importorskip("torchdata.nodes")
    return nodes.Loader(nodes.IterableWrapper(replay))


def of_prefetching_nodes(replay: Replay) -> Any:
    nodes = pytest.importorskip("torchdata.nodes")
    return nodes.Loader(nodes.Prefetcher(nodes.IterableWrapper(replay), prefetch_factor=2))


@pytest.mark.parametrize("wrap", [of_stateful_loader, of_nodes, of_prefetching_nodes])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_loader_around_it_continues_at_the_very_next_batch(
    make: Callable[[], Replay], wrap: Callable[[Replay], Any], taken: int
) -> None:
    whole = places(make().play(2))
    images = len(whole) // 2
    loader = wrap(make())
    batches = iter(loader)
    given = [next(batches) for _ in range(taken)]
    state = copy.deepcopy(loader.state_dict())
    later = wrap(make())
    later.load_state_dict(state)
    rest = places(later)
    assert places(given) + rest == whole[:images]
    assert places(later) == whole[images:]  # the next iteration is the next epoch


@pytest.mark.parametrize("wrap", [of_stateful_loader, of_nodes])
def test_a_state_after_the_last_batch_continues_with_the_next_epoch(
    make: Callable[[], Replay], wrap: Callable[[Replay], Any]
) -> None:
    whole = places(make().play(2))
    loader = wrap(make())
    assert places(loader) == whole[: len(whole) // 2]
    later = wrap(make())
    later.load_state_dict(copy.deepcopy(loader.state_dict()))
    assert places(later) == whole[len(whole) // 2 :]


def test_a_batch_is_a_tree_that_moves(make: Callable[[], Replay]) -> None:
    batch = next(iter(make()))
    leaves, structure = pytree.tree_flatten(batch)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    again = pytree.tree_unflatten(leaves, structure)
    assert isinstance(again, TrainBatch)
    doubled = pytree.tree_map(lambda leaf: leaf * 2, batch)
    assert torch.equal(doubled.images, batch.images * 2)
    moved = batch.to("meta")
    assert (moved.images.device.type, moved.logits.device.type) == ("meta", "meta")
    assert (moved.total, moved.share) == (batch.total, batch.share)
    shapes = f"images float32 {[*batch.images.shape]}, logits float32 {[*batch.logits.shape]}"
    assert repr(batch) == f"TrainBatch({BATCH} crops: {shapes}, on cpu)"


@pytest.mark.parametrize("at", [2, 7, 10])  # steps of 5 an epoch, of which every third is saved
def test_lightning_continues_in_the_middle_of_an_epoch(
    at: int, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed: the checkpoint of every third step is all that is left."""
    pytest.importorskip("lightning.pytorch")
    from examples import lightning_loop

    class Killed(BaseException):
        pass

    class Watched(lightning_loop.Student):
        def training_step(self, batch: TrainBatch, index: int) -> torch.Tensor:
            if self.global_step == stop:
                raise Killed
            taken.append((self.global_step, *places([batch])))
            return super().training_step(batch, index)

    for name, value in (("Student", Watched), ("BATCH_SIZE", BATCH), ("SAVE_EVERY", 3)):
        monkeypatch.setattr(lightning_loop, name, value)
    stop, taken = -1, list[Any]()
    whole = lightning_loop.train(world.store, world.images, tmp_path / "whole", 3)
    wanted, taken = taken, []
    stop = at
    with pytest.raises(Killed):
        lightning_loop.train(world.store, world.images, tmp_path / "parts", 3)
    del taken[at // 3 * 3 :]  # the steps after the last checkpoint
    stop = -1
    parts = lightning_loop.train(world.store, world.images, tmp_path / "parts", 3)
    assert taken == wanted
    same(whole.lightning_module.network.state_dict(), parts.lightning_module.network.state_dict())


def test_lightning_continues_a_finished_run(world: World, tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch")
    from examples import lightning_loop

    whole = lightning_loop.train(world.store, world.images, tmp_path / "whole", 2)
    lightning_loop.train(world.store, world.images, tmp_path / "parts", 1)
    parts = lightning_loop.train(world.store, world.images, tmp_path / "parts", 2)
    assert whole.global_step == parts.global_step == 2
    same(whole.lightning_module.network.state_dict(), parts.lightning_module.network.state_dict())
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["last.ckpt"]


def test_accelerate_continues_where_it_stopped(world: World, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from examples import accelerate_loop

    steps = accelerate_loop.train(world.store, world.images, tmp_path / "whole", 3)
    first = accelerate_loop.train(world.store, world.images, tmp_path / "parts", 1)
    assert first + accelerate_loop.train(world.store, world.images, tmp_path / "parts", 3) == steps
    assert accelerate_loop.train(world.store, world.images, tmp_path / "parts", 3) == 0
    from safetensors.torch import load_file

    same(*(load_file(tmp_path / name / "epoch-3" / "model.safetensors") for name in ("whole", "parts")))


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
