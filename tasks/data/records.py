"""The records that every stage reads: comparisons and demonstrations, as JSON lines.

A record is made once, by an importer, and says where it came from (file and line), so that any later complaint
can name the place. Nothing here knows a foreign format; that is what importers are for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

import orjson

from tasks.errors import PreflineError

CONTRACT_VERSION = 1
"""Raised when a field of the records changes its meaning; data of another version is refused."""

Split = Literal["train", "judge", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "judge", "validation", "test")

LabelsBy = Literal["people", "ai"]


class Message(TypedDict):
    role: str
    content: str


@dataclass(slots=True)
class Comparison:
    """One person's verdict on two answers to one prompt.

    strength: how much better chosen is, on the source's own scale, or None where it was not asked.
    tie: the annotator found neither better; chosen and rejected are then in the order shown.
    group_id: comparisons that must not be parted by a split share it (those of one prompt).
    ranking: comparisons that one annotator made by ranking K answers at once share it; None for a lone pair.
    chosen_first: chosen was shown first (or on the left), or None where that is not known.
    seconds: that the annotator took, or None. labels_by: who judged, or None where the source does not say.
    language: as the source names it. tags: the slices that the comparison belongs to.
    source, source_id: the file and the line (or row) that the comparison came from.
    """

    id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    source: str
    source_id: str
    group_id: str
    ranking: str | None = None
    annotator: str | None = None
    strength: float | None = None
    tie: bool = False
    chosen_first: bool | None = None
    seconds: float | None = None
    labels_by: LabelsBy | None = None
    language: str | None = None
    created_at: str | None = None
    split: str | None = None
    tags: list[str] = field(default_factory=list)
    contract_version: int = CONTRACT_VERSION


@dataclass(slots=True)
class Demonstration:
    """A conversation that ends with the assistant's answer as somebody wrote it."""

    id: str
    prompt: list[Message]
    answer: list[Message]
    source: str
    source_id: str
    group_id: str
    language: str | None = None
    split: str | None = None
    tags: list[str] = field(default_factory=list)
    contract_version: int = CONTRACT_VERSION


Record = TypeVar("Record", Comparison, Demonstration)


def digest(*parts: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the parts as JSON: the identity of a piece of content."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write rows (dataclasses or dictionaries) as JSON lines; returns how many."""
    count = 0
    with path.open("wb") as out:
        for row in rows:
            out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count


def read_jsonl(path: Path, kind: type[Record]) -> Iterator[Record]:
    """Records of a file that Prefline wrote. Raises PreflineError naming file and line where one is not whole."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = kind(**orjson.loads(line))
            except (ValueError, TypeError) as error:
                raise PreflineError(
                    f"{path}, line {number}: not a {kind.__name__.lower()} ({error}).",
                    "The file was changed or cut after Prefline wrote it. Make it again: prefline stage snapshot.",
                ) from error
            if record.contract_version != CONTRACT_VERSION:
                raise PreflineError(
                    f"{path}, line {number}: contract version {record.contract_version}, expected {CONTRACT_VERSION}.",
                    "Import the sources again with this release: prefline stage snapshot.",
                )
            yield record
