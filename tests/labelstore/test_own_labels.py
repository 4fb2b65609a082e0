"""Stores of arrays: labels of any labeller come back as they were given, and wrong arrays are refused in one line."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelstore import BlockShape, CropRows, LabelStore, Mixing, check, from_arrays
from labelstore.errors import GiftwrapError, InputError, MismatchError
from labelstore.operations.adopting import AdoptedCrops, adopted_identity, write_adopted
from labelstore.operations.info import info

V, N, C, S = 6, 9, 4, 8


def arrays(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Arguments of `from_arrays`, drawn."""
    rng = np.random.default_rng(seed)
    sides = rng.integers(10, 300, (N, 2))
    cut = rng.integers(1, sides + 1, (V, N, 2))
    plain: dict[str, Any] = {
        "images": rng.integers(0, 256, (N, 32)).astype(np.uint8),
        "targets": np.sort(rng.integers(0, 2, N)),
        "classes": ("cat", "dog"),
        "sides": sides,
        "size": S,
        "boxes": np.concatenate([rng.integers(0, sides - cut + 1), cut], axis=2),
        "flips": rng.random((V, N)) < 0.5,
        "logits": rng.normal(size=(V, N, C)).astype(np.float16),
        "labeller": "mine",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "encoding": {"name": "float16"},
    }
    return plain | changes


def positions(given: dict[str, Any]) -> np.ndarray:
    """An order for the arrays."""
    rng = np.random.default_rng(1)
    return np.stack([rng.permutation(N) for _ in range(V)])


@pytest.mark.parametrize("ordered", [False, True])
def test_what_is_given_comes_back(tmp_path: Path, ordered: bool) -> None:
    given = arrays()
    if ordered:
        given["order"] = positions(given)
        fits = np.minimum(given["sides"][:, None].min(0).min(), 10)
        given["boxes"] = np.broadcast_to([1, 2, fits - 1, fits - 2], (V, N, 4))
    store = from_arrays(tmp_path / "s", **given)
    assert check(store.path).ok
    for view in range(V):
        batch = store.read_images(view, range(N))
        at = np.argsort(given["order"][view]) if ordered else np.arange(N)
        assert np.array_equal(batch.logits, given["logits"][view][at])
        assert np.array_equal(batch.rows.boxes(), given["boxes"][view][at])
        assert np.array_equal(batch.rows.flip, given["flips"][view][at])
        assert np.array_equal(batch.targets, given["targets"])
        if ordered:
            assert np.array_equal(batch.positions, at)
    shuffled = np.stack([store.rows(view, slice(None)).image for view in range(V)])
    assert len(np.unique(shuffled, axis=0)) == V  # each view has an order of its own
    values = info(store)
    assert (values["origin"], values["seed"], values["engine"]) == ("adopted", None, None)
    assert "seed" not in (store.identity.plan or {})


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.png" for n in range(N)]
    for n, file in enumerate(files):
        file.write_bytes(bytes([n]))
    store = from_arrays(tmp_path / "s", **arrays(images=files))
    assert [row.tobytes() for row in store.image_digests] == [hashlib.sha256(bytes([n])).digest() for n in range(N)]


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_mixed_crops_keep_their_partners_and_weights(tmp_path: Path, kind: str) -> None:
    group, given = 4, arrays(boxes=np.broadcast_to([0, 0, 5, 5], (V, N, 4)))
    order = positions(given)
    rng = np.random.default_rng(2)
    starts = np.arange(N) // group * group
    partners = starts + rng.integers(0, np.minimum(group, N - starts), (V, N))
    boxes = np.broadcast_to([1, 2, 4, 3], (V, N, 4))
    shares = rng.integers(0, 65536, (V, N)) / 65536
    more: dict[str, Any] = {"boxes": boxes} if kind == "cutmix" else {"shares": shares}
    store = from_arrays(tmp_path / "s", **given, order=order, mixing=Mixing(group=group, partners=partners, **more))
    for view in range(V):
        pairs = store.pairs(view, slice(None))
        assert np.array_equal(pairs.images, order[view])
        assert np.array_equal(pairs.partners, order[view][partners[view]])
        wanted = 1 - 12 / S**2 if kind == "cutmix" else shares[view]
        np.testing.assert_allclose(pairs.weights, wanted, rtol=1e-6)


