"""Channels over connected sockets, under TLS or plain.

Every socket is non-blocking. A round of small messages is short: what is to be sent fits into the socket
buffers and goes at once, then one ``poll`` waits for the answer. Only what does not fit becomes a job (see
``jobs``).
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedsec.errors import PeerLostError, ProtocolError
from fedsec.transport.channel import Channel
from fedsec.transport.deadline import Deadline
from fedsec.transport.frames import HEADER_BYTES
from fedsec.transport.identity import Peer
from fedsec.transport.jobs import Incoming, ReceiveJob, SendJob, progress
from fedsec.transport.meter import Meter

if TYPE_CHECKING:
    from typing_extensions import Buffer

_RECORD_BYTES = 16384  # a record of TLS brings at most so many
_SMALL_BYTES = 4096
"""What a first read takes when nothing is known of the message: most messages whole, at little memory."""
_GLANCES, _MOST_MISSES, _RESTS = 40, 3, 16
"""Looks at a socket before a sleep, half a microsecond each: together less than the 50 microseconds that a
sleep takes. After so many waits in vain there are none for so many waits."""
_JOINED_BYTES = 65536 - HEADER_BYTES
"""So many bytes of payload go out with the header: four TLS records, and a cheap copy."""


class SocketChannel(Channel):
    """One end of a link over a connected socket, which now belongs to the channel.

    Args:
        sock: A connected TCP or Unix socket; under TLS, after its handshake.
        me: Name of this end.
        peer: The other end.
        meter: Counts what passes; a new one by default.
        session: Bytes that both ends put into every tag.
    """

    def __init__(
        self,
        sock: socket.socket,
        me: str,
        peer: Peer,
        meter: Meter | None = None,
        session: bytes = b"",
    ) -> None:
        super().__init__(me, peer, meter, session)
        sock.setblocking(False)
        self._sock = sock
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._midway = False
        self._ahead = bytearray()
        self._drained = False
        self._misses = self._rests = 0
        self.broken = False

    def send(self, label: str, payload: Buffer, deadline: Deadline) -> None:
        """Send one message; see :meth:`Channel.send`."""
        job = self.start(label, payload)
        if job is not None:
            progress([job], deadline)

    def start(self, label: str, payload: Buffer, *, behind: bool = False) -> SendJob | None:
        """Send as much of a message as the socket takes now.

        Args:
            label: The step that both ends are in.
            payload: The bytes; may be used again when the returned job is through.
            behind: Another message is still being sent here, so nothing can go yet.

        Returns:
            What is left to do; None if all is sent.

        Raises:
            PeerLostError: The peer closed or broke the connection.
        """
        if self.broken:
            raise self.lost(None)
        outgoing = self.outgoing
        size = payload.nbytes if isinstance(payload, memoryview) else memoryview(payload).nbytes
        header = outgoing.header(label, size)
        # Counted when it starts, so that a log shows it before what the peer answers.
        self.meter.sent(self.me, self.peer.name, label, outgoing.sequence, size)
        rest = memoryview(b"")
        if size <= _JOINED_BYTES:
            joined = b"".join((header, payload))
        else:
            body = memoryview(payload).cast("B")
            joined, rest = b"".join((header, body[:_JOINED_BYTES])), body[_JOINED_BYTES:]
        written = 0 if behind else self._write_first(joined)
        # Hashed while the first bytes are on their way. The joined part is whole if it enters whole.
        outgoing.take(joined)
        if written == len(joined) and not rest:
            return None
        return SendJob(self, [part for part in (memoryview(joined)[max(0, written) :], rest) if part])

    def receive_any(
        self, labels: Sequence[str], *, max_bytes: int, deadline: Deadline
    ) -> tuple[str, bytearray]:
        """Receive one message; see :meth:`Channel.receive_any`."""
        if self.broken:
            raise self.lost(None)
        try:
            header = self._next_header(deadline)
            # The size is checked before the payload has any memory.
            label, size = self.incoming.check(header, labels, max_bytes)
            payload = self._behind_header(size, deadline)
        except BaseException:
            self.broken = self.broken or self._midway
            raise
        sequence = self.incoming.sequence
        self.incoming.accept(header, payload)
        self.meter.received(self.peer.name, self.me, label, sequence, size)
        self._midway = False
        return label, payload

    def receive_exactly(self, label: str, size: int, deadline: Deadline) -> bytearray:
        """Return the payload of the next message; see :meth:`Channel.receive_exactly`."""
        if self.broken:
            raise self.lost(None)
        whole = HEADER_BYTES + size
        # One byte more than is expected: a read that does not fill it has left nothing behind in TLS.
        buffer = bytearray(whole + 1)
        self.wait(deadline)
        count = self.read_into(buffer)
        incoming = self.incoming
        if count == whole and buffer.startswith(incoming.header(label, size)):
            # The usual case, without any more calls: one read has brought the message that was expected.
            del buffer[whole:]
            self.meter.received(self.peer.name, self.me, label, incoming.sequence, size)
            incoming.take(buffer)
            # Dropping the front of a bytearray moves its beginning, not its bytes.
            del buffer[:HEADER_BYTES]
            return buffer
        if count > whole:
            self._ahead = buffer[whole:] + self._ahead
            count = whole
        del buffer[whole:]
        return self._receive_rest(Incoming(self, label, size, buffer), count, deadline)

    def _glance(self) -> None:
        """Look for some 20 microseconds whether the peer's message comes.

        A peer that works in step sends at the same time. To look again is cheaper than to be put to sleep and
        woken, for both ends. If it is in vain again and again, the peer may need this very core: then nobody
        looks for a while.
        """
        if self._rests:
            self._rests -= 1
            return
        poll = self._readable.poll
        if any(poll(0) for _ in range(_GLANCES)):
            self._misses = 0
            return
        self._misses += 1
        if self._misses >= _MOST_MISSES:
            self._rests = _RESTS

    def _receive_rest(self, message: Incoming, count: int, deadline: Deadline) -> bytearray:
        """Go on with a message after a first read of ``count`` bytes, or minus the event to wait for."""
        try:
            while True:
                if count < 0:
                    self._wait_for(-count, deadline)
                else:
                    message.took(count)
                if message.whole:
                    break
                count = self.read_into(message.space)
            message.finish()
        except BaseException:
            self.broken = self.broken or not message.settled
            raise
        return message.payload()

    def swap(self, label: str, payload: memoryview, deadline: Deadline) -> bytearray:
        """Swap messages with the peer; see :meth:`Channel.swap`."""
        job = self.start(label, payload)
        if job is None:
            self._glance()
            return self.receive_exactly(label, payload.nbytes, deadline)
        incoming = ReceiveJob(self, label, payload.nbytes)
        progress([job, incoming], deadline)
        return incoming.message.payload()

    def arrived(self, label: str, max_bytes: int) -> bytearray | None:
        """Take the next message if all of it has come, without any wait.

        Returns:
            The payload. None if the message is not whole, or not this one: then it stays as it came, for
            ``receive_any``, which also says what is wrong with it.

        Raises:
            PeerLostError: The peer closed or broke the connection.
        """
        ahead, piece = self._ahead, bytearray(_RECORD_BYTES)
        while True:
            count = self._read(piece)
            if count < 0:
                return None
            ahead += memoryview(piece)[:count]
            if len(ahead) < HEADER_BYTES:
                continue
            try:
                _, size = self.incoming.check(ahead[:HEADER_BYTES], (label,), max_bytes)
            except ProtocolError:
                return None
            if len(ahead) == HEADER_BYTES + size:
                break
            if len(ahead) > HEADER_BYTES + size:
                return None
        self._ahead = bytearray()
        self.meter.received(self.peer.name, self.me, label, self.incoming.sequence, size)
        self.incoming.take(ahead)
        del ahead[:HEADER_BYTES]
        return ahead

    def buffered(self) -> bool:
        """Return whether bytes that have come are in this process already, where no poll sees them."""
        if self._drained or self._tls is None:
            return bool(self._ahead)
        return bool(self._ahead) or self._tls.pending() > 0

    def wait(self, deadline: Deadline) -> None:
        """Wait until the socket has something; see :meth:`Channel.wait`."""
        if self.broken or self.buffered():
            return
        while not self._readable.poll(deadline.poll_ms(self.peer.name)):
            pass

    def leave_tls(self, deadline: Deadline) -> None:
        """Say goodbye to TLS and go on over the bare socket; the other end must do the same here.

        Raises:
            PeerLostError: The other end did not, or closed the connection.
        """
        if self._tls is None:
            return
        self._tls.settimeout(deadline.remaining(self.peer.name))
        try:
            self._sock = self._tls.unwrap()
        except (OSError, ValueError) as error:
            raise self.lost(error) from error
        self._tls = None
        self._sock.setblocking(False)

    def interrupt(self) -> None:
        """Shut the connection down without freeing the socket, so that another thread's wait ends."""
        # Not SSLSocket.shutdown: that drops the TLS state under a thread that may be using it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self.broken = True
        self._sock.close()

    def fileno(self) -> int:
        """Return the socket's descriptor, for ``select.poll``."""
        return self._sock.fileno()

    def read_into(self, view: memoryview | bytearray) -> int:
        """Read what is there; returns the bytes read, or minus the poll event to wait for."""
        if self._ahead:
            count = min(len(view), len(self._ahead))
            view[:count] = self._ahead[:count]
            del self._ahead[:count]
            return count
        return self._read(view)

    def _read(self, view: memoryview | bytearray) -> int:
        try:
            count = self._sock.recv_into(view)
        except (BlockingIOError, ssl.SSLWantReadError):
            self._drained = True
            return -select.POLLIN
        except ssl.SSLWantWriteError:
            return -select.POLLOUT
        except (OSError, ValueError) as error:
            raise self.lost(error) from error
        if count == 0:
            raise self.lost(None)
        # A record of TLS is read to its end, or until the view is full.
        self._drained = count < len(view)
        return count

    def write(self, view: memoryview | bytes) -> int:
        """Write what fits; returns the bytes written, or minus the poll event to wait for."""
        try:
            return self._sock.send(view)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return -select.POLLOUT
        except ssl.SSLWantReadError:
            return -select.POLLIN
        except (OSError, ValueError) as error:
            raise self.lost(error) from error

    def lost(self, error: Exception | None) -> PeerLostError:
        """Return the error to raise for a connection that ended, with its cause if there is one."""
        reason = "closed it" if error is None else f"broke it ({type(error).__name__})"
        return PeerLostError(
            f"expected the connection to {self.peer} to stay open; {self.peer.name} {reason}"
        )

    def _write_first(self, joined: bytes) -> int:
        try:
            return self.write(joined)
        except BaseException:
            # How much of it went is not known.
            self.broken = True
            raise

    def _next_header(self, deadline: Deadline) -> bytearray:
        """Read until a header is there, and whatever has come with it: a small message costs one read."""
        ahead = self._ahead
        self.wait(deadline)
        while len(ahead) < HEADER_BYTES:
            piece = bytearray(_SMALL_BYTES)
            count = self._read(piece)
            if count < 0:
                self._wait_for(-count, deadline)
            else:
                self._midway = True
                ahead += memoryview(piece)[:count]
        return ahead[:HEADER_BYTES]

    def _behind_header(self, size: int, deadline: Deadline) -> bytearray:
        """Return the payload behind the header that has been read."""
        del self._ahead[:HEADER_BYTES]
        if len(self._ahead) == size:
            payload, self._ahead = self._ahead, bytearray()
            return payload
        payload = bytearray(size)
        self._fill(memoryview(payload), deadline)
        return payload

    def _fill(self, view: memoryview, deadline: Deadline) -> None:
        while view:
            count = self.read_into(view)
            if count < 0:
                self._wait_for(-count, deadline)
            else:
                view = view[count:]

    def _wait_for(self, event: int, deadline: Deadline) -> None:
        poll = self._readable
        if event != select.POLLIN:
            # TLS may have to write in order to read.
            poll = select.poll()
            poll.register(self, event)
        while not poll.poll(deadline.poll_ms(self.peer.name)):
            pass
