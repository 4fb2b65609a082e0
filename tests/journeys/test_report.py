"""The page of `giftwrap report` in a browser: no errors, every card there, sorted by a click, no wider than a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.world import World, giftwrap
from tests.trainer.report_pages import make_generator, make_projector
from tests.trainer.test_compare import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Appended to a copy of the page: what a reader does, and what the page then is, for the frame around it.
PROBE = """<script>
const texts = (selector) => [...document.querySelectorAll(selector)].map((each) => each.textContent);
const table = document.querySelector("table.data");
const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.startsWith("last top-1"));
const sorted = () => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
const click = () => { table.tHead.rows[0].cells[column].querySelector("button").click(); return sorted(); };
document.querySelectorAll("details").forEach((each) => { each.open = true; });
for (const image of document.images) image.loading = "eager";
addEventListener("load", () => {  // which comes before that of the frame around the page, which --dump-dom waits for
  parent.postMessage(JSON.stringify({
    cards: texts(".card h3"), plots: document.querySelectorAll("svg[role=img]").length,
    images: [...document.images].map((each) => each.complete && each.naturalWidth > 0),
    before: sorted(), rising: click(), falling: click(),
    inner: innerWidth, scroll: document.documentElement.scrollWidth,
    colour: getComputedStyle(document.body).backgroundColor,
  }), "*");
});
</script>"""
# No window is as narrow as a phone, but a frame can be; --dump-dom prints what comes out of it.
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark"><pre></pre>
<script>addEventListener("message", (event) => { document.querySelector("pre").textContent = event.data; });</script>
<iframe src="ADDRESS" width="WIDTH" height="2000" style="border: 0"></iframe>"""


def browse(page: Path, folder: Path, *, width: int, dark: bool = False) -> dict[str, Any]:
    """What a browser makes of a page in so many pixels; nothing was logged to its console."""
    probed, frame = folder / "probed.html", folder / "frame.html"
    probed.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    frame.write_text(FRAME.replace("ADDRESS", probed.as_uri()).replace("WIDTH", str(width)))
    words = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1400,2100", "--virtual-time-budget=20000",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        "--enable-logging=stderr", "--dump-dom", frame.as_uri(),
    ]  # fmt: skip
    ended = subprocess.run(words, capture_output=True, text=True, timeout=180, check=True)
    logged = [line for line in ended.stderr.splitlines() if ":CONSOLE" in line]
    assert not logged, logged
    found = re.search(r"<pre>(.+?)</pre>", ended.stdout, re.DOTALL)
    assert found, ended.stdout[-2_000:]
    values: dict[str, Any] = json.loads(html.unescape(found[1]))
    return values


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, to open the page")
def test_the_page_in_a_browser(world: World, tmp_path: Path) -> None:
    for loss, top1 in (("gift", 20.0), ("kl", 40.0), ("mse", 0.0)):
        for seed in range(2):
            make_run(tmp_path / f"runs/{loss}/seed-{seed}", (10.0, top1 + seed), loss=loss, seed=seed)
    make_projector(tmp_path / "projector")
    make_generator(tmp_path / "generator", ("ant", "<b>bee</b>", "cat"))
    page = tmp_path / "page.html"
    things = (tmp_path / "runs", world.store, world.images, tmp_path / "projector", tmp_path / "generator")
    ended = giftwrap("giftwrap", "report", *things, "--out", page, "--json")
    assert ended.code == 0, ended.err
    assert ended.summary["bytes"] == page.stat().st_size < 3_000_000
    colours = set()
    for width, dark in ((1280, False), (1280, True), (390, False)):
        values = browse(page, tmp_path, width=width, dark=dark)
        names = (world.store, world.images, tmp_path / "projector", tmp_path / "generator")
        assert values["cards"] == ["Tested on test", *map(str, names)]
        assert len(values["images"]) > 24
        assert all(values["images"])
        assert values["plots"] >= 3
        assert values["inner"] == values["scroll"] == width  # tables alone scroll sideways, in a frame of their own
        orders = [[float(text.split()[0]) for text in values[name]] for name in ("before", "rising", "falling")]
        assert orders == [[20.5, 40.5, 0.5], [0.5, 20.5, 40.5], [40.5, 20.5, 0.5]]
        colours.add(values["colour"])
    assert len(colours) == 2  # light and dark
