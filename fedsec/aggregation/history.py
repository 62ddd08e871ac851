"""Whether every aggregator's durable state is its newest: what each saw of the others, and their greetings.

An aggregator that was set back to an older state (a backup, a snapshot of its machine) does not know what it
has signed since and could sign a second set for one round. Its peers know: each keeps the last chain head
that it saw of every other. So no round begins before an aggregator has greeted all others, and whoever was
seen with another history is remembered on both sides, also over restarts.
"""

from __future__ import annotations

from fedsec.aggregation.context import Context, Outgoing, check_chain
from fedsec.aggregation.messages import ChainHead, Greeted, Hello, seal, unseal
from fedsec.errors import PeerLostError, StateError
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
        if self._to_greet:
            missing = ", ".join(f"'{name}'" for name in sorted(self._to_greet))
            text = f"aggregator {missing} has not answered the greeting of '{self._me}' yet"
            raise PeerLostError(f"{text}; before that no round begins")

    def greeting(self, peer: str) -> Outgoing | None:
        """Return the greeting that is due to a peer."""
        if peer not in self._to_greet:
            return None
        chain = self._context.store.chain()
        return Outgoing(peer, chain.counter, Hello(self._me, seal(self._context.signer, chain)), b"")

    def hear(self, peer: Peer, message: Hello) -> Greeted:
        """Answer a peer's greeting, and remember its history or that it has another than was seen.

        Raises:
            TrustError: The greeting is not signed by the peer.
        """
        store = self._context.store
        chain = unseal(message.chain, ChainHead, peer.public_key)
        seen = store.chain(peer.public_key)
        if chain.counter < seen.counter:
            # No proof of a rollback: a greeting may come late. The peer judges by the reply.
            return Greeted(seen.counter)
        try:
            check_chain(store, peer.name, peer.public_key, chain)
        except StateError:
            return Greeted(seen.counter, same_history=False)
        with store.transaction():
            store.set_chain(chain, peer.public_key)
        return Greeted(seen.counter)

    def answered(self, peer: str, reply: Greeted) -> str:
        """Take the reply to a greeting.

        Returns:
            Empty, or why this aggregator must take part in no round any more; this is kept.
        """
        store, reason = self._context.store, ""
        if not reply.same_history or reply.counter > store.chain().counter:
            reason = f"'{self._me}' is behind what '{peer}' saw of it: its state was rolled back"
            with store.transaction():
                store.set_rollback(self._context.signer.public_key, reason)
        self._to_greet.discard(peer)
        return reason
