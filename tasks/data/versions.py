"""Versions of the prepared data: those that git and the project name by DVC's hash, and how to find and read one.

dvc.lock names what dvc.yaml makes (data/prepared), data/snapshots/NAME.dvc all else. What a commit names can be read
from DVC's cache without laying it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tasks.config import DataConfig
from tasks.data import dvc_store, prepare
from tasks.data.batches import BATCHES
from tasks.data.records import Record, read_jsonl
from tasks.data.snapshot import PARAMS, PREPARED, SNAPSHOTS, standing
from tasks.errors import EnvironmentRefused, PreflineError
from tasks.git import ask_git

LOCK = Path("dvc.lock")
SHORTEST = 4
"""Characters of a hash or a name that are enough to ask for a version by."""


@dataclass(frozen=True)
class Version:
    """Prepared data that DVC keeps. folder: where they lie when they are laid out, relative to the project.

    commit: the first that names them; "" where none does yet. made: when that was, or when they were made here.
    """

    md5: str
    folder: Path
    commit: str
    made: datetime

    @property
    def name(self) -> str:
        """For people: the beginning of the hash."""
        return self.md5[:12]


@dataclass(frozen=True)
class Files:
    """The files of a version by name, wherever they lie."""

    version: Version
    paths: dict[str, Path]

    def stream(self, kind: type[Record]) -> Iterator[Record]:
        return read_jsonl(self.paths[f"{kind.__name__.lower()}s.jsonl"], kind)


def versions(root: Path) -> list[Version]:
    """Those that commits of this repository name, and those of the project that no commit names yet; newest first."""
    found: dict[str, Version] = {}
    for commit, made, paths in reversed(_touching(root)):
        for md5, folder in _named_by(root, commit, paths):
            found.setdefault(md5, Version(md5, folder, commit, made))
    for folder, md5 in pointers(root).items():
        pointer = root / (LOCK if folder == PREPARED else f"{folder}.dvc")
        if folder != BATCHES and md5 not in found:
            found[md5] = Version(md5, folder, "", datetime.fromtimestamp(pointer.stat().st_mtime, UTC))
    newest_first = reversed(found.values())  # which decides between commits of one second
    return sorted(newest_first, key=lambda version: (not version.commit, version.made), reverse=True)


def pointers(root: Path) -> dict[Path, str]:
    """The folders that the project's own files have DVC keep, with their hashes: batches, prepared data, snapshots."""
    found = {}
    lock = root / LOCK
    if lock.is_file():
        found[PREPARED] = _in_lock(lock.read_text(encoding="utf-8"))
    for path in (root / f"{BATCHES}.dvc", *sorted((root / SNAPSHOTS).glob("*.dvc"))):
        found[path.relative_to(root).with_suffix("")] = dvc_store.pointed_at(path.with_suffix(""))
    return {folder: md5 for folder, md5 in found.items() if md5}


def find(root: Path, data: DataConfig, text: str = "") -> Version:
    """The version that a text means: the name or the hash of one or its beginning, a git revision, or "" for what is here now.

    Raises PreflineError where there is none, or more than one.
    """
    if not text:
        return _here(root, data)
    if len(text) >= SHORTEST:
        known = [
            version for version in versions(root) if version.md5.startswith(text) or text in (version.folder.name, str(version.folder))
        ]
        if len({version.md5 for version in known}) > 1:
            raise PreflineError(f"{text} may mean {', '.join(version.name for version in known)}.", "Give more of the hash.")
        if known:
            return known[0]
    commit = _commit(root, text)
    if not commit:
        raise PreflineError(
            f"{text} is no git revision, and no version of the data begins like that.", "prefline data log lists the versions there are."
        )
    return _at(root, commit, text)


def read(root: Path, version: Version) -> Files:
    """The files of a version: from its folder where that still holds it, else from DVC's cache.

    Raises PreflineError where neither has it whole.
    """
    folder = root / version.folder
    if folder.is_dir() and dvc_store.folder_md5(folder) == version.md5:
        return Files(version, {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()})
    if dvc_store.lacking(root, [version.md5]):
        where = f"prefline data pull {version.commit[:12]}" if version.commit else "prefline data snapshot"
        raise PreflineError(f"The data {version.name} ({version.folder}) are not on this machine, or not whole.", f"Bring them: {where}")
    return Files(version, dvc_store.in_cache(root, [version.md5])[version.md5])


def counts(files: dict[str, Path]) -> dict[str, Any]:
    """What preparing counted, from the files of a version by name."""
    path = files.get(prepare.COUNTS) or files["statistics.json"]  # where releases before wrote the same figures
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def require_batches(root: Path) -> None:
    """Raises PreflineError where data/batches.dvc, of a clone or a git pull, names batches that were never on this machine.

    Without them nobody can say what is new, and a snapshot would leave them out.
    """
    folder = root / BATCHES
    md5 = dvc_store.pointed_at(folder)
    if md5 and not (folder.is_dir() and (dvc_store.in_cache(root, [md5]) or dvc_store.folder_md5(folder) == md5)):
        raise PreflineError(f"{BATCHES}.dvc names batches that are not here.", "Fetch them first: prefline data pull.")


def current(root: Path, data: DataConfig) -> list[Path]:
    """The folders that matter now, of those that DVC is to keep: the batches, and the snapshot of what is here or of HEAD."""
    named = pointers(root)
    wanted = standing(data, root)
    if wanted not in named and (commit := _commit(root, "HEAD")) and any(folder != BATCHES for _, folder in _named_at(root, commit)):
        wanted = _at(root, commit, "HEAD").folder
    return [folder for folder in (BATCHES, wanted) if folder in named]


