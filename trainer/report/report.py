"""`report`: what there is at some paths, on one page."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path

from labelstore.command.console import Console, byte_count, quantity
from labelstore.durable.places import require_apart
from labelstore.spec import Json
from labelstore.storage_table import scheme_of, without_credentials
from labelstore.version import __version__
from trainer.report.config import ReportConfig
from trainer.report.finding import Found, find
from trainer.report.html import require_page, write_page
from trainer.report.models import generator_card, projector_card
from trainer.report.page import Card, Page, Section
from trainer.report.runs import runs_section
from trainer.report.sets import set_card
from trainer.report.stores import store_card

TITLES = {"store": "Label stores", "set": "Image sets", "projector": "Projectors", "generator": "Generators"}
NAMES = {"run": "run", "store": "store", "set": "image set", "projector": "projector", "generator": "generator"}


def report(config: ReportConfig, console: Console) -> Path:
    """Write the page; returns its place.

    Raises:
        InputError: a path is none of what a page shows, the page is there already, or it grows too large.
    """
    require_page(config.out, replace=config.replace)
    found = find(config.things)
    for each in found:
        if each.kind in ("store", "set") and not scheme_of(each.path):
            require_apart({"--out": config.out}, {f"the {NAMES[each.kind]}": each.path})
    with console.progress("cards", len(found), "cards") as progress:
        sections = []
        if runs := [each.path for each in found if each.kind == "run"]:
            sections.append(runs_section(runs))
            progress.advance(len(runs))
        for kind, title in TITLES.items():
            cards = []
            for each in found:
                if each.kind == kind:
                    cards.append(card(each, config.tiles))
                    progress.advance()
            if cards:
                sections.append(Section(title, "", cards))
    what = f"{counted(found)}. " if config.title else ""
    page = Page(
        title=config.title or title_of(found),
        lead=f"{what}Made by giftwrap {__version__}. This page is one file, which loads nothing.",
        sections=sections,
        made=made(config),
    )
    rendered = write_page(page, config.out, replace=config.replace)
    console.report(rendered.notes)
    values: dict[str, Json] = {"page": str(config.out), "bytes": len(rendered.html), "notes": list(rendered.notes)}
    values |= {f"{kind}s": [str(each.path) for each in found if each.kind == kind] for kind in NAMES}
    console.summary(values, f"{config.out}: {counted(found)}, {byte_count(len(rendered.html))}")
    return config.out


def card(found: Found, tiles: int) -> Card:
    """The card of a store, a set or a model."""
    if found.kind == "store":
        return store_card(found.path, tiles)
    if found.kind == "set":
        return set_card(found.path, tiles)
    return projector_card(found.path) if found.kind == "projector" else generator_card(found.path, tiles)


def counted(found: Sequence[Found]) -> str:
    """How many there are of each kind: 3 runs, 1 store."""
    counts = {name: sum(each.kind == kind for each in found) for kind, name in NAMES.items()}
    return ", ".join(quantity(count, name) for name, count in counts.items() if count)


def title_of(found: Sequence[Found]) -> str:
    """The number of things of each kind; of a single one its name."""
    return Path(found[0].path).name if len(found) == 1 else counted(found)


def made(config: ReportConfig) -> list[tuple[str, str]]:
    """How the page was made."""
    return [
        ("made", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
        ("giftwrap", f"{__version__}, Python {platform.python_version()}"),
        ("of", without_credentials(", ".join(map(str, config.things)))),
    ]
