"""What a run was made from: the git commit, what differs from it, and the configuration's hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tasks.config import PipelineConfig
from tasks.errors import EnvironmentRefused
from tasks.git import ask_git

CODE = ("flows", "tasks")
"""Folders in which a file that git does not know may have taken part in the run."""

KEPT_BY_DVC = ("data/snapshots/.gitignore",)
"""DVC writes a line into it for each new snapshot: no change to what a run is made from."""


@dataclass(frozen=True)
class Lineage:
    """commit: the full hash. changes: files that differ from it (tracked), or that it lacks (code only). config: a hash."""

    commit: str
    changes: tuple[str, ...]
    config: str

    @property
    def dirty(self) -> bool:
        return bool(self.changes)


def lineage(root: Path, config: PipelineConfig) -> Lineage:
    """What a run that begins now is made from. Raises EnvironmentRefused without a git repository or a commit in it."""
    commit, changes = git_state(root)
    return Lineage(commit, changes, config_hash(config))


def git_state(root: Path) -> tuple[str, tuple[str, ...]]:
    """The commit, and the files that differ from it: tracked ones anywhere, unknown ones where the code is."""
    commit = _git(root, "rev-parse", "HEAD")[0]
    tracked = _git(root, "diff", "--name-only", "--relative", "HEAD", "--", ".", *(f":(exclude){path}" for path in KEPT_BY_DVC))
    new = _git(root, "ls-files", "--others", "--exclude-standard", "--", *CODE)
    return commit, tuple(sorted({*tracked, *new}))


def config_hash(config: PipelineConfig) -> str:
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]


def _git(root: Path, *arguments: str) -> list[str]:
    done = ask_git(root, *arguments)
    if done.returncode:
        raise _refusal(root, done.stderr)
    return done.stdout.splitlines()


def _refusal(root: Path, stderr: str) -> EnvironmentRefused:
    first = 'Run in that folder: git init && git add -A && git commit -m "Start"'
    if "not a git repository" in stderr:
        return EnvironmentRefused(f"{root} is not in a git repository, so no model could be traced to its code.", first)
    if "ambiguous argument 'HEAD'" in stderr or "unknown revision" in stderr:
        return EnvironmentRefused(f"The git repository of {root} has no commit yet.", first)
    reason = (stderr.strip().splitlines() or ["git failed"])[0]
    return EnvironmentRefused(f"git can't read the repository of {root}: {reason}", "Mend that and run again.")
