"""Who may ask a party what: every request that a party routes, under every certificate that may not ask.

The requests are read off the routes that a party's main makes, so that none can be forgotten: a new message
fails here until it is written down who may send it.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fedsec.aggregation import HospitalClient, TrustFile
from fedsec.aggregation.encoding import encode_update
from fedsec.aggregation.links import TlsLinks
from fedsec.aggregation.making import make_parts
from fedsec.aggregation.messages import (
    ChainHead,
    GetReceipt,
    Greeted,
    Hello,
    ListStatement,
    Receipt,
    Received,
    Stored,
    Upload,
    UploadList,
    seal,
)
from fedsec.cluster.certificates import Authority
from fedsec.cluster.keys import make_local_keys
from fedsec.errors import TrustError
from fedsec.party.main import routes_of, services_of
from fedsec.transport import Deadline, Identity, Meter, PartyConfig, Role

# Test modules are no package here, so what several of them share is found by path.
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from aggregation_site import CONFIG, Round, Site
from raw_hospital import RawHospital

ALLOWED = {
    "announce": "server", "close_uploads": "server", "collect_sum": "server", "finish_round": "server",
    "upload": "hospital", "get_receipt": "hospital",
    "sealed_start": "server", "sealed_status": "server", "fetch_state": "hospital",
    "reshare_sum": "party", "open_sealed_link": "party",
    "upload_list": "party", "set_signature": "party", "aggregator_hello": "party", "abort_round": "party",
    "missed_events": "party",
    "share_model": "owner", "share_sealed": "owner", "forget_model": "owner",
    "serve": "owner", "stop_service": "owner",
    "read_count": "owner", "read_ledger": "owner", "read_status": "owner party", "open_link": "party",
    "describe": "user", "query": "user",
    "read_meter": "server owner",
}  # fmt: skip
HOLDERS = {
    Role.PARTY: "party-1", Role.HOSPITAL: "hospital-00", Role.SERVER: "server",
    Role.OWNER: "owner", Role.USER: "user",
}  # fmt: skip
UNASKED_BODY = 10**12
NO_MESSAGE = b"\x00"
"""MessagePack for 0, which is no message: whoever gets as far as the message's own check is told so."""


