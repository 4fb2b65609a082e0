"""Operators on labels: each against a few lines of numpy, what they promise, and through whole trainings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import trainer.relabel
from labelstore import LabelStore
from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.errors import InputError, MismatchError
from labelstore.operations.convert import convert
from pipeline.ranks import Ranks
from tests.journeys.world import World
from trainer import train as loop
from trainer.config import TrainConfig
from trainer.losses import LossSpec, make_loss, make_relabelled_loss
from trainer.material import open_replay
from trainer.relabel import OPERATORS, LabelColumns, describe, make_relabel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
NAMES = ("ant", "bee", "cat", "dog", "2")
# Wider labels, whose columns 7, 1, 5, 0 and 3 are the classes'.
COLUMNS = LabelColumns(9, NAMES, (7, 1, 5, 0, 3))


def softmax(t: Floats) -> Floats:
    raised = np.exp(t - t.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def topk(p: Floats, kept: int) -> Floats:
    made = np.zeros_like(p)
    for row, values in enumerate(p):
        for column in sorted(range(len(values)), key=lambda at: (-values[at], at))[:kept]:
            made[row, column] = values[column]
    return made


def swap(p: Floats, place: int) -> Floats:
    made = p.copy()
    for row, values in enumerate(p):
        high = sorted(range(len(values)), key=lambda at: (-values[at], at))[place - 1]
        low = min(range(len(values)), key=lambda at: (values[at], at))
        made[row, high], made[row, low] = values[low], values[high]
    return made


def drop_others(p: Floats, columns: Sequence[int], y: Ints, y2: Ints, lam: Floats) -> Floats:
    made = p.copy()
    for row, column in np.ndindex(len(p), len(columns)):
        shown = {y[row]} if lam[row] == 1 else {y2[row]} if lam[row] == 0 else {y[row], y2[row]}
        if columns[column] not in shown:
            made[row, columns[column]] = 0
    return made


def hard(y: Ints, y2: Ints, lam: Floats, count: int) -> Floats:
    return lam[:, None] * np.eye(count)[y] + (1 - lam[:, None]) * np.eye(count)[y2]


ORACLES: dict[str, Callable[[Floats, Ints, Ints, Floats], Floats]] = {
    "topk=3": lambda t, *_: topk(softmax(t), 3),
    "topk=9": lambda t, *_: softmax(t),
    "swap=1": lambda t, *_: swap(softmax(t), 1),
    "swap=4": lambda t, *_: swap(softmax(t), 4),
    "temperature=2.5": lambda t, *_: t / 2.5,
    "drop=bee,2": lambda t, *_: softmax(t) * ~np.isin(np.arange(9), [1, 3]),  # a name first: "2" is column 3
    "drop=1,3": lambda t, *_: softmax(t) * ~np.isin(np.arange(9), [1, 0]),
    "drop-others=ant,dog": lambda t, *targets: drop_others(softmax(t), [7, 0], *targets),
    "soften": lambda t, *_: softmax(t),
    "hard": lambda _, y, y2, lam: hard(y, y2, lam, 9),
    "temperature=0.5 soften": lambda t, *_: softmax(2 * t),
    "temperature=3 swap=2 topk=4": lambda t, *_: topk(swap(softmax(t / 3), 2), 4),
    "topk=4 swap=2": lambda t, *_: swap(topk(softmax(t), 4), 2),
    "hard topk=1": lambda _, y, y2, lam: topk(hard(y, y2, lam, 9), 1),
    "drop=ant topk=2": lambda t, *_: topk(softmax(t) * (np.arange(9) != 7), 2),
}


def case(seed: int, rows: int = 12, columns: int = 9) -> tuple[Floats, Ints, Ints, Floats]:
    """Logits with ties, targets among the classes' columns, and weights with 0 and 1."""
    rng = np.random.default_rng(seed)
    t = rng.integers(-6, 6, (rows, columns)) / 2
    y, y2 = np.array([7, 1, 5, 0, 3])[rng.integers(0, 5, (2, rows))]
    lam = rng.random(rows)
    lam[:3] = 0, 1, 0.5
    return t, y, y2, lam


