"""Every claim of the threat model names a test, and every test that a page names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "threat-model.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
CLAIMS = [line for line in PAGE.read_text().split("## What is promised")[1].split("\n## ")[0].splitlines()
          if line.startswith("| ") and not line.startswith(("| claim", "| ---"))]  # fmt: skip


@cache
def _tests_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    named = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    # `name = check_protocol(...)` at module level is a test made by the plugin.
    assigned = {t.id for node in tree.body if isinstance(node, ast.Assign)
                for t in node.targets if isinstance(t, ast.Name)}  # fmt: skip
    return frozenset(named | assigned)


def test_the_page_has_claims() -> None:
    assert len(CLAIMS) >= 20


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim[2:60].strip())
def test_a_claim_names_a_test(claim: str) -> None:
    assert NAMED.search(claim), "a claim without a test is a wish"


@pytest.mark.parametrize(
    ("file", "name"), sorted({one for page in PAGES for one in NAMED.findall(page.read_text())})
)
def test_a_named_test_exists(file: str, name: str) -> None:
    path = ROOT / file
    assert path.exists(), file
    assert name in _tests_in(path), f"{file} has no {name}"
