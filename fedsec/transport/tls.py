"""Mutual TLS 1.3 between pinned identities, and the hello that opens every connection.

A client whose certificate is refused does not notice in its handshake: in TLS 1.3 the refusal comes with
the first read. So the accepting end speaks first, and the connecting end sends nothing before it has read
that hello: no byte of a share leaves towards a peer that may yet refuse or turn out to be another.

For measuring what TLS costs there is a switch, ``insecure_plaintext``, in the cluster file. Both ends must
have it, both addresses must be this machine's, and it takes the handshake, pins and hellos as they are:
only then do both ends leave TLS. It is never a fallback, and every such connection logs a warning.
"""

from __future__ import annotations

import logging
import secrets
import socket
import ssl
from collections.abc import Callable

import msgspec

from fedsec.errors import DeadlineError, FedsecError, PeerLostError, ProtocolError, TrustError, by_code
from fedsec.transport.cluster_file import Endpoint, is_loopback
from fedsec.transport.deadline import Deadline
from fedsec.transport.decoding import MALFORMED, decode_as
from fedsec.transport.frames import WIRE_VERSION
from fedsec.transport.identity import Identity, Peer, Role
from fedsec.transport.meter import Meter
from fedsec.transport.sockets import SocketChannel

PROTOCOL_VERSION = 1
MOST_SESSION_BYTES = 64
_MOST_HELLO_BYTES = 1024
_NONCE_BYTES = 32
_LOG = logging.getLogger(__name__)


class Hello(msgspec.Struct, frozen=True, tag="hello", forbid_unknown_fields=True):
    """The first message of each end; its nonce makes every connection's transcript another one.

    Attributes:
        protocol: Version of the messages that follow.
        nonce: 32 fresh bytes.
        session: Set by the connecting end: what both ends put into every later tag.
        refusal: Set by the accepting end that refuses: the code of an error.
        text: Why it refuses.
        insecure_plaintext: This end is set to leave TLS after the hellos, and expects the other to do so.
    """

    protocol: int
    nonce: bytes
    session: bytes = b""
    refusal: str = ""
    text: str = ""
    insecure_plaintext: bool = False


def connect(
    endpoint: Endpoint,
    identity: Identity,
    *,
    deadline: Deadline,
    meter: Meter | None = None,
    expected_role: Role = Role.PARTY,
    session: bytes = b"",
) -> SocketChannel:
    """Connect to a party and return once both ends have accepted each other.

    Args:
        endpoint: Where it listens, its name and the key its certificate must have.
        identity: Our key and certificate.
        deadline: When to give up.
        meter: Counts what passes; a new one by default.
        expected_role: The role its certificate must have.
        session: At most 64 bytes that both ends put into every later tag.

    Raises:
        TrustError: Its certificate, name, role or key is not the expected one, or it refused ours.
        ProtocolError: It speaks another version.
        PeerLostError: It does not accept connections, or ended this one.
        DeadlineError: It did not answer in time.
    """
    try:
        sock = socket.create_connection(
            (endpoint.host, endpoint.port), timeout=deadline.remaining(endpoint.name)
        )
    except TimeoutError as error:
        raise DeadlineError(
            f"expected {endpoint.name} to accept at {endpoint.address} within {deadline.seconds:g} s"
        ) from error
    except OSError as error:
        raise PeerLostError(
            f"expected {endpoint.name} to accept connections at {endpoint.address}: "
            f"{error.strerror or error}; look whether it runs"
        ) from error
    return open_client(
        sock,
        endpoint,
        identity,
        deadline=deadline,
        meter=meter,
        expected_role=expected_role,
        session=session,
    )


def open_client(
    sock: socket.socket,
    endpoint: Endpoint,
    identity: Identity,
    *,
    deadline: Deadline,
    meter: Meter | None = None,
    expected_role: Role = Role.PARTY,
    session: bytes = b"",
) -> SocketChannel:
    """Do what :func:`connect` does over a socket that is connected already and closed on any error."""
    wrapped = _handshake(sock, identity.client_context, endpoint.name, deadline, server_side=False)
    try:
        peer = _peer_of(wrapped)
        _check_pinned(peer, endpoint, expected_role)
        channel = SocketChannel(wrapped, identity.name, peer, meter)
        theirs = _receive_hello(channel, deadline)
        plaintext = endpoint.insecure_plaintext
        _check_hello(theirs, peer, plaintext=plaintext)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        ours = Hello(PROTOCOL_VERSION, nonce, session, insecure_plaintext=plaintext)
        _send_hello(channel, ours, deadline)
        channel.session = session
        if plaintext:
            _leave_tls(channel, wrapped, deadline)
    except BaseException:
        wrapped.close()
        raise
    return channel


def open_server(
    sock: socket.socket,
    identity: Identity,
    *,
    deadline: Deadline,
    meter: Meter | None = None,
    admit: Callable[[Peer], None] | None = None,
    insecure_plaintext: bool = False,
) -> SocketChannel:
    """Accept the other end over a connected socket, which is closed on any error.

    Args:
        sock: As it came from ``accept``.
        identity: Our key and certificate.
        deadline: When to give up; bounds a peer that sends a byte a second.
        meter: Counts what passes; a new one by default.
        admit: Raises TrustError for a peer that may not connect; the peer is told.
        insecure_plaintext: As in the cluster file; the other end must have it too.

    Raises:
        TrustError: Its certificate is not by our authority, or it was not admitted.
        ProtocolError: It speaks another version.
        PeerLostError: It ended the connection.
        DeadlineError: It did not answer in time.
    """
    wrapped = _handshake(sock, identity.server_context, "a connecting peer", deadline, server_side=True)
    try:
        peer = _peer_of(wrapped)
        channel = SocketChannel(wrapped, identity.name, peer, meter)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        try:
            if admit is not None:
                admit(peer)
        except FedsecError as error:
            _send_hello(
                channel, Hello(PROTOCOL_VERSION, nonce, refusal=error.code, text=str(error)[:500]), deadline
            )
            raise
        ours = Hello(PROTOCOL_VERSION, nonce, insecure_plaintext=insecure_plaintext)
        _send_hello(channel, ours, deadline)
        theirs = _receive_hello(channel, deadline)
        _check_hello(theirs, peer, plaintext=insecure_plaintext)
        channel.session = theirs.session
        if insecure_plaintext:
            _leave_tls(channel, wrapped, deadline)
    except BaseException:
        wrapped.close()
        raise
    return channel


