"""Signals end a command once, and a command that handles them itself keeps its handlers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from fedsec.cli.stopping import Stopped, stop_on_signals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_unwinds_the_stack_with_its_exit_code(number: int) -> None:
    before = signal.getsignal(number)

    with pytest.raises(Stopped) as stopped, stop_on_signals():
        os.kill(os.getpid(), number)

    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_a_handler_that_the_command_set_stays() -> None:
    with stop_on_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    os.kill(os.getpid(), signal.SIGTERM)  # would end this process if the default had come back

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
