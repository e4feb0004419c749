"""Rows of tables, CSV and Parquet, as the JSON objects that they stand for.

An empty cell is a field that is absent. In CSV, which knows text only, a cell that holds a JSON list or object is read as that.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data.json_rows import CHUNK, LINE_LIMIT, Broken, shown, value
from tasks.errors import PreflineError

ROWS_AT_ONCE = 256
CONVERSATION = re.compile(r"""\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")
"""How messages begin, as JSON or as Python prints them: pandas writes lists so, and they are nobody's words."""
TEXTS = {"prompt", "chosen", "rejected", "completion", "answer", "response", "instruction", "input", "output", "text", "question"}
TEXTS |= {"input_text", "candidate", "reference"}
"""Columns of CSV, numbered or not, that hold texts or conversations: JSON in one, if not messages, is what somebody said."""


def csv_rows(file: BinaryIO, name: str) -> Iterator[tuple[int, Any]]:
    """Rows below the header, by the line on which each begins."""
    csv.field_size_limit(LINE_LIMIT)
    # Bytes that are no UTF-8 become half characters: the row is found out below.
    lines = csv.reader(_text_lines(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in lines:
            if header is None and cells:
                header = _header(cells, name, line)
            elif header is not None and cells:
                yield line, _row(header, cells)
            line = lines.line_num + 1
    except csv.Error as error:
        raise PreflineError(
            f"{name}, line {line}: not CSV ({error}).",
            'A row begins there. A cell with commas, quotes or line ends stands in quotes, "so", with each quote in it doubled: "".',
        ) from error


def _text_lines(file: io.TextIOWrapper) -> Iterator[str]:
    while line := file.readline(LINE_LIMIT + 1):
        if len(line) > LINE_LIMIT:
            raise csv.Error(f"a line of more than {LINE_LIMIT // 10**6} MB")
        yield line


def _header(cells: list[str], name: str, line: int) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = next((column for column, times in Counter(header).items() if times > 1 and column), None)
    if twice is not None:
        raise PreflineError(f'{name}, line {line}: two columns are called "{twice[:60]}".', "Rename one, or take it out.")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise PreflineError(
            f"{name}, line {line}: the header has one column ({shown_cell(header[0])[:60]}).",
            "Cells are parted by commas. Save the table as CSV with commas.",
        )
    return header


def _row(header: list[str], cells: list[str]) -> Any:
    if len(cells) != len(header):
        return Broken(f"not as many cells as columns ({len(cells)} cells, {len(header)} columns)", _written(cells))
    # A column without a name is the row numbers that pandas writes.
    row: dict[str, Any] = {column: cell for column, cell in zip(header, cells, strict=True) if cell and column}
    if any(not cell.isascii() and _half(cell) for cell in cells):
        return Broken("not UTF-8 text", _written(row))
    for column, cell in row.items():
        if cell[0] in "[{":
            found = value(cell.encode())
            text = column.rstrip("_0123456789") in TEXTS
            if not isinstance(found, Broken) and (not text or _is_messages(found)):
                row[column] = found
            elif text and CONVERSATION.match(cell):
                return Broken(f'messages that are not JSON ("{column}")', cells)
    return row


def _is_messages(found: Any) -> bool:
    return bool(found) and isinstance(found, list) and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in found)


def _half(cell: str) -> bool:
    try:
        cell.encode()
    except UnicodeEncodeError:
        return True
    return False


def _written(row: Any) -> Any:
    """The row as it is, or as text in which bytes that are no UTF-8 can be seen."""
    text = json.dumps(row, ensure_ascii=False)
    return shown(text.encode("utf-8", "surrogateescape")) if _half(text) else row


def shown_cell(cell: str) -> str:
    return shown(cell.encode("utf-8", "surrogateescape"))


def parquet_rows(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Rows, counted from 1."""
    number = 0
    try:
        # Read through a buffer: by default a whole group of rows is fetched ahead, which may be the whole file.
        with pq.ParquetFile(path, buffer_size=CHUNK, pre_buffer=False) as table:
            schema = table.schema_arrow
            twice = next((column for column, times in Counter(schema.names).items() if times > 1), None)
            if twice is not None:
                raise PreflineError(f'{name}: two columns are called "{twice[:60]}".', "Rename one, or take it out.")
            foreign = not all(_is_json(column.type) for column in schema)
            for batch in table.iter_batches(ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield number, plain_row(row) if foreign else {column: cell for column, cell in row.items() if _given(cell)}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PreflineError(
            f"{name}: damaged or no Parquet file, after row {number} ({str(error).splitlines()[0][:120] if str(error) else 'unreadable'}).",
            "Copy or download it again: nothing of it was used.",
        ) from error


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of Arrow's as the JSON object that it stands for."""
    return {column: _plain(cell) for column, cell in row.items() if _given(cell)}


def _given(cell: Any) -> bool:
    """Is there anything in it? pandas writes a missing number as NaN, which is unlike itself."""
    return cell is not None and cell == cell


def _is_json(kind: pa.DataType) -> bool:
    """Do all values of this Arrow type come as JSON has them?"""
    if pa.types.is_struct(kind):
        return all(_is_json(kind.field(number).type) for number in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        return _is_json(kind.value_type)
    checks = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_null,
    )
    return any(check(kind) for check in checks)


def _plain(cell: Any) -> Any:
    """A value of Arrow's as JSON has it."""
    match cell:
        case dict():
            return {str(key): _plain(item) for key, item in cell.items()}
        case list() | tuple():
            return [_plain(item) for item in cell]
        case bytes():
            return shown(cell)
        case datetime() | date() | time():
            return cell.isoformat()
        case timedelta():
            return cell.total_seconds()
        case Decimal():
            return float(cell)
        case None | bool() | int() | float() | str():
            return cell
    return str(cell)
