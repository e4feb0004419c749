"""Small files beside a registered model: in the folder of its MLflow model, where whoever downloads the version finds them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tasks.registry.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CARD = "card.md"
"""The model card's name (card.py)."""
MODEL_ID = "prefline.model_id"
"""Tag of a version: its logged model. MLflow takes the id, and its SQL stores forget it."""


def read_beside(store: Store, version: ModelVersion, file: str) -> str | None:
    """The text of a file; None where there is none, or none that can be read."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    source = _address(store, version, file)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return Path(download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=store.uri)).read_text(encoding="utf-8")
    except (MlflowException, OSError, UnicodeDecodeError):
        return None


def write_beside(store: Store, version: ModelVersion, files: Mapping[str, str]) -> None:
    """Write files, by name, in place of those that were there. A version that does not say which logged model it is gets none."""
    if MODEL_ID not in version.tags:
        return
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), files)
        store.client.log_model_artifacts(version.tags[MODEL_ID], folder)


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def place_beside(store: Store, version: ModelVersion, file: str) -> str:
    """Where a file lies, or would: its path on this machine, or its address."""
    address = _address(store, version, file)
    return unquote(urlsplit(address).path) if address.startswith("file:") else address


def _address(store: Store, version: ModelVersion, file: str) -> str:
    return f"{store.client.get_model_version_download_uri(version.name, version.version).rstrip('/')}/{file}"
