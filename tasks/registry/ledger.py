"""The ledger: every change of champion, with its evidence, kept as tags of the registered model and never rewritten."""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.registry.store import Store

PREFIX = "prefline.ledger."

Action = Literal["promoted", "approved", "forced", "refused", "rolled back"]
CROWNS: tuple[Action, ...] = ("promoted", "approved", "forced")
"""Actions by which a version takes over from another one."""


class LedgerLine(BaseModel):
    """One change of champion, or a person's refusal of one.

    evidence: digest of the evaluation that spoke for it. run: MLflow's id of the pipeline run.
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


def read_ledger(store: Store, name: str) -> list[LedgerLine]:
    """All lines of the registered model, oldest first; none where there is no such model yet."""
    from mlflow.exceptions import MlflowException

    try:
        tags = store.client.get_registered_model(name).tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return []
    return [LedgerLine.model_validate_json(tags[key]) for key in sorted(tags) if key.startswith(PREFIX)]


def append(store: Store, name: str, line: LedgerLine) -> None:
    """Write the next line. The caller holds the registry's lock: MLflow itself would let two writers take one number."""
    number = len([key for key in store.client.get_registered_model(name).tags if key.startswith(PREFIX)]) + 1
    store.client.set_registered_model_tag(name, f"{PREFIX}{number:05d}", line.model_dump_json())


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def who() -> str:
    """The user's name, or number where a container gives it none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid {os.getuid()}"
