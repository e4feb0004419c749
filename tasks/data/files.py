"""The rows of files and folders that tools leave: JSON lines, JSON lists, CSV and Parquet, gzipped or not.

Everything is streamed. What a row means is for formats to say; a file that can't be read is refused here, by name.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from tasks.data import cells, json_rows
from tasks.data.json_rows import BOM, CHUNK, LINE_LIMIT
from tasks.errors import PreflineError

KNOWN_FILES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
BOMB_SIZE = 128_000_000
BOMB_RATIO = 200
"""A gzip file is refused once it unpacks to more than BOMB_SIZE bytes and more than BOMB_RATIO times its own size. Texts
that people wrote shrink by 3 to 20 times; nothing shrinks by more than 1,032."""

GZIP = b"\x1f\x8b"
FOREIGN = {
    b"PK\x03\x04": ("a zip archive", "Unpack it."),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "Unpack it."),
    b"BZh": ("compressed by bzip2", "Unpack it."),
    b"\xfd7zXZ": ("compressed by xz", "Unpack it."),
    b"PAR1": ("a Parquet file", "Let its name end in .parquet."),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file itself", "Fetch the file: git lfs pull."),
    b"<!DOCTYPE": ("a web page", "Perhaps the download asked for a login."),
    b"<html": ("a web page", "Perhaps the download asked for a login."),
    b"\xff\xfe": ("text in UTF-16", "Save it in UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW."),
    b"\xfe\xff": ("text in UTF-16", "Save it in UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW."),
}
"""What a file of text may turn out to be, by its first bytes."""


def files(path: Path, name: str) -> list[tuple[Path, str]]:
    """The files to read and what to call them: the file itself, or all of known kinds in a folder, in a stable order.

    Hidden ones are left out. A link that leads out of the folder is refused: what it leads to is not what was given.
    """
    try:
        return _files(path, name)
    except OSError as error:
        raise _unreadable(name, error) from error


def _files(path: Path, name: str) -> list[tuple[Path, str]]:
    if path.is_dir():
        found = sorted(_inside(path, name), key=lambda file: file.relative_to(path).as_posix())
        if not found:
            raise PreflineError(f"{name}: no data file in this folder.", f"Prefline reads {', '.join(KNOWN_FILES)}.")
        return [(file, f"{name.rstrip('/')}/{_shown(file.relative_to(path))}") for file in found]
    if not path.exists():
        raise PreflineError(f"{name}: no such file or folder.", "Give files and folders by absolute path or from the project's folder.")
    if not _known(path.name):
        raise PreflineError(f"{name}: not a kind of file that Prefline knows.", f"It reads {', '.join(KNOWN_FILES)}.")
    return [(path, name)]


def _shown(path: Path) -> str:
    """A path as text that can be written: names of files may be any bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _unreadable(name: str, error: OSError) -> PreflineError:
    return PreflineError(f"{name} can't be read: {error.strerror or error}.", "Mind its permissions.")


