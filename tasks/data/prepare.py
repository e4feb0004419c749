"""From sources to the prepared data: make the built-in set, import everything, divide it into splits.

Three pure functions of files: the commands in dvc.yaml and the snapshot stage call the same ones. Equal sources and
parameters give equal bytes.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import yaml

from tasks.config import BuiltInConfig, DataConfig, SplitConfig
from tasks.data import shop
from tasks.data.importers import EXCERPT, Reject, import_file, place
from tasks.data.records import Comparison, Demonstration, Record, Split, digest, read_jsonl, write_jsonl
from tasks.data.splits import Groups
from tasks.data.statistics import Description
from tasks.errors import DataRefused, PreflineError

BUILT_IN = "builtin"
COMPARISONS, DEMONSTRATIONS, REJECTS = "comparisons.jsonl", "demonstrations.jsonl", "rejects.jsonl"
REPEATED = "repeated.jsonl"
"""Records that a source gave again after another source had given them."""
STATISTICS, COUNTS, GOLD = "statistics.json", "counts.json", "gold.json"
REASONS = 50
"""Kinds of rejects that are counted by name."""

Role = Literal["comparisons", "demonstrations"]
ROLES: tuple[Role, ...] = ("comparisons", "demonstrations")


def make_builtin(config: BuiltInConfig, shop_yaml: Path, out: Path) -> None:
    """The built-in set as raw records, and gold.json, by which its answers can be judged. Raises PreflineError without shop_yaml."""
    try:
        made = shop.Shop.from_yaml(shop_yaml, config.seed)
    except (OSError, yaml.YAMLError) as error:
        raise PreflineError(
            f"{shop_yaml} can't be read: {error}", "It defines the built-in set: mend it, or restore it from git."
        ) from error
    _fresh(out)
    write_jsonl(out / COMPARISONS, shop.comparisons(made, config.rankings_per_question, config.seed))
    write_jsonl(out / DEMONSTRATIONS, shop.demonstrations(made, config.demonstrations_per_question, config.seed))
    made.save(out / GOLD)


# Importing ----------------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """What came of the sources. rejects: by role. repeated: records left out because another source had them.

    reasons: rejects by kind.
    """

    rejects: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def save(self, path: Path) -> None:
        kinds = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
        other = sum(count for _, count in kinds[REASONS:])
        reasons = dict(kinds[:REASONS]) | ({"other reasons": other} if other else {})
        rejects = {"rows": self.rejects.total()} | {role: self.rejects[role] for role in ROLES}
        _write_json(path, {"rejects": rejects | {"reasons": reasons}, "repeated": self.repeated})


def normalise(config: DataConfig, raw: Path, root: Path, out: Path) -> None:
    """All sources as records of ours. raw: the built-in set's folder. root: what relative sources start from.

    Every row becomes a comparison, a demonstration, a reject or a repetition, each in its file. Raises PreflineError for
    a source that can't be read, DataRefused where no row of a role is left.
    """
    _fresh(out)
    counts = Counts()
    with _lines_to(out / REJECTS) as rejects, _lines_to(out / REPEATED) as repeated:
        sorter = Sorter(counts, rejects, repeated)
        for role in ROLES:
            if not write_jsonl(out / f"{role}.jsonl", sorter.new(role, _imported(config, role, raw, root))):
                raise _none_left(role, config, sorter.first_reject)
    if config.comparisons == [BUILT_IN]:  # gold knows the built-in questions and no others
        shutil.copyfile(raw / GOLD, out / GOLD)
    counts.save(out / COUNTS)


def _imported(config: DataConfig, role: Role, raw: Path, root: Path) -> Iterator[Comparison | Demonstration | Reject]:
    """What the sources of a role hold, in that role."""
    other = config.demonstrations if role == "comparisons" else config.comparisons
    for source in dict.fromkeys(getattr(config, role)):
        if source == BUILT_IN:
            if role == "comparisons":
                yield from read_jsonl(raw / COMPARISONS, Comparison)
            else:
                yield from read_jsonl(raw / DEMONSTRATIONS, Demonstration)
            continue
        for found in import_file(root / Path(source).expanduser(), config.format, source):
            cast = _in_role(found, role, used_elsewhere=source in other)
            if cast is not None:
                yield cast


def _in_role(found: Comparison | Demonstration | Reject, role: Role, used_elsewhere: bool) -> Comparison | Demonstration | Reject | None:
    """A record as its role wants it; None where the source's other role takes it, so that nothing is lost or counted twice.

    A comparison among the demonstrations shows its chosen answer.
    """
    if isinstance(found, Reject):
        return None if used_elsewhere and role == "demonstrations" else found
    if role == "comparisons":
        if isinstance(found, Comparison):
            return found
        reason = "a demonstration among the comparisons: name its file under data.demonstrations"
    elif isinstance(found, Demonstration):
        return found
    elif not found.tie:
        return as_demonstration(found)
    else:
        reason = "a tie among the demonstrations: neither answer was chosen"
    return None if used_elsewhere else _unusable(found, reason)


def as_demonstration(comparison: Comparison) -> Demonstration:
    """The answer that was chosen, as something to imitate."""
    return Demonstration(
        id=digest("demonstration", comparison.prompt, comparison.chosen),
        prompt=comparison.prompt,
        answer=comparison.chosen,
        source=comparison.source,
        source_id=comparison.source_id,
        group_id=comparison.group_id,
        split=comparison.split,
        tags=comparison.tags,
    )


class Sorter:
    """Lets records pass whose id is new; the others and the rejects go to their files."""

    def __init__(self, counts: Counts, rejects: TextIO, repeated: TextIO) -> None:
        self.first_reject: Reject | None = None
        self._counts = counts
        self._rejects = rejects
        self._repeated = repeated

    def new(self, role: Role, found: Iterable[Comparison | Demonstration | Reject]) -> Iterator[Comparison | Demonstration]:
        seen: dict[str, tuple[str, str]] = {}
        for row in found:
            if isinstance(row, Reject):
                self._reject(role, row)
                continue
            says, where = _says(row), place(row.source, row.source_id)
            if row.id not in seen:
                seen[row.id] = says, where
                yield row
            elif seen[row.id][0] == says:
                self._counts.repeated += 1
                _write_line(self._repeated, {"source": row.source, "line": row.source_id, "id": row.id, "first": seen[row.id][1]})
            else:
                self._reject(role, _unusable(row, f"another record has the same id ({row.id[:40]}, {seen[row.id][1]})"))

    def _reject(self, role: Role, row: Reject) -> None:
        self.first_reject = self.first_reject or row
        self._counts.rejects[role] += 1
        self._counts.reasons[row.reason.split(" (")[0]] += 1
        _write_line(self._rejects, asdict(row) | {"role": role})


def _unusable(record: Comparison | Demonstration, reason: str) -> Reject:
    return Reject(record.source, int(record.source_id), reason, json.dumps(asdict(record))[:EXCERPT])


def _says(record: Comparison | Demonstration) -> str:
    """What a record of this id claims: two of one id must agree on it."""
    if isinstance(record, Comparison):
        return digest(record.prompt, record.chosen, record.rejected, record.annotator, record.tie)
    return digest(record.prompt, record.answer)


def _none_left(role: Role, config: DataConfig, first: Reject | None) -> DataRefused:
    """Said at once: later complaints would be of splits and shares."""
    advice = "Name files with comparisons there."
    if role == "demonstrations":
        advice = "Name files with demonstrations there, or with comparisons: their chosen answers then serve."
    if first:
        advice += f"\n  The first row refused: {place(first.source, first.line)}: {first.reason}."
    return DataRefused(f"No {role} in data.{role} ({', '.join(getattr(config, role))}).", advice)


# Splitting ----------------------------------------------------------------------------------------------------------


def split(config: SplitConfig, imported: Path, out: Path) -> None:
    """The prepared data: every record with its split, and statistics.json. imported: what `normalise` wrote.

    A record that came with a split keeps it. Groups are never parted by us.
    """
    _fresh(out)
    groups = Groups()
    for record in _records(imported):
        groups.add(record)
    splits = groups.splits(config)
    comparisons, demonstrations = Description(), Description()
    write_jsonl(out / COMPARISONS, comparisons.watch(_divided(read_jsonl(imported / COMPARISONS, Comparison), splits)))
    write_jsonl(out / DEMONSTRATIONS, demonstrations.watch(_divided(read_jsonl(imported / DEMONSTRATIONS, Demonstration), splits)))
    for name in (REJECTS, REPEATED, GOLD):
        if (imported / name).exists():
            shutil.copyfile(imported / name, out / name)
    counts = json.loads((imported / COUNTS).read_text(encoding="utf-8"))
    _write_json(out / STATISTICS, {"comparisons": comparisons.summary(), "demonstrations": demonstrations.summary()} | counts)


def _records(folder: Path) -> Iterator[Comparison | Demonstration]:
    yield from read_jsonl(folder / COMPARISONS, Comparison)
    yield from read_jsonl(folder / DEMONSTRATIONS, Demonstration)


def _divided(records: Iterable[Record], splits: dict[str, Split]) -> Iterator[Record]:
    for record in records:
        record.split = record.split or splits[record.group_id]
        yield record


# Files --------------------------------------------------------------------------------------------------------------


def _fresh(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _write_json(path: Path, body: Any) -> None:
    path.write_text(json.dumps(body, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _lines_to(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="\n")


def _write_line(file: TextIO, body: Any) -> None:
    file.write(json.dumps(body, ensure_ascii=False) + "\n")
