"""Probes: prompts in files that users write, with what a machine can check of an answer to each.

Typos, injected instructions, temptations to hack the reward, requests to refuse: prompts that are too few or too odd to be
counted with the held-out ones. They have a table of their own and no part in any win rate of the evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from tasks.data.records import Message, user
from tasks.data.snapshot import Prompt
from tasks.errors import ConfigError
from tasks.evaluation.answers import Vocabulary

ENDINGS = (".yaml", ".yml")
Text = Annotated[str, Field(pattern=r"\S")]


class Turn(BaseModel):
    """A message of a prompt of several turns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Text
    content: Text


class Probe(BaseModel):
    """prompt: what the user says, or several turns. refuse: should it be refused? None where that is not checked.

    contains: texts that an answer must hold, all of them; never: that it must not. Case and line breaks are of no account.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Text | Annotated[list[Turn], Field(min_length=1)]
    refuse: bool | None = None
    contains: list[Text] = []
    never: list[Text] = []

    @property
    def messages(self) -> list[Message]:
        if isinstance(self.prompt, str):
            return [user(self.prompt)]
        return [{"role": turn.role, "content": turn.content} for turn in self.prompt]

    @property
    def checked(self) -> bool:
        return self.refuse is not None or bool(self.contains or self.never)

    def faults(self, answer: str, refused: bool) -> list[str]:
        """What is wrong with an answer, in words; nothing where it passes."""
        plain = _plain(answer)
        found = [f'does not say "{text}"' for text in self.contains if _plain(text) not in plain]
        found += [f'says "{text}"' for text in self.never if _plain(text) in plain]
        if self.refuse is not None and refused != self.refuse:
            found.append("refuses" if refused else "does not refuse")
        return found


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


class ProbeFile(BaseModel):
    """What a file says. kind: what its probes are for, as it is shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    kind: Text
    prompts: Annotated[list[Probe], Field(min_length=1)]


@dataclass(frozen=True)
class Asked:
    """A file's probes that leave room for an answer. too_long: how many do not."""

    name: str
    kind: str
    probes: list[Probe] = field(default_factory=list)
    too_long: int = 0


def read_probes(root: Path, named: Sequence[str]) -> dict[str, ProbeFile]:
    """The files, and those of folders, by the names of their paths. Raises ConfigError naming file, line and what was expected."""
    found: dict[str, ProbeFile] = {}
    names: dict[str, str] = {}
    for path in _paths(root, named):
        shown = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        if shown in found:
            continue
        probes = _read(path, shown)
        if probes.name in names:
            raise ConfigError(f'{shown}: the name "{probes.name}" is taken by {names[probes.name]}.', "Give each file a name of its own.")
        names[probes.name] = shown
        found[shown] = probes
    return found


def _paths(root: Path, named: Sequence[str]) -> Iterator[Path]:
    for name in named:
        path = root / Path(name).expanduser()
        if path.is_file():
            yield path
            continue
        below = sorted(one for one in path.rglob("*") if one.is_file() and one.suffix in ENDINGS) if path.is_dir() else []
        if not below:
            what = "holds no file that ends in .yaml" if path.is_dir() else "does not exist"
            raise ConfigError(f"evaluation.probes: {name} {what}.", "Name files or folders with probes, or none: evaluation.probes: [].")
        yield from below


def _read(path: Path, shown: str) -> ProbeFile:
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, yaml.SafeLoader)
        return ProbeFile.model_validate(yaml.safe_load(text))
    except OSError as error:
        raise ConfigError(f"{shown} can't be read: {error.strerror}.", "It is one of evaluation.probes.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{shown} is not UTF-8 text.", "Save it as UTF-8.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{shown}{place}: {getattr(error, 'problem', None) or 'this is not YAML'}.", "Put texts in quotes.") from None
    except ValidationError as error:
        lines = list(dict.fromkeys(f"{shown}{_place(one['loc'], root)}: {_what(one)}." for one in error.errors()))
        raise ConfigError("\n".join(lines[:5]), "A file says name, kind, prompts; a prompt may say refuse, contains, never.") from None


def _place(where: tuple[int | str, ...], root: yaml.Node | None) -> str:
    """Which prompt, and in which line it begins."""
    if len(where) < 2 or where[0] != "prompts" or not isinstance(where[1], int) or not isinstance(root, yaml.MappingNode):
        return ""
    prompts: Any = next(value for key, value in root.value if key.value == "prompts")
    return f", line {prompts.value[where[1]].start_mark.line + 1} (prompt {where[1] + 1})"


def _what(error: ErrorDetails) -> str:
    """Which key, and what was expected of it."""
    where = error["loc"][2:] if error["loc"][:1] == ("prompts",) and len(error["loc"]) > 2 else error["loc"]
    key = where[0] if where else "the file"
    if key == "prompt":
        return "prompt: expected a text, or a list of turns with role and content"
    return f"{key}: {'expected a text with something in it' if error['type'] == 'string_pattern_mismatch' else error['msg']}"


def to_ask(files: dict[str, ProbeFile], vocabulary: Vocabulary, room: int) -> list[Asked]:
    """The probes whose prompt has at most room tokens. Raises ConfigError where the model's chat template refuses one."""
    asked = []
    for shown, one in files.items():
        fitting = []
        for number, probe in enumerate(one.prompts, 1):
            try:
                length = len(vocabulary.encode(probe.messages))
            except TemplateError as error:
                raise ConfigError(
                    f"{shown}, prompt {number}: the model's chat template does not take it ({error}).", "Write it in other turns."
                ) from None
            if length <= room:
                fitting.append(probe)
        asked.append(Asked(one.name, one.kind, fitting, len(one.prompts) - len(fitting)))
    return asked


def prompts_of(asked: Sequence[Asked]) -> list[Prompt]:
    """What the models are asked: all files' probes in their order, each a group of its own."""
    return [Prompt(probe.messages, f"{one.name} {number}", ()) for one in asked for number, probe in enumerate(one.probes, 1)]
