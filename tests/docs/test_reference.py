"""The reference pages say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from fedsec.cli.main import COMMANDS
from fedsec.errors import FedsecError
from fedsec.scenario.reference import reference

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"


def _tree(cls: type[FedsecError]) -> list[type[FedsecError]]:
    return [cls, *(below for sub in cls.__subclasses__() for below in _tree(sub))]


def test_the_page_of_scenario_keys_is_current() -> None:
    page = (REFERENCE / "scenario.md").read_text()

    assert page == reference(), "run `python -m fedsec.scenario.reference > docs/reference/scenario.md`"


def test_every_error_stands_at_its_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \| [^|]+ \|([^|]*)\|$", (REFERENCE / "cli.md").read_text(), re.MULTILINE)
    documented = {name: int(code) for code, names in rows for name in re.findall(r"`(\w+)`", names)}
    ours = [cls for cls in _tree(FedsecError) if cls.__module__ == "fedsec.errors"]

    assert documented == {cls.__name__: cls.exit_code for cls in ours}


def test_every_command_is_on_the_page() -> None:
    page = (REFERENCE / "cli.md").read_text()

    assert set(re.findall(r"`fedsec ([\w-]+)", page)) - {"COMMAND"} == set(COMMANDS)
