"""The data in figures, as tables for a terminal. Names that come from the data are taken literally."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from tasks.data.changes import Changes, Figure

NAMES_SHOWN = 20
"""Of a kind: annotators, sources, tags."""
FIGURES_SHOWN = 60


def statistics_table(statistics: dict[str, Any]) -> Table:
    """What statistics.json holds."""
    table = _table("", "comparisons", "demonstrations")
    kinds = statistics["comparisons"], statistics["demonstrations"]
    for name in ("rows", "groups", "prompts"):
        table.add_row(name, *(f"{kind[name]:,}" for kind in kinds))
    titles = {
        "splits": "split",
        "sources": "from",
        "tags": "tag",
        "languages": "language",
        "annotators": "annotator",
        "labels_by": "judged by",
    }
    for name, title in titles.items():
        entries = dict.fromkeys(entry for kind in kinds for entry in kind.get(name, {}))
        if entries:
            table.add_section()
        for entry in list(entries)[:NAMES_SHOWN]:
            table.add_row(f"{title} {escape(entry)}", *(_count(kind.get(name, {}).get(entry)) for kind in kinds))
        if len(entries) > NAMES_SHOWN:
            table.add_row(f"... {len(entries) - NAMES_SHOWN:,} more", "", "")
    table.add_section()
    for text in ("prompt", "chosen", "rejected", "answer"):
        lengths = (kind["words"].get(text) for kind in kinds)
        cells = [f"{words['mean']:.1f} (at most {words['longest']:,})" if words else "" for words in lengths]
        table.add_row(f"words, {text}", *cells)
    _add_judgements(table, kinds[0])
    table.add_section()
    rejects = statistics["rejects"]
    table.add_row("rows that could not be used", f"{rejects['rows']:,} in all", "")
    for reason, count in list(rejects["reasons"].items())[:NAMES_SHOWN]:
        table.add_row(f"  {escape(reason)}", f"{count:,}", "")
    table.add_row("tasks that were skipped", f"{statistics['skipped']:,} in all", "")
    table.add_row("rows repeated by another source", f"{statistics['repeated']:,} in all", "")
    return table


def _table(first: str, *others: str) -> Table:
    """A table whose first column names what the others count."""
    table = Table()
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _add_judgements(table: Table, judged: dict[str, Any]) -> None:
    """Rows on how the comparisons were judged; "" where nothing is known."""
    first, seconds = judged["chosen_first"], judged["seconds"]
    table.add_section()
    table.add_row("ties", f"{judged['ties']:,}", "")
    table.add_row("rankings", f"{judged['rankings']:,}", "")
    table.add_row("longer answer chosen", _share(judged["longer_chosen"]), "")
    table.add_row("first shown chosen", f"{_share(first['share'])} of {first['known']:,}" if first["known"] else "", "")
    table.add_row("seconds, median", f"{seconds['median']:,} of {seconds['known']:,}" if seconds["known"] else "", "")
    table.add_row("repeat an earlier one", f"{judged['duplicates']:,}", "")
    table.add_row("nearly repeat one", _count(judged["near_duplicates"]), "")


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def changes_tables(found: Changes) -> list[Table]:
    """What differs between two versions: their rows, then the figures that moved."""
    kinds = {"comparisons": found.comparisons, "demonstrations": found.demonstrations}
    rows = _table("rows", *kinds)
    for name in ("before", "added", "removed", "relabelled", "after"):
        rows.add_row(name, *(f"{getattr(kind, name):,}" for kind in kinds.values()))
    for way in dict.fromkeys(way for kind in kinds.values() for way in kind.moved):
        rows.add_row(f"moved: {way}", *(_count(kind.moved.get(way)) for kind in kinds.values()))
    if not found.figures:
        return [rows]
    figures = _table("figure", "before", "after")
    for figure in found.figures[:FIGURES_SHOWN]:
        figures.add_row(escape(figure.name), _figure(figure, "before"), _figure(figure, "after"))
    if len(found.figures) > FIGURES_SHOWN:
        figures.add_row(f"... {len(found.figures) - FIGURES_SHOWN:,} more (--json has all)", "", "")
    return [rows, figures]


def _figure(figure: Figure, side: str) -> str:
    value = getattr(figure, side)
    return "" if value is None else f"{value:,}"
