from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fedsec.aggregation.trust import TrustFile, TrustLimits
from fedsec.cluster.keys import make_local_keys, numbered, write_trust_files
from fedsec.errors import UsageError
from fedsec.transport import ClusterFile, Identity, Role

ADDRESSES = {f"party-{number}": ("127.0.0.1", 4000 + number) for number in range(3)}


def test_everyone_gets_an_identity_of_the_right_role(tmp_path: Path) -> None:
    keys = make_local_keys(tmp_path / "keys", parties=3, hospitals=2, users=("user", "anna"))
    roles = {path.stem: Identity.load(path).role for path in keys.folder.glob("*.pem")}
    assert roles == {
        **dict.fromkeys(("party-0", "party-1", "party-2"), Role.PARTY),
        **dict.fromkeys(("hospital-00", "hospital-01"), Role.HOSPITAL),
        **dict.fromkeys(("user", "anna"), Role.USER),
        "server": Role.SERVER,
        "owner": Role.OWNER,
    }
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700


def test_what_is_there_stays_and_what_is_missing_is_added(tmp_path: Path) -> None:
    make_local_keys(tmp_path, hospitals=1)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pem")}
    make_local_keys(tmp_path, hospitals=3)
    after = {path.name: path.read_bytes() for path in tmp_path.glob("*.pem")}
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys()) == ["hospital-01.pem", "hospital-02.pem"]
    assert (
        Identity.load(tmp_path / "hospital-02.pem").authority
        == Identity.load(tmp_path / "owner.pem").authority
    )


def test_parties_can_have_names(tmp_path: Path) -> None:
    keys = make_local_keys(tmp_path, parties=("alice", "bob"), hospitals=0)
    cluster = keys.cluster_file({"alice": ("a.example", 1), "bob": ("b.example", 2)})
    assert [(party.name, party.host, party.port) for party in cluster.parties] == [
        ("alice", "a.example", 1),
        ("bob", "b.example", 2),
    ]
    assert cluster.hospitals == {}


def test_names_sort_in_their_order() -> None:
    assert numbered("hospital", 2) == ("hospital-00", "hospital-01")
    names = numbered("hospital", 101)
    assert names[-1] == "hospital-100"
    assert sorted(names) == list(names)
    assert numbered("party", 3) == ("party-0", "party-1", "party-2")
    assert numbered("hospital", 0) == ()


def test_a_missing_identity_names_those_that_are_there(tmp_path: Path) -> None:
    keys = make_local_keys(tmp_path, parties=2, hospitals=0)
    with pytest.raises(UsageError, match=r"'usr'.*there: owner, party-0, party-1, server, user"):
        keys.identity("usr")


def test_the_cluster_file_pins_everyones_own_key(tmp_path: Path) -> None:
    keys = make_local_keys(tmp_path, hospitals=2)
    cluster = keys.cluster_file(ADDRESSES)
    for endpoint in cluster.parties:
        assert endpoint.public_key == Identity.load(keys.identity(endpoint.name)).public_key
    for name in ("hospital-00", "hospital-01", "server", "owner", "user", "party-2"):
        cluster.admit(Identity.load(keys.identity(name)).peer)
    cluster.save(tmp_path / "cluster.toml")
    text = (tmp_path / "cluster.toml").read_text()
    assert ClusterFile.load(tmp_path / "cluster.toml") == cluster
    assert "PRIVATE" not in text


def test_every_hospital_gets_a_trust_file_with_its_own_identity_and_state(tmp_path: Path) -> None:
    keys = make_local_keys(tmp_path, hospitals=3)
    cluster = keys.cluster_file(ADDRESSES)
    limits = TrustLimits(minimum_cohort=2)
    paths = write_trust_files(keys, cluster, limits)
    assert list(paths) == ["hospital-00", "hospital-01", "hospital-02"]
    states = set()
    for name, path in paths.items():
        assert path == keys.trust_file(name)
        trust = TrustFile.load(path)
        assert Identity.load(trust.identity).name == name
        assert trust.aggregators == cluster.parties
        assert trust.server == cluster.server
        assert dict(trust.roster) == cluster.hospitals
        assert trust.limits == limits
        states.add(trust.state)
    assert len(states) == 3


def test_the_hospitals_secret_is_one_for_all_and_stays_when_files_are_written_again(tmp_path: Path) -> None:
    keys = make_local_keys(tmp_path, hospitals=3)
    cluster = keys.cluster_file(ADDRESSES)

    first = {TrustFile.load(path).secret for path in write_trust_files(keys, cluster).values()}
    again = {TrustFile.load(path).secret for path in write_trust_files(keys, cluster).values()}

    assert first == again
    assert [len(secret) for secret in first] == [32]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "trust").glob("*.toml")} == {0o600}


def test_hospitals_never_admit_fewer_aggregators_than_there_are(tmp_path: Path) -> None:
    keys = make_local_keys(tmp_path, parties=5, hospitals=1)
    addresses = {f"party-{number}": ("127.0.0.1", 4000 + number) for number in range(5)}
    path = write_trust_files(keys, keys.cluster_file(addresses))["hospital-00"]
    assert TrustFile.load(path).limits.fewest_aggregators == 0, "all that are pinned"


def test_without_a_pinned_server_no_trust_file_is_written(tmp_path: Path) -> None:
    keys = make_local_keys(tmp_path, hospitals=1)
    cluster = keys.cluster_file(ADDRESSES)
    with pytest.raises(UsageError, match="public key of the server"):
        write_trust_files(keys, ClusterFile(cluster.authority, cluster.parties))
    assert not keys.trust_file("hospital-00").exists()
