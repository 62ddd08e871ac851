"""Hospitals that run other code than ours or hold a wrong certificate, and a server that asks for too much.

A liar's bytes come over a TLS socket with a hospital's certificate and share no code with our transport.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedsec.aggregation.announcement import (
    Announcement,
    Member,
    array_digest,
    encode_config,
    members,
    sign_announcement,
)
from fedsec.aggregation.encoding import encode_update
from fedsec.aggregation.making import UploadParts, make_parts
from fedsec.aggregation.messages import Signed, UploadHeader, part_digest, seal
from fedsec.aggregation.planner import ArraySpec, plan_encoding
from fedsec.aggregation.trust import TrustFile, TrustLimits
from fedsec.cluster.certificates import Authority
from fedsec.errors import RoundAbortedError, TrustError
from fedsec.transport import Deadline, Identity, Role

# Test modules are no package here, so what several of them share is found by path.
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from aggregation_site import CONFIG, SMALL, Round, Site, counts_of, everyone_takes_part, upload_answers
from raw_hospital import RawHospital

LIAR = "hospital-03"


def raw_from(site: Site, party: int = 0, name: str = LIAR, pem: Path | None = None) -> RawHospital:
    """Connect to an aggregator as a hospital that runs other code than ours."""
    endpoint = site.file.parties[party]
    address = (endpoint.host, endpoint.port)
    pem = pem or site.cluster.identity(name)
    return RawHospital(address, endpoint.name, name, pem, site.server.authority)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Three aggregators for tests that must not hurt them: afterwards a round with everyone is exact."""
    with ExitStack() as stack:
        made = Site(tmp_path_factory.mktemp("site"), stack)
        yield made
        everyone_takes_part(made)


# Hospitals that lie: a TLS socket with the hospital's certificate, and other code than ours.


@dataclass
class Lie:
    """What a lying hospital works with."""

    site: Site
    round: Round
    parts: UploadParts = field(init=False)

    def __post_init__(self) -> None:
        self.parts = self.made_for(self.round.announcement)

    def made_for(self, announcement: Announcement) -> UploadParts:
        """Share the liar's contribution as an honest hospital would in that round."""
        update, examples, loss = self.round.contributions[LIAR]
        words = encode_update(announcement.layout, [update], examples, {"loss": loss})
        return make_parts(announcement, Identity.load(self.site.cluster.identity(LIAR)), words)

    def with_parts(self, parts: UploadParts) -> Lie:
        """Return the same with the parts of another round."""
        other = Lie(self.site, self.round)
        other.parts = parts
        return other

    @property
    def header(self) -> tuple[bytes, bytes]:
        return self.parts.header.payload, self.parts.header.signature

    def send(
        self, part: Callable[[str, bytes], bytes], header: tuple[bytes, bytes] | None = None
    ) -> list[str]:
        """Upload what ``part(aggregator, true part)`` returns; returns the answers: a type, or the text."""
        return [self.send_to(number, part, header) for number in range(3)]

    def send_to(
        self, number: int, part: Callable[[str, bytes], bytes], header: tuple[bytes, bytes] | None = None
    ) -> str:
        name = self.site.file.parties[number].name
        with raw_from(self.site, number) as raw:
            raw.greet()
            answer = raw.upload(header or self.header, part(name, self.parts.parts[name]))
        return str(answer.get("text", answer["type"]))

    def signed(self, signer: str = LIAR, **fields: Any) -> tuple[bytes, bytes]:
        """Return another header, signed by whoever is said."""
        header = msgspec.msgpack.decode(self.parts.header.payload, type=UploadHeader)
        sealed = seal(
            Identity.load(self.site.cluster.identity(signer)), msgspec.structs.replace(header, **fields)
        )
        return sealed.payload, sealed.signature

    def wrong_part(self, name: str) -> bytes:
        part = bytearray(self.parts.parts[name])
        part[40] ^= 1
        return bytes(part)


def true(_name: str, part: bytes) -> bytes:
    return part


def garbage_instead_of_a_hello(lie: Lie) -> str:
    for number in range(3):
        with raw_from(lie.site, number) as raw:
            raw.sock.sendall(secrets.token_bytes(5000))
            assert raw.closed()
    return "missing"


def garbage_after_the_hello(lie: Lie) -> str:
    for number in range(3):
        with raw_from(lie.site, number) as raw:
            raw.greet()
            raw.sock.sendall(secrets.token_bytes(5000))
            assert raw.closed()
    return "missing"


