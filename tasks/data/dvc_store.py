"""The only caller of DVC: run the data stages, keep folders, send and fetch them, and the hash that DVC gives a folder.

The way in (locks, errors, remotes) is dvc_access.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.costs import cost_of
from tasks.data.dvc_access import alone, commands, patiently, remote, repository
from tasks.errors import PreflineError


@dataclass(frozen=True)
class Kept:
    """A folder that DVC knows. md5: its hash, ending in ".dir". ran: names of the stages that had to run for it."""

    md5: str
    ran: tuple[str, ...] = ()


def reproduce(root: Path, folder: Path) -> Kept:
    """Bring the outputs of dvc.yaml up to date, running only what changed. folder: the output whose hash is wanted.

    Raises EnvironmentRefused where there is no git repository or no DVC in root; PreflineError where a command fails.
    """
    stages = str(root / "dvc.yaml")  # by default DVC takes that of the current folder
    with alone(root), cost_of("dvc"), commands() as printed, repository(root, printed) as repo:
        ran = patiently(lambda: repo.reproduce(stages), root)
        md5 = _hash_of(repo, folder)
        if folder_md5(folder) != md5:  # restored from a cache that holds something else
            _drop_damaged(repo, [entry["md5"] for out in repo.index.outs for entry in _cached_listing(repo, out)])
            ran = patiently(lambda: repo.reproduce(stages, force=True), root)
        return Kept(md5, tuple(stage.addressing for stage in ran))


def add(root: Path, folder: Path) -> Kept:
    """Put a folder under DVC: its content into the cache, FOLDER.dvc beside it."""
    with alone(root), cost_of("dvc"), repository(root) as repo:
        _drop_damaged(repo, [entry["md5"] for entry in _listing(folder)])
        patiently(lambda: repo.add(str(folder)), root)
        return Kept(_hash_of(repo, folder), (folder.name,))


def keep(root: Path, folder: Path) -> Kept:
    """Put a folder under DVC that can't be made again. DVC, which moves what it adds, is given a copy: a kill loses nothing.

    FOLDER.dvc appears whole, or stays what it was. Raises PreflineError where the folder changes meanwhile.
    """
    with alone(root):
        md5 = folder_md5(folder)
        if pointed_at(folder) == md5 and not lacking(root, [md5]):
            return Kept(md5)
        work = folder.with_name(f".{folder.name}.adding")
        shutil.rmtree(work, ignore_errors=True)
        try:
            work.mkdir()
            (work / ".gitignore").write_text(f"/{folder.name}\n", encoding="utf-8")
            shutil.copytree(folder, work / folder.name)
            added = add(root, work / folder.name)
            if added.md5 != md5:
                raise PreflineError(f"{folder} changed while DVC was taking it in.", "Run again when nothing else writes there.")
            (work / f"{folder.name}.dvc").replace(folder.with_name(f"{folder.name}.dvc"))
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return added


def push(root: Path, folders: Sequence[Path]) -> int:
    """Send folders that DVC keeps to its default remote; returns how many files were not there yet."""
    with alone(root), cost_of("dvc"), repository(root) as repo, remote(repo):
        gone = [folder for folder in folders if not _is_whole(repo, _hash_of(repo, folder))]
        if gone:
            raise PreflineError(
                f"DVC's cache does not hold all of {', '.join(_shown(folder, root) for folder in gone)}, so it can't be sent.",
                "Have it made again (prefline data snapshot) or fetched from where it is whole (prefline data pull).",
            )
        return int(patiently(lambda: repo.push([str(folder) for folder in folders]), root)) if folders else 0


def pull(root: Path, folders: Sequence[Path]) -> list[Kept]:
    """Lay folders out as the pointers to them say, from the cache or from the remote; each is hashed afterwards.

    Raises PreflineError, with nothing changed, where a file that DVC does not keep would be overwritten. ran: those that changed.
    """
    kept = []
    with alone(root), cost_of("dvc"), repository(root) as repo:
        wanted = {folder: _hash_of(repo, folder) for folder in folders}
        stale = {folder: md5 for folder, md5 in wanted.items() if not folder.is_dir() or folder_md5(folder) != md5}
        for folder in stale:
            _refuse_unsaved(repo, folder, root)
        _bring(repo, list(stale.values()))
        for folder, md5 in wanted.items():
            if folder in stale:
                target = str(folder)
                patiently(lambda: repo.checkout([target], force=True), root)  # noqa: B023  (called at once)
                if folder_md5(folder) != md5:
                    raise PreflineError(
                        f"{_shown(folder, root)} is not what its pointer says (DVC hash {md5}) though DVC laid it out.",
                        "Is the disk sound? Remove the folder and run again.",
                    )
            kept.append(Kept(md5, (folder.name,) if folder in stale else ()))
    return kept


def fetch(root: Path, md5: str) -> None:
    """Bring a folder by its hash into the cache, for others to read there; the project's folders stay as they are."""
    with alone(root), cost_of("dvc"), repository(root) as repo:
        _bring(repo, [md5])


