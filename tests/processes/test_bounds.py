"""What strangers, and a hospital that is greedy and slow, cost a party process: its memory, and others' time.

How a connection is bounded in each of its steps is in test_hostile_clients.py, with shorter times.
"""

from __future__ import annotations

import os
import resource
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

from fedsec.aggregation.encoding import encode_update
from fedsec.aggregation.making import UploadParts, make_parts
from fedsec.transport import Identity, Limits

# Test modules are no package here, so what several of them share is found by path.
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from aggregation_site import Round, Site, everyone_takes_part, until
from raw_hospital import HEADER, RawHospital

GREEDY = "hospital-00"
PARTY = "party-1"
"""The one that gets the vector of the greedy hospital in a first round; the others get seeds."""
CONNECTIONS = 500
MIB = 1 << 20
SIZE = 200_000
"""Parameters of the model: a part is longer than what may come unasked."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        made = Site(tmp_path_factory.mktemp("site"), stack, hospitals=4)
        # Kernels, threads and connections that every party has after a round are no growth.
        everyone_takes_part(made, SIZE)
        yield made


def memory(site: Site) -> int:
    """Return what party-1 has in memory, in bytes."""
    pages = int(Path(f"/proc/{site.pid(PARTY)}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def threads(site: Site) -> int:
    return len(list(Path(f"/proc/{site.pid(PARTY)}/task").iterdir()))


def raw(site: Site) -> RawHospital:
    """Connect to the party as the greedy hospital; nothing is sent yet."""
    party = site.file.party(PARTY)
    pem = site.cluster.identity(GREEDY)
    return RawHospital((party.host, party.port), party.name, GREEDY, pem, site.server.authority)


def gets_in(site: Site) -> bool:
    """Try to connect; patience is the client's."""
    with suppress(OSError), raw(site) as connection:
        return not connection.greet().get("refusal")
    return False


def others_take_part(site: Site) -> None:
    """Run a round without the greedy hospital; its sum is exact."""
    names = [name for name in site.names if name != GREEDY]
    round_ = site.open(SIZE)
    site.submit(round_, names)
    round_.check(site.collect(round_), names, {GREEDY: "missing"})


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("count", [CONNECTIONS, pytest.param(10_000, marks=pytest.mark.slow)])
def test_threat_37_strangers_cost_little_memory_and_do_not_keep_hospitals_out(
    site: Site, many_files: None, count: int
) -> None:
    party, before = site.file.party(PARTY), memory(site)
    with ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex((party.host, party.port))
        others_take_part(site)
        # Over a connection of its own, which waits behind theirs.
        assert until(lambda: gets_in(site), 200)
        assert memory(site) - before < 32 * MIB
        assert threads(site) < Limits().max_handshakes + 64


def test_threat_37_a_hospital_that_is_greedy_and_slow_costs_its_own_places(site: Site) -> None:
    """It takes all it gets and stops everywhere: idle, in a header, in a frame, in the body of an upload."""
    round_ = site.open(SIZE)
    before, refused, held = memory(site), 0, []
    with ExitStack() as stack:
        for _ in range(CONNECTIONS // 4):
            connection = stack.enter_context(raw(site))
            if connection.greet().get("refusal"):
                refused += 1
            else:
                held.append(connection)
        # Its own process may hold one from the round before.
        assert Limits().max_each - 1 <= len(held) <= Limits().max_each
        assert refused == CONNECTIONS // 4 - len(held)
        for number, connection in enumerate(held):
            stop_midway(connection, number % 4, parts_of(site, round_))
        others_take_part(site)
        # A quarter of them holds 256 KiB, each a thread and a TLS connection.
        assert memory(site) - before < 32 * MIB
    # Its places are free again, and it may take part.
    assert until(lambda: threads(site) < 64, 60)
    everyone_takes_part(site, SIZE)


def stop_midway(connection: RawHospital, step: int, parts: UploadParts) -> None:
    if step == 1:
        connection.sock.sendall(HEADER.pack(b"FS", 1, 0, 100, 1, bytes(8))[:20])
    elif step == 2:
        connection.frame("get_receipt/request", secrets.token_bytes(20), length=100_000)
    elif step == 3:
        header = parts.header.payload, parts.header.signature
        connection.request({"type": "upload", "header": header}, len(parts.parts[PARTY]))
        assert connection.read() == b"", "the body was not asked for"
        connection.frame("upload/body", bytes(1000), length=1 << 18)


def parts_of(site: Site, round_: Round) -> UploadParts:
    own, layout = Identity.load(site.cluster.identity(GREEDY)), round_.announcement.layout
    words = encode_update(layout, [np.zeros(SIZE, np.float32)], 100, {"loss": 1.0})
    # Another upload each time: of one hospital and round the latest counts.
    return make_parts(round_.announcement, own, words)
