"""The architecture as tests: who may load what, and which code may not exist at all."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedsec.mpc import PROTOCOLS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fedsec"
MODULES = sorted(PACKAGE.rglob("*.py"))
BANNED_RANDOMNESS = {"random", "numpy.random", "tensorflow.random", "keras.random"}
# Partitioning and training draw public randomness: which example is in which batch.
MAY_USE_NUMPY_RANDOM = {"learning", "lab"}
# Measures numpy's generator beside ours.
YARDSTICK = PACKAGE / "bench" / "dp_noise.py"
HEAVY = ("tensorflow", "keras", "flwr")


def _loaded_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after one statement."""
    code = (
        f"import sys, json\n{statement}\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import fedsec", (*HEAVY, "numba", "numpy")),
        ("import fedsec.ring, fedsec.sharing, fedsec.transport, fedsec.aggregation", (*HEAVY, "numba")),
        ("import fedsec.mpc, fedsec.nn", HEAVY),
        ("import fedsec.party.main", HEAVY),
        ("import fedsec.serving.client, fedsec.serving.owner, fedsec.cluster.cluster", HEAVY),
        ("import fedsec.learning.data", HEAVY),
        (
            "import fedsec.federation.mod, fedsec.federation.strategy, fedsec.federation.grid",
            ("tensorflow", "keras"),
        ),
        ("import fedsec.cli.main", HEAVY),
    ],
)
def test_importing_loads_nothing_heavy(statement: str, forbidden: tuple[str, ...]) -> None:
    assert not _loaded_by(statement) & set(forbidden)


def _imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _attributes(tree: ast.AST) -> set[str]:
    """Dotted attribute chains such as ``np.random.default_rng``."""
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def _calls(tree: ast.AST) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_threat_01_38_no_weak_randomness_and_no_unsafe_deserialisation(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imports, layer = _imports(tree), path.relative_to(PACKAGE).parts[0]

    assert "random" not in imports, "Python's random is no source of secrets"
    assert not imports & {"pickle", "dill", "cloudpickle", "marshal", "shelve", "yaml"}
    assert not _calls(tree) & {"eval", "exec", "yaml.load", "pickle.load", "pickle.loads"}
    if layer not in MAY_USE_NUMPY_RANDOM and path != YARDSTICK:
        assert not imports & BANNED_RANDOMNESS
        assert not [a for a in _attributes(tree) if a.startswith(("np.random", "numpy.random", "tf.random"))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_numpy_files_are_read_without_pickle(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"np.load", "numpy.load"}:
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert keywords.get("allow_pickle") == "False", f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_inside_imports_through_the_front_door(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fedsec" and node.level == 0:
            assert [alias.name for alias in node.names] == ["__version__"], path


def _names_under_type_checking(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    guarded = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {alias.asname or alias.name for node in guarded for sub in ast.walk(node)
            if isinstance(sub, ast.ImportFrom) for alias in sub.names}  # fmt: skip


def test_the_front_door_lists_what_it_offers() -> None:
    fedsec = importlib.import_module("fedsec")

    for name in fedsec.__all__:
        assert hasattr(fedsec, name), name
    lazy = _names_under_type_checking(PACKAGE / "__init__.py")
    assert lazy <= set(fedsec.__all__), "type checkers and run time must see the same names"


@pytest.mark.parametrize("package", ["ring", "sharing", "transport", "mpc", "nn", "aggregation"])
def test_a_package_exports_exactly_what_it_says(package: str) -> None:
    module = importlib.import_module(f"fedsec.{package}")

    assert len(set(module.__all__)) == len(module.__all__) > 0  # ruff keeps the order
    assert all(hasattr(module, name) for name in module.__all__)


def test_every_public_protocol_states_cost_source_and_security() -> None:
    assert len(PROTOCOLS) >= 6
    for record in PROTOCOLS.values():
        text = record.function.__doc__ or ""
        assert record.source, record.name
        for word in ("Cost:", "Security:"):
            assert word in text, f"{record.name} has no {word} line"


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
