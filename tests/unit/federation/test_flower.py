"""What Flower's programs are given: nothing that calls anyone, homes of their own, an app that is found."""

from __future__ import annotations

import importlib
import json
import sys
import time
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate

from fedsec.errors import PeerLostError
from fedsec.federation.bundle import write_app
from fedsec.federation.flower import Flower

SAY_ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)), flush=True)"


def environment_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_HOME", "/nowhere")
    with Flower(folder, folder / "logs", {"OURS": "1"}) as flower:
        process = flower._start("program", [sys.executable, "-c", SAY_ENVIRONMENT])
        deadline = time.monotonic() + 30
        while process.exit_code() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(PeerLostError, match="expected program to run; it ended with exit code 0"):
            flower.check()
    (line,) = (folder / "logs" / "program.log").read_text().splitlines()
    environment: dict[str, str] = json.loads(line)
    return environment


def test_programs_of_flower_and_ray_call_nobody_and_share_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (environment_of(tmp_path / name, monkeypatch) for name in ("first", "second"))

    for name, value in (
        ("FLWR_TELEMETRY_ENABLED", "0"),
        ("FLWR_DISABLE_UPDATE_CHECK", "1"),
        ("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("FLWR_HOME", str(tmp_path / "first" / "home")),
        ("RAY_AUTH_MODE", "token"),
        ("OURS", "1"),
    ):
        assert first[name] == value
    # Ray listens on all interfaces; whoever has no token gets nowhere.
    assert len(bytes.fromhex(first["RAY_AUTH_TOKEN"])) == 32
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    assert first["RAY_TMPDIR"] != second["RAY_TMPDIR"]
    assert not Path(first["RAY_TMPDIR"]).exists()


def test_a_supernode_gets_a_key_of_its_own_as_flower_wants_it(tmp_path: Path) -> None:
    flower = Flower(tmp_path, tmp_path / "logs")
    paths = [flower._make_key(name) for name in ("hospital-00", "hospital-01")]

    keys = [load_ssh_private_key(path.read_bytes(), None) for path in paths]
    for path, key in zip(paths, keys, strict=True):
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.curve.name == "secp384r1"
        assert load_ssh_public_key(Path(f"{path}.pub").read_bytes()) == key.public_key()
        assert path.stat().st_mode & 0o777 == 0o600
    assert keys[0].public_key() != keys[1].public_key()


@pytest.mark.filterwarnings("default:GitWildMatchPattern:DeprecationWarning")  # Flower's own
def test_the_app_folder_is_what_flower_takes_and_has_nothing_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_app(tmp_path / "app", "study", client="json:dumps", server="tomllib:loads")

    config, warnings = load_and_validate(folder / "pyproject.toml")
    assert warnings == []
    assert config["project"]["dependencies"] == []
    assert 0 < len(build_fab_from_disk(folder)) < 5_000
    monkeypatch.syspath_prepend(str(folder))
    try:
        bundle = importlib.import_module("fedsec_bundle")
        assert (bundle.client, bundle.server) == (json.dumps, tomllib.loads)
    finally:
        sys.modules.pop("fedsec_bundle", None)