def four_gigabytes_in_a_frame(lie: Lie) -> str:
    with raw_from(lie.site) as raw:
        raw.greet()
        raw.frame("upload/request", bytes(100), length=2**32 - 1)
        assert raw.closed()
    return "missing"


def ten_gigabytes_in_a_request(lie: Lie) -> str:
    with raw_from(lie.site) as raw:
        raw.greet()
        answer = raw.upload(lie.header, b"", announced=10**10)
        assert "expected at most" in answer["text"]
        # The refusal costs no connection: the next request on it is answered.
        assert "was not told of that round" in raw.upload(lie.signed(round=_other_round()), b"x")["text"]
    return "missing"


def a_header_of_megabytes(lie: Lie) -> str:
    with raw_from(lie.site) as raw:
        raw.greet()
        answer = raw.upload((secrets.token_bytes(70_000), bytes(64)), b"")
        assert (answer["code"], answer["text"][-30:]) == ("protocol", "at most 65536 bytes, got 70000")
        with contextlib.suppress(OSError):  # it may close before it has all
            raw.request({"type": "upload", "header": (bytes(2_000_000), bytes(64))})
        assert raw.closed()
    return "missing"


def another_message_than_a_header(lie: Lie) -> str:
    for header in ((b"", b""), (b"\xc1" * 50, bytes(64)), (msgspec.msgpack.encode([1, 2]), bytes(64))):
        answers = lie.send(true, header)
        assert all("signature has 64" in one or "no UploadHeader" in one for one in answers)
    return "missing"


def one_byte_too_few(lie: Lie) -> str:
    assert all("was expected" in one for one in lie.send(lambda _name, part: part[:-1]))
    return "missing"


def one_byte_too_many(lie: Lie) -> str:
    answers = lie.send(lambda _name, part: part + b"x")
    assert all("was expected" in one or "expected at most" in one for one in answers)
    return "missing"


def a_vector_for_a_seed(lie: Lie) -> str:
    vector = max(lie.parts.parts.values(), key=len)
    answers = lie.send(lambda _name, part: part if part == vector else vector)
    assert sorted("was expected" in one for one in answers) == [False, True, True]
    return "incomplete"


def more_body_than_announced(lie: Lie) -> str:
    with raw_from(lie.site) as raw:
        raw.greet()
        raw.request({"type": "upload", "header": lie.header}, 64)
        raw.frame("upload/body", bytes(5000))
        assert raw.closed()
    return "missing"


def half_a_body_and_the_end(lie: Lie) -> str:
    with raw_from(lie.site) as raw:
        raw.greet()
        raw.request({"type": "upload", "header": lie.header}, 64)
        raw.frame("upload/body", bytes(32))
    return "missing"


def a_part_that_is_not_in_the_header(lie: Lie) -> str:
    answers = lie.send(lambda name, part: lie.wrong_part(name) if name == "party-1" else part)
    assert answers == ["stored", answers[1], "stored"]
    assert "not the one its header names" in answers[1]
    return "incomplete"


def a_wrong_seed_in_the_header(lie: Lie) -> str:
    return _confirmed(lie, next(one for one, part in lie.parts.parts.items() if len(part) == 64))


def a_wrong_vector_in_the_header(lie: Lie) -> str:
    return _confirmed(lie, next(one for one, part in lie.parts.parts.items() if len(part) > 64))


def _confirmed(lie: Lie, name: str) -> str:
    """Send one wrong part and a header that is true for it: only the checksum word can tell."""
    parts = {**lie.parts.parts, name: lie.wrong_part(name)}
    digests = tuple(part_digest(lie.parts.upload_id, one, [part], len(part)) for one, part in parts.items())
    assert lie.send(lambda one, _part: parts[one], lie.signed(digests=digests)) == ["stored"] * 3
    return "inconsistent"


def two_headers(lie: Lie) -> str:
    other = lie.made_for(lie.round.announcement)
    assert lie.send_to(0, true) == "stored"
    header = other.header.payload, other.header.signature
    for number in (1, 2):
        assert lie.send_to(number, lambda name, _part: other.parts[name], header) == "stored"
    return "incomplete"


def a_header_for_an_unknown_round(lie: Lie) -> str:
    assert all(
        "was not told of that round" in one for one in lie.send(true, lie.signed(round=_other_round()))
    )
    return "missing"


