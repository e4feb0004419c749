"""Methods beside each other as a table: for the terminal, and as Markdown for MLflow and Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.figures import NOTHING, duration, memory, money, number
from tasks.evaluation.compared import Compared, Reached
from tasks.evaluation.result import WinRate


class Line(NamedTuple):
    """A row of the table: a method's, or one to compare with. Texts as people read them."""

    method: str
    judge: str = NOTHING
    wins: str = NOTHING
    gold: str = NOTHING
    wins_by_gold: str = NOTHING
    kl: str = NOTHING
    length: str = NOTHING
    stopped: str = NOTHING
    time: str = NOTHING
    memory: str = NOTHING
    cost: str = NOTHING


HEADINGS = Line("method", "judge", "wins over SFT", "gold", "wins by gold", "KL", "tokens", "ended", "time", "memory", "cost")
ABOUT = (
    "Means over the held-out prompts. KL: nats an answer, from the SFT model. Ended: by themselves, not cut. "
    "Time, peak memory and cost: of optimising. Best of n: of the SFT model's answers, picked by the reward model."
)


def methods_tables(found: Compared, console: Console) -> list[Table]:
    """A row for SFT, each method, and the best of n; columns that nobody has a figure for are left out.

    Where the terminal is too narrow for all columns, the rest stand in a further table.
    """
    lines = list(lines_of(found))
    parts: list[list[int]] = [[]]
    for place in _columns(lines)[1:]:
        if parts[-1] and _width(_table(lines, [*parts[-1], place]), console) > console.width:
            parts.append([])
        parts[-1].append(place)
    tables = [_table(lines, part) for part in parts]
    tables[0].title = f"Methods, {number(found.prompts)} held-out prompts, {found.confidence:.0%} intervals"
    tables[-1].caption = ABOUT
    return tables


def _table(lines: list[Line], places: list[int]) -> Table:
    """Names and the columns at these places."""
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", caption_justify="left", pad_edge=False)
    for place in (0, *places):
        table.add_column(HEADINGS[place], justify="right" if place else "left", no_wrap=True)
    for line in lines:
        table.add_row(*(Text(line[place]) for place in (0, *places)))
    return table


def _width(table: Table, console: Console) -> int:
    """Characters that it takes where nothing is cut."""
    return console.measure(table, options=console.options.update(max_width=1000)).maximum


def failures(found: Compared) -> list[Text]:
    """Why methods came to nothing."""
    return [Text(f"✗ {row.method}: {row.error}", style="red") for row in found.methods if row.error]


def methods_markdown(found: Compared) -> str:
    """The same in Markdown."""
    lines = list(lines_of(found))
    shown = _columns(lines)
    rows = [[line[place] for place in shown] for line in (HEADINGS, *lines)]
    rows.insert(1, [":---"] + ["---:"] * (len(shown) - 1))
    text = [f"**Methods on {number(found.prompts)} held-out prompts**", "", *(f"| {' | '.join(row)} |" for row in rows), "", ABOUT]
    text += [f"\n- {row.method}: {' '.join(row.error.split())}" for row in found.methods if row.error]
    return "\n".join([*text, "", f"`prefline status {found.run}`"]) + "\n"


def lines_of(found: Compared) -> Iterator[Line]:
    """The rows in the order in which they are shown."""
    if found.sft:
        yield _line("SFT model", found.sft)
    for row in found.methods:
        if row.reached:
            cost = money(row.seconds, found.price_per_hour)
            yield _line(row.method, row.reached)._replace(time=duration(row.seconds), memory=memory(row.peak_bytes), cost=cost)
        else:
            yield Line(row.method, "failed")
    for best in found.best_of_n:
        if best.n > 1:
            yield _line(f"best of {best.n}", best.reached)


def _line(name: str, reached: Reached) -> Line:
    return Line(
        name,
        judge=number(reached.judge),
        wins=_wins(reached.win_rate),
        gold=NOTHING if reached.gold is None else number(reached.gold),
        wins_by_gold=_wins(reached.win_rate_gold),
        kl=f"{reached.kl:.2f}",
        length=NOTHING if reached.length is None else f"{reached.length:.1f}",
        stopped=NOTHING if reached.stopped is None else f"{reached.stopped:.0%}",
    )


def _wins(found: WinRate | None) -> str:
    """With an interval that a narrow terminal does not break in the middle."""
    return NOTHING if found is None else f"{found.rate:.3f} ({found.low:.2f}–{found.high:.2f})"


def _columns(lines: list[Line]) -> list[int]:
    """Places of the columns that hold something."""
    return [place for place in range(len(HEADINGS)) if any(line[place] != NOTHING for line in lines)]
