"""The accepting side of a party: one thread a connection, bounded in number, time and memory."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from fedsec.errors import FedsecError, PeerLostError, ProtocolError
from fedsec.transport.channel import Channel
from fedsec.transport.deadline import Deadline
from fedsec.transport.identity import Identity, Peer, Role
from fedsec.transport.meter import Meter
from fedsec.transport.service import Occupation, Refused, Reply, Route, read_request, serve_call
from fedsec.transport.tls import open_server

_LOG = logging.getLogger(__name__)
_JOIN_S = 5.0
_DRAIN_S = 2.0
_ACCEPT_S = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What strangers and slow peers may cost.

    Attributes:
        max_connections: Connections that are through their handshake; more are closed. 1000 hospitals
            and their company fit.
        reserved: Connections beyond these for parties, server and owner, whatever the others do.
        max_each: Connections under one certificate, so that nobody takes all.
        max_users: Connections of users together: the rest stays for parties, hospitals, server and owner.
        max_handshakes: Connections in their handshake; more wait in the kernel's queue.
        handshake_s: Time for a handshake.
        crowded_s: Time for a handshake while others wait: the slowest are closed to make room.
        idle_s: Time between two requests: hospitals keep their connections while they train.
        request_s: Time for one request, from its first byte to its answer's last.
    """

    max_connections: int = 1100
    reserved: int = 128
    max_each: int = 64
    max_users: int = 512
    max_handshakes: int = 128
    handshake_s: float = 5.0
    crowded_s: float = 1.0
    idle_s: float = 3600.0
    request_s: float = 120.0


def serve_channel(
    channel: Channel,
    routes: Iterable[Route],
    limits: Limits | None = None,
    occupation: Occupation | None = None,
) -> bool:
    """Answer requests on one channel until it ends, and close it.

    Works on any channel, so that roles can be tested over memory.

    Args:
        channel: The connection.
        routes: What is answered.
        limits: Times; the defaults if None.
        occupation: Told and asked before and after every request.

    Returns:
        Whether a handler has taken the channel over; then it is not closed.
    """
    limits, occupation = limits or Limits(), occupation or Occupation()
    table = {f"{route.tag}/request": route for route in routes}
    detached = False
    try:
        while not detached and not occupation.ending:
            host, rest = occupation.host, None
            if host is not None:
                rest = host.keep(channel, occupation, limits.idle_s)
            if rest is not None:
                rest()
            elif not occupation.ending:
                channel.wait(Deadline.after(limits.idle_s))
                occupation.busy = True
                detached = _serve_one(channel, table, limits, occupation)
            occupation.busy = False
    except PeerLostError as error:
        _LOG.debug("connection of %s ended: %s", channel.peer, error)
    except ProtocolError as error:
        _LOG.warning("connection of %s was closed: %s", channel.peer, error)
    finally:
        if not detached:
            channel.close()
    return detached


def _serve_one(channel: Channel, table: dict[str, Route], limits: Limits, occupation: Occupation) -> bool:
    def deadline_of(route: Route) -> Deadline:
        return Deadline.after(limits.request_s if route.seconds is None else route.seconds)

    try:
        route, call = read_request(channel, table, deadline_of, Deadline.after(limits.request_s))
    except Refused as refused:
        refused.answer(channel, Deadline.after(limits.request_s))
        return False
    answer = serve_call(channel, route, call, limits.request_s)
    occupation.host = answer.host if isinstance(answer, Reply) else None
    return answer is None


