"""Data sets of the Hugging Face hub by name: "hub:OWNER/NAME[@REVISION][/SPLIT]", streamed, never run.

Needs a network and the extra "hub" (the library datasets, whose releases from 4 on run no code of a data set).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tasks.data.cells import plain_row
from tasks.errors import ConfigError, EnvironmentRefused, PreflineError

PREFIX = "hub:"
ADDRESS = re.compile(r"hub:(?P<name>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w.-]+))?(?:/(?P<split>[\w.-]+))?")
PATIENCE = 10.0
"""Seconds that the hub has to answer."""


def rows(address: str) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a split, "train" where none is named."""
    found = ADDRESS.fullmatch(address)
    if not found:
        raise ConfigError(f"{address[:100]} names no data set.", "Write hub:OWNER/NAME, hub:OWNER/NAME@REVISION or hub:OWNER/NAME/SPLIT.")
    try:
        import datasets
    except ImportError as error:
        raise EnvironmentRefused(
            f"{address}: the library for data sets of the hub is not installed.",
            'Install it: pip install "prefline[hub]". Or download the files and name them instead.',
        ) from error
    commit = _commit(address, found["name"], found["revision"])
    number = 0
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # nothing is told to the hub
    datasets.config.STREAMING_READ_MAX_RETRIES = 3  # of 20, five seconds apart
    try:
        stream = datasets.load_dataset(found["name"], revision=commit, split=found["split"] or "train", streaming=True)
        for number, row in enumerate(stream, 1):
            yield number, plain_row(row)
    except Exception as error:  # of the library, its readers of files, or the network
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise PreflineError(
            f"{address} can't be read after row {number} ({said[0][:200]}).",
            "Name another split, or download the files and name them instead: nothing of it was used.",
        ) from error
    if not number:
        raise PreflineError(f"{address} holds no rows.", "Name another split.")


def _commit(address: str, name: str, revision: str | None) -> str | None:
    """What the revision is now. One short question, so that nobody waits for a network that is not there."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().dataset_info(name, revision=revision, timeout=PATIENCE).sha
    except GatedRepoError as error:
        raise EnvironmentRefused(
            f"{address}: the hub gives it only to those who accepted its terms.", "Accept them there, then: hf auth login."
        ) from error
    except RevisionNotFoundError as error:
        raise PreflineError(f"{address}: the data set has no such revision.", "A revision is a branch, a tag or a commit.") from error
    except RepositoryNotFoundError as error:
        raise PreflineError(
            f"{address}: the hub has no such data set, or it is private.", "Mind its spelling; for a private one: hf auth login."
        ) from error
    except Exception as error:  # of whichever HTTP library the hub's client uses
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise EnvironmentRefused(
            f"{address}: the hub can't be reached ({said[0][:120]}).",
            "Mind the network, or download the files elsewhere and name them instead.",
        ) from error
