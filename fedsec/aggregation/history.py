"""Whether every aggregator's durable state is its newest: what each saw of the others, and their greetings.

An aggregator that was set back to an older state (a backup, a snapshot of its machine) does not know what it
has signed since and could sign a second set for one round. Its peers know: each keeps the last chain head
that it saw of every other. So no round begins before an aggregator has greeted all others, and whoever was
seen with another history is remembered on both sides, also over restarts.
"""

from __future__ import annotations

from fedsec.aggregation.chain import MOST_MISSED, NOTHING_SEEN, leads_to, open_head
from fedsec.aggregation.context import Context, Outgoing
from fedsec.aggregation.messages import AbortRound, ChainHead, Greeted, Hello, MissedEvents, seal, unseal
from fedsec.errors import FedsecError, PeerLostError, StateError
from fedsec.transport import Peer


class History:
    """One aggregator's greetings to its peers, and theirs to it.

    Args:
        context: What the rounds of this aggregator share.
    """

    def __init__(self, context: Context) -> None:
        self._me = context.signer.name
        self._context = context
        self._to_greet = set(context.policy.aggregators) - {self._me}
        self._heard: dict[str, int] = {}
        self._forged: set[str] = set()

    @property
    def greeted(self) -> bool:
        """Whether every peer has answered this process."""
        return not self._to_greet

    def require_current(self) -> None:
        """Check that this aggregator and all its peers have shown that their states are the newest.

        Raises:
            StateError: One of them was set back to an older state; it is named.
            PeerLostError: A peer has not answered the greeting yet; it is named.
        """
        keys = {self._context.signer.public_key, *self._context.policy.aggregators.values()}
        for key, reason in self._context.store.rollbacks().items():
            if key in keys:
                raise StateError(reason)
        if forged := sorted(self._forged & self._to_greet):
            text = f"aggregator '{forged[0]}' answers the greeting of '{self._me}' with a history"
            raise PeerLostError(f"{text} that '{self._me}' has not signed; before that no round begins")
        if self._to_greet:
            missing = ", ".join(f"'{name}'" for name in sorted(self._to_greet))
            text = f"aggregator {missing} has not answered the greeting of '{self._me}' yet"
            raise PeerLostError(f"{text}; before that no round begins")

    def greeting(self, peer: str) -> Outgoing | None:
        """Return the greeting that is due to a peer; nothing else is said to it before it has answered."""
        if peer not in self._to_greet:
            return None
        chain = self._context.store.chain()
        return Outgoing(peer, chain.counter, Hello(self._me, seal(self._context.signer, chain)), b"")

    def hear(self, peer: Peer, message: Hello) -> Greeted:
        """Answer a peer's greeting with the last it has signed; remember it if the two contradict each other.

        Raises:
            TrustError: The greeting is not signed by the peer.
        """
        store = self._context.store
        shown = unseal(message.chain, ChainHead, peer.public_key)
        signed = store.seen(peer.public_key)
        seen = open_head(signed, peer.public_key)
        # A lower number is no proof of a rollback: a greeting may come late. The peer judges by the reply.
        self._compare(peer, seen, shown)
        return Greeted(signed)

    def catch_up(self, peer: Peer, message: MissedEvents) -> None:
        """Take a page of a peer's history: the head that it signed for the page is now the last one seen.

        Raises:
            TrustError: The head is not signed by the peer.
            StateError: The page does not follow from what the peer showed, or the disk does not take it.
        """
        store = self._context.store
        shown = unseal(message.chain, ChainHead, peer.public_key)
        seen = open_head(store.seen(peer.public_key), peer.public_key)
        if reason := self._compare(peer, seen, shown):
            raise StateError(reason)
        # A page may come late, or again: the peer goes on with the next one.
        if shown.counter <= seen.counter:
            return
        if len(message.missed) > MOST_MISSED or not leads_to(seen, shown, message.missed):
            text = f"aggregator '{peer.name}' does not show how its event {shown.counter} follows from"
            raise StateError(f"{text} the event {seen.counter} that it showed '{self._me}' before")
        with store.transaction():
            store.set_seen(peer.public_key, message.chain)

    def _compare(self, peer: Peer, seen: ChainHead, shown: ChainHead) -> str:
        """Remember a peer that has signed two heads for one event, and return the reason; empty if not."""
        if shown.counter != seen.counter or shown.head == seen.head:
            return ""
        text = f"aggregator '{peer.name}' is behind: it showed another event {seen.counter} before"
        reason = f"{text}; it must be enrolled anew, with a new key"
        with self._context.store.transaction():
            self._context.store.set_rollback(peer.public_key, reason)
        return reason

    def answered(self, peer: str, reply: Greeted) -> str:
        """Take the reply to a greeting. Only what this aggregator itself has signed counts in it.

        Returns:
            Empty, or why this aggregator must take part in no round any more; this is kept.
        """
        store, key = self._context.store, self._context.signer.public_key
        try:
            seen = open_head(reply.seen, key)
        except FedsecError:
            # Anybody can claim to have seen more: without our signature it is no reason to step aside.
            self._forged.add(peer)
            return ""
        self._to_greet.discard(peer)
        self._heard[peer] = seen.counter
        if reply.seen == NOTHING_SEEN or store.head(seen.counter) == seen.head:
            return ""
        reason = f"'{self._me}' is behind what '{peer}' saw of it: its state was rolled back"
        with store.transaction():
            store.set_rollback(key, reason)
        return reason

    def heard(self, peer: str) -> int:
        """Return the last event of this aggregator that a peer is known to have heard of."""
        return self._heard.get(peer, 0)

    def page_before(self, outgoing: Outgoing) -> Outgoing | None:
        """Return the page of events that a peer needs before a statement that cannot make up for all."""
        heard = self.heard(outgoing.peer)
        if isinstance(outgoing.message, AbortRound) or outgoing.counter - 1 - heard <= MOST_MISSED:
            return None
        last = heard + MOST_MISSED
        store = self._context.store
        if (head := store.head(last)) is None:
            raise StateError(f"event {last} of '{self._me}' is not in its state; it must be enrolled anew")
        chain = seal(self._context.signer, ChainHead(last, head))
        page = MissedEvents(chain, store.events(heard, last + 1))
        return Outgoing(outgoing.peer, last, page, outgoing.round_key)

    def told(self, outgoing: Outgoing) -> None:
        """Note that a peer has taken a statement."""
        self._heard[outgoing.peer] = max(self.heard(outgoing.peer), outgoing.counter)
