"""Under which licences a base model and its data stand, as far as configuration and files say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tasks.config import DataConfig, LicencesConfig
from tasks.data.prepare import BUILT_IN
from tasks.training.base import TINY

OURS = "Apache-2.0"
"""Of what Prefline makes itself: the tiny model and the built-in set."""
CARD = "README.md"


def model_licence(model: str, stated: LicencesConfig) -> str:
    """What the configuration states of the base model, else what its own files say; "" where neither does."""
    if stated.model or model == TINY:
        return stated.model or OURS
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return _of_gguf(path)
    return _of_card(path / CARD if path.is_dir() else _in_cache(model))


def data_licence(data: DataConfig, stated: LicencesConfig) -> str:
    """The same of the data, whose files say nothing."""
    return stated.data or (OURS if {*data.comparisons, *data.demonstrations} == {BUILT_IN} else "")


def _of_gguf(path: Path) -> str:
    from gguf import GGUFReader

    try:
        field = GGUFReader(path).get_field("general.license")
    except (OSError, ValueError):
        return ""
    return str(field.contents()) if field else ""


def _in_cache(name: str) -> Path | None:
    """The card of a model on the hub, if it was fetched with the model."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, CARD)
    except HFValidationError:  # a folder that is gone
        return None
    return Path(found) if isinstance(found, str) else None


def _of_card(path: Path | None) -> str:
    """`license` (or where that is "other" its name) in the front matter of a model's card on the hub."""
    try:
        text = path.read_text(encoding="utf-8") if path else ""
        front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        said: Any = yaml.safe_load(front[1]) if front else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return ""
    if not isinstance(said, dict):
        return ""
    name = said.get("license_name") if said.get("license") == "other" and said.get("license_name") else said.get("license")
    return ", ".join(map(str, name)) if isinstance(name, list) else str(name or "")
