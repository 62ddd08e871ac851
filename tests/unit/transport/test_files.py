from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fedsec.errors import TrustError, UsageError
from fedsec.transport import ClusterFile, Endpoint, PartyConfig, Peer, Role, toml


def _cluster(parties: int = 3) -> ClusterFile:
    return ClusterFile(
        authority="-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
        parties=tuple(Endpoint(f"party-{i}", "127.0.0.1", 4000 + i, bytes([i]) * 32) for i in range(parties)),
        server=b"s" * 32,
        owner=b"o" * 32,
        hospitals={"hospital-00": b"h" * 32},
    )


def test_a_cluster_file_comes_back_as_it_was(tmp_path: Path) -> None:
    cluster = _cluster()
    cluster.save(tmp_path / "cluster.toml")
    assert ClusterFile.load(tmp_path / "cluster.toml") == cluster
    assert tomllib.loads((tmp_path / "cluster.toml").read_text())["parties"][2]["port"] == 4002
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cluster.toml"]


def test_a_cluster_without_server_owner_and_hospitals_comes_back_too(tmp_path: Path) -> None:
    cluster = ClusterFile("pem", _cluster(2).parties)
    cluster.save(tmp_path / "cluster.toml")
    assert ClusterFile.load(tmp_path / "cluster.toml") == cluster


def test_the_first_three_parties_compute() -> None:
    assert [party.name for party in _cluster(5).computing] == ["party-0", "party-1", "party-2"]
    with pytest.raises(UsageError, match="expected 3 parties"):
        _ = _cluster(2).computing
    assert _cluster().party("party-1").port == 4001
    with pytest.raises(UsageError, match="party-0, party-1, party-2"):
        _cluster().party("party-9")


@pytest.mark.parametrize("parties", [0, 1, 8])
def test_two_to_seven_parties(parties: int) -> None:
    with pytest.raises(UsageError, match="2 to 7"):
        _cluster(parties)


def test_threat_19_one_key_cannot_be_two_participants() -> None:
    first = _cluster().parties[0]
    with pytest.raises(UsageError, match="own name and key"):
        ClusterFile("pem", (first, Endpoint("other", "h", 1, first.public_key)))
    with pytest.raises(UsageError, match="own name and key"):
        ClusterFile("pem", _cluster().parties, hospitals={"a": b"h" * 32, "b": b"h" * 32})


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("[hospitals]", "[hospital]", "did you mean 'hospitals'"),
        ("port = 4000", "prot = 4000", "did you mean 'port'"),
        ("port = 4000", 'port = "4000"', "port to be of type int"),
        ("port = 4000", "port = 70000", "1 to 65535"),
        ("port = 4000", "port = true", "port to be of type int"),
        ("version = 1", "version = 2", "expected version 1"),
        ("00" * 32, "00" * 31, "64 hex digits"),
        ("00" * 32, "zz" * 32, "64 hex digits"),
        ('name = "party-0"', 'name = "../../x"', "lower-case"),
        ('server = "', 'server = 3 # "', "server to be of type str"),
        ("[[parties]]", "[[parties]", "expected TOML"),
    ],
)
def test_a_damaged_cluster_file_is_refused_by_name(tmp_path: Path, old: str, new: str, text: str) -> None:
    path = tmp_path / "cluster.toml"
    _cluster().save(path)
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(UsageError, match=text) as caught:
        ClusterFile.load(path)
    assert str(path) in str(caught.value) or "lower-case" in text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        ClusterFile.load(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("role", "name", "key"),
    [
        (Role.PARTY, "party-1", b"\1" * 32),
        (Role.SERVER, "any name", b"s" * 32),
        (Role.OWNER, "any name", b"o" * 32),
        (Role.HOSPITAL, "hospital-00", b"h" * 32),
        (Role.USER, "anyone", b"u" * 32),
    ],
)
def test_who_is_in_the_cluster_file_may_connect(role: Role, name: str, key: bytes) -> None:
    _cluster().admit(Peer(name, role, key, ""))


