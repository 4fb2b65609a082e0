"""Modules of one's own, named in the environment: what they add to tables is among the choices of flags."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from labelstore.__main__ import main
from labelstore.command.program import MODULES
from labelstore.export_table import EXPORTS
from tests.labelstore.making import Content, build, make_identity

OWN = """
from labelstore.export_table import EXPORTS, Exported

def first_choices(store, out, options):
    labels = store.read_images(0, slice(None)).logits
    out.write_text(" ".join(map(str, labels.argmax(1))))
    return Exported(labels.shape, "first choices", out.stat().st_size)

EXPORTS["choices"] = "{name}:first_choices"
"""


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[str, str, int]]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def act(modules: str, *words: str) -> tuple[str, str, int]:
        monkeypatch.setenv(MODULES, modules)
        monkeypatch.setattr("sys.argv", ["labelstore", *words])
        capsys.readouterr()
        code = main()
        return (*capsys.readouterr(), code)

    return act


def test_a_format_of_ones_own_is_exported(
    run: Callable[..., tuple[str, str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXPORTS, "choices", "no.such:module")  # so that what the module adds is gone after the test
    del EXPORTS["choices"]
    content = Content(make_identity(encoding="float16", columns=7), 4)
    build(tmp_path / "store", content, 4)
    (tmp_path / "own_format.py").write_text(OWN.format(name="own_format"))
    words = ("export", "store", "out.txt", "--format", "choices")
    _, err, code = run("", *words)
    assert code == 2
    assert "choices" in err
    _, err, code = run(" own_format,", *words)
    assert (err, code) == ("", 0)
    expected = np.empty(len(content.order[0]), int)
    expected[content.order[0]] = content.logits[0].argmax(1)
    assert (tmp_path / "out.txt").read_text() == " ".join(map(str, expected))


@pytest.mark.parametrize("text", ["raise RuntimeError('half\\ndone')", "import no_such_module", "exit(3)"])
def test_a_module_that_cannot_be_imported_is_a_line(
    text: str, run: Callable[..., tuple[str, str, int]], tmp_path: Path
) -> None:
    (tmp_path / "broken_module.py").write_text(text)
    _, err, code = run("broken_module", "info", "store")
    assert code == 2
    assert err.startswith("error: GIFTWRAP_MODULES=broken_module: expected a module in this folder or in PYTHONPATH")
    assert len(err.splitlines()) == 1
