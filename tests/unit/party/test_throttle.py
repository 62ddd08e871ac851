"""A peer that is refused again and again does not fill the log."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from fedsec.party.throttle import BURST, EVERY_S, MOST_PEERS, Throttle
from fedsec.transport import Peer, Role


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def peer(number: int) -> Peer:
    key = number.to_bytes(32, "big")
    return Peer(f"user-{number}", Role.USER, key, key.hex())


def line(*values: object) -> logging.LogRecord:
    text = " ".join(["%s"] * len(values))
    return logging.LogRecord("fedsec.transport.server", logging.WARNING, "server.py", 1, text, values, None)


def test_threat_37_a_flood_of_refusals_is_counted_not_written() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    written = sum(throttle.filter(line(peer(1), "refused")) for _ in range(10_000))
    assert written == BURST
    clock.now += EVERY_S
    late = line(peer(1), "refused")
    assert throttle.filter(late)
    assert late.getMessage().endswith(f"refused (after {10_000 - BURST} lines that were left out)")
    assert not throttle.filter(line(peer(1), "refused"))


def test_one_peers_flood_hides_nothing_of_another_nor_of_strangers() -> None:
    throttle = Throttle(Clock())
    for _ in range(2 * BURST):
        throttle.filter(line(peer(1), "refused"))
        throttle.filter(line("handshake"))
    assert throttle.filter(line("query", peer(2), "refused"))
    assert not throttle.filter(line("another handshake"))


def test_the_filter_remembers_a_bounded_number_of_peers() -> None:
    throttle = Throttle(Clock())
    for number in range(MOST_PEERS + 10):
        assert throttle.filter(line(peer(number)))
    assert len(throttle._allowances) == MOST_PEERS


def test_threat_37_a_party_process_throttles_what_its_server_writes(tmp_path: Path) -> None:
    code = f"""
import logging
from pathlib import Path
from fedsec.errors import UsageError
from fedsec.party.main import run
from fedsec.transport import PartyConfig
missing = Path({str(tmp_path)!r}) / "missing"
try:
    run(PartyConfig("party-0", missing, missing, missing))
except UsageError:
    for _ in range(1000):
        logging.getLogger("fedsec.transport.server").warning("refused: %s", "again")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr.count("refused: again") == BURST
