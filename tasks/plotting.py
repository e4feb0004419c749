"""How every picture of Prefline looks: settings of matplotlib, and colours that people with any eyes tell apart.

Source of the colours: Okabe and Ito 2008, "Color universal design".
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
PINK, YELLOW = "#CC79A7", "#E69F00"

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


@contextmanager
def new_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches, saved at the end. No pyplot: it keeps figures in a global list, and threads apart."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=140, layout="constrained")
        yield figure
        picture = io.BytesIO()
        figure.savefig(picture)
    # A palette of 128 colours makes a third of the bytes, and no difference to see.
    Image.open(picture).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
