"""The little of TOML that our own files need: read, refuse unknown keys, write.

Python reads TOML but does not write it; the writer here covers strings, numbers, booleans, lists of
these, tables and lists of tables.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedsec.errors import UsageError
from fedsec.transport.access import require_own

T = TypeVar("T")


def read(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        UsageError: The file is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"expected a file at {path}, which cannot be read: {error.strerror}; check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        # No TOML, no UTF-8, a number of thousands of digits, or deep nesting.
        raise UsageError(f"expected TOML in {path}: {error}") from error


def read_own(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file that says whom to trust.

    Raises:
        UsageError: As ``read``.
        TrustError: Others can write it.
    """
    table = read(path)
    require_own(path)
    return table


def refuse_unknown(
    table: Mapping[str, object],
    known: Collection[str],
    where: str,
    *,
    required: Collection[str] = (),
) -> None:
    """Check the keys of one table.

    Args:
        table: The table as read.
        known: Every key it may have.
        where: The file and table, for the error text.
        required: The keys it must have.

    Raises:
        UsageError: A key is not known (the text names the nearest known one), or a required one is missing.
    """
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise UsageError(f"{where}: unknown key {key!r}; {hint}")
    missing = sorted(set(required) - set(table))
    if missing:
        raise UsageError(f"{where}: expected the key {missing[0]!r}, which is missing")


def expect(table: Mapping[str, object], key: str, kind: type[T], where: str, default: T | None = None) -> T:
    """Return ``table[key]`` if it has the expected type.

    Args:
        table: The table as read.
        key: The key wanted.
        kind: The type it must have.
        where: The file and table, for the error text.
        default: What to return when the key is missing.

    Raises:
        UsageError: The value has another type, or is missing without a default.
    """
    value = table.get(key, default)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{where}: expected {key} to be of type {kind.__name__}, got {type(value).__name__}")
    return value


def write(path: Path, table: Mapping[str, Any], *, mode: int = 0o644) -> None:
    """Write a TOML file in one step: a reader sees the old file or the new one, never half of it.

    Args:
        path: The file.
        table: Plain values, lists, tables and lists of tables.
        mode: Permission bits of the file.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(dumps(table), encoding="utf-8")
    draft.chmod(mode)
    draft.replace(path)


def dumps(table: Mapping[str, Any]) -> str:
    """Return the TOML text of a table."""
    return "\n".join(_lines(table, ())).strip("\n") + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"{_key(key)} = {_value(value)}" for key, value in table.items() if not _is_table(value)]
    for key, value in table.items():
        below = (*path, key)
        name = ".".join(_key(part) for part in below)
        if isinstance(value, Mapping):
            lines += ["", f"[{name}]", *_lines(value, below)]
        elif _is_table(value):
            for row in value:
                lines += ["", f"[[{name}]]", *_lines(row, below)]
    return lines


def _is_table(value: object) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(row, Mapping) for row in value)
    return isinstance(value, Mapping)


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else json.dumps(key)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        if "\n" in value and "'''" not in value:
            return f"'''\n{value}'''"
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    raise TypeError(f"TOML cannot hold a {type(value).__name__}")
