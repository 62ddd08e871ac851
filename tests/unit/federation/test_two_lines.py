"""The two lines: what they import, and where the server finds who it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from flower_site import Site
from flwr.serverapp.strategy import FedAvg

import fedsec.federation
from fedsec.errors import UsageError
from fedsec.federation import SecureAggregation

ROOT = Path(fedsec.__file__).parent.parent


def loaded_after(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


def test_the_package_alone_loads_nothing() -> None:
    loaded = loaded_after("import fedsec.federation")
    assert not loaded & {"tensorflow", "keras", "flwr", "numpy", "cryptography", "fedsec.federation.mod"}


def test_the_two_names_load_no_tensorflow() -> None:
    loaded = loaded_after("from fedsec.federation import SecureAggregation, secure_aggregation")
    assert "fedsec.federation.strategy" in loaded
    assert not loaded & {"tensorflow", "keras", "numba", "fedsec.learning", "fedsec.nn"}


def test_a_hospital_does_without_the_servers_side() -> None:
    loaded = loaded_after("from fedsec.federation import secure_aggregation")
    assert "fedsec.federation.mod" in loaded
    assert not loaded & {"fedsec.federation.strategy", "fedsec.cluster", "fedsec.learning"}


def test_public_names_are_complete_and_sorted() -> None:
    names = fedsec.federation.__all__
    assert names == sorted(names)
    assert set(names) <= set(dir(fedsec.federation))
    assert {getattr(fedsec.federation, name).__module__ for name in names} <= {
        *(f"fedsec.federation.{part}" for part in ("mod", "plan", "strategy")),
        "fedsec.aggregation.noise.planning",
    }
    with pytest.raises(AttributeError, match="no attribute 'secure'; public names: HospitalLevel"):
        _ = fedsec.federation.secure  # type: ignore[attr-defined]


@dataclass
class Running:
    """What the strategy asks a running cluster for."""

    site: Site
    file: Path

    def identity(self, name: str) -> Path:
        return self.site.keys.identity(name)


@pytest.fixture
def cluster_path(site: Site, tmp_path: Path) -> Path:
    site.cluster.save(tmp_path / "cluster.toml")
    return tmp_path / "cluster.toml"


def name_of(strategy: SecureAggregation) -> str:
    strategy.close()
    return strategy._identity.name


def test_a_running_cluster_knows_the_server(site: Site, cluster_path: Path) -> None:
    assert name_of(SecureAggregation(FedAvg(), aggregators=Running(site, cluster_path))) == "server"


@pytest.mark.parametrize("place", ["server.pem", "keys/server.pem"])
def test_the_identity_lies_with_the_cluster_file(site: Site, cluster_path: Path, place: str) -> None:
    target = cluster_path.parent / place
    target.parent.mkdir(exist_ok=True)
    shutil.copy2(site.keys.identity("server"), target)
    assert name_of(SecureAggregation(FedAvg(), aggregators=cluster_path)) == "server"
    assert name_of(SecureAggregation(FedAvg(), aggregators=str(cluster_path))) == "server"


def test_without_an_identity_the_error_says_where_it_belongs(site: Site, cluster_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected identity=\.\.\., .*server\.pem or .*keys/server\.pem"):
        SecureAggregation(FedAvg(), aggregators=cluster_path)
    with pytest.raises(UsageError, match=r"expected identity=\.\.\."):
        SecureAggregation(FedAvg(), aggregators=site.cluster)
