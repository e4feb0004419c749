"""From sources to the prepared data: import everything, bring together what belongs together, divide it into splits.

Three pure functions of files: the commands in dvc.yaml and the snapshot stage call the same ones. Equal sources and
parameters give equal bytes. Records are streamed; what is held of each is a few numbers.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import yaml

from tasks.config import BuiltInConfig, DataConfig, SplitConfig
from tasks.data import hub, shop
from tasks.data.batches import is_batch, records_of
from tasks.data.files import files
from tasks.data.formats import Reading
from tasks.data.grouping import Grouped, Seen, bring_together
from tasks.data.importers import Reject, import_file, place
from tasks.data.intake import COMPARISONS, DEMONSTRATIONS, REJECTS, ROLES, SKIPPED, Counts, Intake, Role, reject_line, unusable
from tasks.data.records import SPLITS, Comparison, Demonstration, Message, Record, read_jsonl
from tasks.data.splits import assign
from tasks.errors import DataRefused, PreflineError

BUILT_IN = "builtin"
REPEATED = "repeated.jsonl"
"""Records that a source gave again after another source had given them."""
NEAR = "near.parquet"
"""Of each comparison (id: its code), whether it nearly repeats an earlier one, and whether its prompt is like one of another group."""
COUNTS, GOLD = "counts.json", "gold.json"
ARRIVALS, GROUPS = "arrivals.json", "groups.parquet"
REMAKE = "Make the data again: prefline stage snapshot."


# Importing ----------------------------------------------------------------------------------------------------------


def import_sources(config: DataConfig, shop_yaml: Path, root: Path, out: Path) -> None:
    """Every source's rows as records, rejects or skipped ones, each in its file. root: what relative sources start from.

    A source that both roles name is read once. Raises PreflineError for a source that can't be read, DataRefused where a
    role is left without records.
    """
    reading = Reading(config.format, config.fields, config.rating)
    with _whole(out) as folder:
        with Intake(folder) as intake:
            for source in dict.fromkeys((*config.comparisons, *config.demonstrations)):
                roles = tuple(role for role in ROLES if source in getattr(config, role))
                if source == BUILT_IN:
                    intake.begin()
                    _built_in(config, shop_yaml, intake, roles, folder)
                    continue
                for path, name in [(source, source)] if source.startswith(hub.PREFIX) else files(root / Path(source).expanduser(), source):
                    intake.begin()
                    # A batch holds our own records with the places that they came from, whatever format they had there.
                    own = isinstance(path, Path) and is_batch(path)
                    for found in records_of(Path(path), name) if own else import_file(path, reading, name):
                        intake.take(found, roles)
        for role in ROLES:
            if not intake.rows[role]:
                raise _none_left(role, config, intake.first_reject)
        _write_json(folder / ARRIVALS, intake.arrivals)
        _write_json(folder / COUNTS, intake.counts.body())


def _built_in(config: DataConfig, shop_yaml: Path, intake: Intake, roles: tuple[Role, ...], folder: Path) -> None:
    """The built-in set, and gold.json, by which its answers can be judged, if there are no other questions."""
    made, how = _shop(config.builtin, shop_yaml), config.builtin
    if "comparisons" in roles:
        for comparison in shop.comparisons(made, how.rankings_per_question, how.seed, how.second_opinions):
            intake.add("comparisons", comparison)
    if "demonstrations" in roles:
        for demonstration in shop.demonstrations(made, how.demonstrations_per_question, how.seed):
            intake.add("demonstrations", demonstration)
    if config.comparisons == [BUILT_IN]:
        made.save(folder / GOLD)


def _shop(config: BuiltInConfig, shop_yaml: Path) -> shop.Shop:
    try:
        return shop.Shop.from_yaml(shop_yaml, config.seed)
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise PreflineError(
            f"{shop_yaml} can't be read: {error}", "It defines the built-in set: mend it, or restore it from git."
        ) from error


def _none_left(role: Role, config: DataConfig, first: Reject | None) -> DataRefused:
    """Said at once: later complaints would be of splits and shares."""
    advice = "Name files with comparisons there."
    if role == "demonstrations":
        advice = "Name files with demonstrations there, or with comparisons: their chosen answers then serve."
    if first:
        advice += f"\n  The first row refused: {place(first.source, first.line)}: {first.reason}."
    return DataRefused(f"No {role} in data.{role} ({', '.join(getattr(config, role))}).", advice)


# Bringing together --------------------------------------------------------------------------------------------------


def normalise(config: DataConfig, imported: Path, out: Path) -> None:
    """Each record once, and in a group with all that a split must not part from it. imported: what `import_sources` wrote.

    A group is what the source calls one, equal prompts, and prompts that nearly repeat an earlier one. A record given
    again goes to repeated.jsonl; one that says something else under the same id to the rejects.
    """
    with _whole(out) as folder:
        _keep(imported, folder, REJECTS, SKIPPED, GOLD)
        counts = Counts.load(_read_json(imported / COUNTS))
        seen = Seen()
        for record in _arriving(imported):
            seen.add(record)
        found = bring_together(seen, config.near_duplicates, partial(_texts, imported))
        repeats = _write_groups(imported, folder, found, counts)
        found.records.to_parquet(folder / GROUPS, index=False)
        if found.near is not None:
            found.near.to_parquet(folder / NEAR, index=False)
        figures = found.figures and asdict(found.figures)
        _write_json(folder / COUNTS, counts.body() | {"repeated": repeats, "near_duplicates": figures, "groups": found.groups()})


def _arriving(imported: Path) -> Iterator[Comparison | Demonstration]:
    """The records of both files in order of arrival."""
    kinds = _records(imported, Comparison), _records(imported, Demonstration)
    for counts in _read_json(imported / ARRIVALS):
        for records, count in zip(kinds, counts, strict=True):
            yield from _all_of(islice(records, count), count, imported)
    for records in kinds:
        yield from _all_of(islice(records, 1), 0, imported)


def _texts(imported: Path, wanted: np.ndarray) -> Iterator[str]:
    """The texts that `bring_together` asks for."""
    for record, prompt, first, second in zip(_arriving(imported), *wanted.T.tolist(), strict=True):
        if prompt:
            yield _text(record.prompt)
        if isinstance(record, Comparison):
            if first:
                yield _text(record.chosen)
            if second:
                yield _text(record.rejected)


def _text(messages: list[Message]) -> str:
    """What is compared: without a system message, which all prompts of a set may share."""
    return "\n".join([message["content"] for message in messages if message["role"] != "system"])


def _write_groups(imported: Path, folder: Path, found: Grouped, counts: Counts) -> int:
    """The kept records with the names of their groups; the others to repeated.jsonl or the rejects. Returns how many repeat."""
    own, group = iter(found.own.tolist()), iter(found.group.tolist())
    standing = set(found.group[found.group != found.own].tolist())
    names: dict[int, str] = {}
    given_again = set(found.first[found.first != np.arange(len(found.first))].tolist())
    places: dict[int, str] = {}
    repeats = 0
    with ExitStack() as stack:
        lines = {name: stack.enter_context((folder / name).open("ab")) for name in (COMPARISONS, DEMONSTRATIONS, REPEATED, REJECTS)}
        rows = zip(_arriving(imported), found.first.tolist(), found.same.tolist(), strict=True)
        for row, (record, first, same) in enumerate(rows):
            role: Role = "comparisons" if isinstance(record, Comparison) else "demonstrations"
            if row in given_again:
                places[row] = place(record.source, record.source_id)
            if first == row:
                number, joined = next(own), next(group)
                if number in standing:
                    names[number] = record.group_id  # it came before those for which it stands
                record.group_id = names.get(joined, record.group_id)
                lines[f"{role}.jsonl"].write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            elif same:
                repeats += 1
                body = {"source": record.source, "line": record.source_id, "id": record.id, "first": places[first]}
                lines[REPEATED].write(orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE))
            else:
                reject = unusable(record, f"another record has the same id ({record.id[:40]}, {places[first]})")
                counts.reject(role, reject.reason)
                lines[REJECTS].write(reject_line(reject, role))
    return repeats


# Splitting ----------------------------------------------------------------------------------------------------------


def split(config: SplitConfig, normalised: Path, out: Path) -> None:
    """The prepared data: every record with its split. normalised: what `normalise` wrote.

    A record that came with a split keeps it. Groups are never parted by us.
    """
    with _whole(out) as folder:
        _keep(normalised, folder, REJECTS, SKIPPED, REPEATED, NEAR, GOLD)
        counts = _read_json(normalised / COUNTS)
        records = _read_groups(normalised / GROUPS)
        splits, comparison = assign(records, config), records["comparison"].to_numpy()
        kinds = {
            "comparisons": (_records(normalised, Comparison), splits[comparison]),
            "demonstrations": (_records(normalised, Demonstration), splits[~comparison]),
        }
        found = {role: _divide(_all_of(rows, len(of), normalised), of, folder / f"{role}.jsonl") for role, (rows, of) in kinds.items()}
        _write_json(folder / COUNTS, found | counts)


def _read_groups(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise PreflineError(f"{path} can't be read: {error}.", REMAKE) from error


def _divide(records: Iterator[Comparison | Demonstration], splits: np.ndarray, path: Path) -> dict[str, Any]:
    """Write the records with their splits; returns rows and rows by split."""
    counts = Counter(splits.tolist())
    with path.open("wb") as file:
        for record, name in zip(records, splits.tolist(), strict=True):
            record.split = name
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    return {"rows": len(splits), "splits": {name: counts[name] for name in SPLITS}}


# Files --------------------------------------------------------------------------------------------------------------


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder beside out, which takes its place once all is in it."""
    work = out.with_name(f".{out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    if out.exists():
        shutil.rmtree(out)
    work.replace(out)


def _records(folder: Path, kind: type[Record]) -> Iterator[Record]:
    path = folder / (COMPARISONS if kind is Comparison else DEMONSTRATIONS)
    if not path.is_file():
        raise PreflineError(f"{path} is missing.", REMAKE)
    return read_jsonl(path, kind)


def _all_of(records: Iterator[Any], count: int, folder: Path) -> Iterator[Any]:
    """The records, which must be as many as were written."""
    found = 0
    for record in records:
        found += 1
        if found > count:
            break
        yield record
    if found != count:
        raise PreflineError(f"{folder} holds other records than were written there.", REMAKE)


def _keep(before: Path, folder: Path, *names: str) -> None:
    for name in names:
        if (before / name).exists():
            shutil.copyfile(before / name, folder / name)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PreflineError(f"{path} can't be read: {error}.", REMAKE) from error


def _write_json(path: Path, body: Any) -> None:
    path.write_text(json.dumps(body, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
