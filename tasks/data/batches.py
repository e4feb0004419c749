"""Batches: what `prefline data import` takes in. Each is a file of records in data/batches, named after when it came and what it holds.

A batch never changes, and its records are in none before it. The sources themselves may then go.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from tasks.data.formats import Reading
from tasks.data.importers import Reject, import_file, place
from tasks.data.records import CONTRACT_VERSION, Comparison, Demonstration, digest
from tasks.errors import EnvironmentRefused, PreflineError

BATCHES, REJECTS, REFUSED = Path("data/batches"), Path("data/rejects"), Path("data/refused")
WORK = Path("data/.importing")
"""Where files grow until they are whole. What a killed import left there is removed by the next one."""
STAMP, NAME = "%Y%m%d-%H%M%S", re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}\.jsonl")
EVERY = 1000
"""Rows between two reports of progress."""


@dataclass
class Reason:
    """Why rows were left out: how many, and the first of them."""

    rows: int
    first: str


@dataclass
class Imported:
    """What came of an import. batch, rejects: the new files, relative to the project, or None.

    rows: of the sources, as far as they say anything. known: records that an earlier batch, or an earlier row, holds.
    skipped, rejected: rows left out, by reason.
    """

    batch: Path | None = None
    rejects: Path | None = None
    rows: int = 0
    comparisons: int = 0
    demonstrations: int = 0
    ties: int = 0
    known: int = 0
    skipped: dict[str, Reason] = field(default_factory=dict)
    rejected: dict[str, Reason] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        return bool(self.comparisons or self.demonstrations or self.known)

    def count(self, reject: Reject) -> None:
        kinds = self.skipped if reject.skipped else self.rejected
        kind = reject.reason.split(" (")[0]  # what differs from row to row stands in brackets
        kinds.setdefault(kind, Reason(0, place(reject.source, reject.line))).rows += 1


def import_batch(root: Path, sources: Iterable[str], reading: Reading, progress: Callable[[int], None] = lambda rows: None) -> Imported:
    """Read sources (files, folders, "hub:OWNER/NAME") into a new batch: their records whose ids are in none so far.

    Rows that can't be used become a file in data/rejects, to be mended and imported again. Raises PreflineError for a
    source that can't be read; then, and after a kill, nothing has changed. Call it alone in a project.
    """
    (root / WORK.parent).mkdir(exist_ok=True)
    shutil.rmtree(root / WORK, ignore_errors=True)
    try:
        (root / WORK).mkdir()
        with _Lines(root / WORK / "batch.jsonl") as batch, _Lines(root / WORK / "rejects.jsonl") as rejects:
            found = _sort(_read(root, sources, reading, progress), known_records(root), batch, rejects)
        found.rejects = rejects.publish(root, REJECTS)
        found.batch = batch.publish(root, BATCHES)
        return found
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentRefused(
                f"{root / WORK}: no space left on the disk.", "Free some and run again: nothing has changed."
            ) from error
        if isinstance(error, PermissionError):
            raise EnvironmentRefused(
                f"{error.filename} can't be written: {error.strerror}.", "Mind the permissions below data/."
            ) from error
        raise
    finally:
        shutil.rmtree(root / WORK, ignore_errors=True)


def take_out(root: Path, batch: Path) -> Path:
    """Move a batch that was refused out of the way; returns where it lies now, to be imported again when it is mended."""
    (root / REFUSED).mkdir(exist_ok=True)
    place = REFUSED / batch.name
    (root / batch).replace(root / place)
    return place


def known_records(root: Path) -> dict[tuple[str, bool], int]:
    """All records of the batches: a hash of what each says, by its id and whether it is a comparison."""
    batches = _own_files(root / BATCHES)
    records = (record for path in batches for record in records_of(path, path.relative_to(root).as_posix()))
    return {(record.id, isinstance(record, Comparison)): _says(record) for record in records}


def is_batch(path: Path) -> bool:
    """Did an import write this file?"""
    return path.parent.name == BATCHES.name and NAME.fullmatch(path.name) is not None


def records_of(batch: Path, name: str) -> Iterator[Comparison | Demonstration]:
    """The records of a batch as they were taken in, with the place that they came from. name: of the file, for messages."""
    with batch.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = orjson.loads(line)
                record = Comparison(**row) if "chosen" in row else Demonstration(**row)
                if record.contract_version != CONTRACT_VERSION:
                    raise ValueError(f"of contract version {record.contract_version}, expected {CONTRACT_VERSION}")
            except (ValueError, TypeError) as error:
                raise PreflineError(
                    f"{name}, line {number}: not a whole record ({error}).",
                    "Batches are not edited. Restore the file (prefline data pull), or move it away and import it again.",
                ) from error
            yield record


def _says(record: Comparison | Demonstration) -> int:
    """What a record of this id claims; the same id with another claim is a conflict."""
    if isinstance(record, Comparison):
        return int(digest(record.prompt, record.chosen, record.rejected, record.annotator, record.tie), 16)
    return int(digest(record.prompt, record.answer), 16)


def _read(
    root: Path, sources: Iterable[str], reading: Reading, progress: Callable[[int], None]
) -> Iterator[tuple[int, Comparison | Demonstration | Reject]]:
    """What the sources hold, with the number of rows so far: several records may come of one row."""
    rows, last = 0, ("", "")
    for source in sources:
        path = source if source.startswith("hub:") else Path(source).expanduser().absolute()
        name = path.relative_to(root).as_posix() if isinstance(path, Path) and path.is_relative_to(root) else source
        for found in import_file(path, reading, name):
            here = found.source, str(found.line if isinstance(found, Reject) else found.source_id)
            if here != last:
                rows, last = rows + 1, here
                if rows % EVERY == 0:
                    progress(rows)
            yield rows, found
    progress(rows)


def _sort(
    found: Iterable[tuple[int, Comparison | Demonstration | Reject]], known: dict[tuple[str, bool], int], batch: _Lines, rejects: _Lines
) -> Imported:
    """Write each record that is new, and each row that can't be used."""
    result = Imported()
    for result.rows, item in found:
        reject = item if isinstance(item, Reject) else _take(item, known, batch, result)
        if reject is not None:
            result.count(reject)
            if not reject.skipped:
                rejects.write({"source": reject.source, "line": reject.line, "reason": reject.reason, "row": reject.row})
    return result


