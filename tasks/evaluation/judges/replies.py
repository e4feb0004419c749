"""What language models replied, kept by what they were asked: in one SQLite file, for all runs and processes of a project.

A reply is written as it comes, so that a run that was killed, or whose budget was used up, goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tasks.errors import EnvironmentRefused

FILE = Path("runs") / "judge-replies.sqlite"
SECONDS = 60.0
"""That one process waits for another one's writing."""
AT_ONCE = 500
"""Keys in one question to SQLite, which takes no more than some thousands."""


class Replies:
    """Replies by a hash of model, settings and text."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def known(self, keys: Sequence[str]) -> dict[str, str]:
        """The replies that are there, by key. Raises EnvironmentRefused where the file can't be used."""
        found: dict[str, str] = {}
        with self._open() as database:
            for first in range(0, len(keys), AT_ONCE):
                some = keys[first : first + AT_ONCE]
                marks = ",".join("?" * len(some))
                found.update(database.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", some).fetchall())
        return found

    def keep(self, key: str, model: str, reply: str) -> None:
        """Write a reply, at once. Of two to one key the first stays."""
        with self._open() as database:
            database.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?)", (key, model, reply))

    def _open(self) -> _Database:
        return _Database(self._path)


class _Database:
    """A connection for one block, in which each statement is a transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=SECONDS, isolation_level=None)
            self._connection.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, model TEXT NOT NULL, reply TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise self._refused(error) from error
        return self._connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with closing(self._connection):
            if isinstance(error, sqlite3.Error):
                raise self._refused(error) from error

    def _refused(self, error: Exception) -> EnvironmentRefused:
        return EnvironmentRefused(
            f"{self._path}, where the judge's replies are kept, can't be used: {error}.",
            "Mind the disk and its permissions. A damaged file may be deleted: then the judge is asked anew.",
        )


def key_of(model: str, reply_tokens: int, asked: str) -> str:
    """The hash under which a reply is kept. Where the model was reached has no part in it."""
    return hashlib.sha256(json.dumps(["chat, temperature 0", model, reply_tokens, asked]).encode()).hexdigest()