@pytest.mark.parametrize(
    ("role", "name", "key"),
    [
        (Role.PARTY, "party-1", b"\2" * 32),
        (Role.PARTY, "party-7", b"\1" * 32),
        (Role.SERVER, "server", b"o" * 32),
        (Role.OWNER, "owner", b"s" * 32),
        (Role.HOSPITAL, "hospital-00", b"x" * 32),
        (Role.HOSPITAL, "hospital-99", b"h" * 32),
        (Role.HOSPITAL, "party-1", b"\1" * 32),
    ],
)
def test_threat_28_another_key_or_name_may_not_connect(role: Role, name: str, key: bytes) -> None:
    with pytest.raises(TrustError, match="cluster file"):
        _cluster().admit(Peer(name, role, key, ""))


def test_without_a_pinned_server_no_server_may_connect() -> None:
    with pytest.raises(TrustError, match="names no server"):
        ClusterFile("pem", _cluster().parties).admit(Peer("server", Role.SERVER, b"s" * 32, ""))


def test_a_party_config_comes_back_and_moves_with_its_folder(tmp_path: Path) -> None:
    home = tmp_path / "one"
    (home / "party").mkdir(parents=True)
    config = PartyConfig(
        "party-0",
        identity=home / "keys" / "party-0.pem",
        cluster=home / "cluster.toml",
        state=home / "party" / "state",
        port=4000,
        minimum_cohort=5,
        log_level="debug",
        reveal_to=("hospitals", "nobody"),
    )
    config.save(home / "party" / "party.toml")
    assert {path.resolve() for path in (PartyConfig.load(home / "party" / "party.toml").identity,)} == {
        config.identity
    }
    home.rename(tmp_path / "two")
    moved = PartyConfig.load(tmp_path / "two" / "party" / "party.toml")
    assert moved.cluster.resolve() == tmp_path / "two" / "cluster.toml"
    assert (moved.port, moved.minimum_cohort, moved.log_level) == (4000, 5, "debug")
    assert moved.reveal_to == ("hospitals", "nobody")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("minimum_cohort = 1", "at least 2"),
        ("minimum_cohort = true", "type int"),
        ("port = -1", "0 to 65535"),
        ('log_level = "loud"', "log_level"),
        ('reveal_to = ["everybody"]', "some of server, hospitals, nobody"),
        ("reveal_to = []", "some of server"),
        ('reveal_to = "server"', "type list"),
        ("minimum_cohrt = 3", "did you mean 'minimum_cohort'"),
    ],
)
def test_a_party_config_with_a_wrong_value_is_refused(tmp_path: Path, line: str, text: str) -> None:
    path = tmp_path / "party.toml"
    path.write_text(f'name = "p"\nidentity = "p.pem"\ncluster = "c.toml"\nstate = "s"\n{line}\n')
    with pytest.raises(UsageError, match=text):
        PartyConfig.load(path)


def test_a_party_config_names_the_key_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "party.toml").write_text('name = "p"\n')
    with pytest.raises(UsageError, match="'cluster', which is missing"):
        PartyConfig.load(tmp_path / "party.toml")


def test_written_toml_is_read_back_by_python() -> None:
    table = {
        "text": 'quote " backslash \\ line\n and ü',
        "pem": "-----BEGIN-----\nAA==\n-----END-----\n",
        "number": -3,
        "ratio": 1e-05,
        "yes": True,
        "list": [1, 2, 3],
        "words": ("a", "b"),
        "empty": [],
        "inner": {"key with space": "x", "deep": {"a": 1}},
        "rows": [{"a": 1}, {"a": 2, "b": {"c": 3}}],
    }
    expected = {**table, "words": ["a", "b"]}
    assert tomllib.loads(toml.dumps(table)) == expected


def test_toml_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(TypeError, match="bytes"):
        toml.dumps({"key": b"1"})