def _handshake(
    sock: socket.socket, context: ssl.SSLContext, who: str, deadline: Deadline, *, server_side: bool
) -> ssl.SSLSocket:
    opened: socket.socket = sock
    try:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.settimeout(deadline.remaining(who))
        opened = wrapped = context.wrap_socket(sock, server_side=server_side, do_handshake_on_connect=False)
        # The timeout covers the handshake as a whole, not each read.
        wrapped.do_handshake()
    except BaseException as error:
        opened.close()
        if isinstance(error, OSError):
            raise _handshake_error(error, who, deadline) from error
        raise
    return wrapped


def _handshake_error(error: OSError, who: str, deadline: Deadline) -> FedsecError:
    if isinstance(error, TimeoutError):
        return DeadlineError(f"expected {who} to finish the TLS handshake within {deadline.seconds:g} s")
    if isinstance(error, ssl.SSLCertVerificationError):
        return TrustError(
            f"expected a certificate of {who} by our authority and valid today: {error.verify_message}; "
            "the connection was closed"
        )
    if isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError):
        return PeerLostError(f"expected {who} to finish the TLS handshake; it closed the connection")
    return TrustError(
        f"expected a TLS 1.3 handshake with {who}, a certificate on both ends: {error.reason or 'it failed'}"
    )


def _peer_of(wrapped: ssl.SSLSocket) -> Peer:
    der = wrapped.getpeercert(binary_form=True)
    if not der:
        raise TrustError("expected a certificate from the other end, got none; the connection was closed")
    return Peer.from_certificate(der)


def _check_pinned(peer: Peer, endpoint: Endpoint, role: Role) -> None:
    if (peer.name, peer.role) != (endpoint.name, role):
        raise TrustError(f"expected {role} {endpoint.name} at {endpoint.address}, got {peer}; it got nothing")
    if peer.public_key != endpoint.public_key:
        raise TrustError(
            f"expected {peer.name} at {endpoint.address} with the key {endpoint.public_key.hex()[:16]}..., "
            f"got {peer.public_key.hex()[:16]}...; nothing was sent: compare the cluster file"
        )


def _leave_tls(channel: SocketChannel, wrapped: ssl.SSLSocket, deadline: Deadline) -> None:
    for name in (wrapped.getsockname(), wrapped.getpeername()):
        if not (isinstance(name, tuple) and is_loopback(name[0])):
            raise TrustError(
                f"insecure_plaintext is for measuring on one machine, and the connection with {channel.peer} "
                "is not on its loopback address: the connection was closed"
            )
    channel.leave_tls(deadline)
    _LOG.warning("INSECURE: everything to and from %s goes in plaintext (insecure_plaintext)", channel.peer)


def _check_hello(hello: Hello, peer: Peer, *, plaintext: bool) -> None:
    if hello.refusal:
        raise by_code(hello.refusal)(f"{peer.name} refused the connection: {hello.text}")
    if hello.protocol != PROTOCOL_VERSION:
        raise ProtocolError(
            f"expected protocol version {PROTOCOL_VERSION} (wire {WIRE_VERSION}) from {peer}, "
            f"got {hello.protocol}; both ends need the same release of fedsec"
        )
    if hello.insecure_plaintext != plaintext:
        raise TrustError(
            f"this end is set to {_means(plaintext)} and {peer.name} to {_means(hello.insecure_plaintext)}: "
            "both need the same insecure_plaintext in their cluster files; nothing was sent"
        )
    if len(hello.nonce) != _NONCE_BYTES or len(hello.session) > MOST_SESSION_BYTES:
        raise ProtocolError(
            f"expected a nonce of {_NONCE_BYTES} bytes, a session up to {MOST_SESSION_BYTES} from {peer}"
        )


def _means(plaintext: bool) -> str:
    return "plaintext" if plaintext else "TLS"


def _send_hello(channel: SocketChannel, hello: Hello, deadline: Deadline) -> None:
    channel.send("hello", msgspec.msgpack.encode(hello), deadline)


def _receive_hello(channel: SocketChannel, deadline: Deadline) -> Hello:
    try:
        payload = channel.receive("hello", max_bytes=_MOST_HELLO_BYTES, deadline=deadline)
    except DeadlineError:
        raise
    except PeerLostError as error:
        if isinstance(error.__cause__, ssl.SSLError) and not isinstance(error.__cause__, ssl.SSLEOFError):
            reason = error.__cause__.reason
            raise TrustError(
                f"expected {channel.peer.name} to accept our certificate; it refused: {reason}"
            ) from error
        raise
    try:
        return decode_as(payload, Hello)
    except MALFORMED as error:
        raise ProtocolError(f"expected a hello from {channel.peer}, got other bytes") from error
