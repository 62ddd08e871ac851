"""The page of layers says what the converters do."""

from __future__ import annotations

from pathlib import Path

from fedsec.learning.export.table import layer_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "layers.md"


def test_the_page_of_layers_is_current() -> None:
    assert PAGE.read_text() == layer_table(), (
        "run `python -m fedsec.learning.export.table > docs/reference/layers.md`"
    )
