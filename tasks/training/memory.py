"""Out of memory, said so that the reader knows which key to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tasks.errors import EnvironmentRefused
from tasks.stage import Settings

_REFUSALS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


@contextmanager
def memory_errors(stage: str, config: Settings) -> Iterator[None]:
    """Turn what torch raises where memory ends into advice. Raises EnvironmentRefused; other errors pass."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and not any(words in str(error).lower() for words in _REFUSALS):
            raise
        section = getattr(config, stage)
        key = f"{stage}.tokens_at_once"
        if stage == "policy" and section.method in ("dpo", "rejection"):
            section, key = getattr(section, section.method), f"policy.{section.method}.tokens_at_once"
        raise EnvironmentRefused(
            f"{stage}: out of memory ({str(error).splitlines()[0][:200]}).",
            f"Lower {key} (now {section.tokens_at_once}): the result stays the same. Or set compute.gradient_checkpointing=true, "
            "adapter.rank, compute.precision=bf16, or a smaller max_tokens. It goes on from the last checkpoint.",
        ) from error
