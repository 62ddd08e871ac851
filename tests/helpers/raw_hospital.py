"""A connection that speaks the documented wire format with ``ssl`` and ``struct``, and may get it wrong.

It shares no code with ``fedsec.transport``: what it sends well formed also checks the page on the format.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import msgspec

HEADER = struct.Struct(">2sBBIQ8s")
SECONDS = 30.0


class RawHospital:
    """One TLS connection to an aggregator, under any certificate.

    Args:
        address: Host and port.
        aggregator: Its name, which is in every tag.
        name: Our name, as in the certificate.
        pem: Key and certificate; None to show none.
        authority: The authority (PEM text) whose certificate the aggregator has.
    """

    def __init__(
        self, address: tuple[str, int], aggregator: str, name: str, pem: Path | None, authority: str
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=authority)
        if pem is not None:
            context.load_cert_chain(pem)
        plain = socket.create_connection(address, timeout=SECONDS)
        try:
            self.sock = context.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise
        self.name, self.aggregator = name, aggregator
        self._sequence = 0

    def __enter__(self) -> RawHospital:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def frame(self, label: str, payload: bytes, length: int | None = None) -> None:
        """Send a frame; ``length`` may lie."""
        parts = [b"", label.encode(), self.name.encode(), self.aggregator.encode()]
        tagged = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        tag = hashlib.sha256(b"fedsec step 1" + tagged).digest()[:8]
        size = len(payload) if length is None else length
        self.sock.sendall(HEADER.pack(b"FS", 1, 0, size, self._sequence, tag) + payload)
        self._sequence += 1

    def read(self) -> bytes:
        """Return the payload of the next frame.

        Raises:
            EOFError: The aggregator has closed the connection.
        """
        magic, version, zero, size, _sequence, _tag = HEADER.unpack(self._exactly(HEADER.size))
        assert (magic, version, zero) == (b"FS", 1, 0)
        return self._exactly(size)

    def greet(self) -> dict[str, Any]:
        """Read the aggregator's hello and answer it."""
        hello = msgspec.msgpack.decode(self.read())
        if not hello.get("refusal"):
            mine = {"type": "hello", "protocol": 1, "nonce": secrets.token_bytes(32), "session": b""}
            self.frame("hello", msgspec.msgpack.encode(mine))
        return dict(hello)

    def request(self, message: dict[str, Any], body_size: int = 0) -> None:
        """Send a request without its body."""
        packed = struct.pack(">Q", body_size) + msgspec.msgpack.encode(message)
        self.frame(f"{message['type']}/request", packed)

    def answer(self) -> dict[str, Any]:
        """Return the message of a reply."""
        reply = self.read()
        (status,) = reply[:1]
        message = dict(msgspec.msgpack.decode(reply[9:]))
        assert (status == 1) == (message["type"] == "error")
        return message

    def upload(
        self, header: tuple[bytes, bytes], body: bytes, announced: int | None = None
    ) -> dict[str, Any]:
        """Upload a part and return the answer; ``announced`` is another body size than the true one."""
        size = len(body) if announced is None else announced
        self.request({"type": "upload", "header": header}, size)
        if size > 65536:
            reply = self.read()
            if reply:
                return dict(msgspec.msgpack.decode(reply[9:]))
        for start in range(0, len(body), 262144):
            self.frame("upload/body", body[start : start + 262144])
        return self.answer()

    def closed(self) -> bool:
        """Return whether the aggregator ends the connection, whatever it says before."""
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                raise EOFError(f"{self.aggregator} closed the connection")
            data += more
        return data
