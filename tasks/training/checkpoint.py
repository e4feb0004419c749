"""Checkpoints of a stage at work: written whole or not at all, read without running any code in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

_NAME = "checkpoint.pt"


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the folder's checkpoint; a kill at any moment leaves the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{_NAME}.partial"
    with partial.open("wb") as out:
        torch.save(state, out)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(folder / _NAME)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint, or None where there is none. Only tensors and plain values are read (weights_only)."""
    path = folder / _NAME
    return torch.load(path, weights_only=True) if path.exists() else None
