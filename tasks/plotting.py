"""How every picture of Prefline looks: settings of matplotlib, and colours that people with any eyes tell apart.

Source of the colours: Okabe and Ito 2008, "Color universal design".
"""

from __future__ import annotations

from typing import Any

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"

STYLE: Any = {
    "text.parse_math": False,  # a name or a tag may hold a dollar sign
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
