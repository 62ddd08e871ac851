import subprocess
import sys
from pathlib import Path

import pytest

import fedsec

ROOT = Path(fedsec.__file__).parent.parent


def loaded_after(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


def test_import_fedsec_alone_loads_nothing_heavy() -> None:
    loaded = loaded_after("import fedsec")
    assert not loaded & {"tensorflow", "keras", "flwr", "numba", "numpy", "cryptography", "fedsec.ring"}


@pytest.mark.parametrize("name", ["Cluster", "Client", "Scenario", "FedsecError", "share", "run_scenario"])
def test_no_public_name_loads_tensorflow_or_flower_by_itself(name: str) -> None:
    assert not loaded_after(f"import fedsec; fedsec.{name}") & {"tensorflow", "keras", "flwr"}


def test_public_names_are_complete_and_sorted() -> None:
    assert fedsec.__all__ == sorted(fedsec.__all__)
    assert set(fedsec.__all__) <= set(dir(fedsec))
    for name in fedsec.__all__:
        assert getattr(fedsec, name) is getattr(fedsec, name)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clutser'; public names: Client, Cluster"):
        _ = fedsec.Clutser  # type: ignore[attr-defined]
