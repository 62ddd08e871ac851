"""The sealed model at one party: its share of each state, one file a state, private and durable.

::

    <state folder>/sealed/<session>/<number>.state        mode 0600

    magic | header size (4 bytes) | header (MessagePack) | words x_i | words x_(i+1) | SHA-256 of all before

A file is one third of what it takes to know the model: never copy two parties' files to one place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import msgspec
import numpy as np

from fedsec.aggregation.announcement import MOST_WORDS, SESSION_BYTES, Member
from fedsec.aggregation.disk import disk_errors, sync_folder
from fedsec.aggregation.planner import ArraySpec
from fedsec.aggregation.signing import DIGEST_BYTES, Buffer
from fedsec.errors import ProtocolError, StateError
from fedsec.ring import RING64, RingArray
from fedsec.sharing.replicated import RepShare
from fedsec.transport.decoding import MALFORMED, decode_as

FOLDER = "sealed"
MOST_SESSIONS = 64
_MAGIC = b"fedsec sealed state 2\0\0\0"
_MOST_HEADER = 1 << 22
_SUFFIX = ".state"
_STATE = "the sealed state"
_Read = Callable[[int], bytes]
_ReadInto = Callable[[memoryview], int]
_Hear = Callable[[Buffer], None]


@dataclass(frozen=True, slots=True, eq=False)
class SealedState:
    """One party's share of the sealed model after one round.

    Attributes:
        session: The session (16 bytes) whose rounds made it.
        number: The training round that made it; 0 for the initial parameters.
        arrays: The model's arrays, in the order in which their elements stand in the share.
        fraction_bits: Fraction bits of the words.
        share: This party's components, 64-bit ring, shape [elements of all arrays].
        closed: Whether nobody may ever fetch it: it is only served.
        roster: The hospitals of the session, who may fetch it while it is not closed.
        serves: The digest of the one plan, with where its parameters come from, under which a closed state is
            served (``fedsec.nn.sealed.serving_digest``), as announced; empty for none.
        origin: The initial parameters that it was made from (``fedsec.aggregation.sealed.terms.origin_of``).
        before: The number of the state that its round began from.
    """

    session: bytes
    number: int
    arrays: tuple[ArraySpec, ...]
    fraction_bits: int
    share: RepShare
    closed: bool = False
    roster: tuple[Member, ...] = ()
    serves: bytes = b""
    origin: bytes = b""
    before: int = 0

    def __repr__(self) -> str:
        kind = "closed" if self.closed else "open to hospitals"
        return f"SealedState({self.session.hex()[:8]}, number={self.number}, {self.share.size} words, {kind})"


class StateHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a state's file says before its words; the fields are those of :class:`SealedState`."""

    session: bytes
    number: int
    words: int
    arrays: tuple[ArraySpec, ...]
    fraction_bits: int
    closed: bool
    roster: tuple[Member, ...]
    serves: bytes
    origin: bytes
    before: int


