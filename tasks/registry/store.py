"""Where MLflow keeps runs and models, and the way in: opened once, behind a lock, or refused with a reason.

By default a SQLite file and a folder under mlflow/; MLFLOW_TRACKING_URI names another store. MLflow is imported late:
it takes a second.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from tasks.costs import cost_of
from tasks.errors import EnvironmentRefused, PreflineError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tells MLflow that the experiment is about training models, not about prompts and traces."""

TRAINING_VIEW = "?workflowType=machine_learning"
"""For links to MLflow's pages, which open in their view of prompts and traces whatever an experiment's kind is."""

REGISTRY_LOCK = "mlflow.db.registry.lock"
"""Held by whoever registers a version or moves an alias."""

PATIENCE = 10.0
"""Seconds to wait for a locked store or a silent server."""


@dataclass(frozen=True)
class Store:
    """An MLflow store that answered. uri: where. experiment: the id of the project's experiment in it."""

    root: Path
    uri: str
    client: MlflowClient
    experiment: str


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI or the project's own SQLite file. Raises EnvironmentRefused for a folder of files."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow' / 'mlflow.db'}"
    if urlsplit(uri).scheme in ("", "file"):
        raise EnvironmentRefused(
            f"MLFLOW_TRACKING_URI is {uri}: a folder of files, which MLflow no longer writes to.",
            "Unset it, and Prefline uses the SQLite file mlflow/mlflow.db; or give a sqlite:///, postgresql:// or http:// address.",
        )
    return uri


def open_store(root: Path, experiment: str) -> Store:
    """Open the store, make its tables and the experiment where they are missing. Raises EnvironmentRefused.

    Behind a lock: MLflow's first start makes the tables, and two at once break each other's.
    """
    uri = tracking_uri(root)
    with talking_to(uri), first_come(root, "mlflow.db.lock"):
        _preflight(uri)
        client = connect(uri)
        return Store(root, uri, client, _experiment(client, experiment, root, uri))


def connect(uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # seven, its default, are minutes
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what is told as an error anyway
    return MlflowClient(uri)


@contextmanager
def talking_to(uri: str) -> Iterator[None]:
    """Count the block's time as MLflow's and turn its failures to answer into EnvironmentRefused."""
    with cost_of("mlflow"):
        try:
            yield
        except PreflineError:
            raise
        except Exception as error:
            if _is_refusal(error):
                raise EnvironmentRefused(
                    f"The MLflow store {without_password(uri)} does not let this user write: {_first_line(error)}",
                    "Ask whoever runs it for the right to, or give other credentials; then run again.",
                ) from error
            if not _is_outage(error):
                raise
            raise EnvironmentRefused(
                f"The MLflow store {without_password(uri)} does not answer: {_first_line(error)}",
                "If it is locked, another process is writing; if it is a server, is it running? Finished stages are kept: run again.",
            ) from error


@contextmanager
def first_come(root: Path, name: str) -> Iterator[None]:
    """Hold the project's lock of that name, waiting a minute for whoever holds it."""
    path = root / "mlflow" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=60)
    except Timeout:
        raise EnvironmentRefused(
            f"{path} has been held by another process for a minute.", "Wait for the other run, or end it; then run again."
        ) from None
    except OSError as error:
        raise EnvironmentRefused(
            f"{path} can't be written: {error.strerror}.", "It is the project's own lock: without it nothing is registered or promoted."
        ) from error
    try:
        yield
    finally:
        lock.release()


def without_password(uri: str) -> str:
    """The address as it may be shown."""
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":...@") if password else uri


def _preflight(uri: str) -> None:
    """Fail in seconds where MLflow would try again for minutes."""
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=PATIENCE)
        try:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
        finally:
            database.close()
    elif uri.startswith(("http://", "https://")):
        with suppress(urllib.error.HTTPError):  # something answers; what it thinks of us, MLflow says better
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PATIENCE).close()


def _experiment(client: MlflowClient, name: str, root: Path, uri: str) -> str:
    """The id of the experiment, made if it is missing; two that make it at once get the same one."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if not found:
        by_server = uri.startswith(("http://", "https://"))
        place = None if by_server else (root / "mlflow" / "artifacts").as_uri()
        try:
            return client.create_experiment(name, artifact_location=place, tags=KIND)
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or not found:
                raise
    if found.lifecycle_stage == "deleted":
        raise EnvironmentRefused(
            f"The MLflow experiment {name} was deleted.",
            f"Bring it back (mlflow experiments restore --experiment-id {found.experiment_id}) or give another one: names.experiment.",
        )
    for key, value in KIND.items():
        if found.tags.get(key) != value:
            client.set_experiment_tag(found.experiment_id, key, value)
    return found.experiment_id


REFUSALS = ("PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED")


def _is_refusal(error: BaseException) -> bool:
    """Is this, or what caused it, a store that answers but takes nothing from us?"""
    return any(getattr(cause, "error_code", "") in REFUSALS or "readonly database" in str(cause) for cause in _causes(error))


def _is_outage(error: BaseException) -> bool:
    """Is this, or what caused it, a store that can't be reached or opened?"""
    for cause in _causes(error):
        kind: Any = type(cause)
        if isinstance(cause, sqlite3.OperationalError | ConnectionError | urllib.error.URLError | TimeoutError):
            return True
        if kind.__name__ in ("OperationalError", "DatabaseError", "MaxRetryError"):  # SQLAlchemy's, psycopg's, urllib3's
            return True
        if getattr(cause, "error_code", "") == "TEMPORARILY_UNAVAILABLE" or "failed with error code 5" in str(cause):
            return True  # the second: a server that answers with an error page
        if any(base.__module__.startswith("requests.") and base.__name__ == "ConnectionError" for base in kind.__mro__):
            return True
    return False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, what caused that."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
