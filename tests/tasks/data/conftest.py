"""A small project of its own for each test: a git repository with DVC, the real dvc.yaml, and few data."""

import shutil
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PARTS = (
    "dvc.yaml",
    ".dvcignore",
    ".dvc/config",
    ".dvc/.gitignore",
    "data/.gitignore",
    "data/snapshots/.gitignore",
    "data/shop.yaml",
    "tasks/data",
)


@pytest.fixture
def project(tmp_path, git):
    """The folder of a committed project whose built-in set is the smallest there is."""
    root = tmp_path / "project"
    for part in PARTS:
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, root / part)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"]["builtin"] = {"seed": 0, "demonstrations_per_question": 1, "rankings_per_question": 1}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (root / ".gitignore").write_text("/runs/\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "start")
    return root
