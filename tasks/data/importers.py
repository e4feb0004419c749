"""From files that annotation tools and public sets left to Prefline's records.

Files are streamed row by row; formats.py says what a row means. Whether the records are any good is for the contract to
judge, not for importers.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tasks.data.formats import Unusable, kind_of, read_row
from tasks.data.records import Comparison, Demonstration, digest
from tasks.errors import PreflineError

KNOWN_FILES = (".jsonl", ".jsonl.gz", ".json")
EXCERPT = 500
"""Characters of an unusable row that are kept for people to look at."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that gave no record. line: counted from 1; in a JSON list, the place in the list.

    reason: what kind of fault, with what differs from row to row in brackets at its end. row: its beginning.
    """

    source: str
    line: int
    reason: str
    row: str


def import_file(path: Path, format: str = "auto", name: str | None = None) -> Iterator[Comparison | Demonstration | Reject]:
    """Records and rejects of a file, or of all known files in a folder, in a stable order.

    format: a name in FORMATS, or "auto" to recognise each row by its shape. name: what to call the file in records and
    messages. Raises PreflineError where the file as a whole can't be read: missing, empty, damaged, of an unknown kind.
    """
    for file, label in _files(path, name or str(path)):
        seen: Counter[str] = Counter()
        rows = 0
        for line, content in _rows(file, label):
            rows += 1
            try:
                yield _complete(read_row(_parse(content) if isinstance(content, bytes) else content, format), label, line, seen)
            except Unusable as fault:
                yield Reject(label, line, str(fault), _excerpt(content))
        if not rows:
            raise PreflineError(
                f"{label} holds no rows.", "Was the export or the download finished? Remove the file if nothing belongs in it."
            )


def place(source: str, source_id: str | int) -> str:
    """Where a record came from, for messages."""
    return f"{source}, {'line' if '.jsonl' in source else 'row'} {source_id}"


def _complete(record: Comparison | Demonstration, source: str, line: int, seen: Counter[str]) -> Comparison | Demonstration:
    """Say where the record came from; give it an id and a group where it has none of its own.

    The id is of the content, and of how often this file said the same before: copies within a file stay, for the contract
    to count, while the same export read twice, or again after it grew, gives the same ids.
    """
    record.source, record.source_id = source, str(line)
    record.group_id = record.group_id or digest("prompt", record.prompt)
    if not record.id:
        if isinstance(record, Comparison):
            content = digest("comparison", record.prompt, record.chosen, record.rejected, record.annotator)
        else:
            content = digest("demonstration", record.prompt, record.answer)
        record.id = digest(content, seen[content]) if seen[content] else content
        seen[content] += 1
    return record


# Files --------------------------------------------------------------------------------------------------------------


def _files(path: Path, name: str) -> list[tuple[Path, str]]:
    """The files to read and what to call them."""
    if path.is_dir():
        found = [(file, file.relative_to(path)) for file in path.rglob("*") if file.name.endswith(KNOWN_FILES) and file.is_file()]
        shown = sorted((inside.as_posix(), file) for file, inside in found if not any(part.startswith(".") for part in inside.parts))
        if not shown:
            raise PreflineError(f"{name}: no data file in this folder.", f"Prefline reads {', '.join(KNOWN_FILES)}.")
        return [(file, f"{name.rstrip('/')}/{inside}") for inside, file in shown]
    if not path.exists():
        raise PreflineError(
            f"{name}: no such file or folder.",
            "data.comparisons and data.demonstrations name files and folders by absolute path or from the project's folder.",
        )
    if not path.name.endswith(KNOWN_FILES):
        raise PreflineError(f"{name}: not a kind of file that Prefline knows.", f"It reads {', '.join(KNOWN_FILES)}.")
    return [(path, name)]


def _rows(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Numbered rows: bytes that should be JSON, or the items of a JSON list."""
    if path.suffix != ".json":
        return _lines(path, name)
    with _readable(path, name, "rb") as file:
        begin = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return _lines(path, name) if begin == b"{" else _items(path, name)


def _lines(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank."""
    number = 0
    try:
        with _readable(path, name, "rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield number, text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PreflineError(
            f"{name}: damaged or cut short after line {number} ({error}).", "Copy or download it again: nothing of it was used."
        ) from error


def _items(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """The items of a file that holds one JSON list."""
    with _readable(path, name, "rb") as file:
        text = file.read()
    try:
        items = _parse(text.removeprefix(b"\xef\xbb\xbf")) if text.strip() else []
    except Unusable as fault:
        raise PreflineError(f"{name}: {fault}.", "Was it cut short? Copy or export it again: nothing of it was used.") from fault
    if not isinstance(items, list):
        raise PreflineError(f"{name} holds {kind_of(items)}, not a list of rows.", "Give a JSON list, or JSON lines in a .jsonl file.")
    yield from enumerate(items, 1)


def _readable(path: Path, name: str, mode: str) -> Any:
    try:
        return gzip.open(path, mode) if path.suffix == ".gz" else path.open(mode)
    except OSError as error:
        raise PreflineError(f"{name} can't be read: {error.strerror}.", "Mind its permissions.") from error


def _parse(text: bytes) -> Any:
    """The JSON value in UTF-8 text; Unusable where there is none."""
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise Unusable(f"not UTF-8 text (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        cut = "" if error.doc.endswith("\n") else "; the file ends with this row: was it cut short?"
        raise Unusable(f"not JSON ({error.msg} at {where}{cut})") from error
    except ValueError as error:
        raise Unusable(f"not JSON ({error})") from error
    except RecursionError as error:
        raise Unusable("not JSON (nested too deeply)") from error


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _excerpt(content: Any) -> str:
    if isinstance(content, bytes):
        return content[: 4 * EXCERPT].decode("utf-8", "replace").rstrip("\r\n")[:EXCERPT]
    try:
        return json.dumps(content)[:EXCERPT]
    except RecursionError:
        return ""
