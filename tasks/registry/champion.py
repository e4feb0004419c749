"""Who is champion: the version that an alias of the registered policy points to. Search knows no aliases, so ask by alias."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING

from tasks.errors import PreflineError
from tasks.registry.ledger import read_ledger
from tasks.registry.store import Store, talking_to

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"


def by_alias(store: Store, name: str, alias: str) -> ModelVersion | None:
    """The version that the alias points to; None without the model, without the alias, or once the version was deleted."""
    return _if_there(lambda: store.client.get_model_version_by_alias(name, alias))


def holder(store: Store, name: str) -> str | None:
    """The champion's version; None where there is no champion."""
    champion = by_alias(store, name, CHAMPION)
    return str(champion.version) if champion else None


def by_version(store: Store, name: str, version: str) -> ModelVersion | None:
    return _if_there(lambda: store.client.get_model_version(name, version))


def _if_there(ask: Callable[[], ModelVersion]) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            return None
        raise


def describe_champion(store: Store, name: str) -> str:
    """Who is champion, since when, by whom and why; and who waits. Raises PreflineError where there is no champion."""
    with talking_to(store.uri):
        champion, challenger = by_alias(store, name, CHAMPION), by_alias(store, name, CHALLENGER)
        if not champion:
            waiting = f"Version {challenger.version} is challenger." if challenger else "No version is registered yet."
            raise PreflineError(f"{name} has no champion. {waiting}", "prefline run trains a policy and promotes it if every gate holds.")
        lines = [f"{name} version {champion.version}", "", champion.description or "", ""]
        last = next((line for line in reversed(read_ledger(store, name)) if line.version == str(champion.version)), None)
        if last:
            lines.append(f"{last.action} {last.at} by {last.who}: {last.why}; before it: {last.previous or 'none'}")
        if challenger:
            lines.append(f"challenger: version {challenger.version}")
    return "\n".join(lines)


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
