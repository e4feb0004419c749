"""The ledger: every change of champion, with its evidence, kept as tags of the registered model and never rewritten.

After each change the whole of it is also a file of the pipeline run that made the version, ledger.jsonl: for reading, and
to restore a tag from.
"""

from __future__ import annotations

import getpass
import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.errors import PreflineError
from tasks.registry.store import Store

PREFIX = "prefline.ledger."
FILE = "ledger.jsonl"

Action = Literal["promoted", "approved", "forced", "refused", "rolled back"]
CROWNS: tuple[Action, ...] = ("promoted", "approved", "forced")
"""Actions by which a version takes over from another one."""


class LedgerLine(BaseModel):
    """One change of champion, or a person's refusal of one.

    evidence: digest of the evaluation that spoke for it. run: MLflow's id of the pipeline run. environments: where the
    version was copied to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str
    who: str
    action: Action
    version: str
    previous: str | None
    why: str
    evidence: str
    run: str
    environments: tuple[str, ...] = ()


def read_ledger(store: Store, name: str) -> list[LedgerLine]:
    """All lines of the registered model, oldest first; none where there is no such model yet.

    Raises PreflineError where a tag holds no line, or one is missing between others: somebody has edited them.
    """
    from mlflow.exceptions import MlflowException

    try:
        tags = store.client.get_registered_model(name).tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return []
    keys = sorted(key for key in tags if key.startswith(PREFIX))
    for number, key in enumerate(keys, start=1):
        if key != _key(number):
            raise _damaged(name, f"tag {_key(number)} is missing, but there is {key}")
    return [parse_line(name, key, tags[key]) for key in keys]


def parse_line(name: str, key: str, text: str) -> LedgerLine:
    """The line that a tag of the registered model holds. Raises PreflineError."""
    try:
        return LedgerLine.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(name, f"tag {key}: {where + ': ' if where else ''}{first['msg']}") from None


def append(store: Store, name: str, line: LedgerLine) -> None:
    """Write the next line, unless the last one is this very line. The caller holds the registry's lock.

    MLflow itself would let two writers take one number.
    """
    lines = read_ledger(store, name)
    if not lines or lines[-1] != line:
        store.client.set_registered_model_tag(name, _key(len(lines) + 1), line.model_dump_json())


def keep_copy(store: Store, name: str, run: str) -> None:
    """Leave the ledger as a file on a pipeline run, where there is one that still takes files. The tags are what counts."""
    from mlflow.exceptions import MlflowException

    if run:
        with suppress(MlflowException, OSError):
            store.client.log_text(run, "".join(f"{line.model_dump_json()}\n" for line in read_ledger(store, name)), FILE)


def on_record(lines: list[LedgerLine]) -> str | None:
    """The version that is champion by the ledger."""
    return next((line.version for line in reversed(lines) if line.action != "refused"), None)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def who() -> str:
    """The user's name, or number where a container gives it none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid {os.getuid()}"


def _key(number: int) -> str:
    return f"{PREFIX}{number:05d}"


def _damaged(name: str, what: str) -> PreflineError:
    return PreflineError(
        f"The ledger of {name} was edited: {what}.",
        f"Until it is whole nothing is promoted. Restore the registered model's tag from {FILE}, a file of the champion's run in MLflow.",
    )
