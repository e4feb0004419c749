"""From Prefline's records to files that other tools read, so that importing them again gives the same records.

Every row is read again before it is written: a record that would come back as another one is left out, and counted.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data.formats import Reading, Row, Unusable, read_row
from tasks.data.formats.writers import WRITERS, Question, Unheld, Writer
from tasks.data.records import Comparison, Demonstration, Message
from tasks.errors import ConfigError, EnvironmentRefused

ROWS_AT_ONCE = 1000
OTHERWISE = "texts that would be read back otherwise"


@dataclass(frozen=True)
class Exported:
    """written: rows. left_out: how many records the format can't hold, by what it can't hold of them."""

    written: int
    left_out: Counter[str]


def export(records: Iterable[Comparison | Demonstration], format: str, path: Path) -> Exported:
    """Write records in a format of WRITERS, into a kind of file of KINDS. A file that is there is replaced, in one move."""
    writer = _writer(format)
    left_out: Counter[str] = Counter()
    written = _write(path, writer, lambda kind: _rows(records, format, left_out, kind == ".csv"))
    return Exported(written, left_out)


def export_questions(questions: Iterable[Question], format: str, path: Path) -> Exported:
    """Write pairs of answers for people to compare, as tasks of a format that has some."""
    writer = _writer(format)
    if writer.ask is None:
        able = ", ".join(name for name, known in WRITERS.items() if known.ask)
        raise ConfigError(f"{format} has no tasks that wait for their labels.", f"Formats for labelling: {able}.")
    if path.name.endswith(".parquet"):
        raise ConfigError(f"{path}: people don't label Parquet.", "Write a .json, .jsonl or .csv file.")
    tasks = [writer.ask(question) for question in questions]
    left_out: Counter[str] = Counter()

    def rows(kind: str) -> Iterator[Row]:
        for task in tasks:
            if kind == ".csv" and any(_is_list(value) for value in task.values()):
                left_out[OTHERWISE] += 1
            else:
                yield task

    return Exported(_write(path, writer, rows), left_out)


def _writer(format: str) -> Writer:
    if format not in WRITERS:
        raise ConfigError(f'"{format}" is no format that Prefline writes.', f"It writes {', '.join(WRITERS)}.")
    return WRITERS[format]


def _write(path: Path, writer: Writer, rows: Callable[[str], Iterator[Row]]) -> int:
    """Write the rows that the kind of file asks for, in one move; returns how many."""
    kind = next((suffix for suffix in KINDS if path.name.endswith(suffix)), None)
    if kind is None:
        raise ConfigError(f"{path}: not a kind of file that Prefline writes.", f"It writes {', '.join(KINDS)}.")
    if writer.columns is None and kind in (".csv", ".parquet"):
        raise ConfigError(f"{path}: the format does not fit into a table.", "Write a .json or .jsonl file.")
    beside = path.with_name(f".{path.name}.partial")
    try:
        with beside.open("wb") as out:
            written = KINDS[kind](out, rows(kind), writer)
        beside.replace(path)
        return written
    except OSError as error:
        raise EnvironmentRefused(
            f"{path} can't be written: {error.strerror or error}.", "Mind the folder, its permissions and the space left."
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def _rows(records: Iterable[Comparison | Demonstration], format: str, left_out: Counter[str], cells: bool) -> Iterator[Row]:
    """The rows of those records that would come back the same. cells: they go into cells of text."""
    reading, write = Reading(format), WRITERS[format].write
    for record in records:
        try:
            row = write(record)
            again = list(read_row(row, reading))
            if len(again) != 1 or not _same(record, again[0]) or (cells and any(_is_list(value) for value in row.values())):
                raise Unheld(OTHERWISE)
        except Unheld as fault:
            left_out[str(fault)] += 1
        except Unusable:
            left_out[OTHERWISE] += 1
        else:
            yield row


def _same(record: Any, again: Any) -> bool:
    """Do both say the same? The space around a text is not part of it."""
    if type(record) is not type(again):
        return False
    texts = ("prompt", "chosen", "rejected") if isinstance(record, Comparison) else ("prompt", "answer")
    if any(_said(getattr(record, field)) != _said(getattr(again, field)) for field in texts):
        return False
    return isinstance(record, Demonstration) or record.tie == again.tie


def _said(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"].strip()) for message in messages]


def _is_list(value: Any) -> bool:
    """Is this a text that a cell would turn into a list of messages?"""
    if not isinstance(value, str) or not value.startswith("["):
        return False
    try:
        return isinstance(orjson.loads(value), list)
    except ValueError:
        return False


# Kinds of files -----------------------------------------------------------------------------------------------------


def _jsonl(out: IO[bytes] | gzip.GzipFile, rows: Iterator[Row], writer: Writer) -> int:
    written = 0
    for row in rows:
        out.write(orjson.dumps(_without_nothing(row), option=orjson.OPT_APPEND_NEWLINE))
        written += 1
    return written


def _jsonl_gz(out: IO[bytes], rows: Iterator[Row], writer: Writer) -> int:
    with gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0) as packed:  # no time in it: equal records, equal bytes
        return _jsonl(packed, rows, writer)


def _json(out: IO[bytes], rows: Iterator[Row], writer: Writer) -> int:
    written = 0
    out.write(b"[")
    for row in rows:
        out.write((b",\n" if written else b"\n") + orjson.dumps(_without_nothing(row)))
        written += 1
    out.write(b"\n]\n")
    return written


def _csv(out: IO[bytes], rows: Iterator[Row], writer: Writer) -> int:
    written = 0
    columns = list(writer.columns or {})
    with _as_text(out) as text:
        table = csv.writer(text)
        table.writerow(columns)
        for row in rows:
            table.writerow([_cell(row.get(column)) for column in columns])
            written += 1
    return written


@contextmanager
def _as_text(out: IO[bytes]) -> Iterator[IO[str]]:
    text = io.TextIOWrapper(out, "utf-8", newline="")
    yield text
    text.flush()
    text.detach()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _parquet(out: IO[bytes], rows: Iterator[Row], writer: Writer) -> int:
    schema = pa.schema(list((writer.columns or {}).items()))
    written = 0
    with pq.ParquetWriter(out, schema) as table:
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            table.write_table(pa.Table.from_pylist(batch, schema))
            written += len(batch)
    return written


def _without_nothing(row: Row) -> Row:
    return {name: value for name, value in row.items() if value is not None}


KINDS: dict[str, Callable[[IO[bytes], Iterator[Row], Writer], int]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl_gz,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""By the end of the file's name."""
