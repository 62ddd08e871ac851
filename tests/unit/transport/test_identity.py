from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsec.cluster.certificates import Authority
from fedsec.errors import TrustError, UsageError
from fedsec.transport import Identity, Role, verify


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


def test_an_identity_knows_its_name_role_and_key(authority: Authority, tmp_path: Path) -> None:
    path = authority.issue(tmp_path, "party-0", Role.PARTY)
    identity = Identity.load(path)
    own, issuer = x509.load_pem_x509_certificates(path.read_bytes())
    assert (identity.name, identity.role, identity.path) == ("party-0", Role.PARTY, path)
    assert identity.authority == authority.certificate_pem
    public = own.public_key()
    assert isinstance(public, Ed25519PublicKey)
    assert identity.public_key == public.public_bytes_raw()
    assert issuer.subject == own.issuer
    assert len(bytes.fromhex(identity.fingerprint)) == 32


def test_threat_45_the_text_form_holds_no_key(authority: Authority, tmp_path: Path) -> None:
    path = authority.issue(tmp_path, "party-0", Role.PARTY)
    assert repr(Identity.load(path)) == "Identity(party party-0)"
    assert path.read_text().splitlines()[1] not in repr(Identity.load(path).__dict__["peer"])


def test_a_signature_is_checked_and_a_wrong_one_raises(authority: Authority, tmp_path: Path) -> None:
    identity = Identity.load(authority.issue(tmp_path, "server", Role.SERVER))
    signature = identity.sign(b"message")
    verify(identity.public_key, signature, b"message")
    for key, mark, message in (
        (identity.public_key, signature, b"massage"),
        (identity.public_key, signature[:-1] + bytes([signature[-1] ^ 1]), b"message"),
        (identity.public_key, b"", b"message"),
        (b"short", signature, b"message"),
    ):
        with pytest.raises(TrustError, match="expected a signature"):
            verify(key, mark, message)


def test_ed25519_signatures_are_those_of_rfc_8032() -> None:
    # RFC 8032, section 7.1, test 2.
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    verify(public, signature, bytes.fromhex("72"))


def test_a_key_that_others_may_read_is_refused(authority: Authority, tmp_path: Path) -> None:
    path = authority.issue(tmp_path, "party-0", Role.PARTY)
    path.chmod(0o640)
    with pytest.raises(TrustError, match="chmod 600"):
        Identity.load(path)


def test_a_certificate_for_another_key_is_refused(authority: Authority, tmp_path: Path) -> None:
    one = authority.issue(tmp_path, "one", Role.PARTY).read_text()
    two = authority.issue(tmp_path, "two", Role.PARTY).read_text()
    mark = "-----BEGIN CERTIFICATE-----"
    mixed = tmp_path / "mixed.pem"
    mixed.write_text(one.split(mark)[0] + mark + mark.join(two.split(mark)[1:]))
    mixed.chmod(0o600)
    with pytest.raises(TrustError, match="belong together"):
        Identity.load(mixed)


def test_a_foreign_authority_in_the_file_is_refused(authority: Authority, tmp_path: Path) -> None:
    foreign = Authority.create(tmp_path / "foreign")
    path = authority.issue(tmp_path, "one", Role.PARTY)
    path.write_text(path.read_text().replace(authority.certificate_pem, foreign.certificate_pem))
    with pytest.raises(TrustError, match="issuer"):
        Identity.load(path)


@pytest.mark.parametrize(
    "content", ["", "no pem", "-----BEGIN PRIVATE KEY-----\nAA\n-----END PRIVATE KEY-----\n"]
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.pem"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="one private key"):
        Identity.load(path)
    with pytest.raises(UsageError, match="fedsec keys"):
        Identity.load(tmp_path / "missing.pem")
