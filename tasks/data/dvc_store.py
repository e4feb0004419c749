"""The only caller of DVC: run the data stages, keep a folder, and the hash that DVC gives a folder.

DVC waits three seconds for its own lock; we hold one of ours around it, which waits as long as it must.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from filelock import FileLock, Timeout

from tasks.costs import cost_of
from tasks.errors import EnvironmentRefused, PreflineError

LOG = "PREFLINE_COMMAND_LOG"
"""Environment variable that tells the commands in dvc.yaml to write into a file what they would print."""
BUSY_SECONDS = 120.0
"""How long to wait for a DVC command that somebody else runs."""

Result = TypeVar("Result")


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
    with alone(root), cost_of("dvc"), _commands() as printed, _repository(root, printed) as repo:
        ran = _patiently(lambda: repo.reproduce(stages), root)
        md5 = _hash_of(repo, folder)
        if folder_md5(folder) != md5:  # restored from a cache that holds something else
            _drop_damaged(repo, [entry["md5"] for out in repo.index.outs for entry in _cached_listing(repo, out)])
            ran = _patiently(lambda: repo.reproduce(stages, force=True), root)
        return Kept(md5, tuple(stage.addressing for stage in ran))


def add(root: Path, folder: Path) -> Kept:
    """Put a folder under DVC: its content into the cache, FOLDER.dvc beside it."""
    with alone(root), cost_of("dvc"), _repository(root) as repo:
        _drop_damaged(repo, [entry["md5"] for entry in _listing(folder)])
        _patiently(lambda: repo.add(str(folder)), root)
        return Kept(_hash_of(repo, folder), (folder.name,))


def pointed_at(folder: Path) -> str:
    """The hash in FOLDER.dvc, "" where there is no such file or nothing usable in it."""
    try:
        pointer = yaml.safe_load(folder.with_name(f"{folder.name}.dvc").read_text(encoding="utf-8"))
        return str(pointer["outs"][0]["md5"])
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError):
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


# Around DVC ---------------------------------------------------------------------------------------------------------


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold this project's lock around DVC. It dies with its process; who holds it may take it again."""
    if not (root / ".dvc").is_dir():
        raise EnvironmentRefused(
            f"{root} has no DVC project (no folder .dvc).", "Run: git init (if it is not a git repository yet), then dvc init."
        )
    folder = root / ".dvc" / "tmp"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "prefline.lock", is_singleton=True)
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        print("prefline: another run is using DVC here; waiting for it.", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _repository(root: Path, printed: Callable[[], str] = str) -> Iterator[Any]:
    """DVC's view of the project, without its messages and progress bars; its exceptions become ours.

    printed: returns what a command said before it failed.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logger = logging.getLogger("dvc")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with _inside(root), Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        raise _explained(error, printed()) from error
    finally:
        logger.setLevel(level)


def _inside(root: Path) -> AbstractContextManager[None]:
    """DVC's cache of runs wants the current folder to be in the project; a worker's need not be."""
    return nullcontext() if Path.cwd().is_relative_to(root.resolve()) else chdir(root)


def _hash_of(repo: Any, folder: Path) -> str:
    return str(repo.find_outs_by_path(str(folder))[0].hash_info.value)


def _patiently(call: Callable[[], Result], root: Path) -> Result:
    """Call DVC again for as long as somebody else's command holds one of its locks, within reason."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.rwlock import RWLockFileCorruptedError

    give_up, told = time.monotonic() + BUSY_SECONDS, False
    while True:
        try:
            return call()
        except DvcException as error:
            causes = _causes(error)
            if any(isinstance(cause, RWLockFileCorruptedError) for cause in causes):
                (root / ".dvc" / "tmp" / "rwlock").unlink()  # a process was killed while writing it; nobody can go on with it
            elif not any(isinstance(cause, LockError) for cause in causes) or time.monotonic() > give_up:
                raise
            elif not told:
                print("prefline: a dvc command is running here; waiting for it.", flush=True)
                told = True


def _causes(error: BaseException) -> list[BaseException]:
    """An exception and those that led to it, the last one first."""
    return [error, *_causes(error.__cause__)] if error.__cause__ else [error]


def _cached_listing(repo: Any, out: Any) -> list[dict[str, str]]:
    """What an output's folder held when DVC saw it last; [] where the cache does not say."""
    path = Path(repo.cache.local.oid_to_path(out.hash_info.value)) if out.hash_info else None
    if path is None or not path.name.endswith(".dir") or not path.is_file():
        return []
    listing: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return listing


def _drop_damaged(repo: Any, hashes: Iterable[str]) -> None:
    """Remove files from DVC's cache that are not what their names say: it would hand them out without a look."""
    for name in set(hashes):
        path = Path(repo.cache.local.oid_to_path(name))
        if path.is_file() and _md5(path) != name:
            path.unlink()


@contextmanager
def _commands() -> Iterator[Callable[[], str]]:
    """What commands in dvc.yaml need: `prefline` of this very installation, and a file for what they print.

    Yields a function that returns what they printed so far.
    """
    before = {name: os.environ.get(name) for name in ("PATH", LOG)}
    with tempfile.TemporaryDirectory(prefix="prefline-") as folder:
        log = Path(folder) / "log"
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), *filter(None, [before["PATH"]])])
        os.environ[LOG] = str(log)
        try:
            yield lambda: log.read_text(encoding="utf-8", errors="replace").strip() if log.exists() else ""
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name)
                else:
                    os.environ[name] = value


def _explained(error: Exception, printed: str) -> BaseException:
    """What to raise for an exception of DVC's: a few lines with the cause and what the command printed."""
    from dvc.lock import LockError
    from dvc.scm import SCMError
    from dvc.stage.exceptions import StageCmdFailedError

    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, StageCmdFailedError):
            if str(cause).endswith(("exited with -2", "exited with 130")):  # Ctrl-C reached the command and not us
                return KeyboardInterrupt()
            return PreflineError(
                f"The data could not be made: {cause}.", printed[-2000:].removeprefix("prefline: ") or "Run the command by hand to see why."
            )
        if isinstance(cause, LockError):
            return EnvironmentRefused("DVC is busy: another dvc command is running here.", "Wait until it is done and run again.")
        if isinstance(cause, SCMError):
            return EnvironmentRefused(f"{cause}.", "Run: git init, and commit what is there. DVC and the lineage of models need it.")
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return cause  # the stage says what to do about a full disk
    return PreflineError(f"DVC: {'; '.join(dict.fromkeys(str(cause) for cause in causes))}", "`dvc status -v` may tell more.")