def lacking(root: Path, hashes: Iterable[str]) -> list[str]:
    """Those folders of which DVC's cache has not every file. Files that are not what their names say do not count."""
    with repository(root) as repo:
        return [md5 for md5 in hashes if not _is_whole(repo, md5)]


def in_cache(root: Path, hashes: Iterable[str]) -> dict[str, dict[str, Path]]:
    """The files by name of those folders of which DVC's cache has every file, none looked into."""
    found = {}
    with repository(root) as repo:
        for md5 in hashes:
            files = {entry["relpath"]: _cached(repo, entry["md5"]) for entry in _cached_entries(repo, md5)}
            if files and all(path.is_file() for path in files.values()):
                found[md5] = files
    return found


def pointed_at(folder: Path) -> str:
    """The hash in FOLDER.dvc, "" where there is no such file or nothing usable in it."""
    try:
        return named_in(folder.with_name(f"{folder.name}.dvc").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""


def named_in(pointer: str) -> str:
    """The hash in the text of a .dvc file, "" where there is none."""
    try:
        return str(yaml.safe_load(pointer)["outs"][0]["md5"])
    except (yaml.YAMLError, KeyError, IndexError, TypeError):
        return ""


def folder_md5(folder: Path) -> str:
    """DVC's hash of a folder, worked out from its files as they are now: the md5 of a list of md5s by path.

    DVC itself trusts the time stamps of files and its cache; this finds a file that was damaged or edited.
    """
    return hashlib.md5(json.dumps(_listing(folder), sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _listing(folder: Path) -> list[dict[str, str]]:
    """A folder's files as DVC lists them: md5 and path of each, by path. Left out: what .dvcignore names."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc" and path.name != ".DS_Store")
    paths = sorted((path.relative_to(folder).as_posix(), path) for path in found)
    return [{"md5": _md5(path), "relpath": name} for name, path in paths]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _hash_of(repo: Any, folder: Path) -> str:
    return str(repo.find_outs_by_path(str(folder))[0].hash_info.value)


def _cached_listing(repo: Any, out: Any) -> list[dict[str, str]]:
    """What an output's folder held when DVC saw it last; [] where the cache does not say."""
    return _cached_entries(repo, out.hash_info.value) if out.hash_info else []


def _cached_entries(repo: Any, md5: str) -> list[dict[str, str]]:
    """The files of a folder by its hash; [] where the cache has no whole list of them."""
    path = _cached(repo, md5)
    if not md5.endswith(".dir") or not path.is_file() or _md5(path) != md5.removesuffix(".dir"):
        return []
    listing: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return listing


def _cached(repo: Any, md5: str) -> Path:
    return Path(repo.cache.local.oid_to_path(md5))


def _is_whole(repo: Any, md5: str) -> bool:
    """Has the cache the folder's list, and every file on it as it was?"""
    entries = _cached_entries(repo, md5)
    paths = [(_cached(repo, entry["md5"]), entry["md5"]) for entry in entries]
    return bool(entries) and all(path.is_file() and _md5(path) == name for path, name in paths)


def _drop_damaged(repo: Any, hashes: Iterable[str]) -> None:
    """Remove files from DVC's cache that are not what their names say: it would hand them out without a look."""
    for name in set(hashes):
        path = _cached(repo, name)
        if path.is_file() and _md5(path) != name.removesuffix(".dir"):
            path.unlink()


# Remotes ------------------------------------------------------------------------------------------------------------


def _bring(repo: Any, hashes: Sequence[str]) -> None:
    """Have the cache hold all of these folders, fetching only if it does not: who has everything needs no remote."""
    from dvc_data.hashfile.hash_info import HashInfo

    if all(_is_whole(repo, md5) for md5 in hashes):
        return
    with remote(repo) as url:
        for names in (lambda: hashes, lambda: [entry["md5"] for md5 in hashes for entry in _cached_entries(repo, md5)]):
            _drop_damaged(repo, names())  # first the folders' lists, then the files on them
            absent = {name for name in names() if not _cached(repo, name).is_file()}
            repo.cloud.pull([HashInfo("md5", name) for name in absent])  # by hash: an old commit's configuration may know no remote
        missing = [md5 for md5 in hashes if not _is_whole(repo, md5)]
        if missing:
            raise PreflineError(
                f"The DVC remote {url} does not hold all of {', '.join(missing)}, or holds it damaged.",
                "Send it from where it was made: prefline data push.",
            )


def _refuse_unsaved(repo: Any, folder: Path, root: Path) -> None:
    """Raises PreflineError where a folder holds what only it has."""
    unsaved = [entry["relpath"] for entry in _listing(folder) if not _cached(repo, entry["md5"]).is_file()]
    if unsaved:
        more = f" and {len(unsaved) - 3} more" if len(unsaved) > 3 else ""
        raise PreflineError(
            f"{_shown(folder, root)} holds files that DVC does not keep yet: {', '.join(unsaved[:3])}{more}.",
            "They would be lost. Keep them first (prefline data snapshot), or move them away and back once the others are here.",
        )


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
