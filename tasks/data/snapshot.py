"""Stage "snapshot": the prepared data as a folder that DVC knows by its hash; and `dataset`, how other stages read it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.config import DataConfig, PipelineConfig
from tasks.data import dvc_store, files, prepare
from tasks.data.dvc_access import alone
from tasks.data.records import Comparison, Demonstration, Message, Record, Split, digest, read_jsonl
from tasks.data.shop import Shop
from tasks.errors import PreflineError
from tasks.stage import Metrics, StageResult, StageRun, code_digest, read_result, stage

PARAMS = Path("params.yaml")
SHOP = Path("data/shop.yaml")
PREPARED = Path("data/prepared")
SNAPSHOTS = Path("data/snapshots")
SNAPSHOT = "snapshot.json"


class Snapshot(BaseModel):
    """snapshot.json: which data the run is about. It is part of every later key, so nothing in it changes unless the data do.

    folder: relative to the project. md5: DVC's hash of it. splits: comparisons by split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    md5: str
    comparisons: int
    demonstrations: int
    rejects: int
    splits: dict[str, int]


@dataclass(frozen=True)
class Prompt:
    """A question to answer. tags: the slices that it belongs to. source, language: of the first comparison that asks it."""

    messages: list[Message]
    group_id: str
    tags: tuple[str, ...]
    source: str = ""
    language: str | None = None


@dataclass(frozen=True)
class Dataset:
    """The prepared data. folder: holds comparisons, demonstrations, rejects and counts. md5: DVC's hash of it."""

    folder: Path
    md5: str

    def stream(self, kind: type[Record], *splits: Split) -> Iterator[Record]:
        """Comparisons or demonstrations one by one, of the given splits; of all, if none is given."""
        name = prepare.COMPARISONS if kind is Comparison else prepare.DEMONSTRATIONS
        return (record for record in read_jsonl(self.folder / name, kind) if not splits or record.split in splits)

    def comparisons(self, *splits: Split) -> list[Comparison]:
        return list(self.stream(Comparison, *splits))

    def demonstrations(self, *splits: Split) -> list[Demonstration]:
        return list(self.stream(Demonstration, *splits))

    def prompts(self, *splits: Split) -> list[Prompt]:
        """The distinct prompts of the comparisons in those splits, in the order in which they first come."""
        found: dict[str, Prompt] = {}
        for record in self.stream(Comparison, *splits):
            name = digest(record.prompt)
            if name not in found:
                found[name] = Prompt(record.prompt, record.group_id, tuple(record.tags), record.source, record.language)
        return list(found.values())

    def shop(self) -> Shop | None:
        """The truth about the built-in set; None for other data."""
        gold = self.folder / prepare.GOLD
        return Shop.load(gold) if gold.exists() else None

    def counts(self) -> dict[str, Any]:
        """Rows and splits by kind, rejects, repetitions: what preparing counted."""
        found: dict[str, Any] = json.loads((self.folder / prepare.COUNTS).read_text(encoding="utf-8"))
        return found


def dataset(result: StageResult, root: Path) -> Dataset:
    """The data of a snapshot, checked to be still what the snapshot saw. Raises PreflineError where they are not."""
    seen = read_snapshot(result)
    folder = root / seen.folder
    if not folder.is_dir() or dvc_store.folder_md5(folder) != seen.md5:
        raise PreflineError(
            f"{seen.folder} no longer holds the data of this run (DVC hash {seen.md5}).",
            "Another run, dvc or a person changed the folder meanwhile. Run again; use --set for runs that differ in their data.",
        )
    return Dataset(folder, seen.md5)