def _take(record: Comparison | Demonstration, known: dict[tuple[str, bool], int], batch: _Lines, result: Imported) -> Reject | None:
    """Write the record if its id is new; a reject where another record has it."""
    key, says = (record.id, isinstance(record, Comparison)), _says(record)
    before = known.get(key)
    if before is None:
        known[key] = says
        batch.write(record)
        if isinstance(record, Comparison):
            result.comparisons += 1
            result.ties += record.tie
        else:
            result.demonstrations += 1
    elif before == says:
        result.known += 1
    else:
        return Reject(record.source, int(record.source_id), f"another record has the same id ({record.id[:40]})", asdict(record))
    return None


class _Lines:
    """A file of JSON lines that grows out of sight, hashed on the way; it is moved into place when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self._rows = 0

    def __enter__(self) -> _Lines:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, row: Any) -> None:
        try:
            line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # a reject may hold what only JSON's own writer can write: huge numbers, half characters
            line = json.dumps(row).encode() + b"\n"
        self._hash.update(line)
        self._file.write(line)
        self._rows += 1

    def publish(self, root: Path, folder: Path) -> Path | None:
        """Move the file into a folder; returns where it is, None where nothing was written. Once for the same bytes."""
        if not self._rows:
            return None
        (root / folder).mkdir(exist_ok=True)
        name, earlier = self._hash.hexdigest()[:8], _own_files(root / folder)
        for same in earlier:
            if same.stem.endswith(name):
                return folder / same.name
        place = folder / f"{_stamp_after(earlier)}-{name}.jsonl"
        self._path.replace(root / place)
        return place


def _own_files(folder: Path) -> list[Path]:
    """The files that imports left in a folder, in the order in which they came. Others may lie there too."""
    return sorted(path for path in folder.glob("*.jsonl") if NAME.fullmatch(path.name))


def _stamp_after(files: list[Path]) -> str:
    """The time now, or a second after the newest of the files if a clock went back: names sort as batches arrived."""
    now = datetime.now(UTC).replace(tzinfo=None)
    if files:
        now = max(now, datetime.strptime(files[-1].name[:15], STAMP) + timedelta(seconds=1))
    return now.strftime(STAMP)
