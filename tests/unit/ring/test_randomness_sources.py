"""Threat 1: what touches secrets draws from the operating system and AES only."""

import ast
from pathlib import Path

import pytest

import fedsec

PACKAGE = Path(fedsec.__path__[0])
SECRET = ["ring", "sharing", "transport", "mpc", "aggregation", "nn", "party", "serving", "cluster"]
BANNED_MODULES = {"random", "numpy.random", "tensorflow", "keras", "pickle", "marshal", "shelve", "dill"}
BANNED_NAMES = {"eval", "exec", "default_rng", "RandomState", "randint"}


def _findings(source):
    """Yield line and name of every banned import, attribute and call."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}".replace("np.", "numpy.", 1), node.attr]
        elif isinstance(node, ast.Name):
            names = [node.id] if node.id in BANNED_NAMES else []
        banned = BANNED_NAMES | BANNED_MODULES
        yield from (
            (node.lineno, name)
            for name in names
            if name in banned or name.startswith(tuple(f"{m}." for m in BANNED_MODULES))
        )


def test_threat_01_packages_with_secrets_use_no_other_randomness():
    files = [file for name in SECRET for file in (PACKAGE / name).rglob("*.py")]
    assert any(file.name == "streams.py" for file in files)

    found = {str(file): list(_findings(file.read_text(encoding="utf-8"))) for file in files}

    assert not {file: lines for file, lines in found.items() if lines}


@pytest.mark.parametrize(
    "line",
    [
        "import random",
        "from random import randrange",
        "import numpy.random",
        "from numpy import random",
        "from numpy.random import default_rng",
        "np.random.normal(3)",
        "numpy.random.normal(3)",
        "mask = np.random.default_rng(0).integers(5)",
        "import tensorflow as tf",
        "import tensorflow.random",
        "import pickle",
        "from pickle import loads",
        "eval('1')",
    ],
)
def test_threat_01_power_the_scan_finds(line):
    assert list(_findings(line))


def test_the_scan_lets_our_own_sources_pass():
    assert not list(
        _findings("import secrets, os\nkey = secrets.token_bytes(32) + os.urandom(3)\nrandom = key")
    )
