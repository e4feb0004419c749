"""A picture of how far a scorer's margins can be believed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.figure import Figure

from tasks.plotting import GREY
from tasks.training.calibration import Bin, calibration_error

FEWEST_PAIRS = 10
"""Of a bin whose agreement is drawn; of fewer it is noise, and only their number is shown."""


@dataclass(frozen=True)
class Curve:
    """shift: of its bars, so that they stand beside those of others."""

    label: str
    bins: list[Bin]
    colour: str
    marker: str
    shift: float


def reliability_diagram(figure: Figure, curves: Iterable[Curve]) -> None:
    """How often people agreed against how sure the scorer was, and below it how many pairs that was."""
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="as sure as it should be")
    for one in curves:
        kept = [b for b in one.bins if b.pairs >= FEWEST_PAIRS]
        line = {"color": one.colour, "marker": one.marker, "markersize": 5.5, "linewidth": 1.6}
        label = f"{one.label}: calibration error {calibration_error(one.bins):.3f}"
        top.plot([b.stated for b in kept], [b.agreed for b in kept], label=label, **line)
        bottom.bar([b.stated + one.shift for b in one.bins], [b.pairs for b in one.bins], width=0.018, color=one.colour, alpha=0.8)
    top.set_ylabel("people agreed\n(share of pairs)")
    top.set_xlim(0.49, 1.01)
    bottom.set_xlabel("how sure the scorer was: sigmoid(|difference of scores|)")
    bottom.set_ylabel("pairs")
    for axis in (top.xaxis, top.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value * 100:.0f}\N{NO-BREAK SPACE}%")
    top.legend(loc="upper left")
