"""What a hospital keeps of a round: files that prove, offline, that it was counted once; what they refuse."""

from __future__ import annotations

import base64
import json
import random
import re
from dataclasses import replace

import pytest
from aggregation_world import FakeIdentity, World, contribution, replaced, soon

from fedsec.aggregation.messages import Signed, Upload, UploadHeader, read, seal
from fedsec.aggregation.receipt_file import ReceiptFile, Receipts, verify_receipt
from fedsec.aggregation.trust import TrustLimits
from fedsec.cli.main import main
from fedsec.errors import FedsecError, PeerLostError, RoundAbortedError, TrustError, UsageError
from fedsec.transport import Role


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A finished round of four hospitals, one of which was not there; and its world."""
    with World(tmp_path_factory.mktemp("receipts")) as world:
        announcement = world.announcement()
        signed = world.open(announcement)
        world.sent, ask = [], world.network.ask

        def record(peer, name, message, body=b""):
            if isinstance(message, Upload):
                world.sent.append((peer.name, bytes(body)))
            return ask(peer, name, message, body)

        world.network.ask = record
        for seed, hospital in enumerate(world.hospitals[:3]):
            world.submit(hospital, announcement, signed, contribution(seed))
        world.collect(announcement)
        for hospital in world.hospitals[:3]:
            world.client(hospital).receipt(announcement, soon())
        yield world, announcement


def path_of(world, hospital, announcement):
    return Receipts(world.folder / "hospitals" / hospital.name).path(announcement.id)


def receipt_of(counted, number=1):
    world, announcement = counted
    return ReceiptFile.load(path_of(world, world.hospitals[number], announcement))


def test_threat_25_a_receipt_proves_offline_that_one_was_counted_once(counted):
    world, announcement = counted
    for hospital in world.hospitals[:3]:
        path = path_of(world, hospital, announcement)
        assert path.stat().st_mode & 0o777 == 0o600
        for trust in (None, world.trust(hospital)):
            report = verify_receipt(ReceiptFile.load(path), trust)
            assert report.hospital == hospital.name
            assert report.announcement == announcement
            assert report.included == 3
            assert report.acknowledged == ("agg-0", "agg-1", "agg-2")
            assert report.upload_id == world.client(hospital)._state.submitted(announcement.id).upload_id


def other_bytes(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


def with_inclusion(file: ReceiptFile, **fields) -> ReceiptFile:
    assert file.inclusion is not None
    return replace(file, inclusion=replaced(file.inclusion, **fields))


LIES = {
    "the server's signature of the announcement": lambda file, _: replace(
        file, announcement=Signed(file.announcement.payload, other_bytes(file.announcement.signature))
    ),
    "the announcement": lambda file, _: replace(
        file, announcement=Signed(file.announcement.payload[:-9], file.announcement.signature)
    ),
    "the upload header": lambda file, other: replace(file, header=other.header),
    "the upload header of another upload id": lambda file, _: replace(
        file, header=Signed(file.header.payload.replace(file.header.payload[90:95], b"\0" * 5), b"\0" * 64)
    ),
    "the acknowledgement of 'agg-1'": lambda file, other: replace(
        file, acknowledgements={**file.acknowledgements, "agg-1": other.acknowledgements["agg-1"]}
    ),
    "the acknowledgement of 'agg-9'": lambda file, _: replace(file, acknowledgements={"agg-9": b"\0" * 64}),
    "the proof of inclusion": lambda file, other: replace(file, inclusion=other.inclusion),
    "the proof of inclusion at another place": lambda file, _: with_inclusion(file, index=0),
    "the proof of inclusion with a shorter path": lambda file, _: with_inclusion(
        file, path=file.inclusion.path[:-1]
    ),
    "the proof of inclusion without an aggregator": lambda file, _: with_inclusion(
        file, statements=file.inclusion.statements[:2]
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_threat_25_a_receipt_that_was_tampered_with_says_which_part_does_not_fit(counted, lie):
    world, _ = counted
    file = LIES[lie](receipt_of(counted, 1), receipt_of(counted, 2))
    part = next(one for one in sorted(LIES, key=len) if lie.startswith(one))
    for trust in (None, world.trust(world.hospitals[1])):
        with pytest.raises(TrustError, match=f"the receipt is not valid: {part} does not fit"):
            verify_receipt(file, trust)


def test_threat_25_somebody_elses_receipt_is_not_mine(counted):
    file = replace(receipt_of(counted, 2), hospital="h01")
    with pytest.raises(TrustError, match="the upload header does not fit"):
        verify_receipt(file)


def test_threat_25_keys_that_were_made_up_are_found_out_with_the_trust_file(counted, tmp_path):
    """Whoever draws all keys anew can make a receipt that is consistent; it is not about the pinned ones."""
    world, _ = counted
    with World(tmp_path) as made_up:
        announcement = made_up.announcement()
        signed = made_up.open(announcement)
        for seed, hospital in enumerate(made_up.hospitals):
            made_up.submit(hospital, announcement, signed, contribution(seed))
        made_up.collect(announcement)
        made_up.client(made_up.hospitals[1]).receipt(announcement, soon())
        file = ReceiptFile.load(path_of(made_up, made_up.hospitals[1], announcement))
    assert not verify_receipt(file).keys_compared
    with pytest.raises(TrustError, match="the server's signature of the announcement does not fit"):
        verify_receipt(file, world.trust(world.hospitals[1]))
    # A trust file that asks for more than the round promised finds that, too.
    strict = replace(world.trust(world.hospitals[1]), limits=TrustLimits(minimum_cohort=4))
    with pytest.raises(TrustError, match=r"minimum_cohort = 2, outside the limits of the trust file$"):
        verify_receipt(receipt_of(counted), strict)


def test_a_header_that_the_hospital_signed_for_another_round_does_not_fit(counted):
    world, _ = counted
    file, hospital = receipt_of(counted), world.hospitals[1]
    header = read(file.header, UploadHeader)
    for fields, text in (
        ({"round": replaced(header.round, round=2)}, "of another hospital or round"),
        ({"announcement": bytes(32)}, "answers another announcement"),
    ):
        forged = replace(file, header=seal(hospital, replaced(header, **fields)))
        with pytest.raises(TrustError, match=text):
            verify_receipt(forged)
    stranger = FakeIdentity("h01", Role.HOSPITAL)
    with pytest.raises(TrustError, match="the upload header does not fit"):
        verify_receipt(replace(file, header=seal(stranger, header)))


def test_acknowledgements_alone_are_kept_and_prove_no_inclusion(tmp_path):
    with World(tmp_path) as world:
        announcement = world.announcement()
        signed = world.open(announcement)
        hospital = world.hospitals[0]
        world.submit(hospital, announcement, signed, contribution(0))
        file = ReceiptFile.load(path_of(world, hospital, announcement))
        assert sorted(file.acknowledgements) == ["agg-0", "agg-1", "agg-2"]
        with pytest.raises(FedsecError, match="acknowledgements only") as caught:
            verify_receipt(file, world.trust(hospital))
        assert caught.value.exit_code == 1
        with pytest.raises(RoundAbortedError):
            world.collect(announcement)
        client = world.client(hospital)
        assert [one.id for one in client.unconfirmed()] == [announcement.id]
        with pytest.raises(RoundAbortedError):
            client.receipt(announcement, soon())
        assert client.unconfirmed() == []


def test_an_upload_whose_acknowledgement_was_lost_can_still_be_proven(tmp_path):
    with World(tmp_path) as world:
        announcement = world.announcement()
        signed = world.open(announcement)
        ask = world.network.ask

        def lossy(peer, name, message, body=b""):
            answer = ask(peer, name, message, body)
            if isinstance(message, Upload) and peer.name == "h00" and name == "agg-2":
                raise PeerLostError("aggregator 'agg-2' broke the connection")
            return answer

        world.network.ask = lossy
        with pytest.raises(PeerLostError):
            world.submit(world.hospitals[0], announcement, signed, contribution(0))
        world.network.ask = ask
        for seed, hospital in enumerate(world.hospitals[1:], start=1):
            world.submit(hospital, announcement, signed, contribution(seed))
        assert "h00" in world.collect(announcement).included
        world.restart_client(world.hospitals[0]).receipt(announcement, soon())
        report = verify_receipt(ReceiptFile.load(path_of(world, world.hospitals[0], announcement)))
        assert (report.included, report.acknowledged) == (4, ())


def test_what_is_not_known_yet_is_asked_after_a_restart(tmp_path):
    """In a deployment each message has a process of its own: what to ask for is on the hospital's disk."""
    with World(tmp_path) as world:
        announcement = world.announcement()
        signed = world.open(announcement)
        for seed, hospital in enumerate(world.hospitals):
            world.submit(hospital, announcement, signed, contribution(seed))
        world.collect(announcement)
        hospital = world.hospitals[2]
        client = world.restart_client(hospital)
        (one,) = client.unconfirmed()
        client.receipt(one, soon())
        assert client.unconfirmed() == []
        assert verify_receipt(ReceiptFile.load(path_of(world, hospital, announcement))).included == 4


