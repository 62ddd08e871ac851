"""The small part of TOML that a scenario needs: sections of plain values, read and written.

Python reads TOML and does not write it; what is written here is read back by ``tomllib`` unchanged.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsec.errors import ScenarioError


def read(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        ScenarioError: If the file is missing, unreadable or not TOML; the text names the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"cannot read the scenario {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from error
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{path} is not valid TOML: {error}") from error


def parse_value(text: str) -> object:
    """Return the value that ``text`` means in TOML, or the text itself where it means none.

    So ``3`` is an integer, ``true`` a boolean, ``[0, 1]`` a list, and ``fedavg`` needs no quotes.
    """
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def write(sections: Mapping[str, object]) -> str:
    """Return TOML text: plain values first, then one ``[section]`` for each nested mapping."""
    plain = [f"{key} = {_value(value)}" for key, value in sections.items() if not isinstance(value, Mapping)]
    lines = plain
    for name, section in sections.items():
        if isinstance(section, Mapping):
            lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in section.items())]
    return "\n".join(lines).lstrip("\n") + "\n"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    # A JSON string is a TOML basic string, once DEL, which JSON leaves bare, is escaped too.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