class Server:
    """Listens under mutual TLS and answers requests; a bad peer costs its own connection only.

    Args:
        address: Host and port (0 takes a free one), or a socket that listens already and now belongs
            to the server.
        identity: Key and certificate of this party.
        routes: What is answered, and for which roles.
        limits: Bounds on connections and times.
        meter: Counts what passes over all connections.
        admit: Raises TrustError for a peer that may not connect; usually ``ClusterFile.admit``.
        insecure_plaintext: As the cluster file says: for measuring only.
    """

    def __init__(
        self,
        address: tuple[str, int] | socket.socket,
        identity: Identity,
        routes: Iterable[Route],
        *,
        limits: Limits | None = None,
        meter: Meter | None = None,
        admit: Callable[[Peer], None] | None = None,
        insecure_plaintext: bool = False,
    ) -> None:
        self.identity = identity
        self.routes = tuple(routes)
        self.limits = limits or Limits()
        self.meter = Meter() if meter is None else meter
        self._admit = admit
        self._insecure_plaintext = insecure_plaintext
        self._listener = address if isinstance(address, socket.socket) else _listen(address)
        # Where shutting a listening socket down does not end accept(), the timeout does.
        self._listener.settimeout(_ACCEPT_S)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._handshakes = threading.BoundedSemaphore(self.limits.max_handshakes)
        self._young: dict[socket.socket, float] = {}
        self._channels: dict[Channel, Occupation] = {}
        self._certificates: Counter[str] = Counter()
        self._roles: Counter[Role] = Counter()
        self._detached: weakref.WeakSet[Channel] = weakref.WeakSet()
        self._threads: set[threading.Thread] = set()
        self._accepting = threading.Thread(target=self._accept, name="accept", daemon=True)

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Begin to accept connections."""
        self._accepting.start()

    def stop(self) -> None:
        """Close every socket and join every thread; channels that were detached are interrupted.

        Connections without a request end at once. The others may finish theirs and send its answer, for 2
        seconds in all; a handler that is still at work then is waited for, for 5 seconds in all.
        """
        began = time.monotonic()
        self._stopping.set()
        _shut_down(self._listener)
        if self._accepting.is_alive():
            self._accepting.join(_JOIN_S)
        self._listener.close()
        with self._lock:
            for handle in self._young:
                _shut_down(handle)
            threads, busy = list(self._threads), []
            for channel, occupation in self._channels.items():
                occupation.ending = True
                if occupation.busy:
                    busy.append(channel)
                else:
                    channel.interrupt()
            for channel in self._detached:
                channel.interrupt()
        self._join(threads, began + _DRAIN_S)
        for channel in busy:
            channel.interrupt()
        self._join(threads, began + _JOIN_S)

    def _join(self, threads: Iterable[threading.Thread], until: float) -> None:
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            if not self._handshakes.acquire(timeout=0.05):
                self._make_room()
                continue
            pair = self._next()
            if pair is None:
                self._handshakes.release()
                continue
            thread = threading.Thread(target=self._connection, args=pair, name="connection", daemon=True)
            with self._lock:
                self._young[pair[1]] = time.monotonic()
                self._threads.add(thread)
            thread.start()

    def _next(self) -> tuple[socket.socket, socket.socket] | None:
        """Accept one connection; returns it with a second handle, by which others can shut it down."""
        try:
            sock, _address = self._listener.accept()
        except TimeoutError:
            return None
        except OSError:
            # Out of descriptors, or the peer has gone again: the next connection may succeed.
            self._stopping.wait(0.05)
            return None
        try:
            return sock, sock.dup()
        except OSError:
            sock.close()
            return None

    def _make_room(self) -> None:
        """End every handshake that takes longer than others should wait for; its own thread closes it."""
        with self._lock:
            for handle, since in self._young.items():
                if time.monotonic() - since > self.limits.crowded_s:
                    _shut_down(handle)

    def _connection(self, sock: socket.socket, handle: socket.socket) -> None:
        admitted: list[Peer] = []
        try:
            channel = self._open(sock, handle, admitted)
            if channel is not None:
                self._serve(channel)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
                for peer in admitted:
                    self._forget(peer)

    def _open(self, sock: socket.socket, handle: socket.socket, admitted: list[Peer]) -> Channel | None:
        deadline = Deadline.after(self.limits.handshake_s)

        def admit(peer: Peer) -> None:
            self._check_and_count(peer)
            admitted.append(peer)

        try:
            return open_server(
                sock,
                self.identity,
                deadline=deadline,
                meter=self.meter,
                admit=admit,
                insecure_plaintext=self._insecure_plaintext,
            )
        except FedsecError as error:
            _LOG.info("a connection was refused: %s", error)
        except Exception as error:
            _LOG.error("a handshake failed with %s", type(error).__name__)
        finally:
            with self._lock:
                self._young.pop(handle, None)
            handle.close()
            self._handshakes.release()
        return None

    def _check_and_count(self, peer: Peer) -> None:
        """Admit a peer and take its place in one step, so that two at once cannot share the last one."""
        if self._admit is not None:
            self._admit(peer)
        with self._lock:
            same, users = self._certificates[peer.fingerprint], self._roles[Role.USER]
            reserve = 0 if peer.role in {Role.USER, Role.HOSPITAL} else self.limits.reserved
            most_in_all = self.limits.max_connections + reserve
            for count, most, whose in (
                (self._roles.total(), most_in_all, ""),
                (same, self.limits.max_each, " under this certificate"),
                (users if peer.role == Role.USER else 0, self.limits.max_users, " of users"),
            ):
                if count >= most:
                    raise PeerLostError(f"{self.identity.name} has {most} connections{whose}; try later")
            self._certificates[peer.fingerprint] += 1
            self._roles[peer.role] += 1

    def _forget(self, peer: Peer) -> None:
        self._roles[peer.role] -= 1
        self._certificates[peer.fingerprint] -= 1
        if not self._certificates[peer.fingerprint]:
            del self._certificates[peer.fingerprint]

    def _serve(self, channel: Channel) -> None:
        occupation = Occupation()
        with self._lock:
            self._channels[channel] = occupation
            # A server that has begun to stop may not have seen this channel.
            occupation.ending = self._stopping.is_set()
        try:
            if serve_channel(channel, self.routes, self.limits, occupation):
                with self._lock:
                    self._detached.add(channel)
        finally:
            with self._lock:
                self._channels.pop(channel, None)


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _listen(address: tuple[str, int]) -> socket.socket:
    return socket.create_server(address, backlog=1024)
