"""Who is champion: the version that an alias of the registered policy points to. Search knows no aliases, so ask by alias."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING

from tasks.errors import PreflineError
from tasks.registry.ledger import on_record, read_ledger
from tasks.registry.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"
DIGEST = "prefline.digest"
"""Tag of a version: what its files hash to, by which it is found again."""


def by_alias(store: Store, name: str, alias: str) -> ModelVersion | None:
    """The version that the alias points to; None without the model, without the alias, or once the version was deleted."""
    return _if_there(lambda: store.client.get_model_version_by_alias(name, alias))


def holder(store: Store, name: str) -> str | None:
    """The champion's version; None where there is no champion."""
    champion = by_alias(store, name, CHAMPION)
    return str(champion.version) if champion else None


def by_version(store: Store, name: str, version: str) -> ModelVersion | None:
    return _if_there(lambda: store.client.get_model_version(name, version))


def all_versions(store: Store, name: str) -> list[ModelVersion]:
    """Every version that was not deleted, oldest first. Their aliases are not filled in."""
    return sorted(store.client.search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))


def _if_there(ask: Callable[[], ModelVersion]) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            return None
        raise


def moved_by_hand(store: Store, name: str) -> str:
    """How the alias differs from the ledger, for people; "" where it does not."""
    return difference(on_record(read_ledger(store, name)), holder(store, name))


def difference(recorded: str | None, current: str | None) -> str:
    """recorded: the champion by the ledger. current: by the alias."""
    if recorded == current:
        return ""
    if recorded is None:
        return f"the alias champion was given to version {current} by hand, and the ledger knows of no champion"
    if current is None:
        return f"version {recorded} is champion by the ledger, but it was deleted, or its alias was"
    return f"version {recorded} is champion by the ledger, but the alias champion was moved to version {current} by hand"


WAY_BACK = (
    "prefline rollback --to VERSION makes an earlier champion champion again, prefline promote VERSION --force --why REASON any other. "
    "Until then nothing is promoted."
)
"""What to do about such a difference."""


def copy_model(store: Store, version: ModelVersion, folder: Path) -> None:
    """Fill folder with the version's model in Hugging Face format, tokenizer included. Raises PreflineError."""
    kept = fetch(store, version)
    copytree(kept / "model", folder)
    copytree(kept / "components" / "tokenizer", folder, dirs_exist_ok=True)


def fetch(store: Store, version: ModelVersion) -> Path:
    """The version's MLflow model as a folder on this machine. Raises PreflineError where its files are gone."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    source = store.client.get_model_version_download_uri(version.name, version.version)
    try:
        folder = Path(download_artifacts(artifact_uri=source, tracking_uri=store.uri))
        if not (folder / "MLmodel").is_file():
            raise FileNotFoundError("there is no MLmodel")
    except (MlflowException, OSError) as error:
        raise PreflineError(
            f"{version.name} version {version.version} can't be read from {source} ({str(error).splitlines()[0]}).",
            "Restore its files, or delete the version or its alias: without a champion, the SFT model is the baseline.",
        ) from error
    return folder
