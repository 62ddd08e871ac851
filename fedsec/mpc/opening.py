"""Opening a secret: to all parties, or to one."""

from __future__ import annotations

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.party import Layout, Party
from fedsec.ring import RingArray
from fedsec.sharing.replicated import PARTIES, RepShare

_SOURCE = "Araki, Furukawa, Lindell, Nof, Ohara 2016 (High-throughput semi-honest 3PC)"


def _size_bytes(x: RepShare) -> int:
    return x.size * x.ring.element_bytes


def _reveal_cost(x: RepShare) -> Cost:
    return Cost.each(rounds=1, sent_bytes=_size_bytes(x))


@protocol(cost=_reveal_cost, source=_SOURCE)
def reveal(party: Party, x: RepShare) -> RingArray:
    """Open a secret to all three parties.

    Shapes:    the result has the shape of x.
    Units:     ring elements with the fraction bits of x, which decoding needs.
    Cost:      1 round; each party sends one word an element.
    Security:  semi-honest, one corrupt party of three. Party i receives x_(i+2) = x - x_i - x_(i+1), which
               the opened value and its own share determine: it learns x and nothing else.
    Source:    Araki et al. 2016.
    """
    # One round: party i lacks component i+2, which the following party holds as its "next".
    missing = party.pass_back(x.next)

    return x.own + x.next + missing


def _reveal_to_cost(x: RepShare, receiver: int) -> Cost:
    first, second, third = (_size_bytes(x) if (receiver + 1) % PARTIES == i else 0 for i in range(PARTIES))
    return Cost(rounds=1, sent=(first, second, third))


@protocol(cost=_reveal_to_cost, source=_SOURCE)
def reveal_to(party: Party, x: RepShare, receiver: int) -> RingArray | None:
    """Open a secret to one party; the others get None.

    Shapes:    the receiver's result has the shape of x.
    Units:     ring elements with the fraction bits of x.
    Cost:      1 round; the party after the receiver sends one word an element.
    Security:  semi-honest, one corrupt party of three. The receiver's message is determined by the opened
               value and its own share; the other parties receive nothing.
    Source:    Araki et al. 2016.

    Raises:
        UsageError: ``receiver`` is not 0, 1 or 2.
    """
    if receiver not in range(PARTIES):
        raise UsageError(f"a secret is revealed to party 0, 1 or 2, got {receiver}")
    sender = (receiver + 1) % PARTIES
    if party.id == sender:
        party.exchange({receiver: [x.next]}, {})
    if party.id != receiver:
        return None
    received = party.exchange({}, {sender: [Layout(x.shape, x.ring)]})
    return x.own + x.next + received[sender][0]