def tensors(*arrays: npt.NDArray[Any]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("words", ORACLES)
@pytest.mark.parametrize("seed", range(5))
def test_each_operator_is_its_oracle(words: str, seed: int) -> None:
    t, y, y2, lam = case(seed)
    given, others = torch.from_numpy(t), tensors(y, y2, lam)
    before = given.clone()
    found = make_relabel(words.split(), COLUMNS)(given, *others)
    np.testing.assert_allclose(found.numpy(), ORACLES[words](t, y, y2, lam), rtol=1e-12, atol=1e-15)
    assert torch.equal(given, before)


def test_every_operator_has_an_oracle() -> None:
    assert {word.partition("=")[0] for words in ORACLES for word in words.split()} == {*OPERATORS}


def test_unmixed_targets_need_no_partner() -> None:
    t, y, *_ = case(0)
    for word in ("hard", "drop-others=ant,dog"):
        relabel, ones = make_relabel([word], COLUMNS), torch.ones(12)
        labels, own, partners = tensors(t, y, (y + 1) % 9)
        assert torch.equal(relabel(labels, own), relabel(labels, own, partners, ones))


@settings(deadline=None)
@given(st.integers(2, 12), st.data())
def test_swap_twice_changes_nothing_where_nothing_ties(columns: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(1, columns))
    t = torch.tensor([data.draw(st.permutations(range(columns))) for _ in range(3)]) / 3
    where = LabelColumns(columns, NAMES[:2], (0, 1))
    y = torch.zeros(3, dtype=torch.int64)
    once, twice = (make_relabel([f"swap={place}"] * times, where)(t, y) for times in (1, 2))
    assert torch.equal(twice, t.softmax(1))
    assert torch.equal(once, t.softmax(1)) == (place == columns)
    assert torch.equal(once.sort(1).values, t.softmax(1).sort(1).values)


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**32), st.data())
def test_topk_keeps_the_largest_and_all_of_them_at_most(columns: int, seed: int, data: st.DataObject) -> None:
    kept, fewer = sorted(data.draw(st.tuples(*[st.integers(1, columns)] * 2)), reverse=True)
    t, y, *_ = tensors(*case(seed, columns=columns))
    where = LabelColumns(columns, NAMES[:2], (0, 1))
    probabilities = t.softmax(1)
    assert torch.equal(make_relabel([f"topk={columns}"], where)(t, y), probabilities)
    found = make_relabel([f"topk={kept}"], where)(t, y)
    assert ((found != 0).sum(1) == kept).all()
    assert torch.equal(found.sum(1) <= 1 + 1e-12, torch.ones(len(t), dtype=torch.bool))
    both = make_relabel([f"topk={kept}", f"topk={fewer}"], where)(t, y)
    assert torch.equal(both, make_relabel([f"topk={fewer}"], where)(t, y))


def test_half_precision_is_widened_and_codes_are_refused() -> None:
    t = torch.tensor([[1.0, 2.0, 4.0]])
    where, y = LabelColumns(3, NAMES[:3], (0, 1, 2)), torch.tensor([0])
    found = make_relabel(["soften"], where)(t.half(), y)
    assert found.dtype == torch.float32
    assert torch.equal(found, t.softmax(1))
    with pytest.raises(InputError, match=r"expected decoded labels, found codes in torch\.int8"):
        make_relabel(["soften"], where)(t.to(torch.int8), y)


@pytest.mark.parametrize("words", ["topk=3", "swap=2", "drop=ant", "soften", "hard"])
def test_losses_of_probabilities_are_torchs(words: str) -> None:
    t, y, y2, lam = tensors(*case(3))
    x = torch.randn(12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    p = make_relabel([words], COLUMNS)(t, y, y2, lam)
    expected = torch.nn.functional.cross_entropy(x, p)
    found = make_relabelled_loss(LossSpec(name="soft_ce"), [words], COLUMNS)(x, t, y, y2, lam)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,), (known,) = torch.autograd.grad(found, x), torch.autograd.grad(expected, x)
    torch.testing.assert_close(gradient, known, rtol=1e-10, atol=1e-12)
    summed = make_relabelled_loss(LossSpec(name="soft_ce+ce", hard_weight=0.3), [words], COLUMNS)(x, t, y, y2, lam)
    hard_term = make_loss(LossSpec(name="ce"))(x, t, y, y2, lam)
    assert summed.item() == pytest.approx(expected.item() + 0.3 * hard_term.item(), rel=1e-12)


