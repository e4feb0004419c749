"""A clock for profiles: how long a program was in which of its parts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """How long was spent in what; what is within something else is taken off it."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._within = ["other"]
        self._since = time.perf_counter()

    def start(self) -> None:
        """Forget what was before."""
        self.spent.clear()
        self._since = time.perf_counter()

    def enter(self, name: str) -> None:
        self._count()
        self._within.append(name)

    def leave(self) -> None:
        self._count()
        self._within.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        self.spent[self._within[-1]] += now - self._since
        self._since = now

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def timing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with self.on(name):
                return function(*arguments, **named)

        return call
