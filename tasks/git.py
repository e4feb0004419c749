"""What git says of the project: one way to ask it, for lineage and for versions of the data."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tasks.errors import EnvironmentRefused


def ask_git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in root, in English and without taking locks. Raises EnvironmentRefused where it is not installed."""
    try:
        return subprocess.run(
            ["git", "-C", str(root), "-c", "core.quotePath=false", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"},
        )
    except FileNotFoundError:
        raise EnvironmentRefused(
            "git is not installed.", "Install it: models and versions of the data must be traceable to commits."
        ) from None
