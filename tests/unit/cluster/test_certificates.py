from __future__ import annotations

import contextlib
import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedsec.cluster.certificates import VALID_DAYS, Authority
from fedsec.errors import UsageError
from fedsec.transport import Identity, Role


def test_an_authority_is_kept_in_its_folder(tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "authority")
    assert stat.S_IMODE((tmp_path / "authority" / "authority.key").stat().st_mode) == 0o600
    loaded = Authority.load(tmp_path / "authority")
    assert loaded.certificate_pem == made.certificate_pem
    (tmp_path / "ids").mkdir()
    assert Identity.load(loaded.issue(tmp_path / "ids", "a", Role.USER)).authority == made.certificate_pem


def test_an_authority_is_never_overwritten(tmp_path: Path) -> None:
    before = Authority.create(tmp_path).certificate_pem
    with pytest.raises(UsageError, match="never overwritten"):
        Authority.create(tmp_path)
    assert Authority.load(tmp_path).certificate_pem == before


def test_a_missing_or_damaged_authority_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fedsec keys"):
        Authority.load(tmp_path)
    Authority.create(tmp_path)
    (tmp_path / "authority.key").write_text("no key")
    with pytest.raises(UsageError, match="fedsec keys"):
        Authority.load(tmp_path)


@pytest.mark.parametrize("role", list(Role))
def test_a_certificate_holds_name_role_and_time(tmp_path: Path, role: Role) -> None:
    authority = Authority.create(tmp_path / "authority")
    now = datetime.datetime(2030, 6, 1, tzinfo=datetime.UTC)
    path = authority.issue(tmp_path, "anna", role, ["clinic.example", "10.0.0.7"], now=now)
    assert path == tmp_path / "anna.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"urn:fedsec:{role.value}:anna"]
    assert names.get_values_for_type(x509.DNSName) == ["clinic.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    assert certificate.not_valid_before_utc == now - datetime.timedelta(days=1)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == datetime.timedelta(
        VALID_DAYS
    )
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert (ExtendedKeyUsageOID.SERVER_AUTH in usage) == (role is Role.PARTY)
    identity = Identity.load(path)
    assert (identity.name, identity.role) == ("anna", role)


def test_openssl_accepts_the_chain_by_its_strictest_rules(tmp_path: Path) -> None:
    # VERIFY_X509_STRICT is what Python 3.13 turns on for everyone; identities must not depend on laxness.
    authority = Authority.create(tmp_path / "authority")
    party = Identity.load(authority.issue(tmp_path, "party-0", Role.PARTY))
    user = Identity.load(authority.issue(tmp_path, "user", Role.USER))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    for context in (party.server_context, user.client_context):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    ends = [
        user.client_context.wrap_bio(to_client, to_server),
        party.server_context.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(3):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert [end.version() for end in ends] == ["TLSv1.3", "TLSv1.3"]
    assert ends[1].getpeercert()


@pytest.mark.parametrize("name", ["", "Anna", "../x", "a b", "-a", "x" * 64, "a:b", "é"])
def test_names_that_could_mislead_are_refused(tmp_path: Path, name: str) -> None:
    authority = Authority.create(tmp_path / "authority")
    with pytest.raises(UsageError, match="lower-case"):
        authority.issue(tmp_path, name, Role.PARTY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authority"]


def test_an_identity_is_never_overwritten(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority")
    before = authority.issue(tmp_path / "one.pem", "anna", Role.USER).read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        authority.issue(tmp_path / "one.pem", "anna", Role.USER)
    assert (tmp_path / "one.pem").read_bytes() == before


def test_every_key_is_another_one(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority")
    keys = {
        Identity.load(authority.issue(tmp_path, f"u{number}", Role.USER)).public_key for number in range(20)
    }
    assert len(keys) == 20


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority")
    with pytest.raises(UsageError, match="expected to write a key to"):
        authority.issue(tmp_path / "nowhere" / "a.pem", "a", Role.USER)


@pytest.mark.parametrize(
    ("host", "accepted"), [("127.0.0.1", True), ("localhost", True), ("10.0.0.1", False)]
)
def test_a_certificate_for_https_holds_for_its_hosts_and_has_no_role(
    tmp_path: Path, host: str, accepted: bool
) -> None:
    authority = Authority.create(tmp_path / "authority")
    folder = authority.issue_https(tmp_path / "https", ["127.0.0.1", "localhost"])

    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    client = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(here, there, server_hostname=host),
        server.wrap_bio(there, here, server_side=True),
    )
    with contextlib.nullcontext() if accepted else pytest.raises(ssl.SSLCertVerificationError):
        for end in (*ends, *ends):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()

    certificate = x509.load_pem_x509_certificate((folder / "certificate.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == []
    assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="never overwritten"):
        authority.issue_https(folder, ["localhost"])
