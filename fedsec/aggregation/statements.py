"""What the aggregators of one round sign and tell each other: lists of uploads, then included sets.

Every statement is stored before it is said, and is one more event in the chain of whoever signed it. A peer
whose statements contradict each other or its history is remembered, by its own signatures.
"""

from __future__ import annotations

import msgspec

from fedsec.aggregation.agreement import check_statement
from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.chain import continues, contradicts, counter_of, event, follow, open_head
from fedsec.aggregation.context import Context, Outgoing
from fedsec.aggregation.messages import (
    LABELS,
    ChainHead,
    ListStatement,
    SetSignature,
    SetStatement,
    Signed,
    UploadList,
    read_statement,
    seal,
    unseal,
)
from fedsec.aggregation.signing import check_signature
from fedsec.aggregation.store import same_statement
from fedsec.errors import ProtocolError, StateError, TrustError

OVERLAP = 32
"""Events of its own that an aggregator repeats in each statement."""


class ContradictionError(StateError):
    """A peer signed what cannot go together: its state was rolled back, or it lies."""


class Statements:
    """The statements of one round at one aggregator.

    Args:
        context: What the rounds of the aggregator share.
        announcement: The round.
    """

    def __init__(self, context: Context, announcement: Announcement) -> None:
        self._context, self._announcement = context, announcement
        self._key = announcement.id.key
        self._me = context.signer.name
        self._keys = {member.name: member.public_key for member in announcement.aggregators}
        self._delivered: set[tuple[str, str]] = set()

    def of(self, kind: str) -> dict[str, Signed]:
        """Return what is stored of one kind ("list" or "set"), by aggregator."""
        return self._context.store.statements(self._key, kind)

    def require_peer(self, sender: str) -> None:
        """Check that a sender is another aggregator of this round.

        Raises:
            TrustError: It is not.
        """
        if sender == self._me or sender not in self._keys:
            raise TrustError(f"'{sender}' is no other aggregator of {self._announcement.id}")

    def say(self, kind: str, statement: ListStatement | SetStatement) -> None:
        """Sign a statement and make it the next event; inside the caller's transaction.

        Args:
            kind: "list" or "set".
            statement: What is to be signed; its chain head is set here.
        """
        store, signer = self._context.store, self._context.signer
        mine = event(statement)
        head = follow(store.chain(), [mine])
        sealed = seal(signer, msgspec.structs.replace(statement, chain=seal(signer, head)))
        store.add_statement(self._key, kind, self._me, sealed)
        store.add_event(head, mine)

    def hear(self, kind: str, sender: str, signed: Signed, missed: tuple[bytes, ...]) -> None:
        """Store a peer's statement, once.

        Args:
            kind: "list" or "set".
            sender: The peer, as its certificate says.
            signed: Its statement.
            missed: Events of its history that this aggregator may not have heard of.

        Raises:
            TrustError: The signature is not its own.
            ProtocolError: The statement is malformed.
            ContradictionError: It contradicts an earlier one, or does not follow from what the sender showed.
            StateError: The disk does not take it.
        """
        known = self.of(kind).get(sender)
        if known is not None and same_statement(known, signed):
            return
        statement = self._checked(kind, sender, signed)
        if known is not None:
            text = f"aggregator '{sender}' signed two different {kind} statements for {self._announcement.id}"
            self._remember(sender, f"{text}: its state was rolled back, or it lies")
        head = self._next_head(sender, statement, missed)
        with self._context.store.transaction():
            self._context.store.add_statement(self._key, kind, sender, signed)
            self._context.store.set_seen(self._keys[sender], head)

    def outgoing(self, peer: str, heard: int) -> list[Outgoing]:
        """Return the statements that a peer has not confirmed yet.

        Args:
            peer: The peer.
            heard: The last event of this aggregator that the peer is known to have heard of.
        """
        found = []
        for kind, message in (("list", UploadList), ("set", SetSignature)):
            mine = self.of(kind).get(self._me)
            if mine is None or (peer, kind) in self._delivered:
                continue
            counter = counter_of(read_statement(kind, mine))
            # More than it missed: a peer that hides that it was set back goes on until it shows it itself.
            missed = self._context.store.events(min(heard, counter - OVERLAP), counter)
            found.append(Outgoing(peer, counter, message(mine, missed), self._key))
        return found

    def delivered(self, outgoing: Outgoing) -> None:
        """Note that a peer has confirmed a statement."""
        self._delivered.add((outgoing.peer, "list" if isinstance(outgoing.message, UploadList) else "set"))

    def _checked(self, kind: str, sender: str, signed: Signed) -> ListStatement | SetStatement:
        statement = read_statement(kind, signed)
        check_signature(self._keys[sender], LABELS[type(statement)], signed.payload, signed.signature)
        check_statement(self._announcement, statement)
        if statement.aggregator != sender:
            raise ProtocolError(f"'{sender}' sent a statement of '{statement.aggregator}'")
        return statement

    def _next_head(
        self, sender: str, statement: ListStatement | SetStatement, missed: tuple[bytes, ...]
    ) -> Signed:
        key = self._keys[sender]
        shown = unseal(statement.chain, ChainHead, key)
        seen = open_head(self._context.store.seen(key), key)
        if contradicts(seen, shown):
            text = f"aggregator '{sender}' is behind: it showed event {seen.counter} before, now event"
            text = f"{text} {shown.counter}; its state was rolled back, it must be enrolled anew"
            self._remember(sender, f"{text}, with a new key")
        if not continues(seen, shown, missed, event(statement)):
            # No proof, as events are not signed one by one; but nothing it says is taken any more.
            text = f"aggregator '{sender}' does not show how its event {shown.counter} follows from the event"
            raise ContradictionError(f"{text} {seen.counter} that it showed '{self._me}' before")
        return statement.chain

    def _remember(self, sender: str, text: str) -> None:
        """Keep for ever that a peer contradicted itself, both times under its own signature, and refuse."""
        with self._context.store.transaction():
            self._context.store.set_rollback(self._keys[sender], text)
        raise ContradictionError(text)
