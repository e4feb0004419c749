"""JSON values, one a row: from lines of JSON, or from the items of one list, of any length.

A row that is not JSON is handed on as Broken, with the reason, so that nothing is lost and the others are read.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, BinaryIO

import orjson

from tasks.errors import PreflineError

LINE_LIMIT = 16_000_000
"""Bytes of a row. A longer one is read over, never held: it is a file without line ends, or an attack."""
DEPTH_LIMIT = 200
"""Lists and objects within each other; orjson writes no more than 254."""
EXCERPT = 500
"""Characters of an over-long row that are kept for people to look at."""
CHUNK = 1 << 20
BOM = b"\xef\xbb\xbf"
DECODER = json.JSONDecoder(parse_int=float)
"""Finds where a value ends. float takes any number of digits."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that can't be read. reason: with what differs from row to row in brackets at its end. row: what stood there."""

    reason: str
    row: Any


def lines(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """The values of lines that are not blank, by their number in the file."""
    for number in count(1):
        line = file.readline(LINE_LIMIT + 1)
        if not line:
            return
        if len(line) > LINE_LIMIT:
            yield number, Broken(f"a line of more than {LINE_LIMIT // 10**6} MB", shown(line[: 4 * EXCERPT])[:EXCERPT])
            while line and not line.endswith(b"\n"):
                line = file.readline(CHUNK)
        elif not line.isspace() and line != BOM:
            yield number, value(line)


def items(file: BinaryIO, name: str) -> Iterator[tuple[int, Any]]:
    """The values of a file that is one JSON list, by their place in it.

    Only where an item ends is asked here: each is then read as a line is, with the same limits and reasons.
    """
    # Bytes that are no UTF-8 become half characters, and the same bytes again for value() to complain of.
    text = _Text(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=""), name)
    text.expect("[")
    if text.next() == "]":
        text.expect("]")
        number = 0
    else:
        for number in count(1):
            yield number, value(text.item(number).encode("utf-8", "surrogateescape"))
            if text.expect(",]", number) == "]":
                break
    if text.next():
        raise PreflineError(
            f"{name}, line {text.line()}: more follows after the end of the list (row {number} was its last).",
            "A .json file holds one list, or one object a line. Put what follows into a file of its own.",
        )


class _Text:
    """What is at hand of a long text: read on as it is used up."""

    def __init__(self, file: io.TextIOWrapper, name: str) -> None:
        self._file, self._name = file, name
        self._text, self._at, self._lines, self._ended = "", 0, 1, False

    def item(self, number: int) -> str:
        """The text of the JSON value that begins here."""
        while True:
            try:
                _, end = DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise self._refused(number, "nested too deeply") from None
            except json.JSONDecodeError as error:  # perhaps only because the rest was not read yet
                if self._ended:
                    raise self._refused(number, f"{_said(error)} at character {error.pos - self._at + 1} of the row") from error
                if len(self._text) - self._at > LINE_LIMIT:
                    raise self._refused(number, f"it does not end within {LINE_LIMIT // 10**6} MB") from error
            else:
                # A number may go on in what was not read yet: after 1.5, "e-" is left of 1.5e-7.
                if end + 2 < len(self._text) or self._ended:
                    found, self._at = self._text[self._at : end], end
                    return found
            self._more()

    def expect(self, characters: str, number: int = 0) -> str:
        """Step over the next character, which must be one of these, and the white space around it."""
        found = self.next()
        if not found or found not in characters:
            wanted = " or ".join(f'"{character}"' for character in characters)
            raise self._refused(number, f"expected {wanted} after it, found {json.dumps(found) if found else 'the end of the file'}")
        self._at += 1
        self.next()
        return found

    def next(self) -> str:
        """The next character that is not white space, or "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def line(self) -> int:
        return self._lines + self._text.count("\n", 0, self._at)

    def _more(self) -> None:
        """Forget what was used, and read as much as is at hand already, so that a long row is not looked at too often."""
        self._lines = self.line()
        rest = self._text[self._at :]
        more = self._file.read(max(CHUNK, len(rest)))
        self._text, self._at, self._ended = rest + more, 0, not more

    def _refused(self, number: int, what: str) -> PreflineError:
        return PreflineError(
            f"{self._name}, line {self.line()}, row {number} of the list: not JSON ({what}).",
            "Was it cut short? Copy or export it again: nothing of it was used.",
        )


def value(text: bytes) -> Any:
    """The JSON value of a row's text, or Broken. What comes back can be written again: no half characters, not too deep."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return value(text.removeprefix(BOM)) if text.startswith(BOM) else Broken(_fault(text), shown(text))
    if text.count(b"[") + text.count(b"{") > DEPTH_LIMIT and _too_deep(found):
        return Broken(f"nested too deeply (more than {DEPTH_LIMIT} lists and objects within each other)", shown(text))
    return found


def is_whole(text: bytes) -> bool:
    """Is this one JSON value, though perhaps one that can't be used?"""
    try:
        json.loads(text)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def shown(text: bytes) -> str:
    """A row's text for people. Bytes that are no UTF-8 stay to be seen, as \\xff, so that nobody takes the row for mended."""
    return text.decode("utf-8", "backslashreplace").rstrip("\r\n")


def _fault(text: bytes) -> str:
    """Why text is not JSON, asked of the slower reader that tells more and takes more."""
    try:
        found = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (byte {error.start + 1})"
    except json.JSONDecodeError as error:
        cut = "" if error.doc.endswith("\n") else "; no line end follows: was it cut short?"
        return f"not JSON ({_said(error)} at column {error.pos + 1}{cut})"
    except ValueError:
        return "not JSON (a number of thousands of digits)"
    except RecursionError:
        return "nested too deeply"
    return next(_unwritable(found, ""), "not JSON")


def _said(error: json.JSONDecodeError) -> str:
    """What Python says, without the place that some of it goes on to."""
    return error.msg.removesuffix(" at")


def _unwritable(found: Any, field: str) -> Iterator[str]:
    """What Python takes and JSON in UTF-8 has no place for."""
    shown_field = json.dumps(field.strip(".")[:60])
    if isinstance(found, float) and not math.isfinite(found):
        yield f"not JSON ({shown_field} is {json.dumps(found)}, which is no number)"
    elif isinstance(found, str):
        half = next((place for place, character in enumerate(found, 1) if "\ud800" <= character <= "\udfff"), None)
        if half:
            yield f"half a character ({shown_field}, at {half})"
    elif isinstance(found, list):
        for item in found:
            yield from _unwritable(item, field)
    elif isinstance(found, dict):
        for key, item in found.items():
            yield from _unwritable(key, f"{field}.{key}")
            yield from _unwritable(item, f"{field}.{key}")


def _too_deep(found: Any) -> bool:
    level = [found]
    for _ in range(DEPTH_LIMIT):
        level = [
            item for outer in level if isinstance(outer, list | dict) for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)