def the_part_of_another_round(lie: Lie) -> str:
    """A whole upload of another open round, under this round's name; then its header with this digest."""
    other = lie.site.open(round=2, upload_seconds=0.2)
    parts = lie.made_for(other.announcement)
    answers = lie.with_parts(parts).send(true, lie.with_parts(parts).signed(round=lie.round.announcement.id))
    assert all("answers another announcement" in one for one in answers)
    answers = lie.send(lambda name, _part: parts.parts[name])
    assert all("not the one its header names" in one or "was expected" in one for one in answers)
    return "missing"


def the_part_of_an_earlier_round(lie: Lie) -> str:
    earlier = lie.site.open(upload_seconds=0.1)
    parts = lie.made_for(earlier.announcement)
    with pytest.raises(RoundAbortedError, match="0 complete uploads"):
        lie.site.collect(earlier)
    assert all("was aborted" in one for one in lie.with_parts(parts).send(true))
    return "missing"


def the_name_of_another_hospital(lie: Lie) -> str:
    assert all(
        "header of another hospital" in one for one in lie.send(true, lie.signed(hospital="hospital-00"))
    )
    answers = lie.send(true, lie.signed(signer="hospital-00"))
    assert all("expected a signature by the key" in one for one in answers)
    return "missing"


def _other_round() -> Any:
    return (secrets.token_bytes(16), 1, "train")


LIES = [
    garbage_instead_of_a_hello,
    garbage_after_the_hello,
    four_gigabytes_in_a_frame,
    ten_gigabytes_in_a_request,
    a_header_of_megabytes,
    another_message_than_a_header,
    one_byte_too_few,
    one_byte_too_many,
    a_vector_for_a_seed,
    more_body_than_announced,
    half_a_body_and_the_end,
    a_part_that_is_not_in_the_header,
    a_wrong_seed_in_the_header,
    a_wrong_vector_in_the_header,
    two_headers,
    a_header_for_an_unknown_round,
    the_part_of_another_round,
    the_part_of_an_earlier_round,
    the_name_of_another_hospital,
]


@pytest.mark.parametrize("tell", LIES, ids=lambda tell: tell.__name__)
def test_threat_17_37_38_a_raw_socket_that_lies_costs_only_itself(
    site: Site, tell: Callable[[Lie], str]
) -> None:
    round_ = site.open()
    others = [name for name in site.names if name != LIAR]
    site.submit(round_, others[:2])
    round_.contribution(LIAR)
    lie = Lie(site, round_)
    memory = [_memory(site.pid(party.name)) for party in site.file.parties]
    expected = tell(lie)
    grown = [_memory(site.pid(party.name)) for party in site.file.parties]
    assert max(after - before for before, after in zip(memory, grown, strict=True)) < 64 * 2**20
    site.submit(round_, others[2:])
    round_.check(site.collect(round_), others, {LIAR: expected})
    assert site.verdicts(round_) == {**dict.fromkeys(others, "included"), LIAR: expected}
    assert site.keeps_nothing(round_)


def test_threat_18_a_second_upload_of_other_bytes_is_refused_and_the_first_counts(site: Site) -> None:
    round_ = site.open()
    site.submit(round_, site.names)
    answers = Lie(site, round_).send(true)
    assert all("came too late" in one or "has uploaded" in one for one in answers), answers
    round_.check(site.collect(round_), site.names, {})


def test_a_body_that_goes_on_after_the_closing_is_refused_and_not_counted(site: Site) -> None:
    round_ = site.open()
    others = [name for name in site.names if name != LIAR]
    round_.contribution(LIAR)
    lie = Lie(site, round_)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(raw_from(site, number)) for number in range(3)]
        bodies = [lie.parts.parts[raw.aggregator] for raw in slow]
        for raw, body in zip(slow, bodies, strict=True):
            raw.greet()
            raw.request({"type": "upload", "header": lie.header}, len(body))
            raw.frame("upload/body", body[:40])
        site.submit(round_, others)
        result = site.collect(round_)
        for raw, body in zip(slow, bodies, strict=True):
            raw.frame("upload/body", body[40:])
            assert "takes no more uploads: this one came too late" in raw.answer()["text"]
    round_.check(result, others, {LIAR: "missing"})
    assert site.verdicts(round_)[LIAR] == "missing"
    assert site.keeps_nothing(round_)


