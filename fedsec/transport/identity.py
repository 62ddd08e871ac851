"""Who a process is: an Ed25519 key with a certificate that holds a name and one role.

A certificate names its holder twice: the common name, and a URI ``urn:fedsec:<role>:<name>`` among
the alternative names. The role decides which requests a party answers; the public key is what a trust
file or a cluster file pins.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from fedsec.errors import TrustError, UsageError
from fedsec.transport.access import require_private

PUBLIC_KEY_BYTES = 32
URI_PREFIX = "urn:fedsec:"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class Role(StrEnum):
    """What a certificate lets its holder be; exactly one a certificate."""

    PARTY = "party"
    HOSPITAL = "hospital"
    SERVER = "server"
    OWNER = "owner"
    USER = "user"


def check_name(name: str) -> str:
    """Return ``name`` if it can stand in a certificate, a file name and a log line.

    Raises:
        UsageError: It holds anything but 1 to 63 lower-case letters, digits, ``.``, ``_`` and ``-``.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"expected a name of 1 to 63 lower-case letters, digits, '.', '_' or '-', a letter or "
            f"digit first, got {name[:80]!r}"
        )
    return name


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a channel, as its certificate says.

    Attributes:
        name: The certificate's common name.
        role: The certificate's role.
        public_key: 32 raw Ed25519 bytes.
        fingerprint: SHA-256 of the certificate (DER), in hex.
    """

    name: str
    role: Role
    public_key: bytes
    fingerprint: str

    @classmethod
    def from_certificate(cls, der: bytes) -> Peer:
        """Read name, role and key from a certificate that TLS has already verified.

        Raises:
            TrustError: It is not one of ours: another key type, no role, or two different names.
        """
        try:
            return _peer_of(x509.load_der_x509_certificate(der))
        except ValueError as error:
            raise TrustError("expected a certificate (X.509, DER), got other bytes") from error

    def __str__(self) -> str:
        return f"{self.role} {self.name}"


def _peer_of(certificate: x509.Certificate) -> Peer:
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise TrustError(f"expected a certificate with an Ed25519 key, got {type(key).__name__}")
    name, role = _name_and_role(certificate)
    return Peer(name, role, key.public_bytes_raw(), certificate.fingerprint(hashes.SHA256()).hex())


def _name_and_role(certificate: x509.Certificate) -> tuple[str, Role]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = (
            u for u in names.get_values_for_type(x509.UniformResourceIdentifier) if u.startswith(URI_PREFIX)
        )
        role_text, _, name = uri.removeprefix(URI_PREFIX).partition(":")
        (common,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        role = Role(role_text)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise TrustError(
            "expected a certificate with one common name and one role (urn:fedsec:<role>:<name>); "
            "issue it with `fedsec keys`"
        ) from error
    if common.value != name or not _NAME.fullmatch(name):
        raise TrustError("expected one name in a certificate, as common name and in its role, got two")
    return name, role


def verify(public_key: bytes, signature: bytes, message: bytes) -> None:
    """Check an Ed25519 signature.

    Args:
        public_key: 32 raw bytes.
        signature: 64 bytes.
        message: What was signed.

    Raises:
        TrustError: The signature is not one of this key over this message.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise TrustError(
            f"expected a signature by the key {public_key.hex()[:16]}..., got another; the message is refused"
        ) from error


class Identity:
    """A process' own private key and certificate, with the authority it trusts.

    The text form names role and name only; the key never leaves the object.

    Attributes:
        path: The PEM file it came from.
        peer: What others read from the certificate.
    """

    def __init__(self, path: Path, key: Ed25519PrivateKey, peer: Peer, authority: str) -> None:
        self.path = path
        self.peer = peer
        self.authority = authority
        self._key = key

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read one PEM file: private key (PKCS8), certificate, authority certificate.

        Raises:
            UsageError: The file cannot be read or does not hold these three.
            TrustError: Others may read the file, the certificate belongs to another key, or the
                authority did not issue it.
        """
        path = Path(path)
        try:
            pem = path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"expected an identity file at {path}: {error.strerror}; see `fedsec keys`"
            ) from error
        require_private(path, "a key")
        try:
            key = load_pem_private_key(pem, password=None)
            own, authority = x509.load_pem_x509_certificates(pem)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"expected one private key, one certificate and one authority certificate in {path}; "
                "make the file with `fedsec keys`"
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"expected an Ed25519 key in {path}, got {type(key).__name__}")
        return cls(path, key, _checked_peer(path, key, own, authority), _pem_text(authority))

    @property
    def name(self) -> str:
        """The certificate's name."""
        return self.peer.name

    @property
    def role(self) -> Role:
        """The certificate's role."""
        return self.peer.role

    @property
    def public_key(self) -> bytes:
        """32 raw Ed25519 bytes."""
        return self.peer.public_key

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate (DER), in hex."""
        return self.peer.fingerprint

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of ``message``, in which the caller has put its purpose."""
        return self._key.sign(message)

    @cached_property
    def client_context(self) -> ssl.SSLContext:
        """The TLS settings for connecting. Building them takes 0.9 ms, so they are kept."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    @cached_property
    def server_context(self) -> ssl.SSLContext:
        """The TLS settings for accepting."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # Sessions are never resumed; tickets would cost every handshake.
        return context

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.sslsocket_class = _TlsSocket
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Names and keys are pinned by us after the handshake; host names do not identify a party.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self.authority)
        context.load_cert_chain(self.path)
        return context

    def __repr__(self) -> str:
        return f"Identity({self.peer})"


class _TlsSocket(ssl.SSLSocket):
    """A TLS socket whose peer may have gone before it is made: that is found out in the handshake.

    Python's own asks for the peer's address while it is made. If there is none any more, it raises, and
    nobody has the half-made socket, which has taken the descriptor over, to close it.
    """

    def getpeername(self) -> object:
        """Return the peer's address, None if it has gone."""
        try:
            return super().getpeername()
        except OSError:
            return None


def _pem_text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def _checked_peer(
    path: Path, key: Ed25519PrivateKey, own: x509.Certificate, authority: x509.Certificate
) -> Peer:
    peer = _peer_of(own)
    if key.public_key().public_bytes_raw() != peer.public_key:
        raise TrustError(f"expected key and certificate in {path} to belong together: issue it again")
    try:
        own.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise TrustError(f"expected the authority in {path} to be the issuer of its certificate") from error
    return peer
