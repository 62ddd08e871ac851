"""The decorator that turns one example into four tests, and the seed they share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc.costs import ProtocolFunction
from fedsec.ring import KEY_BYTES, RING64, Ring, RingArray, fresh_key
from fedsec.testing.checks import check_cost, check_teeth, check_value, check_view
from fedsec.testing.example import Agrees, Example

SEED_VARIABLE = "FEDSEC_TEST_SEED"

CHECKS: dict[str, Callable[[Example, bytes], object]] = {
    "value": check_value,
    "cost": check_cost,
    "view": check_view,
    "teeth": check_teeth,
}


def seed_of_this_run() -> bytes:
    """Return the seed in ``FEDSEC_TEST_SEED`` (64 hex digits), or a fresh one.

    Raises:
        UsageError: The variable is set to something else.
    """
    given = os.environ.get(SEED_VARIABLE, "")
    if not given:
        return fresh_key()
    try:
        seed = bytes.fromhex(given)
    except ValueError:
        seed = b""
    if len(seed) != KEY_BYTES:
        raise UsageError(f"{SEED_VARIABLE} must be {2 * KEY_BYTES} hex digits, as a failed test printed them")
    return seed


@pytest.fixture
def protocol_seed() -> bytes:
    """The seed of one protocol check; printed, so that pytest shows it when the check fails."""
    seed = seed_of_this_run()
    print(f"repeat this check with {SEED_VARIABLE}={seed.hex()}")
    return seed


def check_protocol(
    protocol: ProtocolFunction[..., Any],
    *,
    inputs: dict[str, Any],
    agrees: Agrees = np.array_equal,
    ring: Ring = RING64,
    simulated: Callable[..., list[RingArray]] | None = None,
    broken: Sequence[Callable[..., Any]] = (),
    receivers: Sequence[int] = (0, 1, 2),
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make four tests of one example: value, cost, view and teeth.

    The decorated function is the plain twin: it takes the secrets in the clear, as ring elements, under the
    names of ``inputs``, and returns what the protocol must give. Its name must begin with ``test_``. ::

        @check_protocol(multiply, inputs={"x": Secret(), "y": Secret()})
        def test_multiply(x, y):
            return x * y

    Args:
        protocol: The protocol, declared with ``@protocol``.
        inputs: Its arguments by name: ``Secret``, ``Additive``, ``Bits``, or a public value.
        agrees: Whether result and plain result agree; equality if not given.
        ring: Ring of the session.
        simulated: For protocols that open something: the messages of a party, from its result and arguments
            alone.
        broken: Twins of the protocol, broken by hand, that the view check must catch beside the four broken
            streams.
        receivers: Ids of the parties that get a result; the others must return None.

    Raises:
        UsageError: The receivers are no parties; or, from the decorator, the function's name does not begin
            with ``test_``.
    """

    def decorate(plain: Callable[..., Any]) -> Callable[..., None]:
        name = getattr(plain, "__name__", "?")
        if not name.startswith("test_"):
            # Pytest would not collect it, and all four checks would be gone without a word.
            raise UsageError(
                f"the name of an example must begin with test_, got {name!r}; call it test_{name}"
            )
        example = Example(protocol, inputs, plain, agrees, ring, simulated, tuple(broken), tuple(receivers))

        @pytest.mark.parametrize("check", CHECKS)
        def test(check: str, protocol_seed: bytes) -> None:
            CHECKS[check](example, protocol_seed)

        test.__name__ = name
        test.__doc__ = plain.__doc__
        return test

    return decorate
