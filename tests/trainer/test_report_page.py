"""A page as one file: texts escaped, nothing loaded, pictures that shrink, and no file overwritten."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from labelstore.errors import InputError
from tests.trainer.report_pages import Elements, full_page, with_texts
from trainer.report.html import legend, render, require_page, write_page
from trainer.report.page import Bar, BarPlot, Card, Curve, LinePlot, Page, Section, Sheet, Text, Tile
from trainer.report.pictures import LEVELS, encoded, kept
from trainer.report.svg import line_plot, linear_ticks, log_ticks

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}</style>&amp;\u202e\x1b\udc80"


def test_no_text_of_a_page_becomes_markup() -> None:
    plain, hostile = (Elements(render(page).html) for page in (full_page(), with_texts(full_page(), lambda _: HOSTILE)))
    assert {*hostile.found} <= {*plain.found}  # the same elements, with the same attributes
    assert sum(tag == "script" for tag, _ in hostile.found) == 1
    assert "alert(1)</script>" in hostile.text
    assert "{{ 7 * 7 }}" in hostile.text
    for sign in "\u202e\x1b\udc80":
        assert sign not in hostile.text
    assert r"\u202e\x1b\udc80" in hostile.text


def test_a_page_loads_nothing_and_its_links_lead_somewhere() -> None:
    html = render(full_page()).html
    found = Elements(html)
    assert b"http" not in html.replace(b"http-equiv", b"")
    assert all(value.startswith("data:") for value in found.values("src"))
    places = {f"#{value}" for value in found.values("id")}
    links = [value for value in found.values("href") if value != "data:,"]
    assert {*links} <= places
    assert len(links) == 3 + 2 + 1  # three claims, two sections, one card


def test_claims_are_counted_by_verdict() -> None:
    text = " ".join(Elements(render(full_page()).html).text.split())
    assert "holds 1 does not hold 1 not measured here 1" in text
    assert "What contradicts it" in text


def noise(side: int, seed: int) -> Tile:
    return Tile(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8), f"picture {seed}")


def pictures(html: bytes) -> list[Image.Image]:
    uris = [value for value in Elements(html).values("src") if value.startswith("data:image/webp;base64,")]
    return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris]


def test_small_pictures_are_kept_exactly() -> None:
    tile = noise(32, 0)
    (found,) = pictures(render(Page(title="p", sections=[Section("s", "", [Sheet([tile])])])).html)
    assert np.array_equal(np.asarray(found.convert("RGB")), tile.pixels)


def test_a_page_over_its_size_shrinks_its_pictures_and_states_it() -> None:
    page = full_page([noise(96, seed) for seed in range(4)])
    whole = render(page)
    assert not whole.notes
    bare = len(render(full_page()).html)
    for limit in ((len(whole.html) + bare) // 3, bare + 2_000):
        smaller = render(page, limit)
        assert len(smaller.html) < limit
        (note,) = smaller.notes
        assert note in Elements(smaller.html).text
        assert len(pictures(smaller.html)) <= 6
    with pytest.raises(InputError, match=r"expected fewer than 2,000 bytes, found .* without its pictures"):
        render(page, 2_000)
    with pytest.raises(InputError, match="name fewer things"):
        render(Page(title="p", sections=[Section("s", "x" * 5_000)]), 5_000)


@given(st.integers(0, 50), st.sampled_from(LEVELS))
def test_tiles_that_are_kept_are_spread_over_the_sheet(count: int, level: object) -> None:
    tiles = [Tile(np.zeros((1, 1, 3), np.uint8), str(number)) for number in range(count)]
    found = kept(tiles, level)  # type: ignore[arg-type]
    numbers = [int(tile.title) for tile in found]
    assert numbers == sorted({*numbers})
    share = level.share  # type: ignore[attr-defined]
    assert len(found) == (max(1, round(count * share)) if count and share else 0)


def test_levels_only_get_smaller() -> None:
    sizes = [len(encoded(noise(256, 0), level).uri) * level.share for level in LEVELS]
    assert sizes == sorted(sizes, reverse=True)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_round_and_inside(low: float, length: float) -> None:
    high = low + length
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 11
    step = ticks[1] - ticks[0]
    assert all(low - step * 1e-6 <= tick <= high + step * 1e-6 for tick in ticks)
    assert math.isclose(float(f"{step:.0e}"), step, rel_tol=1e-3)  # one digit: 1, 2 or 5


@given(st.floats(-6, 6), st.floats(0.1, 8))
def test_ticks_of_a_logarithmic_axis_are_inside(power: float, decades: float) -> None:
    low, high = 10**power, 10 ** (power + decades)
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 12
    assert all(low * 0.99 <= tick <= high * 1.01 for tick in ticks)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("points", [[], [(1.0, 1.0)], [(1, 0.0), (2, -1.0)], [(1, math.nan), (2, math.inf), (3, 2.0)]])
def test_any_points_can_be_drawn(points: list[tuple[float, float]], log: bool) -> None:
    drawn = str(
        line_plot(
            LinePlot("t", "x", "y", [Curve("c", points, [0.0] * len(points), [math.nan] * len(points))], log, log)
        )
    )
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_the_legend_has_each_name_once() -> None:
    curve = Curve("one", [(1, 1)])
    plots = [LinePlot("a", "x", "y", [curve, Curve("none", [])]), LinePlot("b", "x", "y", [curve, Curve("", [(1, 1)])])]
    assert [name for name, _ in legend(plots)] == ["one"]


def test_a_bar_plot_of_zeros_can_be_drawn() -> None:
    html = render(
        Page(title="p", sections=[Section("s", "", [BarPlot("b", [Bar("a", 0.0, "0"), Bar("b", 0.0, "0")])])])
    ).html
    assert b"width:0.00%" in html


def test_a_page_replaces_a_page_alone_and_only_when_told(tmp_path: Path) -> None:
    page, place = (
        Page(title="first", sections=[Section("s", "", [Card("c", items=[Text("t")])])]),
        tmp_path / "page.html",
    )
    write_page(page, place)
    first = place.read_bytes()
    for refuse in (lambda: require_page(place), lambda: write_page(page, place)):
        with pytest.raises(InputError, match=r"exists already.*--replace"):
            refuse()
    assert place.read_bytes() == first
    require_page(place, replace=True)
    write_page(replace(page, title="second"), place, replace=True)
    assert b"<h1>second</h1>" in place.read_bytes()
    own = tmp_path / "own.html"
    own.write_text("<html>mine</html>")
    for refuse in (lambda: require_page(own, replace=True), lambda: write_page(page, own, replace=True)):
        with pytest.raises(InputError, match=r"own\.html"):
            refuse()
    assert own.read_text() == "<html>mine</html>"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.html", "page.html"]