def test_losses_that_are_the_same_another_way() -> None:
    t, y, y2, lam = tensors(*case(4))
    x = torch.randn(12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def value(name: str, *words: str, **numbers: Any) -> float:
        return make_relabelled_loss(LossSpec(name=name, **numbers), words, COLUMNS)(x, t, y, y2, lam).item()

    assert value("soft_ce", "soften") == pytest.approx(value("soft_ce"), rel=1e-12)
    assert value("soft_ce", "topk=9") == pytest.approx(value("soft_ce"), rel=1e-12)
    assert value("soft_ce", "hard") == pytest.approx(value("ce"), rel=1e-12)
    assert value("mse", "temperature=2") == pytest.approx(torch.nn.functional.mse_loss(x, t / 2).item(), rel=1e-12)
    assert value("soft_ce", "temperature=4") == pytest.approx(value("soft_ce", "temperature=4", "soften"), rel=1e-12)
    assert abs(value("soft_ce", "topk=2", "swap=1") - value("soft_ce", "swap=1", "topk=2")) > 1e-3


def users(x: Tensor, t: Tensor, y: Tensor, y2: Tensor, lam: Tensor) -> Tensor:
    """A loss of the user's: compares distributions."""
    del y, y2, lam
    return (x.softmax(1) - t).square().mean()


def test_a_loss_of_the_users_gets_probabilities() -> None:
    t, y, y2, lam = tensors(*case(5))
    x = torch.zeros_like(t)
    loss = make_relabelled_loss(LossSpec(name=f"{__name__}:users"), ["topk=2"], COLUMNS)
    expected = users(x, make_relabel(["topk=2"], COLUMNS)(t, y), y, y2, lam)
    assert torch.equal(loss(x, t, y, y2, lam), expected)


@pytest.mark.parametrize(
    ("loss", "words", "message"),
    [
        ("soft_ce", "top=2", r"--relabel: expected topk=K, swap=K, .*, soften, hard, found 'top=2'"),
        ("soft_ce", "topk", "expected topk=K"),
        ("soft_ce", "hard=1", "expected topk=K"),
        ("soft_ce", "topk=0", "--relabel topk: expected a whole number of columns, at least 1, found '0'"),
        ("soft_ce", "swap=1.5", "--relabel swap: expected a whole number"),
        ("soft_ce", "temperature=0", "--relabel temperature: expected a number > 0, found '0'"),
        ("soft_ce", "temperature=nan", "--relabel temperature: expected a number > 0"),
        ("soft_ce", "temperature=x", "--relabel temperature: expected a number > 0, found 'x'"),
        ("soft_ce", "drop=", "--relabel drop: expected classes with commas"),
        ("soft_ce", "drop-others=ant,", "--relabel drop-others: expected classes with commas"),
        ("soft_ce", "topk=2 temperature=2", "temperature=2: takes logits, and topk=2 before it gives probabilities"),
        ("soft_ce", "soften soften", "soften: takes logits, and soften before it"),
        ("soft_ce", "topk=2 hard", "hard: replaces labels, so that topk=2 before it has no effect"),
        ("gift", "soften", "--loss gift: is a loss of logits, and --relabel soften gives probabilities; take soft_ce"),
        ("kl", "temperature=2 topk=1", "--loss kl: is a loss of logits, and --relabel topk=1 gives probabilities"),
        ("mse+ce", "hard", r"--loss mse\+ce: is a loss of logits"),
        ("ce", "temperature=2", "--loss ce: reads no labels, so that --relabel temperature=2 has no effect"),
        ("cosine", "temperature=2", "--loss cosine: is the same for labels of any scale"),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_is_opened(loss: str, words: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_flags(
            TrainConfig, store=Path("s"), images=Path("i"), student="convnet-d2", epochs=1, run_folder=Path("r"),
            loss=loss, relabel=tuple(words.split()),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("topk=10", "--relabel topk=10: expected at most 9, the columns of the labels"),
        ("swap=10", "--relabel swap=10: expected at most 9"),
        (
            "drop=eel",
            r"--relabel drop: expected classes \(ant, bee, cat, \.\.\.\) or their indexes, 0 to 4, found 'eel'",
        ),
        ("drop-others=5", "--relabel drop-others: expected classes .* found '5'"),
        ("drop=ant,0", "--relabel drop=ant,0: names a class twice"),
    ],
)
def test_what_does_not_fit_the_labels_is_refused(word: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_relabel([word], COLUMNS)
    with pytest.raises(InputError, match="leaves none of the 2 columns"):
        make_relabel(["drop=ant,bee"], LabelColumns(2, NAMES[:2], (0, 1)))


def test_it_is_described() -> None:
    assert describe(["temperature=2", "topk=3", "swap=1"]) == (
        "relabel: temperature=2, then softmax, then topk=3, then swap=1; the loss compares probabilities"
    )
    assert describe(["temperature=2"]) == "relabel: temperature=2; the loss compares logits"
    assert describe(["hard"]) == "relabel: hard; the loss compares probabilities"


@pytest.fixture(scope="module")
def config(world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of two epochs."""
    return from_flags(
        TrainConfig,
        store=world.store,
        images=world.images,
        student="convnet-d2",
        student_args='{"width": 8}',
        epochs=2,
        batch_size=8,
        loss="soft_ce",
        run_folder=tmp_path_factory.mktemp("relabel") / "run",
        lr=3e-3,
        threads=1,
    )


@pytest.mark.parametrize(
    "words",
    ["topk=2", "swap=1", "temperature=0.5", "drop=bee", "drop-others=2", "soften", "hard", "temperature=2 topk=1"],
)
def test_a_training_with_each(
    words: str, config: TrainConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = changed(config, relabel=tuple(words.split()), run_folder=tmp_path / "run")
    loop.train(run, Console(as_json=True))
    described = json.loads((run.run / "config.json").read_text())["made_of"]["run"]
    assert described["relabel"] == words.split()
    assert f"relabel: {words.split()[0]}" in capfd.readouterr().err.replace("softmax, then ", "")
    losses = [json.loads(line)["loss"] for line in (run.run / "log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(loss) for loss in losses)


def test_softened_labels_train_the_same_student_and_another_relabel_is_refused(
    config: TrainConfig, tmp_path: Path
) -> None:
    loop.train(config, Console(as_json=True))
    softened = changed(config, relabel=("soften",), run_folder=tmp_path / "run")
    loop.train(softened, Console(as_json=True))
    plain, same = (
        [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (config.run, softened.run)
    )
    assert same == pytest.approx(plain, rel=1e-6)
    assert "relabel" not in json.loads((config.run / "config.json").read_text())["made_of"]["run"]
    with pytest.raises(MismatchError, match=r"different run \(--relabel"):
        loop.train(changed(softened, relabel=("topk=2",)), Console(as_json=True))
    with pytest.raises(MismatchError, match=r"different run \(--relabel"):
        loop.train(changed(config, relabel=("topk=2",)), Console(as_json=True))
    with pytest.raises(MismatchError, match=r"different run \(--relabel"):
        loop.train(changed(softened, relabel=()), Console(as_json=True))
    with pytest.raises(InputError, match="topk=4: expected at most 3"):
        loop.train(changed(config, relabel=("topk=4",), run_folder=tmp_path / "wide"), Console(as_json=True))
    assert not (tmp_path / "wide").exists()


def test_labels_in_any_scale_are_decoded_for_an_operator(
    config: TrainConfig, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator of the user's, a file and a line in the table, gives gift logits of another direction."""
    centred = SimpleNamespace(
        argument="",
        takes="logits",
        gives="logits",
        check=lambda _text: None,
        make=lambda _text, _columns: lambda t, *_: t - t.mean(1, keepdim=True),
    )
    monkeypatch.setitem(trainer.relabel.OPERATORS, "centre", centred)
    convert(LabelStore.open(world.store), tmp_path / "store", {"name": "float16"})
    for words in ((), ("centre",)):
        run = changed(config, store=tmp_path / "store", loss="gift", relabel=words)
        replay = open_replay(run, Ranks(), 1)
        batch = next(iter(replay))
        assert (batch.logits.dtype == torch.float32) == bool(words)
        if words:
            loss = make_relabelled_loss(LossSpec(), words, LabelColumns(3, NAMES[:3], (0, 1, 2)))
            x, t = torch.ones(8, 3), batch.logits
            targets = batch.targets, batch.targets2, batch.lam
            assert torch.equal(loss(x, t, *targets), make_loss(LossSpec())(x, t - t.mean(1, keepdim=True), *targets))
        replay.close()