def _memory(pid: int) -> int:
    """Return the most memory a process has had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


# Certificates that are not the right ones.


def other_certificate(path: Path, original: Path, issuer: Authority, name: str, role: Role) -> Path:
    """Write an identity with the original's own key and another certificate for it."""
    key = load_pem_private_key(original.read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    certificate = issuer._certify(key.public_key(), name, role, (), None)
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    text += certificate.public_bytes(Encoding.PEM) + issuer.certificate_pem.encode()
    path.touch(mode=0o600)
    path.write_bytes(text)
    return path


def test_threat_39_40_a_hospital_with_a_wrong_certificate_is_refused(site: Site, tmp_path: Path) -> None:
    ours = Authority.load(site.cluster.folder / "keys" / "authority")
    foreign = Authority.create(tmp_path / "foreign-authority")
    own = site.cluster.identity(LIAR)
    cases = {
        "user": (ours, Role.USER, "upload is for hospital, not for user hospital-03"),
        "party": (ours, Role.PARTY, "the cluster file names no party 'hospital-03'"),
        "owner": (ours, Role.OWNER, "the cluster file has another key for owner hospital-03"),
        "server": (ours, Role.SERVER, "the cluster file has another key for server hospital-03"),
        "foreign": (foreign, Role.HOSPITAL, "expected a certificate of party-0 by our authority"),
    }
    round_ = site.open()
    before = site.meters()
    processes = {}
    for case, (issuer, role, _text) in cases.items():
        pem = other_certificate(tmp_path / f"{case}.pem", own, issuer, LIAR, role)
        processes[case] = site.start(_trust(site, tmp_path / case, identity=pem))
        processes[case].do("accept", round=str(round_.folder))
        processes[case].do("submit", **round_.contribution(LIAR))
    stranger = ours.issue(tmp_path, "hospital-77", Role.HOSPITAL)
    processes["stranger"] = site.start(_trust(site, tmp_path / "stranger", identity=stranger))
    for case, process in processes.items():
        code, text = process.ended()
        expected = cases[case][2] if case in cases else "the trust file's roster does not hold 'hospital-77'"
        assert (code, case) == (TrustError.exit_code, case)
        assert expected in text
        assert text.count("\n") == 1
    site.submit(round_, site.names[:3])
    round_.check(site.collect(round_), site.names[:3], dict.fromkeys(site.names[3:], "missing"))
    answers = upload_answers(site.meters()) - upload_answers(before)
    assert answers == 3 * 3 + 3, "nine parts stored, the user refused by each; nobody else could even ask"


def test_threat_39_the_aggregator_refuses_a_foreign_certificate_too(site: Site, tmp_path: Path) -> None:
    """The client trusts our aggregators; its certificate is of another authority, or not enrolled."""
    own = site.cluster.identity(LIAR)
    foreign = other_certificate(
        tmp_path / "foreign.pem", own, Authority.create(tmp_path / "foreign-authority"), LIAR, Role.HOSPITAL
    )
    ours = Authority.load(site.cluster.folder / "keys" / "authority")
    for number in range(3):
        with raw_from(site, number, pem=foreign) as raw, pytest.raises(ssl.SSLError, match="unknown ca"):
            raw.greet()
        stranger = ours.issue(tmp_path / f"stranger-{number}.pem", "hospital-77", Role.HOSPITAL)
        with raw_from(site, number, "hospital-77", stranger) as raw:
            hello = raw.greet()
            assert hello["refusal"] == "trust"
            assert "names no hospital 'hospital-77'" in hello["text"]
            assert raw.closed()
        impostor = ours.issue(tmp_path / f"impostor-{number}.pem", LIAR, Role.HOSPITAL)
        with raw_from(site, number, LIAR, impostor) as raw:
            hello = raw.greet()
            assert hello["refusal"] == "trust"
            assert "has another key for hospital hospital-03" in hello["text"]
            assert raw.closed()


def _trust(site: Site, folder: Path, **changes: Any) -> Path:
    """Write a trust file of its own for a process that plays the liar."""
    folder.mkdir()
    file = TrustFile.load(site.cluster.trust_file(LIAR))
    replace(file, state=folder / "state", **changes).save(folder / "trust.toml")
    return folder / "trust.toml"


# A server that asks for what the trust file does not admit.


def test_threat_49_a_server_outside_the_trust_file_gets_no_byte(site: Site, tmp_path: Path) -> None:
    plain, model = site.announcement(upload_seconds=5.0)
    keys = {one.name: one.public_key for one in plain.aggregators}
    stranger = Identity.load(
        Authority.load(site.cluster.folder / "keys" / "authority").issue(tmp_path, "party-9", Role.PARTY)
    )
    wide = ArraySpec("layer", "float32", (SMALL,), 17.0)
    hospitals = len(site.names)
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "fewer aggregators": (
            {"aggregators": members({name: keys[name] for name in ("party-0", "party-1")})},
            "aggregators = 2, outside the limits of the trust file",
        ),
        "a stranger among them": (
            {"aggregators": members({**keys, "party-9": stranger.public_key})},
            "the announced aggregator 'party-9' is not in the trust file",
        ),
        "another key": (
            {"aggregators": members({**keys, "party-1": stranger.public_key})},
            "the announced aggregator 'party-1' has another key than the trust file",
        ),
        "another recipient": (
            {"recipient": Member("server", stranger.public_key)},
            "the announced recipient of the average is not the pinned server",
        ),
        "a smaller cohort": ({"minimum_cohort": 2}, "minimum_cohort = 2, outside the limits"),
        "a wider clip": (
            {"arrays": (wide,), "encoding": plan_encoding(hospitals, 17.0, 1000, 50.0)},
            "clip = 17.0, outside the limits",
        ),
        "a larger weight": (
            {"encoding": plan_encoding(hospitals, 1.0, 100_001, 50_000.0)},
            "largest_weight = 100001, outside the limits",
        ),
        "other words": (
            {"encoding": plan_encoding(hospitals, 1.0, 1000, 50.0, 64)},
            "ring_bits = 64, outside the limits",
        ),
        "another model": (
            {"array_digests": (array_digest(model + 1),)},
            "array 'layer' differs from the announced one: the server sent another model",
        ),
        "another config": (
            {"config": encode_config({**CONFIG, "lr": 0.0})},
            "config key 'lr' differs from the announced one",
        ),
        "another server": ({}, "expected a signature by the key"),
    }
    before = site.meters()
    opened, processes = set(), {}
    for case, (fields, _text) in cases.items():
        values = {"session": secrets.token_bytes(16), "minimum_cohort": 3, **fields}
        announcement = msgspec.structs.replace(plain, **values)
        signer = stranger if case == "another server" else site.server
        signed = Signed(announcement.encode(), sign_announcement(announcement, signer))
        if signer is site.server:
            opened |= _opens(site, case, announcement)
        limits = TrustLimits(minimum_cohort=3, metrics={"loss": (0.0, 10.0)})
        processes[case] = site.start(_trust(site, tmp_path / case, limits=limits))
        processes[case].do("accept", round=str(site.lay_out(announcement, signed, model).folder))
    for case, process in processes.items():
        code, text = process.ended()
        assert (code, case) == (TrustError.exit_code, case)
        assert text.startswith("hospital: ")
        assert cases[case][1] in text
        assert text.count("\n") == 1
    # What aggregators have no limits for they did open: there the hospital's own file is all there is.
    assert opened >= {
        "a smaller cohort", "a wider clip", "a larger weight", "other words",
        "another model", "another config",
    }  # fmt: skip
    after = site.meters()
    for name in after:
        assert counts_of(after[name].by_peer, LIAR) == counts_of(before[name].by_peer, LIAR), (
            "not even a hello"
        )
        assert counts_of(after[name].by_label, "upload") == counts_of(before[name].by_label, "upload")


