"""Costs as data, and the registry of protocols."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import PROTOCOLS, Cost, Party, multiply, protocol, simulate
from fedsec.mpc.cost_table import EXAMPLES, cost_table, main
from fedsec.ring import RING64, fresh_stream
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare


def test_costs_of_protocols_after_each_other_add_up() -> None:
    first, second = Cost(1, (8, 0, 4)), Cost.each(rounds=2, sent_bytes=3)

    assert first + second == Cost(3, (11, 3, 7))
    assert (first + second).total_bytes == 21


def test_a_protocol_is_called_like_its_function_and_tells_its_cost() -> None:
    stream = fresh_stream()
    x = replicated.share(stream.words((4, 1)), stream)
    y = replicated.share(stream.words((1, 3)), stream)

    assert multiply.cost(x[0], y[0]) == Cost.each(rounds=1, sent_bytes=4 * 3 * 8)
    assert multiply.name == "multiply"
    assert "Security:" in (multiply.__doc__ or "")
    assert list(inspect.signature(multiply).parameters) == ["party", "x", "y"]
    assert PROTOCOLS["fedsec.mpc.products.multiply"] is multiply


def test_cost_is_declared_never_counted_by_the_protocol() -> None:
    """A protocol that declares too little is caught by the channel's count, not by itself."""

    @protocol(cost=lambda x: Cost.each(rounds=1, sent_bytes=0), source="this test")
    def chatty(party: Party, x: RepShare) -> RepShare:
        """Send one word and declare none. Cost: a lie. Security: none."""
        return RepShare(x.own, party.pass_back(x.own))

    try:
        shares = replicated.share(np.array([1], dtype=RING64.dtype), fresh_stream())
        done = simulate(lambda party: chatty(party, shares[party.id]), record=True)
        assert done.cost == Cost.each(rounds=1, sent_bytes=8)
        assert done.cost != chatty.cost(shares[0])
    finally:
        del PROTOCOLS[f"{chatty.__module__}.{chatty.__qualname__}"]


def test_a_protocol_without_source_or_docstring_is_refused() -> None:
    def silent(party: Party) -> None: ...

    with pytest.raises(UsageError, match="source and a docstring"):
        protocol(cost=lambda: Cost.each(0, 0), source="somewhere")(silent)
    with pytest.raises(UsageError, match="source and a docstring"):
        protocol(cost=lambda: Cost.each(0, 0), source=" ")(test_costs_of_protocols_after_each_other_add_up)


def test_every_protocol_of_the_engine_is_in_the_cost_table() -> None:
    ours = {record.name for key, record in PROTOCOLS.items() if key.startswith("fedsec.mpc.")}

    assert ours == set(EXAMPLES)


def test_the_cost_page_is_what_the_registry_says(
    capsys: pytest.CaptureFixture[str], pytestconfig: pytest.Config
) -> None:
    page = pytestconfig.rootpath / "docs" / "reference" / "costs.md"

    assert page.read_text() == cost_table(), "run: python -m fedsec.mpc.cost_table > docs/reference/costs.md"
    main()
    assert capsys.readouterr().out == cost_table()
