"""Methods of optimising a policy beside each other: what each reached on held-out prompts, how far from SFT, in what time.

Best-of-n, which trains nothing, is the yardstick: what the reward model alone is worth at a given KL (Gao et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes

from tasks.evaluation.answers import read_answers
from tasks.evaluation.compared import BestOf, Compared, MethodRow, Reached, Step
from tasks.evaluation.overoptimisation import Rounds, gains_of_round
from tasks.evaluation.result import Evaluation
from tasks.evaluation.statistics import gain, spread
from tasks.evaluation.words import whole_percent
from tasks.plotting import BLUE, GREEN, GREY, ORANGE, PINK, YELLOW, new_figure
from tasks.stage import StageResult
from tasks.training.intervals import Bootstrap, Interval

STYLES = {"ppo": (BLUE, "s"), "rloo": (ORANGE, "o"), "grpo": (GREEN, "^"), "dpo": (PINK, "D"), "rejection": (YELLOW, "v")}
"""Colour and marker of each method."""


class Curve(Protocol):
    """Scores of the best of n, one a prompt each, as tasks.training.best_of_n gives them."""

    @property
    def n(self) -> int: ...
    @property
    def kl(self) -> float: ...
    @property
    def judge(self) -> list[float]: ...
    @property
    def gold(self) -> list[float] | None: ...


# Reading ------------------------------------------------------------------------------------------------------------


def method_row(method: str, policy: StageResult, evaluated: StageResult, bootstrap: Bootstrap) -> MethodRow:
    """What the stages policy and evaluate found of one method."""
    found = Evaluation.load(evaluated.path)
    gains = found.over_optimisation
    reached = Reached(
        kl=found.kl,
        judge=found.policy.judge,
        judge_gain=gains.registered_judge_gain,
        gold=found.policy.gold,
        gold_gain=gains.registered_gold_gain,
        win_rate=found.win_rate_over_sft,
        win_rate_gold=found.win_rate_over_sft_gold,
        length=found.policy.length,
        stopped=found.policy.stopped,
    )
    way = path_of(policy.path, bootstrap)
    return MethodRow(method=method, reached=reached, seconds=policy.seconds, peak_bytes=policy.peak_bytes, path=way)


def path_of(folder: Path, bootstrap: Bootstrap) -> tuple[Step, ...]:
    """The looks at a policy on its way, from the SFT model on."""
    rounds = Rounds.load(folder)
    found = [(one, gains_of_round(one, rounds, bootstrap)) for one in rounds.rounds]
    return tuple(Step(round=one.number, kl=one.kl, judge_gain=g.judge[0], gold_gain=g.gold[0] if g.gold else None) for one, g in found)


def sft_row(found: Evaluation) -> Reached:
    """The SFT model itself: no distance, no gain."""
    none = (0.0, 0.0, 0.0)
    gold_gain = None if found.sft.gold is None else none
    return Reached(
        kl=0.0,
        judge=found.sft.judge,
        judge_gain=none,
        gold=found.sft.gold,
        gold_gain=gold_gain,
        length=found.sft.length,
        stopped=found.sft.stopped,
    )


def best_of_rows(curve: Sequence[Curve], evaluated: Path, bootstrap: Bootstrap) -> tuple[BestOf, ...]:
    """The curve in the units of an evaluation: its gains are over n = 1, in standard deviations of SFT's single answers."""
    answers = [row.sft for row in read_answers(evaluated)]
    judge = spread(np.array([answer.judge for answer in answers]))
    known = [answer.gold for answer in answers if answer.gold is not None]
    gold = spread(np.array(known)) if known else None
    one, prompts = curve[0], range(len(curve[0].judge))

    def gained(after: list[float], before: list[float], unit: float | None) -> Interval:
        return gain(np.array(after), np.array(before), prompts, bootstrap, unit)

    return tuple(
        BestOf(
            n=best.n,
            reached=Reached(
                kl=best.kl,
                judge=float(np.mean(best.judge)),
                judge_gain=gained(best.judge, one.judge, judge),
                gold=float(np.mean(best.gold)) if best.gold else None,
                gold_gain=gained(best.gold, one.gold, gold) if best.gold and one.gold else None,
            ),
        )
        for best in curve
    )


# Drawing ------------------------------------------------------------------------------------------------------------


def draw(found: Compared, path: Path) -> None:
    """Gains over SFT against the root of the KL, by the judge and, where the truth is known, by gold beside it."""
    truth = any(row.reached and row.reached.gold_gain for row in found.methods)
    with new_figure(path, 10.6 if truth else 6.4, 4.6) as figure:
        panels = figure.subplots(1, 2 if truth else 1, squeeze=False)[0]
        for axes, by_gold in zip(panels, (False, True), strict=False):
            panel(axes, found, by_gold)
        panels[0].set_ylabel(f"gain over SFT (SFT's standard deviations), {whole_percent(found.confidence)} interval")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)


def panel(axes: Axes, found: Compared, by_gold: bool) -> None:
    """A point a method, lightly the way it came, and best-of-n as a line.

    Against the root of the KL, because that of a small step grows with the square of its length (Gao et al. 2022, section 3).
    """
    axes.axhline(0, color=GREY, linewidth=0.8)
    _curve(axes, [(best.n, best.reached.kl, gain) for best in found.best_of_n if (gain := _gain_of(best.reached, by_gold))])
    for row in found.methods:
        if row.reached:
            _method(axes, row, row.reached, by_gold)
    axes.set_title("by gold (the known truth)" if by_gold else "by the independent judge", fontsize=10)
    axes.set_xlabel("distance from the SFT model: √KL (√nats a sequence)")
    axes.set_xlim(left=0)


def _curve(axes: Axes, best: list[tuple[int, float, Interval]]) -> None:
    """Best-of-n as a line with its band, each n beside its point. best: n, KL and gain."""
    if not best:
        return
    x, y = _root([kl for _, kl, _ in best]), np.array([gain for *_, gain in best])
    axes.fill_between(x, y[:, 1], y[:, 2], color=GREY, alpha=0.14, linewidth=0)
    axes.plot(x, y[:, 0], color=GREY, marker=".", linewidth=1.6, linestyle=(0, (4, 2)), label="best of n")
    for (n, *_), across, up in zip(best, x, y[:, 0], strict=True):
        if n > 1:
            axes.annotate(str(n), (across, up), (0, -11), textcoords="offset points", ha="center", fontsize=7.5, color=GREY)


def _method(axes: Axes, row: MethodRow, reached: Reached, by_gold: bool) -> None:
    colour, marker = STYLES.get(row.method, (GREY, "P"))
    steps = [(step.kl, step.gold_gain if by_gold else step.judge_gain) for step in row.path]
    way = [(kl, gain) for kl, gain in steps if gain is not None]
    axes.plot(_root([kl for kl, _ in way]), [gain for _, gain in way], color=colour, linewidth=1.1, alpha=0.35)
    if gain := _gain_of(reached, by_gold):
        middle, low, high = gain
        looks: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 7.5, "capsize": 2.5, "linestyle": "none"}
        axes.errorbar(_root([reached.kl]), [middle], [[middle - low], [high - middle]], label=row.method, **looks)


def _gain_of(reached: Reached, by_gold: bool) -> Interval | None:
    return reached.gold_gain if by_gold else reached.judge_gain


def _root(kl: list[float]) -> np.ndarray:
    """√KL; an estimate may lie a little below 0."""
    return np.sqrt(np.maximum(0.0, kl))
