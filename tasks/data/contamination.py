"""Have prompts of an evaluation set found their way into the data? By runs of words that both hold.

Thirteen words in a row are hardly ever the same by chance; a shorter prompt must be the same as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from tasks.data.importers import Reject, import_file
from tasks.data.records import Message
from tasks.errors import PreflineError

RUN = 13
"""Words in a row that two prompts must not share (Brown et al. 2020, appendix C)."""
FIELDS = ("prompt", "question", "instruction", "input", "turns", "messages", "conversation", "text")
"""Where an evaluation set without answers may keep its prompts."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+")


class EvaluationPrompts:
    """The prompts that are not to be trained on."""

    def __init__(self, prompts: Iterable[str]) -> None:
        self._runs: set[int] = set()
        for prompt in prompts:
            self._runs.update(runs(prompt))

    @classmethod
    def load(cls, files: Iterable[str], root: Path) -> EvaluationPrompts | None:
        """From files in any format that can be imported, with or without answers; None if no file is named."""
        names = list(files)
        return cls(text for name in names for text in prompts_of(root / Path(name).expanduser(), name)) if names else None

    def knows(self, prompt: list[Message]) -> bool:
        """Does a message of the user's share a run of words with an evaluation prompt?"""
        return any(not self._runs.isdisjoint(runs(message["content"])) for message in prompt if message["role"] == "user")


def runs(text: str) -> list[int]:
    """Codes of every run of words, or of the whole text where it has fewer. Case and punctuation don't count."""
    found = _WORD.findall(text.lower())
    if not found:
        return []
    if len(found) < RUN:
        return [hash(("whole", *found))]
    return [hash(tuple(found[at : at + RUN])) for at in range(len(found) - RUN + 1)]


def prompts_of(path: Path, name: str) -> Iterator[str]:
    """What is asked in an evaluation set. Raises PreflineError where a file holds no prompt."""
    empty = True
    for found in import_file(path, name=name):
        messages = _asked(found.row) if isinstance(found, Reject) else (m["content"] for m in found.prompt if m["role"] == "user")
        for text in messages:
            empty = False
            yield text
    if empty:
        raise PreflineError(
            f"{name}: no prompts in this evaluation set.",
            f"Its rows need one of the fields {', '.join(FIELDS)}; contract.evaluation_sets names the files.",
        )


def _asked(row: Any) -> Iterator[str]:
    """Texts of the user's in a row that is no comparison and no demonstration."""
    if isinstance(row, str):
        try:
            row = orjson.loads(row)
        except ValueError:
            return
    if isinstance(row, dict):
        value = next((row[field] for field in FIELDS if row.get(field)), None)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                part = part.get("content", part.get("value")) if part.get("role", part.get("from")) in ("user", "human") else None
            if isinstance(part, str):
                yield part