def routed() -> dict[str, frozenset[Role]]:
    """Return every request of a party with the roles that its routes let in."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        keys = make_local_keys(folder / "keys", 3, 2)
        cluster = keys.cluster_file({party: ("127.0.0.1", 1 + i) for i, party in enumerate(keys.parties)})
        (folder / "state").mkdir()
        config = PartyConfig("party-0", keys.identity("party-0"), folder / "unread", folder / "state")
        services = services_of(config, Identity.load(config.identity), cluster, Meter())
        for service in services:
            stack.callback(service.stop)
        return {route.tag: route.roles for route in routes_of(services, Meter())}


ROUTED = routed()
CASES = [(tag, role) for tag in sorted(ROUTED) for role in Role]


@dataclass
class Door:
    """A party process, and everyone who may knock."""

    site: Site
    strangers: Path
    round: Round

    def knock(self, pem: Path | None, name: str) -> RawHospital:
        endpoint = self.site.file.parties[0]
        address = (endpoint.host, endpoint.port)
        return RawHospital(address, endpoint.name, name, pem, self.site.server.authority)

    def state(self) -> str:
        """Return a digest of all that the party keeps on disk."""
        folder = self.site.cluster.folder / "parties" / "party-0" / "state"
        digest = hashlib.sha256()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            # SQLite's index of its log: whoever reads leaves a mark there, and nothing lasts in it.
            if path.name.endswith("-shm"):
                continue
            digest.update(str(path).encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    with ExitStack() as stack:
        site = Site(folder, stack, hospitals=3)
        strangers = folder / "strangers"
        for whose in ("other-authority", "other-key", "other-name"):
            (strangers / whose).mkdir(parents=True)
        ours, theirs = (
            Authority.load(site.cluster.folder / "keys" / "authority"),
            Authority.create(folder / "ca"),
        )
        for role, name in HOLDERS.items():
            theirs.issue(strangers / "other-authority", name, role)
            # By the right authority and in the right role, but not the one that the cluster file pins.
            ours.issue(strangers / "other-key", name, role)
            ours.issue(strangers / "other-name", f"{role}-99", role)
        # Open for longer than all these tests take: a round that closes is written down. Whoever is announced
        # has been greeted, so from here on nothing is written by itself.
        yield Door(site, strangers, site.open(upload_seconds=3600.0))


@pytest.fixture
def unchanged(door: Door) -> Iterator[None]:
    before = door.state()
    yield
    assert door.state() == before


def request(raw: RawHospital, tag: str, message: bytes = NO_MESSAGE, body: int = UNASKED_BODY) -> None:
    raw.frame(f"{tag}/request", struct.pack(">Q", body) + message)


def test_who_may_send_a_message_is_written_down_and_routed_so() -> None:
    allowed = {tag: frozenset(Role(role) for role in roles.split()) for tag, roles in ALLOWED.items()}
    assert allowed == ROUTED


@pytest.mark.parametrize(("tag", "role"), CASES)
def test_threat_40_the_role_decides_before_message_and_body_are_looked_at(
    door: Door, unchanged: None, tag: str, role: Role
) -> None:
    with door.knock(door.site.cluster.identity(HOLDERS[role]), HOLDERS[role]) as raw:
        assert not raw.greet().get("refusal")
        request(raw, tag)
        # An error, where a body of this length would first have to be asked for.
        answer = raw.answer()
        assert answer["type"] == "error"
        if role in ROUTED[tag]:
            assert answer["code"] == "protocol"
            assert "got another message" in answer["text"]
        else:
            assert answer["code"] == "trust"
            assert f"{tag} is for " in answer["text"]
            # The connection is still in step.
            request(raw, tag, body=0)
            assert raw.answer() == answer


@pytest.mark.parametrize("whose", ["nobody's", "other-authority", "other-key", "other-name"])
@pytest.mark.parametrize("tag", sorted(ROUTED))
def test_threat_39_40_whoever_is_not_let_in_gets_no_answer(
    door: Door, unchanged: None, tag: str, whose: str
) -> None:
    for role in ROUTED[tag]:
        # That the authority vouches for a user is enough: the cluster file does not name any.
        if role is Role.USER and whose in ("other-key", "other-name"):
            continue
        name = f"{role}-99" if whose == "other-name" else HOLDERS[role]
        pem = None if whose == "nobody's" else door.strangers / whose / f"{name}.pem"
        with door.knock(pem, name) as raw, suppress(EOFError, OSError):
            request(raw, tag)
            hello = msgspec.msgpack.decode(raw.read())
            assert hello["refusal"] == "trust", "only a refusal of the connection may come"
            assert "cluster file" in hello["text"]
            with pytest.raises((EOFError, OSError)):
                raw.read()


# Another's message, under a certificate of the right role.


def client(door: Door, hospital: str) -> HospitalClient:
    return HospitalClient(TrustFile.load(door.site.cluster.trust_file(hospital)))


def ask(door: Door, who: str, message: msgspec.Struct, kind: Any = Received, party: int = 0) -> Any:
    endpoint = door.site.file.parties[party]
    with closing(TlsLinks([endpoint], Identity.load(door.site.cluster.identity(who)))) as links:
        return links.call(endpoint.name, message, kind, deadline=Deadline.after(30))[0]


def take_part(door: Door, round_: Round, model: np.ndarray, hospital: str) -> bytes:
    with closing(client(door, hospital)) as one:
        accepted = one.accept(round_.signed.payload, round_.signed.signature, [model], CONFIG)
        return one.submit(accepted, [np.zeros_like(model)], 100, {"loss": 1.0})


def test_a_receipt_is_given_to_the_hospital_that_it_is_of(door: Door) -> None:
    announcement, model = door.site.announcement()
    signed = door.site.collector.announce(announcement, Deadline.after(30))
    round_ = door.site.lay_out(announcement, signed, model)
    ids = {name: take_part(door, round_, model, name) for name in ("hospital-00", "hospital-01")}
    result = door.site.collector.collect(announcement, Deadline.after(30))
    assert sorted(result.included) == sorted(ids)
    question = GetReceipt(announcement.id, ids["hospital-00"])
    assert ask(door, "hospital-00", question, Receipt).status == "included"
    for other, reason in (("hospital-01", "missing"), ("hospital-02", "missing")):
        receipt = ask(door, other, question, Receipt)
        assert (receipt.status, receipt.reason) == ("excluded", reason)
        assert not receipt.path
        assert not receipt.statements
    # What is left of the round is erased behind its end, which the next test must not take for its own.
    assert door.site.keeps_nothing(round_, 30)


def test_an_upload_is_taken_from_the_hospital_that_it_is_of(door: Door) -> None:
    announcement = door.round.announcement
    own = Identity.load(door.site.cluster.identity("hospital-00"))
    update = np.zeros(announcement.arrays[0].size, np.float32)
    parts = make_parts(announcement, own, encode_update(announcement.layout, [update], 100, {"loss": 1.0}))
    before = door.state()
    for other in ("hospital-01", "hospital-02"):
        with pytest.raises(TrustError, match="header of another hospital"):
            ask(door, other, Upload(parts.header), Stored)
    assert door.state() == before


def test_a_statement_is_taken_from_the_party_that_signed_it(door: Door, unchanged: None) -> None:
    announcement = door.round.announcement
    signer = Identity.load(door.site.cluster.identity("party-1"))
    chain = ChainHead(10**6, bytes(32))
    statement = ListStatement(announcement.id, announcement.digest, "party-1", (), seal(signer, chain))
    for message, kind in (
        (UploadList(seal(signer, statement)), Received),
        (Hello("party-1", seal(signer, chain)), Greeted),
    ):
        with pytest.raises(TrustError, match="party-0: "):
            ask(door, "party-2", message, kind)
