from pathlib import Path

import pytest

from fedsec.aggregation.trust import TrustFile
from fedsec.cli.main import main
from fedsec.transport import ClusterFile, Identity, PartyConfig, Role


class Keys:
    """Runs ``fedsec keys`` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: object) -> int:
        return main(["keys", *map(str, arguments)])

    def issue(self, name: str, role: str) -> Path:
        path = self.folder / f"{name}.pem"
        assert (
            self.run("issue", path, "--authority", self.folder / "authority", "--role", role, "--name", name)
            == 0
        )
        return path


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    made = Keys(tmp_path)
    assert made.run("authority", tmp_path / "authority") == 0
    return made


@pytest.fixture
def cluster(keys: Keys) -> Path:
    """Three parties, a server, an owner and two hospitals; keys given as files and as hex."""
    path = keys.folder / "cluster.toml"
    arguments: list[object] = ["cluster", path, "--authority", keys.folder / "authority"]
    for number, name in enumerate(("alice", "bob", "carol")):
        key: object = keys.issue(name, "party")
        if number == 2:
            key = Identity.load(Path(str(key))).public_key.hex()
        arguments += ["--party", f"{name}@host-{number}.example:{4000 + number}={key}"]
    for name in ("north", "south"):
        arguments += ["--hospital", f"{name}={keys.issue(name, 'hospital')}"]
    arguments += ["--server", keys.issue("server", "server"), "--owner", keys.issue("owner", "owner")]
    assert keys.run(*arguments) == 0
    return path


def test_an_identity_has_one_role_and_is_the_owners_only(
    keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    path = keys.issue("alice", "party")

    identity = Identity.load(path)
    assert (identity.name, identity.role) == ("alice", Role.PARTY)
    assert path.stat().st_mode & 0o777 == 0o600
    capsys.readouterr()
    assert keys.run("show", path) == 0
    assert capsys.readouterr().out == f"party alice, public key {identity.public_key.hex()}\n"


def test_the_cluster_file_pins_every_key(keys: Keys, cluster: Path) -> None:
    file = ClusterFile.load(cluster)

    assert [(party.name, party.address) for party in file.parties] == [
        ("alice", "host-0.example:4000"),
        ("bob", "host-1.example:4001"),
        ("carol", "host-2.example:4002"),
    ]
    for name, key in [(party.name, party.public_key) for party in file.parties] + list(
        file.hospitals.items()
    ):
        assert key == Identity.load(keys.folder / f"{name}.pem").public_key
    assert file.server == Identity.load(keys.folder / "server.pem").public_key
    assert file.owner == Identity.load(keys.folder / "owner.pem").public_key
    assert "PRIVATE" not in cluster.read_text()


def test_a_partys_file_says_where_it_listens(keys: Keys, cluster: Path) -> None:
    path = keys.folder / "bob.toml"
    identity = keys.folder / "bob.pem"
    arguments = (
        "party",
        path,
        "--cluster",
        cluster,
        "--identity",
        identity,
        "--state",
        keys.folder / "state",
    )

    assert keys.run(*arguments, "--listen", "127.0.0.1", "--minimum-cohort", "5") == 0

    config = PartyConfig.load(path)
    assert (config.name, config.host, config.port, config.minimum_cohort) == ("bob", "127.0.0.1", 4001, 5)
    assert config.identity.resolve() == identity


def test_a_trust_file_pins_aggregators_server_roster_and_limits(keys: Keys, cluster: Path) -> None:
    path = keys.folder / "trust.toml"
    identity = keys.folder / "north.pem"
    arguments = (
        "trust",
        path,
        "--cluster",
        cluster,
        "--identity",
        identity,
        "--state",
        keys.folder / "state",
    )

    assert (
        keys.run(*arguments, "--minimum-cohort", "7", "--largest-clip", "1.5", "--ring-bits", "32", "64") == 0
    )

    trust, file = TrustFile.load(path), ClusterFile.load(cluster)
    assert (trust.aggregators, trust.server, dict(trust.roster)) == (
        file.parties,
        file.server,
        file.hospitals,
    )
    assert (trust.limits.minimum_cohort, trust.limits.largest_clip) == (7, 1.5)
    assert trust.limits.ring_bits == (32, 64)
    assert trust.limits.fewest_aggregators == len(file.parties), "all that are pinned"


def test_a_trust_file_names_metrics_weights_and_floors(
    keys: Keys, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common: tuple[object, ...] = ("--cluster", cluster, "--identity", keys.folder / "north.pem")
    common = (*common, "--state", keys.folder / "state")
    path = keys.folder / "trust.toml"
    chosen = (
        "--metric",
        "auc=0:1",
        "--metric",
        "bias=-2:2.5",
        "--weights",
        "equal",
        "--smallest-clip",
        "0.5",
    )
    assert keys.run("trust", path, *common, *chosen, "--smallest-largest-weight", "7") == 0
    limits = TrustFile.load(path).limits
    assert limits.metrics == {"auc": (0.0, 1.0), "bias": (-2.0, 2.5)}
    assert (limits.weights, limits.smallest_clip, limits.smallest_largest_weight) == (("equal",), 0.5, 7)
    for metric in ("auc", "auc=1", "auc=1:0", "auc=0:inf", "=0:1", "auc=0:nan"):
        assert keys.run("trust", keys.folder / "other.toml", *common, "--metric", metric) == 2
        assert "expected NAME=LOW:HIGH" in capsys.readouterr().err


def test_a_trust_file_pins_what_may_be_told_about_the_whole_hospital(keys: Keys, cluster: Path) -> None:
    path = keys.folder / "trust.toml"
    common = ("--cluster", cluster, "--identity", keys.folder / "north.pem", "--state", keys.folder / "state")
    chosen = ("--hospital-epsilon", "6", "--hospital-delta", "1e-6")
    assert keys.run("trust", path, *common, *chosen, "--hospital-noise-multiplier", "1.5") == 0
    limits = TrustFile.load(path).limits
    assert (limits.hospital_epsilon, limits.hospital_delta) == (6.0, 1e-6)
    assert (limits.hospital_noise_multiplier, limits.hospital_colluding) == (1.5, 0)


@pytest.mark.parametrize(
    "party", ["alice", "alice@host", "alice@host:4000", "alice@host:port=KEY", "alice@host:0=KEY", "@:1="]
)
def test_parties_that_cannot_be_read_are_refused(
    party: str, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        keys.run(
            "cluster", keys.folder / "c.toml", "--authority", keys.folder / "authority", "--party", party
        )
        == 2
    )
    assert "fedsec: " in capsys.readouterr().err


def test_a_key_of_another_role_or_name_is_refused(
    keys: Keys, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["cluster", keys.folder / "other.toml", "--authority", keys.folder / "authority"]
    for party in (f"dave@h:1={keys.folder / 'north.pem'}", f"dave@h:1={keys.folder / 'bob.pem'}"):
        assert keys.run(*arguments, "--party", party) == 2
        assert "expected the identity of party dave" in capsys.readouterr().err
    assert not (keys.folder / "other.toml").exists()


def test_who_is_not_in_the_cluster_gets_no_file(
    keys: Keys, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = keys.issue("east", "hospital")
    common = ("--cluster", cluster, "--state", keys.folder / "state")
    assert keys.run("trust", keys.folder / "t.toml", *common, "--identity", stranger) == 2
    assert "does not name the hospital east" in capsys.readouterr().err
    assert keys.run("party", keys.folder / "p.toml", *common, "--identity", stranger) == 2
    assert not (keys.folder / "t.toml").exists()
    assert not (keys.folder / "p.toml").exists()


def test_nothing_is_overwritten(keys: Keys, cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = cluster.read_bytes()
    party = f"alice@h:1={keys.folder / 'alice.pem'}"
    second = f"bob@h:2={keys.folder / 'bob.pem'}"
    authority = ("--authority", keys.folder / "authority")
    assert keys.run("cluster", cluster, *authority, "--party", party, "--party", second) == 2
    assert keys.run("authority", keys.folder / "authority") == 2
    assert keys.run("issue", keys.folder / "alice.pem", *authority, "--role", "party", "--name", "alice") == 2
    assert cluster.read_bytes() == before
    assert "never overwritten" in capsys.readouterr().err


def test_hospitals_get_one_secret_for_sealed_rounds(
    keys: Keys, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common: tuple[object, ...] = ("--cluster", cluster, "--identity", keys.folder / "north.pem")
    common = (*common, "--state", keys.folder / "state", "--reveal-to", "hospitals")
    secret = keys.folder / "hospitals.secret"
    assert keys.run("trust", keys.folder / "none.toml", *common) == 2
    assert "--hospitals-secret FILE" in capsys.readouterr().err

    files = []
    for name in ("one.toml", "two.toml"):
        assert keys.run("trust", keys.folder / name, *common, "--hospitals-secret", secret) == 0
        files.append(TrustFile.load(keys.folder / name))
        assert (keys.folder / name).stat().st_mode & 0o777 == 0o600

    assert files[0].secret == files[1].secret == bytes.fromhex(secret.read_text())
    assert len(files[0].secret) == 32
    assert secret.stat().st_mode & 0o777 == 0o600
    assert files[0].limits.reveal_to == ("hospitals",)
    assert files[0].secret.hex() not in repr(files[0])
    secret.write_text("not hexadecimal")
    assert keys.run("trust", keys.folder / "three.toml", *common, "--hospitals-secret", secret) == 2