def test_threat_26_a_server_that_announces_two_models_is_caught_by_the_hospital(site: Site) -> None:
    round_ = site.open()
    hospital = site.hospital(LIAR)
    hospital.do("accept", round=str(round_.folder))
    assert hospital.hear() == {"did": "accept"}
    other = np.zeros(SMALL, np.float32)
    second = msgspec.structs.replace(round_.announcement, array_digests=(array_digest(other),))
    with pytest.raises(TrustError, match="two announcements"):
        site.collector.announce(second, Deadline.after(30))
    signed = Signed(second.encode(), sign_announcement(second, site.server))
    hospital.do("accept", round=str(site.lay_out(second, signed, other).folder))
    code, text = hospital.ended()
    assert code == TrustError.exit_code
    assert "the server signed two announcements for round 1 (train)" in text
    # Both announcements are kept as proof, with the server's signatures.
    with closing(
        sqlite3.connect(TrustFile.load(site.cluster.trust_file(LIAR)).state / "hospital.sqlite")
    ) as db:
        rows = db.execute(
            "SELECT payload, signature FROM announcements WHERE session=?", (second.session,)
        ).fetchall()
    assert {(round_.signed.payload, round_.signed.signature), (signed.payload, signed.signature)} == set(rows)
    site.submit(round_, site.names[:3])
    round_.check(site.collect(round_), site.names[:3], dict.fromkeys(site.names[3:], "missing"))


def _opens(site: Site, case: str, announcement: Announcement) -> set[str]:
    try:
        site.collector.announce(announcement, Deadline.after(30))
    except TrustError:
        return set()
    return {case}
