"""What a language model is asked, from a file, and how its reply is read. Pure functions of texts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.errors import ConfigError

FIELDS = ("prompt", "first", "second")
FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
LAST_LINE = re.compile(r"Verdict: (A|B|TIE)")

Letter = Literal["A", "B", "TIE"]


@dataclass(frozen=True)
class Template:
    """A text with the fields {prompt}, {first} and {second}, each at least once. Other braces stand for themselves."""

    text: str

    @classmethod
    def read(cls, path: Path, shown_as: str) -> Template:
        """The template in a file. Raises ConfigError naming file, line and field."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"evaluation.language_model.template: {shown_as} can't be read: {error.strerror}.", "Give the path of a text file."
            ) from None
        except UnicodeDecodeError:
            raise ConfigError(f"evaluation.language_model.template: {shown_as} is not UTF-8 text.", "Save it as UTF-8.") from None
        known = ", ".join(f"{{{name}}}" for name in FIELDS)
        for number, line in enumerate(text.splitlines(), 1):
            for name in FIELD.findall(line):
                if name not in FIELDS:
                    raise ConfigError(f"{shown_as}, line {number}: there is no field {{{name}}}.", f"Fields: {known}.")
        missing = [name for name in FIELDS if f"{{{name}}}" not in text]
        if missing:
            raise ConfigError(
                f"{shown_as}: the field {{{missing[0]}}} is missing, so the judge would not see it.", f"Each of {known} must be there."
            )
        return cls(text)

    def filled(self, prompt: str, first: str, second: str) -> str:
        """In one pass: what looks like a field in a prompt or an answer stays as it is."""
        values = dict(zip(FIELDS, (prompt, first, second), strict=True))
        return FIELD.sub(lambda field: values[field[1]], self.text)


def read_verdict(reply: str) -> Letter | None:
    """The verdict on the last line of a reply that says anything: exactly "Verdict: A", "Verdict: B" or "Verdict: TIE"; else None.

    Whatever else may be meant (a verdict in the middle, two letters, other words) is not guessed at.
    """
    lines = reply.strip().split("\n")
    found = LAST_LINE.fullmatch(lines[-1].strip())
    return _LETTERS[found[1]] if found else None


_LETTERS: dict[str, Letter] = {"A": "A", "B": "B", "TIE": "TIE"}
