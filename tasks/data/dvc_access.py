"""The way into DVC: one caller at a time, waiting for foreign commands; its exceptions become ours.

DVC waits three seconds for its own lock; we hold one of ours around it, which waits as long as it must.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from tasks.errors import EnvironmentRefused, PreflineError

LOG = "PREFLINE_COMMAND_LOG"
"""Environment variable that tells the commands in dvc.yaml to write into a file what they would print."""
BUSY_SECONDS = 120.0
"""How long to wait for a DVC command that somebody else runs."""

Result = TypeVar("Result")


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
def repository(root: Path, printed: Callable[[], str] = str) -> Iterator[Any]:
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


def patiently(call: Callable[[], Result], root: Path) -> Result:
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


@contextmanager
def remote(repo: Any) -> Iterator[str]:
    """The default remote's address, for messages; its failures become EnvironmentRefused."""
    from dvc.config import NoRemoteError
    from dvc.exceptions import DownloadError, DvcException, UploadError

    url = ""
    try:
        remote = repo.cloud.get_remote()
        url = remote.fs.unstrip_protocol(remote.path)
        yield url
    except NoRemoteError:
        raise EnvironmentRefused(
            "DVC has no default remote to send data to or fetch them from.",
            "Name one, a folder or a bucket: dvc remote add --default NAME URL (s3://BUCKET/PATH needs the extra s3).",
        ) from None
    except PreflineError:
        raise
    except Exception as error:  # boto's, fsspec's and the system's come as they are
        if url and isinstance(error, DvcException) and not isinstance(error, UploadError | DownloadError):
            raise
        raise EnvironmentRefused(
            f"The DVC remote {url or 'in .dvc/config'} can't be used: {' '.join(str(error).split())[:300]}",
            "Is it there, and may you read and write it? For S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
        ) from error


@contextmanager
def commands() -> Iterator[Callable[[], str]]:
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
