"""Settings from YAML files and `--set key=value`: read, checked, and each mistake said in one line.

    YAML file -> a tree of plain values <- put(name, value) <- --set name=value
                          |
                          v
                  checked(Kind, tree) -> frozen settings, or a ConfigError

A kind of settings is a pydantic model that derives from Settings. A file and `--set` say only what
differs from its defaults. An unknown key is an error that names it and the nearest known one.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from common.nearest import nearest
from common.places import shipped
from common.redaction import redact


class ConfigError(ValueError):
    """A setting that cannot be used: says which, what was got and what is expected."""


class Settings(BaseModel):
    """What all settings have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _as_word(value: object) -> object:
    return str(value) if type(value) is int else value


Word = Annotated[str, BeforeValidator(_as_word)]
"""A text that may be a number alone, which YAML reads as one: a webcam, a port."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Side = Annotated[int, Field(ge=32, multiple_of=32)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]

_AnySettings = TypeVar("_AnySettings", bound=Settings)


def read_yaml(path: Path, kind: type[Settings], *, noun: str) -> dict[str, Any]:
    """The tree of a file; a group whose lines are all commented out is an empty one.

    Args:
        noun: what such a file is called in errors, for example `recipe`.

    Raises:
        ConfigError: the file cannot be read, or does not hold `key: value` lines.
    """
    path = shipped(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{noun} {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{noun} {path} is not YAML: {redact(reason)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        shown = redact(repr(tree))
        raise ConfigError(f"{noun} {path} must hold `key: value` lines, got {shown}")
    return {key: _empty(kind, key) if value is None else value for key, value in tree.items()}


def parse_override(text: str, *, example: str) -> tuple[str, Any]:
    """The name and the value (YAML) of a `--set name=value`; ConfigError where it is none."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set takes key=value, got {redact(text)!r}; e.g. {example}")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"setting {name!r}: {redact(value)!r} is not a YAML value") from None


def put(tree: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by its dotted name; a number counts the entries of a list, from 0.

    Raises:
        ConfigError: the name leads through something that is no group, or to no entry.
    """
    *groups, last = name.split(".")
    place: Any = tree
    for group in groups:
        if isinstance(place, list):
            place = place[_entry(place, group, name)]
        else:
            place = place.setdefault(group, {})
        if not isinstance(place, dict | list):
            raise ConfigError(f"setting {name!r}: {group!r} is not a group of settings")
    place[_entry(place, last, name) if isinstance(place, list) else last] = value


def checked(
    kind: type[_AnySettings], tree: Mapping[str, Any], *, renamed: Mapping[str, str] | None = None
) -> _AnySettings:
    """The settings that a tree says.

    Args:
        renamed: the present names of settings that had others, by their former names.

    Raises:
        ConfigError: one line that names the key, what was got and what is expected.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_one_line(kind, error, renamed or {})) from None


def _empty(kind: type[Settings], key: object) -> dict[str, Any] | list[Any] | None:
    """What a key without a value stands for: a group whose lines are all commented out is its
    defaults; None where it is no group, or where None is one of its values."""
    field = kind.model_fields.get(str(key))
    if field is None or _settings_inside(field.annotation) is None:
        return None
    if type(None) in typing.get_args(field.annotation):
        return None
    is_list = typing.get_origin(field.annotation) in (tuple, list)
    return [] if is_list else {}


def _entry(entries: list[Any], word: str, name: str) -> int:
    if word.isdecimal() and int(word) < len(entries):
        return int(word)
    raise ConfigError(
        f"setting {name!r}: there is no entry {word!r}; there are {len(entries)}, counted from 0"
    )


def _one_line(kind: type[Settings], error: ValidationError, renamed: Mapping[str, str]) -> str:
    """The complaint that says most, in our words; how many more there are."""
    problems = error.errors()
    # A misspelt key also misses the right one; the misspelling says more.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = problem["loc"]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden" and key in renamed:
        text = f"setting {key!r} is now {renamed[key]!r}"
    elif problem["type"] == "extra_forbidden":
        text = f"unknown setting {key!r}{_suggestion(kind, location)}"
    elif problem["type"] == "missing":
        text = f"setting {key!r} is missing"
    else:
        message = problem["msg"].removeprefix("Value error, ")
        if not key:  # two groups do not go together; the message says which
            return redact(message)
        shown = "***" if key.endswith("token") else repr(problem["input"])
        text = redact(f"setting {key!r}: {message}, got {shown}")
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")


def _suggestion(kind: type[Settings], location: tuple[int | str, ...]) -> str:
    """`; did you mean ...` for an unknown key, or the list of known ones."""
    known = list(_group(kind, location[:-1]).model_fields)
    close = nearest(str(location[-1]), known)
    if close is None:
        return f"; known here: {', '.join(known)}"
    return f"; did you mean {'.'.join(str(part) for part in (*location[:-1], close))!r}?"


def _group(kind: type[Settings], location: tuple[int | str, ...]) -> type[Settings]:
    """The settings class at a place in the tree."""
    for part in location:
        if isinstance(part, str):
            kind = _settings_inside(kind.model_fields[part].annotation) or kind
    return kind


def _settings_inside(annotation: Any) -> type[Settings] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Settings) else None
    inside = (_settings_inside(argument) for argument in typing.get_args(annotation))
    return next((group for group in inside if group is not None), None)
