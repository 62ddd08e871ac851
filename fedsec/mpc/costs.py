"""What a protocol costs, declared beside it as data, and the registry of all protocols.

A cost is declared, never counted by the protocol itself: tests compare the declaration with the channels'
message logs, where the rounds are the longest chain of messages that depend on each other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from fedsec.errors import UsageError

if TYPE_CHECKING:
    from fedsec.mpc.party import Party

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cost:
    """The communication of one protocol call.

    Attributes:
        rounds: Communication rounds: the longest chain of messages that depend on each other. Of protocols
            one after the other it is at most the sum: a party that receives nothing in a step runs ahead.
        sent: Payload bytes that party 0, 1 and 2 send.
    """

    rounds: int
    sent: tuple[int, int, int]

    @classmethod
    def each(cls, rounds: int, sent_bytes: int) -> Cost:
        """Return the cost of a symmetric protocol, in which each party sends ``sent_bytes``."""
        return cls(rounds, (sent_bytes, sent_bytes, sent_bytes))

    @property
    def total_bytes(self) -> int:
        """Payload bytes of all parties together."""
        return sum(self.sent)

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of one protocol after the other."""
        first, second, third = (mine + theirs for mine, theirs in zip(self.sent, other.sent, strict=True))
        return Cost(self.rounds + other.rounds, (first, second, third))


class ProtocolFunction(Generic[P, T]):
    """A protocol: called like the function it wraps, with its cost, source and docstring as data.

    Attributes:
        name: Name of the function; it labels the messages on the wire.
        function: The function of (party, shares...) as it was written.
        cost: Function of the same arguments without the party, reading nothing of them but shapes, that gives
            the ``Cost``.
        source: The paper or document that the protocol follows.
    """

    def __init__(
        self, function: Callable[Concatenate[Party, P], T], cost: Callable[P, Cost], source: str
    ) -> None:
        functools.update_wrapper(self, function)
        self.name = function.__name__
        self.function = function
        self.cost = cost
        self.source = source

    def __call__(self, party: Party, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run this party's side of the protocol under its own message label."""
        with party.step(self.name):
            return self.function(party, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<protocol {self.name}>"


PROTOCOLS: dict[str, ProtocolFunction[..., Any]] = {}
"""Every protocol that was declared, by module and name; defining one again replaces it, as in a notebook."""


def protocol(
    *, cost: Callable[P, Cost], source: str
) -> Callable[[Callable[Concatenate[Party, P], T]], ProtocolFunction[P, T]]:
    """Declare a function of (party, shares...) as a protocol and enter it in ``PROTOCOLS``.

    Args:
        cost: Function of the protocol's arguments without the party that gives its ``Cost``.
        source: The paper or document that the protocol follows, with its section.

    Raises:
        UsageError: The source is empty, or the function has no docstring to hold its security argument.
    """

    def declare(function: Callable[Concatenate[Party, P], T]) -> ProtocolFunction[P, T]:
        if not source.strip() or not (function.__doc__ or "").strip():
            raise UsageError(
                f"protocol {function.__name__} needs a source and a docstring with its security argument"
            )
        declared = ProtocolFunction(function, cost, source)
        PROTOCOLS[f"{function.__module__}.{function.__qualname__}"] = declared
        return declared

    return declare