def rows(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Numbered rows of one file: JSON values, or Broken where a row can't be read.

    The number is the line on which a row begins; in a JSON list or in Parquet the place of the row. name: what to call
    the file in messages. Raises PreflineError where the file as a whole can't be read: damaged, of another kind, empty.
    """
    number = 0
    try:
        for number, row in _rows(path, name):
            yield number, row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PreflineError(
            f"{name}: damaged or cut short after line {number} ({error}).", "Copy or download it again: nothing of it was used."
        ) from error
    except OSError as error:
        raise _unreadable(name, error) from error
    if not number:
        raise PreflineError(f"{name} holds no rows.", "Was the export or the download finished? Remove the file if nothing belongs in it.")


def _rows(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    if not path.is_file():
        raise PreflineError(f"{name} is not a file: a pipe, a device, or a link to nothing.", "Put a file there.")
    kind = path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == "parquet":
        yield from cells.parquet_rows(path, name)
        return
    with _opened(path, name) as file:
        first = b"" if kind == "csv" else _first_line(file)
    with _opened(path, name) as file:
        if kind == "csv":
            yield from cells.csv_rows(file, name)
        elif _begins_list(first, kind):
            yield from json_rows.items(file, name)
        elif kind == "json" and _begins_other(first):
            raise PreflineError(
                f"{name} holds one JSON value, not a list of rows.",
                "Give a JSON list, or one object a line. Where the rows stand under a key: jq .KEY OLD.json > NEW.json.",
            )
        else:
            yield from json_rows.lines(file)


def _first_line(file: BinaryIO) -> bytes:
    """The first line that is not blank."""
    while line := file.readline(LINE_LIMIT + 1):
        text = line.removeprefix(BOM).strip()
        if text:
            return text
    return b""


def _begins_list(first: bytes, kind: str) -> bool:
    """Does a list of rows begin here? In JSON lines only by mistake: a line that is a list by itself is a row of that line."""
    if kind == "json":
        return first.startswith(b"[")
    return first[:1] == b"[" and first[1:].lstrip()[:1] in (b"", b"{") and not json_rows.is_whole(first)


def _begins_other(first: bytes) -> bool:
    """Is this the beginning of a value that is no list, spread over lines? A row that was cut ends otherwise."""
    return bool(first) and (first[:1] != b"{" or (first[-1:] in b"{[,:" and not json_rows.is_whole(first)))


# Opening ------------------------------------------------------------------------------------------------------------


def _opened(path: Path, name: str) -> BinaryIO:
    """The bytes of a file of text, unpacked where it is gzip, whatever it is called."""
    file: BinaryIO = path.open("rb", buffering=CHUNK)
    if file.read(2) == GZIP:
        file.close()
        file = cast(BinaryIO, io.BufferedReader(_Unpacked(path, name), CHUNK))
    elif path.name.lower().endswith(".gz") and path.stat().st_size:
        file.close()
        raise PreflineError(
            f"{name} is not gzip: damaged, or not packed.", "Copy or download it again; if it is text already, take .gz off its name."
        )
    else:
        file.seek(0)
    begin = cast(io.BufferedReader, file).peek(32)
    found = next((what for first, what in FOREIGN.items() if begin.startswith(first)), None)
    if found is None and len(begin) >= 4 and (begin[1:4:2] == b"\0\0" or begin[0:3:2] == b"\0\0") and begin[:4] != bytes(4):
        found = FOREIGN[b"\xff\xfe"]
    if found:
        file.close()
        raise PreflineError(f"{name} is {found[0]}.", found[1])
    return file


class _Unpacked(io.RawIOBase):
    """What a gzip file holds, until that is too much for its size."""

    def __init__(self, path: Path, name: str) -> None:
        self._file, self._name = gzip.open(path), name  # noqa: SIM115 - closed with this
        self._left = max(BOMB_SIZE, BOMB_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._file.read1(len(buffer))  # what there is before an end that is damaged comes first
        self._left -= len(found)
        if self._left < 0:
            raise PreflineError(
                f"{self._name} unpacks to more than {BOMB_RATIO} times its size: no text shrinks like that.",
                "Don't trust where it came from. If it is meant to be so, unpack it yourself and give the file.",
            )
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()


# Folders ------------------------------------------------------------------------------------------------------------


def _known(name: str) -> bool:
    return name.lower().endswith(KNOWN_FILES)


def _inside(folder: Path, name: str) -> Iterator[Path]:
    """Data files in a folder and the folders in it, in no order."""
    home = os.path.realpath(folder)
    for at, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for path in [Path(at, each) for each in (*folders, *names) if each in folders or (_known(each) and not each.startswith("."))]:
            target = Path(os.path.realpath(path))  # which, unlike resolve(), stands loops
            if path.is_symlink() and not target.is_relative_to(home):
                raise PreflineError(
                    f"{name}: the link {_shown(path.relative_to(folder))} leads out of this folder, to {_shown(target)}.",
                    "Put the file itself there, or remove the link and name what it leads to as a source of its own.",
                )
        yield from (Path(at, each) for each in names if _known(each) and not each.startswith("."))


def _refuse(error: OSError) -> None:
    """A folder that can't be looked into: os.walk would pass it by."""
    raise error
