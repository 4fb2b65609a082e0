"""A store is read in a fresh environment that has numpy and the codecs, and no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/labelstore/golden/format-2"
READERS = ("numpy", "numcodecs[pcodec]<0.17", "google-crc32c", "xxhash")
READ = """
import json, sys
import numpy as np
from labelstore import LabelStore, check

store = LabelStore.open(sys.argv[1])
logits = np.stack([batch.logits for batch in store.stream((view, slice(None)) for view in range(6))])
np.save(sys.argv[2], logits)
absent = [name for name in ("torch", "nvidia", "tyro", "threadpoolctl", "PIL") if name in sys.modules]
print(json.dumps({"ok": check(store.path).ok, "imported": absent}))
"""


def ran(*words: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What has ended, which found no module of this checkout."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(word) for word in words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=own)


def run(*words: object, folder: Path | None = None) -> str:
    ended = ran(*words, folder=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment made as docs/STORE.md has it."""
    folder = tmp_path_factory.mktemp("fresh")
    source = folder / "source"  # building a wheel leaves files beside its source
    source.mkdir()
    for name in ("giftwrap", "labelstore", "pipeline", "trainer"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", source)
    run(python, "-m", "pip", "install", "--quiet", *READERS)
    return python


@pytest.mark.long
@pytest.mark.parametrize("name", ["int8", "float16-mixed", "transform-mixed", "transform-top1"])
def test_a_golden_store_is_read_without_torch(name: str, python: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(GOLDEN / f"{name}.zip").extractall(tmp_path)
    printed = run(python, "-I", "-c", READ, tmp_path / name, tmp_path / "logits.npy")
    assert json.loads(printed) == {"ok": True, "imported": []}
    expected = np.load(GOLDEN / f"{name}.npz")["logits"]
    tolerance = 1e-5 if name.startswith("transform") else 0  # a matrix product rounds as its library likes
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=0, atol=tolerance)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    script = run(python, "-m", "examples.read_store", tmp_path / name, 3, folder=tmp_path)
    assert "image 3, mean over 6 views" in script


@pytest.mark.long
@pytest.mark.parametrize("words", [("giftwrap", "info", "store"), ("labelstore", "check", "store"), ("pipeline",)])
def test_a_command_without_what_it_needs_names_it(words: tuple[str, ...], python: Path, tmp_path: Path) -> None:
    ended = ran(python, "-m", *words, folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: tyro: not installed, and this command needs it; `pip install .`")
    assert ended.stderr.count("\n") == 1