def broken(name: str, place: Any, value: Any) -> dict[str, Any]:
    array = np.array(arrays()[name])
    array[place] = value
    return {name: array}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "other shape": ({"logits": np.zeros((V, N + 1, C), np.float32)}, r"logits: expected floats \[V, 9, C\], found"),
    "integers": ({"logits": np.zeros((V, N, C), int)}, r"logits: expected floats"),
    "NaN": (broken("logits", (2, 3, 1), np.nan), "logits of view 2, image 3, column 1: expected a finite number"),
    "ragged": ({"logits": [[[1.0], [2.0, 3.0]]]}, "logits: expected an array, found a list"),
    "masked": (
        {"logits": np.ma.masked_greater(arrays()["logits"], 0)},
        "logits: expected an array whose entries all count",
    ),
    "one text as classes": ({"classes": "ab"}, "classes: expected a list of names, found 'ab'"),
    "numbers as classes": ({"classes": [1, 2]}, r"classes: expected a list of names, found \[1, 2\]"),
    "half a character": ({"classes": ["a", "\ud800"]}, "classes: expected a list of names"),
    "no classes": ({"classes": None}, "classes: expected a list of names, found None"),
    "a size that is true": ({"size": True}, "size: expected an integer, found True"),
    "a size beyond all": ({"size": 70_000}, "size: expected 1 to 65535 pixels, found 70000"),
    "a filter that nothing has": ({"interpolation": "nearest"}, "interpolation: expected bilinear or bicubic"),
    "a path as labeller": ({"labeller": Path("net.pt")}, "labeller: expected a name, found"),
    "no mean": ({"mean": None}, "mean: expected three numbers, found None"),
    "notes that are no JSON": ({"notes": {"a": {1.5}}}, "expected numbers, texts, lists and objects of JSON"),
    "notes that are no number": ({"notes": {"a": float("nan")}}, "expected numbers, texts, lists and objects of JSON"),
    "half a column": ({"class_columns": [0.0, 1.0]}, "class_columns: expected an integer, found 0.0"),
    "a text as encoding": ({"encoding": "int8"}, "encoding: expected .* or None, found 'int8'"),
    "a dict as mixing": ({"mixing": {"group": 2}}, "mixing: expected a labelstore.Mixing, found a dict"),
    "infinite": (broken("logits", (0, 0, 0), np.inf), "found inf"),
    "box below": (broken("boxes", (1, 2, 0), -1), r"boxes\[1, 2, 0\]: expected 0 to 65535, found -1"),
    "box beyond": (broken("boxes", (1, 2, 3), 400), r"box of image 2 in view 1: expected .* within \d+ x \d+ pixels"),
    "box empty": (broken("boxes", (1, 2, 2), 0), "box of image 2 in view 1"),
    "boxes of floats": ({"boxes": np.zeros((V, N, 4))}, r"boxes: expected integers \[6, 9, 4\], found float64"),
    "boxes too few": ({"boxes": np.zeros((V, N), int)}, r"boxes: expected integers"),
    "target": (broken("targets", 4, 2), r"targets\[4\]: expected 0 to 1, found 2"),
    "targets too few": ({"targets": [0, 1]}, r"targets: expected integers \[9\], found int64 \[2\]"),
    "flips": ({"flips": np.zeros((V, N), int)}, r"flips: expected bool \[6, 9\], found int64"),
    "order": ({"order": np.zeros((V, N), int)}, "order: expected every image once in each view, found image 0 9 times"),
    "digests": ({"images": np.zeros((N, 32))}, r"images: expected files, or uint8 \[N, 32\]"),
    "no images": ({"images": []}, "images: expected at least one file"),
    "no such file": ({"images": ["no such file"]}, "images: no such file: cannot be read"),
    "classes": ({"classes": ("a", "b", "c", "d", "e")}, "columns: expected one for each of 5 classes, found 4"),
    "std": ({"std": (1, 0, 1)}, "std: expected three positive numbers"),
    "mean": ({"mean": (1, 0)}, "mean: expected three numbers"),
    "mixing": ({"mixing": Mixing(group=3, partners=np.zeros((V, N), int))}, "mixing: expected order, and either"),
    "encoding": (
        {"encoding": {"name": "transform", "step": 1.0}, "logits": np.zeros((V, N, 64), np.float32)},
        "written as int8 or float16",
    ),
    "crops": ({"crops": lambda *_: np.zeros((1, S, S, 3), np.uint8)}, "pixels: expected uint8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arrays_are_refused_and_leave_nothing(tmp_path: Path, name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(InputError, match=message) as refused:
        from_arrays(tmp_path / "s", **arrays(**changes))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "s").exists()


def test_partners_stay_in_their_group(tmp_path: Path) -> None:
    partners = np.broadcast_to(np.arange(N), (V, N)).copy()
    partners[3, 1] = 8
    mixing = Mixing(group=4, partners=partners, shares=np.ones((V, N)))
    given = arrays(boxes=np.broadcast_to([0, 0, 5, 5], (V, N, 4)))
    with pytest.raises(InputError, match=r"partners\[3, 1\]: expected a position of the same group of 4, found 8"):
        from_arrays(tmp_path / "s", **given, order=positions(given), mixing=mixing)


