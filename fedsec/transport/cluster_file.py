"""The cluster file: where the parties are, and the public keys of everyone who may speak to them.

It holds nothing secret and is the same for all; each organisation compares it, once, out of band.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsec.errors import TrustError, UsageError
from fedsec.transport import toml
from fedsec.transport.identity import PUBLIC_KEY_BYTES, Peer, Role, check_name

VERSION = 1
FEWEST_PARTIES = 2
MOST_PARTIES = 7
COMPUTING_PARTIES = 3
_KEYS = ("version", "authority", "server", "owner", "parties", "hospitals", "insecure_plaintext")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One party: its name, where it listens, and the key its certificate must have.

    Attributes:
        name: The name in its certificate.
        host: Host name or address.
        port: TCP port.
        public_key: 32 raw Ed25519 bytes.
        insecure_plaintext: After the handshake everything goes in the clear; see :class:`ClusterFile`.
    """

    name: str
    host: str
    port: int
    public_key: bytes
    insecure_plaintext: bool = False

    @property
    def address(self) -> str:
        """Host and port, for texts."""
        return f"{self.host}:{self.port}"

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str) -> Endpoint:
        """Read ``{name, host, port, public_key}`` as in a cluster or trust file.

        Raises:
            UsageError: A key is unknown or missing, or a value is none that the key can have.
        """
        keys = ("name", "host", "port", "public_key")
        toml.refuse_unknown(table, keys, where, required=keys)
        port = toml.expect(table, "port", int, where)
        if not 0 < port < 65536:
            raise UsageError(f"{where}: expected a port of 1 to 65535, got {port}")
        return cls(
            check_name(toml.expect(table, "name", str, where)),
            toml.expect(table, "host", str, where),
            port,
            parse_key(toml.expect(table, "public_key", str, where), where),
        )

    def to_table(self) -> dict[str, Any]:
        """Return what :meth:`from_table` reads."""
        return {"name": self.name, "host": self.host, "port": self.port, "public_key": self.public_key.hex()}


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine's own loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_key(text: str, where: str) -> bytes:
    """Return the 32 bytes of a public key written in hex.

    Raises:
        UsageError: The text is not 64 hex digits.
    """
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != PUBLIC_KEY_BYTES:
        raise UsageError(f"{where}: expected a public key of 64 hex digits, got {len(text)} characters")
    return key


@dataclass(frozen=True)
class ClusterFile:
    """Everyone's addresses and public keys.

    Attributes:
        authority: The authority's certificate (PEM).
        parties: 2 to 7 parties; the first three compute predictions.
        server: Public key of the Flower server, if there is one.
        owner: Public key of the model's owner, if there is one.
        hospitals: Enrolled hospitals: name to public key.
        version: Version of the file's format.
        insecure_plaintext: For measuring what TLS costs, and for nothing else: after the mutual handshake
            the two ends leave TLS, and shares go over this machine's loopback in the clear.
    """

    authority: str
    parties: tuple[Endpoint, ...]
    server: bytes | None = None
    owner: bytes | None = None
    hospitals: dict[str, bytes] = field(default_factory=dict)
    version: int = VERSION
    insecure_plaintext: bool = False

    def __post_init__(self) -> None:
        if self.insecure_plaintext:
            self._allow_plaintext()
        if not FEWEST_PARTIES <= len(self.parties) <= MOST_PARTIES:
            raise UsageError(f"expected {FEWEST_PARTIES} to {MOST_PARTIES} parties, got {len(self.parties)}")
        names = [*(party.name for party in self.parties), *self.hospitals]
        keys = [*(party.public_key for party in self.parties), *self.hospitals.values()]
        if len(set(names)) != len(names) or len(set(keys)) != len(keys):
            raise UsageError(
                "expected each party and hospital to have its own name and key; one is there twice"
            )

    def _allow_plaintext(self) -> None:
        """Let every endpoint know, if all are on this machine."""
        for party in self.parties:
            if not is_loopback(party.host):
                raise UsageError(
                    f"insecure_plaintext is for measuring on one machine, and {party.name} is at "
                    f"{party.address}, not at its loopback address; take the key out of the cluster file"
                )
        endpoints = tuple(replace(party, insecure_plaintext=True) for party in self.parties)
        object.__setattr__(self, "parties", endpoints)

    @property
    def computing(self) -> tuple[Endpoint, ...]:
        """The three parties that compute predictions.

        Raises:
            UsageError: The cluster has only two.
        """
        if len(self.parties) < COMPUTING_PARTIES:
            raise UsageError(f"expected {COMPUTING_PARTIES} parties for predictions, got {len(self.parties)}")
        return self.parties[:COMPUTING_PARTIES]

    def party(self, name: str) -> Endpoint:
        """Return the party of that name.

        Raises:
            UsageError: There is none.
        """
        for endpoint in self.parties:
            if endpoint.name == name:
                return endpoint
        names = ", ".join(party.name for party in self.parties)
        raise UsageError(f"expected one of the parties {names}, got {name!r}")

    def admit(self, peer: Peer) -> None:
        """Check a peer that connects against the keys in this file; users need the authority's word only.

        Raises:
            TrustError: The file names no such peer, or another key for it.
        """
        if peer.role is Role.USER:
            return
        pinned = self._pinned(peer)
        if pinned is None:
            raise TrustError(f"the cluster file names no {peer.role} {peer.name!r}; connection refused")
        if pinned != peer.public_key:
            raise TrustError(f"the cluster file has another key for {peer}; the connection is refused")

    def _pinned(self, peer: Peer) -> bytes | None:
        if peer.role is Role.SERVER:
            return self.server
        if peer.role is Role.OWNER:
            return self.owner
        if peer.role is Role.HOSPITAL:
            return self.hospitals.get(peer.name)
        return next((party.public_key for party in self.parties if party.name == peer.name), None)

    @classmethod
    def load(cls, path: Path) -> ClusterFile:
        """Read a cluster file.

        Raises:
            UsageError: It cannot be read, or a key or value is none that it can have; an unknown key
                names the nearest known one.
            TrustError: Others can write it.
        """
        where = str(path)
        table = toml.read_own(Path(path))
        toml.refuse_unknown(table, _KEYS, where, required=("version", "authority", "parties"))
        if table["version"] != VERSION:
            raise UsageError(f"{where}: expected version {VERSION}, got {table['version']!r}; write it again")
        parties = toml.expect(table, "parties", list, where)
        hospitals = toml.expect(table, "hospitals", dict, where, {})
        return cls(
            authority=toml.expect(table, "authority", str, where),
            parties=tuple(Endpoint.from_table(row, f"{where} [[parties]]") for row in parties),
            server=parse_key(toml.expect(table, "server", str, where), where) if "server" in table else None,
            owner=parse_key(toml.expect(table, "owner", str, where), where) if "owner" in table else None,
            hospitals={
                check_name(name): parse_key(str(key), f"{where} [hospitals]")
                for name, key in hospitals.items()
            },
            insecure_plaintext=toml.expect(table, "insecure_plaintext", bool, where, False),
        )

    def save(self, path: Path) -> None:
        """Write the file in one step."""
        table: dict[str, Any] = {"version": self.version, "authority": self.authority}
        if self.insecure_plaintext:
            table["insecure_plaintext"] = True
        if self.server is not None:
            table["server"] = self.server.hex()
        if self.owner is not None:
            table["owner"] = self.owner.hex()
        table["parties"] = [party.to_table() for party in self.parties]
        if self.hospitals:
            table["hospitals"] = {name: key.hex() for name, key in self.hospitals.items()}
        toml.write(Path(path), table)