def fetch(root: Path, data: DataConfig, text: str) -> Version:
    """Bring the version that a text means into DVC's cache, where `read` finds it; the project's folders stay as they are."""
    version = find(root, data, text)
    dvc_store.fetch(root, version.md5)
    return version


def to_commit(root: Path) -> list[str]:
    """The files that name data and differ from the last commit, for `git add`."""
    lines = _git(root, "status", "--porcelain", "--untracked-files=all", "--", str(LOCK), f"{BATCHES}.dvc", str(SNAPSHOTS))
    prefix = "".join(_git(root, "rev-parse", "--show-prefix"))
    return [line[3:].strip('"').removeprefix(prefix) for line in lines]


# Looking ------------------------------------------------------------------------------------------------------------


def _here(root: Path, data: DataConfig) -> Version:
    folder = standing(data, root)
    if not (root / folder).is_dir():
        raise PreflineError("There is no snapshot of the data as they are now.", "Take it: prefline data snapshot.")
    made = datetime.fromtimestamp((root / folder).stat().st_mtime, UTC)
    return Version(dvc_store.folder_md5(root / folder), folder, "", made)


def _at(root: Path, commit: str, shown: str) -> Version:
    """The version that a commit is about: what its params.yaml has dvc.yaml make, else the snapshot that came last."""
    made = _date(root, commit)
    named = _named_at(root, commit)
    try:
        section = yaml.safe_load("\n".join(_git(root, "show", f"{commit}:./{PARAMS}")))["data"] or {}
        sources = {source for role in prepare.ROLES for source in section.get(role, [prepare.BUILT_IN])}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):  # nothing said, or nothing that can be read
        sources = {prepare.BUILT_IN}
    own = [Version(md5, folder, commit, made) for md5, folder in named if folder == PREPARED]
    if sources == {prepare.BUILT_IN} and own:
        return own[0]
    kept = {folder: Version(md5, folder, commit, made) for md5, folder in named if folder.parent == SNAPSHOTS}
    if not kept:
        raise _none_named(shown)
    newest = next((paths for _, _, paths in _touching(root, commit, str(SNAPSHOTS)) if {*map(_folder_of, paths)} & {*kept}), [])
    last = [kept[folder] for folder in map(_folder_of, newest) if folder in kept]
    if len(last) != 1:
        raise PreflineError(
            f"{shown} names {len(last)} snapshots of one age: {', '.join(version.folder.name for version in last)}.",
            "Give the name of one instead of the revision.",
        )
    return last[0]


def _none_named(shown: str) -> PreflineError:
    return PreflineError(f"{shown} names no prepared data.", "Commit dvc.lock and data/snapshots/*.dvc after prefline data snapshot.")


def _named_at(root: Path, commit: str) -> list[tuple[str, Path]]:
    """Hash and folder of all that a commit names."""
    return list(_named_by(root, commit, _git(root, "ls-tree", "--name-only", commit, "--", str(LOCK), f"{SNAPSHOTS}/", f"{BATCHES}.dvc")))


def _named_by(root: Path, commit: str, paths: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Hash and folder that files of a commit name; nothing for those that name none, or are none."""
    for path in paths:
        if path == str(LOCK) or path.endswith(".dvc"):
            text = "\n".join(_git(root, "show", f"{commit}:./{path}"))
            md5 = _in_lock(text) if path == str(LOCK) else dvc_store.named_in(text)
            if md5:
                yield md5, _folder_of(path)


def _folder_of(path: str) -> Path:
    """The folder that a file names."""
    return PREPARED if path == str(LOCK) else Path(path.removesuffix(".dvc"))


def _in_lock(text: str) -> str:
    """The hash of the prepared data in the text of dvc.lock, "" where there is none."""
    try:
        stages = yaml.safe_load(text)["stages"].values()
        return next((str(out["md5"]) for stage in stages for out in stage.get("outs", ()) if out["path"] == str(PREPARED)), "")
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return ""


# Git ----------------------------------------------------------------------------------------------------------------


def _touching(root: Path, start: str = "--all", *paths: str) -> list[tuple[str, datetime, list[str]]]:
    """Commits that changed what names data, newest first: hash, date, and which files."""
    lines = _git(
        root,
        "log",
        start,
        "--format=%x00%H %cI",
        "--name-only",
        "--diff-filter=AM",
        "--relative",
        "--",
        *(paths or (str(LOCK), str(SNAPSHOTS))),
    )
    found: list[tuple[str, datetime, list[str]]] = []
    for line in lines:
        if line.startswith("\0"):
            commit, made = line[1:].split()
            found.append((commit, datetime.fromisoformat(made), []))
        elif line:
            found[-1][2].append(line)
    return found


def _commit(root: Path, revision: str) -> str:
    """The full hash of the commit that a revision means; "" where there is none."""
    return "".join(_git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"))


def _date(root: Path, commit: str) -> datetime:
    return datetime.fromisoformat(_git(root, "show", "--no-patch", "--format=%cI", commit)[0])


def _git(root: Path, *arguments: str) -> list[str]:
    """What git prints; nothing where it has nothing to say of that. Raises EnvironmentRefused without git or a repository."""
    done = ask_git(root, *arguments)
    if done.returncode and ("not a git repository" in done.stderr or "dubious ownership" in done.stderr):
        raise EnvironmentRefused(f"{root} is in no git repository that may be read.", "Run there: git init, and commit what is there.")
    return [] if done.returncode else done.stdout.splitlines()
