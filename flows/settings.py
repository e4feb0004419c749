"""Where the project is and what it was told: params.yaml, files laid over it, single keys from the command line.

Whatever is wrong is said in a few lines that name the file, the key, what was expected and what comes closest.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from tasks.config import PipelineConfig
from tasks.errors import ConfigError

PARAMS = "params.yaml"
SHOWN = 5
"""Errors of one configuration that are shown at once."""


class Layer(NamedTuple):
    """A piece of configuration and where it came from: a file, or an option of the command line."""

    origin: str
    values: dict[str, Any]


def project_root(start: Path | None = None) -> Path:
    """The nearest folder, from start (by default the current one) upwards, that holds params.yaml."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / PARAMS).is_file():
            return folder
    raise ConfigError(
        f"There is no {PARAMS} in {start} or above it.", "Go to a Prefline project (a clone of the repository) and try again."
    )


def load_config(root: Path, files: Sequence[Path] = (), overrides: Sequence[str] = ()) -> PipelineConfig:
    """params.yaml of the project, the files merged over it in their order, then the overrides (KEY=VALUE).

    Sections are merged key by key; a list replaces the list before it. Raises ConfigError.
    """
    layers = [_read(root / PARAMS, PARAMS), *(_read(path, str(path)) for path in files), *(_override(text) for text in overrides)]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer.values)
    try:
        return PipelineConfig.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, layers) from None


def with_method(config: PipelineConfig, method: str) -> PipelineConfig:
    """The same with another policy.method. Raises ConfigError where there is none of that name, or the rest does not allow it."""
    layer = Layer(f"method {method}", {"policy": {"method": method}})
    try:
        return PipelineConfig.model_validate(_merge(config.model_dump(mode="json"), layer.values))
    except ValidationError as error:
        raise _explain(error, [layer]) from None


# Reading ------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice: the first one would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, shown_as: str) -> dict[str, Any]:
    """A file's mapping, {} for an empty one. Raises ConfigError naming file and line."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{shown_as} can't be read: {error.strerror}.", "Give the path of a YAML file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{shown_as} is not UTF-8 text.", "Save it as UTF-8.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{shown_as}{_place(error)}", "Look at the indentation, colons and quotes there.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{shown_as} holds a {type(values).__name__}, not keys with values.", "Write it as KEY: VALUE, a line each.")
    return values


def _place(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "this is not YAML"
    return f", line {mark.line + 1}: {problem}." if mark else f": {problem}."


def _read(path: Path, shown_as: str) -> Layer:
    return Layer(shown_as, _fill_empty_sections(read_yaml(path, shown_as), PipelineConfig))


def _fill_empty_sections(values: dict[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """A section whose lines are all commented out reads as null; it means: nothing changed here."""
    filled = {}
    for name, value in values.items():
        inner = _section_of(section, name)
        if inner and (value is None or isinstance(value, dict)):
            filled[name] = _fill_empty_sections(value or {}, inner)
        else:
            filled[name] = value
    return filled


def _override(text: str) -> Layer:
    """One `a.b=value` of the command line; the value is read as YAML."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: expected KEY=VALUE.", "For example: --set policy.rounds=30")
    try:
        parsed: Any = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {text}: the value is not YAML{_place(error)}", "Put quotes around texts with special characters."
        ) from None
    for part in reversed(parts):
        parsed = {part: parsed}
    return Layer(f"--set {text}", parsed)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


# Explaining ---------------------------------------------------------------------------------------------------------


def _explain(error: ValidationError, layers: Sequence[Layer]) -> ConfigError:
    found = error.errors(include_url=False)
    lines, advice = [], "Each key is explained in params.yaml."
    for detail in found[:SHOWN]:
        location = [str(part) for part in detail["loc"] if part != "[key]"]
        key = ".".join(location) or "the configuration"
        origin = _origin(location, layers)
        if detail["type"] == "extra_forbidden":
            lines.append(f"{origin}: there is no key {key}.")
            advice = _closest(location)
        else:
            message = detail["msg"].removeprefix("Value error, ")
            given = detail["input"]
            shown = f" is {given!r}" if isinstance(given, str | int | float | bool | None) else ""
            lines.append(f"{origin}: {key}{shown}: {message[:1].lower()}{message[1:]}.")
    if len(found) > SHOWN:
        lines.append(f"... and {len(found) - SHOWN} more.")
    return ConfigError("\n".join(lines), advice)


def _origin(location: Sequence[str], layers: Sequence[Layer]) -> str:
    """The uppermost layer that gives the key, or a part of it; params.yaml where none does (a default)."""
    for layer in reversed(layers):
        values: Any = layer.values
        for part in location:
            if isinstance(values, list) and part.isdigit():
                break
            if not isinstance(values, dict) or part not in values:
                values = None
                break
            values = values[part]
        if values is not None:
            return layer.origin
    return PARAMS


def _closest(location: Sequence[str]) -> str:
    """Advice for a key that does not exist: the likeliest one meant, and what its section has."""
    section: type[BaseModel] = PipelineConfig
    for part in location[:-1]:
        section = _section_of(section, part) or section
    siblings = list(section.model_fields)
    near = difflib.get_close_matches(location[-1], siblings, n=1)
    prefix = "".join(f"{part}." for part in location[:-1])
    if near:
        return f"Did you mean {prefix}{near[0]}?"
    everywhere = [key for key in _keys(PipelineConfig) if key.rpartition(".")[2] == location[-1]]
    close = everywhere or difflib.get_close_matches(".".join(location), list(_keys(PipelineConfig)), n=1)
    meant = f"Did you mean {' or '.join(close[:4])}? " if close else ""
    return f"{meant}{'Keys of ' + prefix[:-1] if prefix else 'Keys at the top'}: {', '.join(siblings)}."


def _section_of(section: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = section.model_fields.get(name)
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name in section.model_fields:
        yield prefix + name
        inner = _section_of(section, name)
        if inner:
            yield from _keys(inner, f"{prefix}{name}.")
