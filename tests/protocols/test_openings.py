"""Openings: what they send is determined by the result, and by nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import Party, reveal, reveal_to, simulate
from fedsec.ring import RING64, RingArray, fresh_stream
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare
from fedsec.testing import Secret, check_protocol

pytest_plugins = ["fedsec.testing"]


def _missing_component(party_id: int, result: RingArray, x: RepShare) -> list[RingArray]:
    return [result - x.own - x.next]


def _reveal_with_a_word_too_many(party: Party, x: RepShare) -> RingArray:
    missing = party.pass_back(x.next)
    party.pass_back(x.own * x.next)
    return x.own + x.next + missing


def _reveal_the_wrong_half(party: Party, x: RepShare) -> RingArray:
    party.pass_back(x.own * x.next)
    return np.zeros_like(x.own)


@check_protocol(
    reveal,
    inputs={"x": Secret((2,))},
    simulated=_missing_component,
    broken=[_reveal_with_a_word_too_many, _reveal_the_wrong_half],
)
def test_reveal(x: Any) -> Any:
    return x


def _to_the_receiver_alone(
    party_id: int, result: RingArray | None, x: RepShare, receiver: int
) -> list[RingArray]:
    return [] if result is None else [result - x.own - x.next]


def _reveal_to_everyone(party: Party, x: RepShare, receiver: int) -> RingArray | None:
    value = reveal(party, x)
    return value if party.id == receiver else None


@check_protocol(
    reveal_to,
    inputs={"x": Secret(), "receiver": 1},
    simulated=_to_the_receiver_alone,
    broken=[_reveal_to_everyone],
    receivers=[1],
)
def test_reveal_to(x: Any, receiver: int) -> Any:
    return x


@pytest.mark.parametrize("receiver", [0, 1, 2])
def test_only_the_receiver_gets_the_secret(receiver: int) -> None:
    secret = np.array([77777], dtype=RING64.dtype)
    shares = replicated.share(secret, fresh_stream())

    opened = simulate(lambda party: reveal_to(party, shares[party.id], receiver)).results

    assert opened[receiver] == secret
    assert [value is None for value in opened].count(True) == 2


def test_a_receiver_that_is_no_party_is_refused() -> None:
    shares = replicated.share(np.array([1], dtype=RING64.dtype), fresh_stream())

    with pytest.raises(UsageError, match="party 0, 1 or 2, got 3"):
        simulate(lambda party: reveal_to(party, shares[party.id], 3))
