"""A store at an address, verified, shown and trained from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from labelstore import LabelStore, PieceCache
from labelstore.operations.transfer import push
from pipeline.__main__ import main as pipeline_main
from pipeline.images import manifest
from pipeline.images.manifest import Manifest
from pipeline.replay.source import open_images
from tests.journeys.world import SERVER, Ended, Running, World, giftwrap, run_as_command
from tests.labelstore.buckets import BUCKET, SECRET, bucket, environment, patience, put_folder
from tests.labelstore.loopback import serving
from tests.labelstore.test_addresses import Server
from trainer.replay import Replay


@pytest.fixture
def address(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "*")
    with serving(Server(world.store.parent)) as server:
        server.mode = "private"
        yield server.address.replace("//", "//user:secret@") + f"/{world.store.name}"


def test_it_is_verified_shown_and_trained_from(world: World, tmp_path: Path, address: str) -> None:
    store, images = ("--store", address), ("--images", world.images)
    shown = address.replace("user:secret@", "")
    out, run = tmp_path / "sheet.png", tmp_path / "run"
    verified = giftwrap("pipeline", "verify", *store, *images, "--weights", world.weights)
    assert (verified.code, verified.out.splitlines()[-1]) == (0, f"{shown}: verified"), verified.err
    bare = giftwrap("pipeline", "show", address, "--out", out)
    assert (bare.code, bare.err.count("\n")) == (2, 1)
    assert f"--images: missing; give the images that the store was made of; of images at {shown}: --imag" in bare.err
    sheet = giftwrap("pipeline", "show", *store, *images, "--out", out, "--count", 2)
    assert (sheet.code, out.exists()) == (0, True), sheet.err
    train = ("trainer", "train", *store, *images, "--student", "convnet-d1", "--run-folder", run, "--epochs", 1)
    for _ in range(2):
        trained = giftwrap(*train, "--views", 1)
        assert trained.code == 0, trained.err
    kept = "".join(path.read_text() for path in run.iterdir() if path.suffix in (".toml", ".json", ".jsonl"))
    assert shown in kept
    assert "secret" not in kept + verified.out + trained.out + trained.err
    followed = giftwrap(*train[:-4], "--run-folder", tmp_path / "other", "--epochs", 1, "--follow")
    assert (followed.code, followed.err.count("\n")) == (2, 1), followed.err
    assert f"error: {shown}: expected a store in a folder of this machine to follow" in followed.err
    built = giftwrap(
        "pipeline", "build", *store, *images, "--teacher", "convnet-d1", "--weights", world.weights, "--size", 8,
        "--views", 1, cwd=tmp_path,
    )  # fmt: skip
    assert (built.code, built.out) == (2, "")
    assert built.err.startswith(f"error: {shown}: expected a path on this machine, found an address")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "sheet.png"]


def with_environment(variables: dict[str, str], words: list[str], folder: Path) -> Ended:
    """Run a command with further variables of the environment, which the server of processes does not have.

    It waits a moment before it tries a request again.
    """
    out, err = folder / "out", folder / "err"
    process = SERVER.Process(target=_run, args=(variables, words, out, err), daemon=True)
    process.start()
    return Running(process, out, err).end()


def _run(variables: dict[str, str], words: list[str], out: Path, err: Path) -> None:
    os.environ.update(variables)
    with pytest.MonkeyPatch.context() as patch:
        patience(patch, FIRST_WAIT=timedelta(milliseconds=1), LONGEST_WAIT=timedelta(milliseconds=2))
        run_as_command(words, out, err, None)


def test_training_from_a_bucket_gives_the_bytes_of_training_from_a_folder(world: World, tmp_path: Path) -> None:
    def train(store: Path | str, images: Path | str, run: Path, *more: object) -> list[str]:
        words = (
            "trainer", "train", "--store", store, "--images", images, "--test-images", images,
            "--student", "convnet-d1", "--epochs", 2,
            "--views", 2, "--threads", 1, "--run-folder", run, *more,
        )  # fmt: skip
        return [str(word) for word in words]

    local = giftwrap(*train(world.store, world.images, tmp_path / "local"))
    assert local.code == 0, local.err
    with bucket() as proxy:
        push(world.store, address := f"s3://{BUCKET}/labels")
        words = train(
            address, put_folder(world.images, "images"), tmp_path / "remote", "--cache-dir", tmp_path / "cache"
        )
        proxy.faults = ["500", "", "truncate", "503", "", "drop"] * 3
        remote = with_environment(environment(proxy), words, tmp_path)
        assert remote.code == 0, remote.err
        assert SECRET not in remote.out + remote.err
        tested = ["trainer", "evaluate", "--run-folder", tmp_path / "remote", "--cache-dir", tmp_path / "tested"]
        evaluated = with_environment(environment(proxy), [*map(str, tested)], tmp_path)
        assert evaluated.code == 0, evaluated.err
    assert [*(tmp_path / "tested").glob("images-*.npz")]
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {"", ".npz"}
    weights, theirs = ((tmp_path / name / "last.safetensors").read_bytes() for name in ("local", "remote"))
    assert weights == theirs
    kept = b"".join(path.read_bytes() for path in (tmp_path / "remote").rglob("*") if path.is_file())
    assert SECRET.encode() not in kept
    assert address.encode() in kept


def test_sets_are_made_and_copied_from_images_in_a_bucket(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> int:
        monkeypatch.setattr("sys.argv", ["pipeline", *map(str, words)])
        return pipeline_main()

    with bucket():
        address = put_folder(world.images, "images")
        for images, out in ((world.images, "of-folder"), (address, "of-bucket")):
            assert run("synthesize", "random", "--images", images, "--ipc", 1, "--out", out) == 0
            assert run("synthesize", "--check", out, "--images", images) == 0
        assert run("import", address, "--out", "copied") == 0
        capsys.readouterr()
        assert run("import", f"{address}-none", "--out", "nothing") == 2
        assert run("verify", "--store", f"{address}-none", "--images", address, "--cache-dir", "kept") == 2
        assert run("show", "--store", world.store, "--images", address, "--cache-dir", "kept", "--out", "s.png") == 2
        assert capsys.readouterr().err.count("\n") == 3
    assert contents(tmp_path / "of-folder") == contents(tmp_path / "of-bucket")
    assert contents(tmp_path / "copied") == contents(world.images)
    assert not [name for name in ("nothing", "kept", "s.png") if (tmp_path / name).exists()]


def contents(folder: Path) -> dict[str, bytes]:
    """The images of a class folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_images_of_a_store_elsewhere_are_read_once(
    world: World, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened() -> Manifest:
        store = LabelStore.open(address, cache=PieceCache(tmp_path / "cache", 1 << 30))
        return open_images(store, world.images)

    once = opened()
    monkeypatch.setattr(manifest, "_read_image", None)
    assert opened().digest == once.digest


def test_it_is_replayed_as_its_folder_is(world: World, address: str) -> None:
    ours, theirs = (next(iter(Replay(store, world.images, batch_size=4))) for store in (address, world.store))
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.logits, theirs.logits)
