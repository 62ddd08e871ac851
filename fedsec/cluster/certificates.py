"""An authority of one's own: Ed25519 certificates, each with one name and one role."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsec.errors import UsageError
from fedsec.transport.access import require_private
from fedsec.transport.identity import URI_PREFIX, Role, check_name

VALID_DAYS = 825
"""What certificate checkers commonly accept as the longest; issue again after two years."""
_CERTIFICATE, _KEY = "authority.pem", "authority.key"


class Authority:
    """Issues the identities of one deployment. Its key stays in one folder and goes to no party.

    Attributes:
        folder: Holds ``authority.pem`` (public) and ``authority.key`` (mode 0600).
        certificate_pem: The certificate that everyone trusts.
    """

    def __init__(self, folder: Path, certificate: x509.Certificate, key: Ed25519PrivateKey) -> None:
        self.folder = folder
        self.certificate_pem = certificate.public_bytes(Encoding.PEM).decode("ascii")
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(
        cls, folder: Path, name: str = "fedsec authority", *, now: datetime.datetime | None = None
    ) -> Self:
        """Make a new authority in ``folder``, which is made when missing.

        Args:
            folder: Where it lives.
            name: Its name in certificates.
            now: The time; the clock's by default.

        Raises:
            UsageError: The folder holds an authority already; nothing was changed.
        """
        folder = Path(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = Ed25519PrivateKey.generate()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            _builder(subject, subject, key.public_key(), now)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
        )
        certificate = builder.sign(key, None)
        _write_secret(folder / _KEY, _key_pem(key))
        (folder / _CERTIFICATE).write_bytes(certificate.public_bytes(Encoding.PEM))
        return cls(folder, certificate, key)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the authority in ``folder``.

        Raises:
            UsageError: There is none, or its files cannot be read.
            TrustError: Others can read its key.
        """
        folder = Path(folder)
        try:
            certificate = x509.load_pem_x509_certificate((folder / _CERTIFICATE).read_bytes())
            key = load_pem_private_key((folder / _KEY).read_bytes(), password=None)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"expected {_CERTIFICATE} and {_KEY} of an authority in {folder}, which cannot be "
                "read; `fedsec keys authority` makes one"
            ) from error
        require_private(folder / _KEY, "the authority's key")
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"expected an Ed25519 key in {folder / _KEY}, got {type(key).__name__}")
        return cls(folder, certificate, key)

    def issue(
        self,
        path: Path,
        name: str,
        role: Role,
        hosts: Sequence[str] = (),
        *,
        now: datetime.datetime | None = None,
    ) -> Path:
        """Make a key and a certificate with one role, valid for 825 days from yesterday.

        Args:
            path: The identity file to write (mode 0600), or a folder that gets ``<name>.pem``.
            name: 1 to 63 lower-case letters, digits, ``.``, ``_`` or ``-``.
            role: The one role of its holder.
            hosts: Host names and addresses to name too, for tools that look at them.
            now: The time; the clock's by default.

        Returns:
            The identity file: private key, certificate, the authority's certificate.

        Raises:
            UsageError: The name does not fit, or the file exists; nothing was written.
        """
        path = Path(path)
        path = path / f"{check_name(name)}.pem" if path.is_dir() else path
        key = Ed25519PrivateKey.generate()
        certificate = self._certify(key.public_key(), name, Role(role), hosts, now)
        pem = _key_pem(key) + certificate.public_bytes(Encoding.PEM) + self.certificate_pem.encode("ascii")
        _write_secret(path, pem)
        return path

    def issue_https(
        self, folder: Path, hosts: Sequence[str], *, now: datetime.datetime | None = None
    ) -> Path:
        """Make what an HTTPS server needs, for programs that are none of ours, such as Flower's SuperLink.

        The certificate names hosts and no role, so none of our channels accepts it.

        Args:
            folder: Gets ``certificate.pem``, ``key.pem`` (mode 0600) and ``authority.pem``.
            hosts: Host names and addresses under which clients reach the server.
            now: The time; the clock's by default.

        Returns:
            The folder.

        Raises:
            UsageError: The folder holds a key already; nothing was written.
        """
        folder = Path(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = Ed25519PrivateKey.generate()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        certificate = self._sign_leaf(key.public_key(), subject, usages, names, now)
        _write_secret(folder / "key.pem", _key_pem(key))
        (folder / "certificate.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        (folder / _CERTIFICATE).write_text(self.certificate_pem, encoding="ascii")
        return folder

    def _certify(
        self,
        key: Ed25519PublicKey,
        name: str,
        role: Role,
        hosts: Sequence[str],
        now: datetime.datetime | None,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        # Only a party accepts connections: TLS itself refuses any other certificate in that place.
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role is Role.PARTY:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        uri = x509.UniformResourceIdentifier(f"{URI_PREFIX}{role}:{name}")
        names = x509.SubjectAlternativeName([uri, *(_general_name(host) for host in hosts)])
        return self._sign_leaf(key, subject, usages, names, now)

    def _sign_leaf(
        self,
        key: Ed25519PublicKey,
        subject: x509.Name,
        usages: Sequence[x509.ObjectIdentifier],
        names: x509.SubjectAlternativeName,
        now: datetime.datetime | None,
    ) -> x509.Certificate:
        issuer = self._key.public_key()
        builder = (
            _builder(subject, self._certificate.subject, key, now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(names, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        )
        return builder.sign(self._key, None)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, now: datetime.datetime | None
) -> x509.CertificateBuilder:
    # Dated back by a day, so that hosts whose clocks differ accept it at once.
    start = (now or datetime.datetime.now(datetime.UTC)) - datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_secret(path: Path, content: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError as error:
        raise UsageError(
            f"expected no file at {path}; keys are never overwritten: take another folder"
        ) from error
    except OSError as error:
        raise UsageError(f"expected to write a key to {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
