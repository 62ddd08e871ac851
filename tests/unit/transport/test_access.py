"""Files that say whom to trust are written by nobody else, and keys are read by nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedsec.aggregation.trust import TrustFile, TrustLimits
from fedsec.cluster.certificates import Authority
from fedsec.cluster.keys import LocalKeys, make_local_keys, write_trust_files
from fedsec.errors import TrustError
from fedsec.transport import ClusterFile, Identity, PartyConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("files")
    keys: LocalKeys = make_local_keys(made / "keys", 3, 1)
    cluster = keys.cluster_file({name: ("127.0.0.1", 1 + i) for i, name in enumerate(keys.parties)})
    cluster.save(made / "cluster.toml")
    write_trust_files(keys, cluster, TrustLimits())
    trust = TrustFile.load(keys.trust_file(keys.hospitals[0]))
    replace(trust, secret=b"").save(made / "trust.toml")
    replace(trust, secret=bytes(32)).save(made / "secret.toml")
    PartyConfig("party-0", made / "keys" / "party-0.pem", made / "cluster.toml", made).save(
        made / "party.toml"
    )
    return made


READERS: dict[str, Callable[[Path], object]] = {
    "cluster.toml": ClusterFile.load,
    "trust.toml": TrustFile.load,
    "secret.toml": TrustFile.load,
    "party.toml": PartyConfig.load,
    "keys/party-0.pem": Identity.load,
    "keys/authority/authority.key": lambda path: Authority.load(path.parent),
}
SECRET = {"secret.toml", "keys/party-0.pem", "keys/authority/authority.key"}


@pytest.mark.parametrize("name", READERS)
def test_they_are_written_so_that_they_can_be_read(folder: Path, name: str) -> None:
    READERS[name](folder / name)
    assert (folder / name).stat().st_mode & 0o777 == (0o600 if name in SECRET else 0o644)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o664, 0o666])
@pytest.mark.parametrize("name", READERS)
def test_threat_28_what_others_can_write_is_not_trusted(folder: Path, name: str, mode: int) -> None:
    path = folder / name
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        with pytest.raises(TrustError, match=rf"{path.name} .*got mode {mode:o}: .*chmod (600|go-w) "):
            READERS[name](path)
    finally:
        path.chmod(before)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
@pytest.mark.parametrize("name", sorted(SECRET))
def test_threat_45_a_secret_that_others_can_read_is_refused(folder: Path, name: str, mode: int) -> None:
    path = folder / name
    path.chmod(mode)
    try:
        with pytest.raises(TrustError, match="chmod 600"):
            READERS[name](path)
    finally:
        path.chmod(0o600)