class SealedStates:
    """The sealed states of one party.

    Args:
        folder: The party's state folder; ``sealed`` is made in it when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self._root = Path(folder) / FOLDER

    def write(self, state: SealedState) -> None:
        """Store a state durably: after a crash it is there whole or not at all.

        Raises:
            StateError: The disk does not take it, or too many sessions are kept here.
        """
        folder = self._folder(state.session)
        if not folder.is_dir() and len(self.sessions()) >= MOST_SESSIONS:
            raise StateError(
                f"{MOST_SESSIONS} sealed models are kept in {self._root}; remove those that are not served"
            )
        draft = folder / f"{state.number}.{secrets.token_hex(4)}.draft"
        with disk_errors(_STATE):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                _write(draft, state)
                draft.replace(self._path(state.session, state.number))
            finally:
                draft.unlink(missing_ok=True)
            for synced in (folder, self._root):
                sync_folder(synced)

    def read(self, session: bytes, number: int) -> SealedState:
        """Read a state and check that it is whole.

        Raises:
            ProtocolError: There is none with that number here.
            StateError: The file is damaged or cannot be read.
        """
        path = self._path(session, number)
        with self._opened(session, number) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256()
            header = _read_header(file.read, size, digest.update)
            words = [_read_words(file.readinto, header.words, digest.update) for _ in range(2)]
            whole = file.read(DIGEST_BYTES + 1) == digest.digest()
        if not whole or (header.session, header.number) != (session, number):
            raise StateError(f"{path.name} in {path.parent} is damaged or another state: it is not used")
        share = RepShare(words[0], words[1], header.fraction_bits)
        return SealedState(
            session,
            number,
            header.arrays,
            header.fraction_bits,
            share,
            header.closed,
            header.roster,
            header.serves,
            header.origin,
            header.before,
        )

    def header(self, session: bytes, number: int) -> StateHeader:
        """Read what a state's file says of it, and not its words: whether these are whole is not checked.

        Raises:
            ProtocolError: There is none with that number here.
            StateError: The file is damaged or cannot be read.
        """
        with self._opened(session, number) as file:
            header = _read_header(file.read, os.fstat(file.fileno()).st_size, _deaf)
        if (header.session, header.number) != (session, number):
            raise StateError(f"state {number} of session {session.hex()[:8]} is another one: it is not used")
        return header

    def numbers(self, session: bytes) -> tuple[int, ...]:
        """Return the numbers of the states of a session, ascending."""
        names = (path.stem for path in self._folder(session).glob(f"*{_SUFFIX}"))
        return tuple(sorted(int(name) for name in names if name.isdecimal()))

    def sessions(self) -> tuple[bytes, ...]:
        """Return every session with a folder here, sorted."""
        names = [path.name for path in self._root.glob("*") if path.is_dir()]
        return tuple(sorted(bytes.fromhex(name) for name in names if _is_session(name)))

    def keep(self, session: bytes, numbers: Collection[int]) -> None:
        """Erase every state of a session but those with these numbers, and what a crash left half written.

        Raises:
            StateError: The disk does not take it.
        """
        folder = self._folder(session)
        kept = {self._path(session, number) for number in numbers}
        with disk_errors(_STATE):
            for path in [*folder.glob(f"*{_SUFFIX}"), *folder.glob("*.draft")]:
                if path not in kept:
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _opened(self, session: bytes, number: int) -> Iterator[BufferedReader]:
        path = self._path(session, number)
        if not path.is_file():
            raise ProtocolError(f"there is no sealed state {number} of session {session.hex()[:8]} here")
        with disk_errors(_STATE), path.open("rb") as file:
            yield file

    def _folder(self, session: bytes) -> Path:
        if len(session) != SESSION_BYTES:
            raise ProtocolError(f"a session id has {SESSION_BYTES} bytes, got {len(session)}")
        return self._root / session.hex()

    def _path(self, session: bytes, number: int) -> Path:
        return self._folder(session) / f"{int(number)}{_SUFFIX}"


def _write(path: Path, state: SealedState) -> None:
    header = msgspec.msgpack.encode(
        StateHeader(
            state.session,
            state.number,
            state.share.size,
            state.arrays,
            state.fraction_bits,
            state.closed,
            state.roster,
            state.serves,
            state.origin,
            state.before,
        )
    )
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for piece in (_MAGIC, len(header).to_bytes(4, "big"), header, *_bytes_of(state.share)):
            digest.update(piece)
            file.write(piece)
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())


def _bytes_of(share: RepShare) -> tuple[memoryview, memoryview]:
    first, second = (
        np.ascontiguousarray(part, dtype="<u8").data.cast("B") for part in (share.own, share.next)
    )
    return first, second


def _read_header(read: _Read, size: int, hear: _Hear) -> StateHeader:
    start = read(len(_MAGIC) + 4)
    length = int.from_bytes(start[len(_MAGIC) :], "big")
    if start[: len(_MAGIC)] != _MAGIC or length > min(_MOST_HEADER, size):
        raise StateError("a file of the sealed model has another format; it is not used")
    encoded = read(length)
    try:
        header = decode_as(encoded, StateHeader)
    except MALFORMED:
        raise StateError("the header of a sealed state is damaged; it is not used") from None
    expected = len(start) + length + 2 * header.words * RING64.element_bytes + DIGEST_BYTES
    fits = 0 <= header.words <= MOST_WORDS and header.words == sum(spec.size for spec in header.arrays)
    # Before anything of that size is allocated.
    if not fits or size != expected:
        raise StateError(f"a sealed state has {size} bytes, expected {expected}: it is damaged")
    hear(start)
    hear(encoded)
    return header


def _read_words(read_into: _ReadInto, words: int, hear: _Hear) -> RingArray:
    array: RingArray = np.empty(words, dtype=RING64.dtype)
    if words:
        view = array.data.cast("B")
        if read_into(view) != view.nbytes:
            raise StateError("a sealed state ended early: it is damaged")
        hear(view)
    return array


def _deaf(_: Buffer) -> None:
    """Hash nothing."""


def _is_session(name: str) -> bool:
    return len(name) == 2 * SESSION_BYTES and all(one in "0123456789abcdef" for one in name)
