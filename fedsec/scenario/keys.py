"""The keys of a scenario and what is said about wrong ones: the nearest known key, the values that fit."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fedsec.errors import ScenarioError


def apply_override(root: type, override: str, values: dict[str, Any]) -> None:
    """Put a text ``section.key=value`` into nested values.

    Args:
        root: The dataclass of the whole scenario.
        override: The text; the value as in TOML, and a text needs no quotes.
        values: Sections by name; changed.

    Raises:
        ScenarioError: The text has another form, or the key is unknown.
    """
    name, equals, text = override.partition("=")
    keys = tuple(part.strip() for part in name.split("."))
    if not equals or not all(keys):
        raise ScenarioError(f"expected section.key=value, for example training.rounds=3, got {override!r}")
    value = _parse_value(text.strip())
    check_key(root, keys, value, "--set")
    section = values
    for key in keys[:-1]:
        section = section.setdefault(key, {})
    section[keys[-1]] = value


def check_key(root: type, keys: Sequence[str], value: object, origin: str) -> None:
    """Refuse one key that the scenario does not have; as ``check_keys``."""
    nested: Any = value
    for key in reversed(keys):
        nested = {key: nested}
    check_keys(root, nested, origin)


def check_keys(root: type, values: Mapping[str, Any], origin: str) -> None:
    """Refuse a key that the scenario does not have, at any depth, naming the nearest one.

    Args:
        root: The dataclass of the whole scenario.
        values: Sections by name.
        origin: What error texts call the source.

    Raises:
        ScenarioError: A key is unknown, or a section is given as a value or the other way round.
    """
    _check(root, root, values, (), origin)


def readable(root: type, text: str) -> str:
    """Turn msgspec's ``Expected `int` >= 1 - at `$.hospitals.count` `` around: the key comes first."""
    what, at, where = text.partition(" - at `$.")
    if not at:
        return what[:1].lower() + what[1:]
    key = where.rstrip("`")
    allowed = _choices(root, key.split("[")[0].split("."))
    what = f"expected {allowed}" if allowed else what[:1].lower() + what[1:]
    return f"{key}: {what}"


def _parse_value(text: str) -> object:
    """Return the value that ``text`` means in TOML, or the text itself where it means none.

    So ``3`` is an integer, ``true`` a boolean, ``[0, 1]`` a list, and ``fedavg`` needs no quotes.
    """
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def _check(root: type, cls: type, values: Mapping[str, Any], path: tuple[str, ...], origin: str) -> None:
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise ScenarioError(f"{origin}: {_unknown(root, (*path, key))}")
        section = dataclasses.is_dataclass(hints[key])
        if section and not isinstance(value, Mapping):
            raise ScenarioError(f"{origin}: [{key}] is a section, got a plain value: use {key}.KEY=value")
        if not section and isinstance(value, Mapping):
            name = ".".join((*path, key))
            raise ScenarioError(f"{origin}: {name} is one value, got a section: use {name}=value")
        if section:
            _check(root, typing.cast(type, hints[key]), value, (*path, key), origin)


def _unknown(root: type, path: tuple[str, ...]) -> str:
    known = [".".join(name) for name in _known_keys(root)]
    wanted = ".".join(path)
    # The last part alone finds a key that was put into the wrong section.
    by_last = {name.rpartition(".")[2]: name for name in known}
    near = [by_last[path[-1]]] if path[-1] in by_last else difflib.get_close_matches(wanted, known, n=1)
    near = near or [by_last[last] for last in difflib.get_close_matches(path[-1], by_last, n=1)]
    hint = f"did you mean {near[0]!r}?" if near else f"known sections: {', '.join(_sections(root))}"
    return f"unknown key {wanted!r}; {hint}"


def _known_keys(cls: type, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    keys: list[tuple[str, ...]] = []
    for name, hint in typing.get_type_hints(cls).items():
        nested = dataclasses.is_dataclass(hint)
        keys += _known_keys(typing.cast(type, hint), (*path, name)) if nested else [(*path, name)]
    return keys


def _sections(root: type) -> list[str]:
    return [item.name for item in dataclasses.fields(root) if not isinstance(item.default, str | int)]


def _choices(root: type, path: Sequence[str]) -> str:
    """Return the values that a ``Literal`` key may take, as text; empty for any other key."""
    hint: Any = root
    for key in path:
        hint = typing.get_type_hints(hint)[key]
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    literal = typing.get_origin(hint) is Literal
    return " or ".join(repr(value) for value in typing.get_args(hint)) if literal else ""
