"""Where the time of a process goes: since when it runs, and what of it is Prefect's.

The flow's time is cut into Prefect's and our own by two blocks that nest: prefect_time around whatever Prefect does,
own_time around the work that it calls.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from tasks.costs import cost_of

BEGUN = time.monotonic()
_counting: AbstractContextManager[None] | None = None
_waited = 0.0


@contextmanager
def prefect_time() -> Iterator[None]:
    """Count the block's time as Prefect's, without the own_time blocks inside it."""
    global _counting
    if _counting is not None:
        yield
        return
    _start()
    try:
        yield
    finally:
        _stop()


@contextmanager
def own_time() -> Iterator[None]:
    """Inside prefect_time: the work itself."""
    if _counting is None:
        yield
        return
    _stop()
    try:
        yield
    finally:
        _start()


@contextmanager
def waiting() -> Iterator[None]:
    """The block waits for a person: its time is nobody's."""
    global _waited
    begun = time.monotonic()
    try:
        yield
    finally:
        _waited += time.monotonic() - begun


def _start() -> None:
    global _counting
    _counting = cost_of("prefect")
    _counting.__enter__()


def _stop() -> None:
    global _counting
    counting, _counting = _counting, None
    if counting is not None:
        counting.__exit__(None, None, None)


def elapsed() -> float:
    """Seconds since this process began to be Prefline, but for those that it waited for a person."""
    return time.monotonic() - BEGUN - _waited