def test_one_aggregator_that_says_aborted_does_not_hide_the_proof_of_another(tmp_path):
    """One that was set back to an older disk knows no better."""
    with World(tmp_path) as world:
        announcement = world.announcement()
        signed = world.open(announcement)
        for seed, hospital in enumerate(world.hospitals):
            world.submit(hospital, announcement, signed, contribution(seed))
        world.collect(announcement)
        for change, hospital in (("UPDATE rounds SET state='aborted'", 0), ("DELETE FROM rounds", 1)):
            world.network.aggregators["agg-0"]._store._db.execute(change)
            world.restart("agg-0")
            assert world.client(world.hospitals[hospital]).receipt(announcement, soon()).included == 4


# On the command line.


def test_the_command_says_it_in_plain_words(counted, tmp_path, capsys):
    world, announcement = counted
    hospital = world.hospitals[0]
    path, trust = path_of(world, hospital, announcement), tmp_path / "trust.toml"
    world.trust(hospital).save(trust)

    assert main(["verify-receipt", str(path)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("h00 was counted once in round 1 (train) of session ")
    assert "in a sum over 3 hospitals\n" in told
    assert "signed by agg-0, agg-1, agg-2\n" in told
    assert "the receipt's own" in told

    other = path_of(world, world.hospitals[1], announcement)
    assert main(["verify-receipt", str(path), str(other), "--trust", str(trust), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["receipts"]
    assert [(one["hospital"], one["counted"], one["included"]) for one in values] == [
        ("h00", 1, 3),
        ("h01", 1, 3),
    ]
    assert values[0]["announcement"] == announcement.digest.hex()
    assert values[0]["keys_compared"]


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (lambda table: table["inclusion"].update(index=2), 4, "the proof of inclusion does not fit"),
        (lambda table: table.pop("inclusion"), 1, "acknowledgements only (agg-0, agg-1, agg-2)"),
        (lambda table: table.update(format="fedsec receipt 2"), 2, "is no receipt"),
        (lambda table: table.pop("header"), 2, "a field is missing or has another form"),
        (lambda table: table["header"].update(payload=7), 2, "a field is missing or has another form"),
        (lambda table: table["header"].update(payload="%%%"), 2, "a field is missing or has another form"),
        (lambda table: table.update(acknowledgements=[]), 2, "a field is missing or has another form"),
        (lambda table: table["inclusion"].update(index=True), 2, "a field is missing or has another form"),
    ],
)  # fmt: skip
def test_the_exit_code_says_what_is_wrong(counted, tmp_path, capsys, *, change, code, text):
    world, announcement = counted
    lines = path_of(world, world.hospitals[0], announcement).read_text().splitlines()
    table = {key: value for line in lines for key, value in json.loads(line).items()}
    change(table)
    path = tmp_path / "a.receipt"
    path.write_text(json.dumps(table))
    assert main(["verify-receipt", str(path)]) == code
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", "{", "7\n7", "{}\n[]", "[" * 100_000])
def test_what_is_no_receipt_is_refused(tmp_path, content):
    path = tmp_path / "a.receipt"
    path.write_text(content)
    with pytest.raises(UsageError, match="is no receipt"):
        ReceiptFile.load(path)
    with pytest.raises(UsageError, match="cannot read"):
        ReceiptFile.load(tmp_path / "nothing")


def test_whatever_bytes_a_receipt_has_it_is_refused_as_one_of_ours(counted, tmp_path):
    """Files come from elsewhere: an auditor gets a sentence, never a traceback."""
    world, announcement = counted
    content = path_of(world, world.hospitals[0], announcement).read_bytes()
    generator, path = random.Random(20), tmp_path / "a.receipt"
    refused = 0
    for _ in range(400):
        spoilt = bytearray(content)
        for _ in range(generator.randint(1, 3)):
            spoilt[generator.randrange(len(spoilt))] = generator.choice(b'AZaz09+/={}[]",:\n\x00\xff')
        path.write_bytes(
            spoilt[: len(spoilt) if generator.random() < 0.8 else generator.randrange(len(spoilt))]
        )
        try:
            verify_receipt(ReceiptFile.load(path))
        except FedsecError:
            refused += 1
    assert refused > 350, "nearly every change is one of what is signed"


def test_threat_54_a_receipt_holds_no_part(counted):
    """It is made of digests, signatures and the announcement: what every aggregator has, too."""
    world, announcement = counted
    content = path_of(world, world.hospitals[0], announcement).read_text()
    held = b"".join(base64.b64decode(one) for one in re.findall(r'"([\w+/=]{16,})"', content))
    assert announcement.digest in held  # the search does find what is there
    bodies = [body for name, body in world.sent if name == "h00"]
    assert len(bodies) == 3
    for body in bodies:
        pieces = [body[at : at + 16] for at in range(0, len(body) - 15, 16)]
        assert not any(piece in held for piece in pieces)