def read_snapshot(result: StageResult) -> Snapshot:
    """What the snapshot saw. Raises PreflineError where a later run has put another one in its place."""
    found = read_result(result.path)
    try:
        if found and found.digest != result.digest:
            raise FileNotFoundError
        return Snapshot.model_validate_json((result.path / SNAPSHOT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PreflineError(
            "The data changed while this run was going on, and another run took a snapshot of them.",
            "Run again: stages that the change does not touch are kept.",
        ) from None


@stage("snapshot", reads=("data",), package="data", cached=False)
def snapshot(config: PipelineConfig, *, run: StageRun) -> Metrics:
    """Prepare the data and have DVC keep them; writes snapshot.json.

    The data that params.yaml describes come from `dvc repro`, where dvc.yaml sees everything that they depend on. Those of
    an overlay, of --set or of files of your own become a folder in data/snapshots, named after all that decides it.
    """
    if _is_pipelines_own(config.data, run.root):
        folder, kept = PREPARED, dvc_store.reproduce(run.root, run.root / PREPARED)
    else:
        folder, kept = _keep_copy(config.data, run)
    figures = Dataset(run.root / folder, kept.md5).counts()
    found = Snapshot(
        folder=folder,
        md5=kept.md5,
        comparisons=figures["comparisons"]["rows"],
        demonstrations=figures["demonstrations"]["rows"],
        rejects=figures["rejects"]["rows"],
        splits=figures["comparisons"]["splits"],
    )
    (run.out / SNAPSHOT).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if not kept.ran:
        run.nothing_to_do = "data unchanged"
    return {"comparisons": found.comparisons, "demonstrations": found.demonstrations, "rejects": found.rejects}


def _is_pipelines_own(data: DataConfig, root: Path) -> bool:
    """Are these the data that `dvc repro` makes? It does not see files that params.yaml names, only what dvc.yaml lists."""
    if {*data.comparisons, *data.demonstrations} != {prepare.BUILT_IN}:
        return False
    try:
        section = yaml.safe_load((root / PARAMS).read_text(encoding="utf-8"))["data"]
        return DataConfig.model_validate(section) == data and section.keys() == DataConfig.model_fields.keys()
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValidationError):
        return False


def standing(data: DataConfig, root: Path) -> Path:
    """The folder, relative to the project, in which a snapshot of these data lies once it is taken."""
    return PREPARED if _is_pipelines_own(data, root) else SNAPSHOTS / _name(data, root)


def _keep_copy(data: DataConfig, run: StageRun) -> tuple[Path, dvc_store.Kept]:
    """The data as a folder of data/snapshots under DVC, made anew unless it is there and whole.

    They are made apart and then moved there, so that neither a kill nor DVC, which moves what it adds into its cache, can
    lose or change a source.
    """
    folder = SNAPSHOTS / _name(data, run.root)
    place = run.root / folder
    with alone(run.root):
        md5 = dvc_store.pointed_at(place)
        if md5 and place.is_dir() and dvc_store.folder_md5(place) == md5:
            return folder, dvc_store.Kept(md5)
        made = _make(data, run.root, place.with_name(f".{place.name}"))
        if place.exists():
            shutil.rmtree(place)
        made.replace(place)
        return folder, dvc_store.add(run.root, place)


def _make(data: DataConfig, root: Path, work: Path) -> Path:
    """The prepared data in a folder below work's parent; what was made on the way is gone."""
    imported, normalised, prepared = work / "imported", work / "normalised", work.with_name(f"{work.name}.prepared")
    try:
        prepare.import_sources(data, root / SHOP, root, imported)
        prepare.normalise(data, imported, normalised)
        prepare.split(data.split, normalised, prepared)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return prepared


def _name(data: DataConfig, root: Path) -> str:
    """A short name from all that decides the data: the settings, the sources' content, the code."""
    sources = dict.fromkeys((*data.comparisons, *data.demonstrations))
    return digest(data.model_dump(mode="json"), {source: _content(source, root) for source in sources}, code_digest("data"))[:12]


def _content(source: str, root: Path) -> list[tuple[str, str]]:
    """Name and SHA-256 of each of a source's files. [] where there is none (importing says so better), or none of ours."""
    if source.startswith("hub:"):  # its revision is part of its name, or the hub's newest is meant
        return []
    try:
        found = files.files(root / (SHOP if source == prepare.BUILT_IN else Path(source).expanduser()), source)
    except PreflineError:
        return []
    content = []
    for path, name in found:
        if os.access(path, os.R_OK):
            with path.open("rb") as opened:
                content.append((name, hashlib.file_digest(opened, "sha256").hexdigest()))
    return content
