"""What can go wrong in a way that the user can mend, and the exit code that says which way it was.

Every such error is a few lines of text: what and where, then what to do. The command line prints it without a
traceback; anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_DATA_REFUSED = 3
EXIT_NOT_PROMOTED = 4
EXIT_ENVIRONMENT = 5
EXIT_INTERRUPTED = 130


class PreflineError(Exception):
    """A stage can't go on. what: what and where. advice: what to do about it."""

    exit_code = EXIT_FAILED

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what, advice)
        self.what = what
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.what}\n  {self.advice}" if self.advice else self.what


class ConfigError(PreflineError):
    """A key that does not exist or a value that can't work, found before anything ran."""

    exit_code = EXIT_USAGE


class DataRefused(PreflineError):
    """The preference data break the contract; nothing was trained on them."""

    exit_code = EXIT_DATA_REFUSED


class EnvironmentRefused(PreflineError):
    """The machine, a store or the repository stands in the way: disk full, store locked, no git."""

    exit_code = EXIT_ENVIRONMENT
