"""What a page of evidence holds: a section a part, and in it each claim with numbers, rule, verdict and doubts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from statistics import fmean, stdev

from benchmarks.evidence.lab import typed
from benchmarks.evidence.lines import UNKNOWN, Line, commit, labels_of
from benchmarks.evidence.suite import Claim, Part, Suite
from benchmarks.evidence.verdicts import Found, Judged, shown
from benchmarks.harness import machine
from labelstore.version import __version__
from trainer.report import page as report

LEAD = (
    "Each claim is one sentence with a rule in its suite. For cells that this page runs itself the rule was written "
    "before they ran; for earlier studies it was written after their lines, as their parts state. A claim holds when "
    "every condition of its rule does, and does not hold when one is broken; where runs are missing it is not measured "
    "here. Numbers are means ± standard deviation (runs); a pointer above one shows its lines and commits. Figures of "
    "papers are theirs, of other data and longer trainings."
)


def page_of(
    suite: Suite, judged: Mapping[str, Judged], unfinished: Collection[str], skipped: Mapping[str, str]
) -> report.Page:
    """The page.

    Args:
        suite: with its parts.
        judged: its claims, by part and id.
        unfinished: parts with cells that have no line yet.
        skipped: parts whose cells could not run, with the reason.
    """
    sections = []
    for part in suite.parts:
        why = f"Not measured on this machine: {skipped[part.name]}." if part.name in skipped else ""
        if part.name in unfinished:
            why = "Some cells of this part have no line yet; the same command continues."
        claims = [claim_of(judged[f"{part.name} {claim.id}"], part, why) for claim in part.claims]
        notes = [report.Text(f"What differs from what is published: {part.differs}", "note")] if part.differs else []
        sections.append(report.Section(part.title, part.about, [*notes, *claims]))
    found = machine()
    made = [
        ("made by", f"giftwrap bench evidence --suite {suite.name}"),
        ("giftwrap", f"{__version__}, commit {commit()}"),
        ("date", datetime.now(UTC).strftime("%Y-%m-%d")),
        ("machine of this page", f"{found['cores']} cores of {found['cpu']}, torch {found['torch']}"),
    ]
    return report.Page(title=suite.title, lead=LEAD, sections=sections, made=made)


def claim_of(judged: Judged, part: Part, why: str) -> report.Claim:
    """A claim with all that it rests on."""
    claim, lines = judged.claim, judged.lines
    items: list[report.Item] = [report.Text(outcome(found, claim)) for found in judged.found]
    if claim.published:
        items.append(report.Text(f"Published, not measured here: {claim.published}", "note"))
    if judged.verdict == "not measured here":
        items.append(report.Text(why or "Too few lines of results are there.", "warning"))
    return report.Claim(
        sentence=claim.sentence,
        verdict=judged.verdict,
        rule="; and ".join(dict.fromkeys(found.condition for found in judged.found))
        + f". Each mean needs {claim.runs} run{'s' * (claim.runs > 1)}.",
        table=table_of(claim, lines) if lines else None,
        plots=[plot_of(claim, lines)] if lines else [],
        items=items,
        commands=commands_of(claim, lines, part),
        versions={"commits": many(line.commit for line in lines)} if lines else {},
        machine=many(line.machine for line in lines),
        contradicts=contradictions(judged),
    )


def outcome(found: Found, claim: Claim) -> str:
    """What a condition came to, in a sentence."""
    if found.difference is None:
        return f"{found.condition}: not known, {len(found.of)} runs" + (
            f" and {len(found.minus)}" if found.minus is not None else ""
        )
    result = "kept" if found.kept else "broken"
    unit = claim.unit if found.minus is None else claim.unit.replace("%", "points")
    return f"{found.condition}: {shown(found.difference)} {unit}, {result}"


def contradictions(judged: Judged) -> list[str]:
    """What speaks against a claim: what was known before, conditions that are broken, and those that barely hold."""
    found = [judged.claim.against] if judged.claim.against else []
    found += [outcome(each, judged.claim) for each in judged.found if each.kept is False]
    found += [f"{each.condition}: {each.doubt}" for each in judged.found if each.doubt]
    return found


def grouped(claim: Claim, lines: Sequence[Line]) -> tuple[list[str], list[str], dict[tuple[str, str], list[Line]]]:
    """The names of rows and columns, and the lines of each place."""
    places: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        places.setdefault((labels_of(line, claim.rows), labels_of(line, claim.columns)), []).append(line)
    rows, columns = (list(dict.fromkeys(key[side] for key in places)) for side in (0, 1))
    return rows, columns, places


def table_of(claim: Claim, lines: Sequence[Line]) -> report.Table:
    """Means with deviations and counts."""
    rows, columns, places = grouped(claim, lines)
    header = [report.Column(claim.rows or "what")]
    header += [report.Column(column or f"{claim.metric}, {claim.unit}", numeric=True) for column in columns]
    body = [
        [report.Cell(row or claim.metric), *(cell_of(claim, places.get((row, column), ())) for column in columns)]
        for row in rows
    ]
    caption = f"{claim.metric} in {claim.unit}, {claim.reported}: mean ± standard deviation (runs)"
    return report.Table(columns=header, rows=body, caption=caption)


def cell_of(claim: Claim, lines: Sequence[Line]) -> report.Cell:
    """A mean; its hint names the lines."""
    values = [value for line in lines for value in line.numbers(claim.metric)]
    if not values:
        return report.Cell("")
    deviation = stdev(values) if len(values) > 1 else None
    shown = report.Cell.mean(fmean(values), deviation, len(values))
    hint = f"{claim.reported}; {many(line.place for line in lines)}; commits {many(line.commit for line in lines)}"
    return report.Cell(shown.text, shown.value, hint=hint)


def plot_of(claim: Claim, lines: Sequence[Line]) -> report.BarPlot:
    """A bar a mean, with a whisker of one standard deviation."""
    rows, columns, places = grouped(claim, lines)
    bars = []
    for row in rows:
        for column in columns:
            values = [value for line in places.get((row, column), ()) for value in line.numbers(claim.metric)]
            if values:
                mean, deviation = fmean(values), stdev(values) if len(values) > 1 else 0.0
                ends = (mean - deviation, mean + deviation) if deviation else (None, None)
                name = ", ".join(each for each in (row, column) if each) or claim.metric
                bars.append(report.Bar(name, mean, f"{shown(mean)} ({len(values)})", *ends))
    return report.BarPlot(title=f"{claim.metric}, {claim.unit}, {claim.reported}", bars=bars)


def commands_of(claim: Claim, lines: Sequence[Line], part: Part) -> list[str]:
    """What made the numbers: the page's own cells by the commands of the first of them, studies by their command."""
    if claim.command:
        return [claim.command]
    again = f"giftwrap bench evidence --suite full --only {part.name} --out DIR"
    first = next((line for line in lines if line.get("command")), None)
    if first is None:
        return [again]
    before = first.get("steps_before") or []
    return [again, *(typed(str(command)) for command in (*before, first.get("command")))]


def many(values: Iterable[object]) -> str:
    """Different values, each once, the first ones by name."""
    found = list(dict.fromkeys(str(value) for value in values))
    shown = ", ".join(found[:6])
    return f"{shown} and {len(found) - 6} more" if len(found) > 6 else shown or UNKNOWN
