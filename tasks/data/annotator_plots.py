"""Two pictures of the annotators, as PNG: their scorecards side by side, and how far every two of them agree.

Colours are from Okabe and Ito 2008, told apart by the colour-blind. Names are cut to fit; the tables have them whole.
"""

from __future__ import annotations

import io
import warnings

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.data.agreement import Estimate, PairAgreement
from tasks.data.annotators import AT_CHANCE, Scorecard, Study
from tasks.plotting import BLUE, GREY, ORANGE, STYLE

FINE, BAD = BLUE, ORANGE

MOST_CARDS = 24
MOST_IN_GRID = 12
"""Of whom every two are shown: more figures than theirs can't be read."""


def scorecards(found: Study) -> bytes | None:
    """Reliability, agreement with others and choice of first and longer of the busiest annotators; None if there are none."""
    shown = found.scorecards[:MOST_CARDS][::-1]
    if not shown:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 1.3 + 0.34 * len(shown)), dpi=140, layout="constrained")
        panels = figure.subplots(1, 4, sharey=True, squeeze=False)[0]
        _points(panels[0], shown, [card.reliability for card in shown], "reliability (left of the\ndashed line: a coin's)", AT_CHANCE)
        _points(panels[1], shown, [card.others for card in shown], "another annotator\nsays the same", None)
        _points(panels[2], shown, [card.first for card in shown], "chooses what is\nshown first", 0.5)
        _points(panels[3], shown, [card.longer for card in shown], "chooses the\nlonger answer", None)
        for panel in panels[1:]:
            panel.set_xlim(-0.03, 1.03)
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panels[0].set_yticks(range(len(shown)), [f"{_short(card.name)} ({card.comparisons:,})" for card in shown])
        panels[0].set_ylim(-0.6, len(shown) - 0.4)
        return _png(figure)


def _points(axes: Axes, cards: list[Scorecard], values: list[Estimate], label: str, line: float | None) -> None:
    if line is not None:
        axes.axvline(line, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    for y, (card, one) in enumerate(zip(cards, values, strict=True)):
        if one.value is None or one.low is None or one.high is None:
            continue
        colour, marker = (BAD, "D") if card.at_chance else (FINE, "o")
        axes.hlines(y, one.low, one.high, color=colour, linewidth=2, alpha=0.75)
        axes.plot([one.value], [y], color=colour, marker=marker, markersize=5.5)
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)


def pairs(found: Study) -> bytes | None:
    """Cohen's kappa of every two of the busiest annotators, and of how many items; None where no two share one."""
    between = {(one.first, one.second): one for one in found.pairs}
    together = {name for pair in between for name in pair}
    names = [card.name for card in found.scorecards if card.name in together][:MOST_IN_GRID]
    if len(names) < 2:
        return None
    grid = np.full((len(names), len(names)), np.nan)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        side = 2.2 + 0.62 * len(names)
        figure = Figure(figsize=(side + 1.4, side), dpi=140, layout="constrained")
        axes = figure.add_subplot()
        for row, first in enumerate(names):
            for column, second in enumerate(names[:row]):
                pair = between.get((first, second)) or between.get((second, first))
                if pair is not None:
                    grid[row, column] = np.nan if pair.kappa.value is None else pair.kappa.value
                    _write(axes, row, column, pair)
        shown = axes.imshow(grid, cmap="RdBu", vmin=-1, vmax=1)
        axes.set_xticks(range(len(names) - 1), [_short(name, 14) for name in names[:-1]], rotation=40, ha="right")
        axes.set_yticks(range(1, len(names)), [_short(name) for name in names[1:]])
        axes.set_xlim(-0.5, len(names) - 1.5)
        axes.set_ylim(len(names) - 0.5, 0.5)
        figure.colorbar(shown, shrink=0.7, label="Cohen's kappa (below it: items that both judged)")
        return _png(figure)


def _write(axes: Axes, row: int, column: int, pair: PairAgreement) -> None:
    value = pair.kappa.value
    text = "–" if value is None else f"{value:.2f}"
    colour = "white" if value is not None and abs(value) > 0.6 else "black"
    axes.text(column, row, f"{text}\n{pair.items:,}", ha="center", va="center", color=colour, fontsize=8)


def _short(name: str, most: int = 24) -> str:
    """A name on one line, without what a font can't draw."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in name).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
        figure.savefig(picture, format="png")
    return picture.getvalue()
