"""The order of a run: what comes when, exactly once, whoever asks and from wherever."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore.errors import InputError
from trainer.order import WINDOW, Order


@st.composite
def orders(draw: st.DrawFn) -> Order:
    return Order(
        views=draw(st.integers(1, 6)),
        images=draw(st.integers(1, 300)),
        group=draw(st.integers(1, 40)),
        seed=draw(st.integers(0, 2**64)),
        mode=draw(st.sampled_from(["shuffle", "cycle"])),
    )


@settings(deadline=None)
@given(orders(), st.integers(0, 20))
def test_an_epoch_plays_every_position_once_and_groups_whole(order: Order, epoch: int) -> None:
    positions = order.positions(epoch)
    assert positions.dtype == np.int64
    assert sorted(positions.tolist()) == list(range(order.images))
    for start in range(0, order.images, order.group):
        played = positions[start : start + order.group]
        first = played[0]
        assert first % order.group == 0
        assert played.tolist() == list(range(first, min(first + order.group, order.images)))


@settings(deadline=None)
@given(orders(), st.integers(0, 20), st.data())
def test_slices_join_to_the_same_sequence(order: Order, epoch: int, data: st.DataObject) -> None:
    """Whatever the world size, the batch, or where a run stopped: everyone cuts one sequence."""
    whole = order.positions(epoch)
    cuts = sorted(data.draw(st.lists(st.integers(0, order.images), max_size=5)))
    bounds = [0, *cuts, order.images]
    parts = [order.positions(epoch, a, b) for a, b in itertools.pairwise(bounds)]
    assert np.array_equal(np.concatenate(parts), whole)


@settings(deadline=None)
@given(orders(), st.integers(0, 4))
def test_every_cycle_plays_every_view_once(order: Order, cycle: int) -> None:
    epochs = range(cycle * order.views, (cycle + 1) * order.views)
    views = [order.view(epoch) for epoch in epochs]
    assert sorted(views) == list(range(order.views))
    assert {order.times_played(epoch) for epoch in epochs} == {cycle}
    if order.mode == "cycle":
        assert views == list(range(order.views))
    if cycle == 0:
        assert all(np.array_equal(order.positions(epoch), np.arange(order.images)) for epoch in epochs)


@pytest.mark.parametrize("group", [1, 3, 128, 70_000])
def test_a_replay_stays_in_windows_of_whole_groups(group: int) -> None:
    images = 200_003
    order = Order(views=1, images=images, group=group, seed=5)
    positions = order.positions(1)
    assert np.array_equal(np.sort(positions), np.arange(images))
    size = max(WINDOW // group, 1) * group
    whole = images // group * group
    window = positions[:whole] // size
    changes = np.flatnonzero(np.diff(window)) + 1
    visited = [int(part[0]) for part in np.split(window, changes)]
    assert sorted(visited) == list(range(-(-whole // size)))  # each window played in one run
    assert np.array_equal(positions[whole:], np.arange(whole, images))  # the short last group
    # across the borders of windows too, any slice is that slice of the whole
    for start, stop in ((0, 10), (size - 5, size + 5), (images - 7, images), (1_000, 150_000)):
        assert np.array_equal(order.positions(1, start, stop), positions[start:stop])


def test_replays_differ_by_seed_view_and_times_played() -> None:
    order = Order(views=3, images=500, seed=1)
    played = [tuple(order.positions(epoch)) for epoch in range(3, 12)]
    played += [tuple(Order(views=3, images=500, seed=2).positions(epoch)) for epoch in range(3, 12)]
    assert len(set(played)) == len(played)
    views = {tuple(Order(views=20, images=1, seed=seed).view(e) for e in range(20)) for seed in range(50)}
    assert len(views) == 50
    cycles = Order(views=20, images=1)
    assert [cycles.view(e) for e in range(20)] != [cycles.view(e) for e in range(20, 40)]


def test_replays_are_well_shuffled() -> None:
    """Mean position at each offset over many replays: uniform to five standard errors."""
    images, replays = 200, 400
    order = Order(views=1, images=images, seed=3)
    mean = np.mean([order.positions(epoch) for epoch in range(1, replays + 1)], axis=0)
    error = np.sqrt((images**2 - 1) / 12 / replays)
    assert np.abs(mean - (images - 1) / 2).max() < 5 * error


def test_golden() -> None:
    """These numbers are the format: a run that resumes under another version must find them again."""
    order = Order(views=7, images=23, group=4, seed=5)
    assert [order.view(epoch) for epoch in range(14)] == [6, 1, 2, 4, 0, 3, 5, 3, 5, 1, 4, 6, 2, 0]
    assert order.positions(9)[::4].tolist() == [16, 8, 12, 0, 4, 20]
    single = Order(views=2, images=13, seed=5)
    assert single.positions(4).tolist() == [8, 7, 4, 10, 1, 6, 11, 3, 5, 0, 9, 12, 2]
    large = Order(views=2, images=300_000, seed=2**63)
    assert large.positions(3)[::50_000].tolist() == [154446, 183706, 76371, 263830, 38784, 238201]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": 0, "images": 5}, "views: expected at least 1, found 0"),
        ({"views": 1, "images": 0}, "images"),
        ({"views": 1, "images": 5, "group": 0}, "group"),
        ({"views": 1, "images": 5, "mode": "random"}, "'shuffle' or 'cycle', found 'random'"),
    ],
)
def test_what_is_no_order_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Order(**fields)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3), (0, 11)])
def test_offsets_outside_are_refused(start: int, stop: int) -> None:
    with pytest.raises(InputError, match=rf"within \[0, 10\], found {start}:{stop}"):
        Order(views=1, images=10).positions(0, start, stop)
