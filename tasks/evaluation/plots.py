"""The pictures of an evaluation: reward against KL, win rates by slice, calibration.

Colours are from Okabe and Ito 2008, told apart by the colour-blind; each series has a marker of its own as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.evaluation.overoptimisation import Rounds, gains_of_round
from tasks.evaluation.result import JUDGES, Evaluation, Selection, WinRate
from tasks.evaluation.words import whole_percent
from tasks.plotting import BLUE, GREEN, GREY, ORANGE, new_figure
from tasks.training.calibration_plot import Curve, reliability_diagram
from tasks.training.intervals import Bootstrap, Interval

PLOTS = ("frontier.png", "slices.png", "calibration.png")

OWN, JUDGE, GOLD = ORANGE, BLUE, GREEN

MOST_SLICES = 24
"""In the picture; all of them are in the table."""


def draw(found: Evaluation, rounds: Rounds, bootstrap: Bootstrap, folder: Path) -> None:
    """Write the three pictures into the folder."""
    with new_figure(folder / "frontier.png", 7.2, 4.3) as figure:
        frontier(figure.add_subplot(), rounds, bootstrap, found.best_of_n)
    shown = min(len(found.slices), MOST_SLICES)
    with new_figure(folder / "slices.png", 7.2, 1.5 + 0.36 * (shown + 1)) as figure:
        slices(figure.add_subplot(), found)
    with new_figure(folder / "calibration.png", 7.2, 4.3) as figure:
        calibration(figure, found)


def frontier(axes: Axes, rounds: Rounds, bootstrap: Bootstrap, best_of_n: Sequence[Selection] = ()) -> None:
    """Gains over SFT, in standard deviations of SFT's scores, against the root of the KL, with interval bands; best-of-n dashed.

    The root, because the KL of a small step grows with the square of its length (Gao et al. 2022, section 3).
    """
    ordered = sorted(rounds.rounds, key=lambda one: one.kl)
    x = np.sqrt([max(0.0, one.kl) for one in ordered])
    found = [gains_of_round(one, rounds, bootstrap) for one in ordered]
    _band(axes, x, [gain.own for gain in found], OWN, "o", "the policy's own reward model")
    _band(axes, x, [gain.judge for gain in found], JUDGE, "s", "independent judge")
    gold = [gain.gold for gain in found if gain.gold is not None]
    if len(gold) == len(found):
        _band(axes, x, gold, GOLD, "^", "gold (the known truth)")
    _select(axes, best_of_n)
    axes.axhline(0, color=GREY, linewidth=0.8)
    _mark(axes, float(x[[one.number for one in ordered].index(rounds.chosen)]), f"registered: round {rounds.chosen}", axes.get_xlim()[1])
    axes.set_xlabel("distance from the SFT model: √KL (√nats a sequence)")
    axes.set_ylabel(f"gain over SFT (SFT's standard deviations)\nband: {whole_percent(bootstrap.confidence)} interval")
    axes.set_xlim(left=0)
    axes.margins(y=0.12)  # room at the foot for the name of the mark
    _name_rounds(axes, x, [one.number for one in ordered])
    axes.legend(loc="best")


def _band(axes: Axes, x: np.ndarray, gains: list[Interval], colour: str, marker: str, label: str) -> None:
    middle, low, high = np.array(gains).T
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, middle, color=colour, marker=marker, markersize=5, linewidth=1.8, label=label)


def _select(axes: Axes, best_of_n: Sequence[Selection]) -> None:
    """What the best of n gains in each colour, with its intervals as bars, and n beside the points of the reward that selects."""
    if not best_of_n:
        return
    x = np.sqrt([one.kl for one in best_of_n])
    lines = [([one.own_gain for one in best_of_n], OWN), ([one.judge_gain for one in best_of_n], JUDGE)]
    lines.append(([one.gold_gain for one in best_of_n if one.gold_gain], GOLD))
    for gains, colour in lines:
        if len(gains) == len(x):
            middle, low, high = np.array(gains).T
            axes.vlines(x, low, high, color=colour, linewidth=1, alpha=0.6)
            axes.plot(x, middle, color=colour, marker=".", markersize=5, linewidth=1.1, linestyle=(0, (3, 2)))
    for one, across in zip(best_of_n[1:], x[1:], strict=True):
        axes.annotate(str(one.n), (across, one.own_gain[2]), (0, 2), textcoords="offset points", ha="center", fontsize=7.5, color=GREY)
    axes.plot([], [], color=GREY, marker=".", linewidth=1.1, linestyle=(0, (3, 2)), label="best of n of the SFT model's answers")


def _mark(axes: Axes, place: float, text: str, end: float) -> None:
    """A dashed line with its name at the foot, on the side where there is room."""
    axes.axvline(place, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    side, shift = ("left", 5) if place < 0.7 * end else ("right", -5)
    axes.annotate(text, (place, 0.02), (shift, 0), ("data", "axes fraction"), "offset points", ha=side, color=GREY)


def _name_rounds(axes: Axes, x: np.ndarray, numbers: list[int]) -> None:
    """The rounds' numbers on top, as many as have room."""
    span = float(x[-1]) or 1.0
    kept: list[int] = []
    for place in range(len(x)):
        if not kept or x[place] - x[kept[-1]] > 0.05 * span:
            kept.append(place)
    top = axes.secondary_xaxis("top")
    top.set_xticks([x[place] for place in kept], [str(numbers[place]) for place in kept])
    top.set_xlabel("round")


def slices(axes: Axes, found: Evaluation) -> None:
    """Win rates over the baseline with their intervals: all prompts first, then by tag, the largest ones."""
    largest = sorted(found.slices, key=lambda one: -one.prompts)[:MOST_SLICES]
    shown = sorted(largest, key=lambda one: one.win_rate.rate)
    rows = [(s.name, s.prompts, s.win_rate, s.win_rate_gold) for s in shown]
    rows.append(("all prompts", found.prompts, found.win_rate, found.win_rate_gold))
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    _points(axes, [judge for _, _, judge, _ in rows], 0.11, JUDGE, "s", JUDGES[found.decided_by])
    gold = [gold for *_, gold in rows if gold]
    if len(gold) == len(rows):
        _points(axes, gold, -0.13, GOLD, "^", "gold (the known truth)")
    axes.set_yticks(range(len(rows)), [f"{_short(name)} ({count})" for name, count, _, _ in rows])
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.axhline(len(rows) - 1.5, color=GREY, linewidth=0.6)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(lambda value, _: whole_percent(value))
    axes.set_xlabel(f"win rate over {_short(found.baseline)} (share of prompts, ties half), {whole_percent(found.confidence)} interval")
    axes.grid(axis="y", visible=False)
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)


def _points(axes: Axes, rates: list[WinRate], shift: float, colour: str, marker: str, label: str) -> None:
    y = np.arange(len(rates)) + shift
    axes.hlines(y, [rate.low for rate in rates], [rate.high for rate in rates], color=colour, linewidth=2, alpha=0.75)
    axes.plot([rate.rate for rate in rates], y, color=colour, marker=marker, markersize=6, linestyle="none", label=label)


def _short(name: str, most: int = 32) -> str:
    """A name that fits beside a plot, on one line."""
    line = " ".join(name.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def calibration(figure: Figure, found: Evaluation) -> None:
    """How often people agreed against how sure the scorers were."""
    judge, own = found.judge_calibration, found.reward_model_calibration
    curves = [Curve("independent judge", judge.bins, JUDGE, "s", -0.01)] if judge else []
    if own:
        curves.append(Curve("the policy's own reward model", own.bins, OWN, "o", 0.01))
    reliability_diagram(figure, curves)