def test_the_same_call_continues_and_other_labels_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockShape, "choose", lambda *_: BlockShape(views=1, positions=4))
    path, given = tmp_path / "s", arrays()
    written: list[int] = []

    def stop(done: int, _all: int) -> None:
        written.append(done)
        if done == 7:
            raise KeyboardInterrupt

    identity, read = reading(given)
    numbers: dict[str, Any] = {"image_digests": given["images"], "targets": given["targets"], "sides": given["sides"]}
    with pytest.raises(KeyboardInterrupt):
        write_adopted(path, identity, **numbers, views=V, read=read, progress=stop)
    with pytest.raises(MismatchError, match="was started with other labels or crops"):
        write_adopted(path, identity, **numbers, views=V, read=reading(arrays(logits=given["logits"] + 1))[1])
    whole = write_adopted(path, identity, **numbers, views=V, read=read)
    fresh = write_adopted(tmp_path / "fresh", identity, **numbers, views=V, read=read)
    assert check(path).ok
    assert files_of(whole) == files_of(fresh)
    with pytest.raises(MismatchError, match="different store"):
        write_adopted(path, reading(arrays(labeller="another"))[0], **numbers, views=V, read=read)
    assert write_adopted(path, identity, **numbers, views=V, read=read).complete


def reading(given: dict[str, Any]) -> tuple[Any, Any]:
    """An identity and what reads the labels of some arrays, in the order of the images."""
    identity = adopted_identity(
        image_digests=given["images"],
        targets=given["targets"],
        classes=given["classes"],
        columns=C,
        size=S,
        views=V,
        teacher={"name": given["labeller"]},
    )

    def read(view: int, start: int, stop: int) -> AdoptedCrops:
        part = slice(start, stop)
        values = np.zeros((7, stop - start), np.uint16)
        values[0] = np.arange(start, stop)
        values[2:6] = given["boxes"][view, part].T
        values[6] = given["flips"][view, part]
        return AdoptedCrops(CropRows(identity.crop_columns, values), given["logits"][view, part])

    return identity, read


def files_of(store: LabelStore) -> dict[str, bytes]:
    """The files of a store."""
    return {str(p.relative_to(store.path)): p.read_bytes() for p in store.path.rglob("*") if p.is_file()}


def test_what_reads_must_give_what_was_asked_for(tmp_path: Path) -> None:
    given = arrays()
    identity, read = reading(given)
    numbers: dict[str, Any] = {"image_digests": given["images"], "targets": given["targets"], "views": V}

    def short(view: int, start: int, stop: int) -> AdoptedCrops:
        part = read(view, start, stop)
        return AdoptedCrops(part.rows, part.logits[:, :-1])

    bad: tuple[tuple[dict[str, Any], str], ...] = (
        ({"read": short, "sides": given["sides"]}, r"positions 0 to 8: expected float logits \[9, 4\]"),
        ({"read": read, "sides": given["sides"][:-1]}, r"sides: expected integers \[9, 2\]"),
        ({"read": read, "sides": given["sides"] // 2}, "box of image"),
        ({"read": read, "sides": given["sides"], "pixels": print}, "pixels: expected what renders crops just where"),
    )
    for arguments, message in bad:
        with pytest.raises(GiftwrapError, match=message):
            write_adopted(tmp_path / "s", identity, **(numbers | arguments))
        assert not (tmp_path / "s").exists()


def test_what_crops_raise_comes_out_and_leaves_nothing(tmp_path: Path) -> None:
    def crops(_view: int, _images: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        from_arrays(tmp_path / "s", **arrays(crops=crops))
    assert not (tmp_path / "s").exists()


def test_an_identity_that_could_not_be_read_again_leaves_nothing(tmp_path: Path) -> None:
    given = arrays()
    identity = adopted_identity(
        image_digests=np.zeros((N, 32), np.uint8), targets=np.asarray(given["targets"]), classes=given["classes"],
        columns=C, size=S, views=V, teacher={"name": Path("net.pt")},  # type: ignore[dict-item]
    )  # fmt: skip
    for wrong in (identity, replace(identity, teacher=None, size=True)):
        with pytest.raises(InputError, match=r"of JSON|identity.size: expected an integer"):
            LabelStore.create(
                tmp_path / "s",
                wrong,
                image_digests=np.zeros((N, 32), np.uint8),
                targets=np.asarray(given["targets"]),
                views=V,
            )
        assert not (tmp_path / "s").exists()
