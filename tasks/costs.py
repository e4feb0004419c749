"""Where the time goes that is not the work itself: seconds spent in Prefect, MLflow, DVC and Great Expectations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Tool = Literal["prefect", "mlflow", "dvc", "great-expectations"]

_seconds: dict[Tool, float] = {}
_inside: list[Tool] = []


@contextmanager
def cost_of(tool: Tool) -> Iterator[None]:
    """Count the block's time for a tool; inside another cost_of it counts for the outer one only."""
    if _inside:
        yield
        return
    _inside.append(tool)
    begun = time.monotonic()
    try:
        yield
    finally:
        _inside.pop()
        _seconds[tool] = _seconds.get(tool, 0.0) + time.monotonic() - begun


def costs() -> dict[Tool, float]:
    """Seconds by tool since the process began."""
    return dict(_seconds)
