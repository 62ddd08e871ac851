"""Hospitals, aggregators and servers that leave the protocol. Numbers are lines of the threat model."""

import dataclasses
import shutil

import msgspec
import numpy as np
import pytest
from aggregation_world import FakeIdentity, World, contribution, replaced, soon

from fedsec.aggregation import HospitalClient
from fedsec.aggregation.checksum import Checksum
from fedsec.aggregation.encoding import encode_update
from fedsec.aggregation.making import make_parts
from fedsec.aggregation.messages import (
    AbortRound,
    Announce,
    ChainHead,
    CloseUploads,
    CollectSum,
    FinishRound,
    GetReceipt,
    Hello,
    ListStatement,
    Receipt,
    SetSignature,
    SetStatement,
    SumShare,
    Upload,
    UploadHeader,
    UploadList,
    part_digest,
    read,
    seal,
)
from fedsec.errors import FedsecError, PeerLostError, ProtocolError, RoundAbortedError, StateError, TrustError
from fedsec.sharing import compressed
from fedsec.transport import Role


def parts_of(world, announcement, hospital, one):
    words = encode_update(announcement.layout, one.update, one.num_examples, one.metrics)
    return make_parts(announcement, hospital, words)


def send(world, hospital, parts, header=None, change=None, *, only=None):
    """Upload as a program that is not our client would: no checks of its own."""
    outcomes = {}
    for name, part in parts.parts.items():
        if only is not None and name not in only:
            continue
        body = change(name, part) if change else part
        try:
            world.network.ask(hospital.peer, name, Upload(header or parts.header), body)
            outcomes[name] = "stored"
        except FedsecError as error:
            outcomes[name] = type(error).__name__
    return outcomes


def resigned(hospital, parts, /, **fields):
    header = replaced(read(parts.header, UploadHeader), **fields)
    return seal(hospital, header)


def consistent_digests(hospital, parts, changed):
    """A header that is true for the changed parts: the liar signs what it sends."""
    header = read(parts.header, UploadHeader)
    digests = tuple(
        part_digest(
            header.upload_id,
            name,
            [changed.get(name, parts.parts[name])],
            len(changed.get(name, b"")) or len(parts.parts[name]),
        )
        for name in header.recipients
    )
    return seal(hospital, replaced(header, digests=digests))


def honest_round_with(world, liar):
    """Three honest hospitals and one that ``liar(announcement, hospital)`` speaks for."""
    announcement = world.announcement()
    signed = world.open(announcement)
    contributions = [contribution(seed) for seed in range(3)]
    for hospital, one in zip(world.hospitals[:3], contributions, strict=True):
        world.submit(hospital, announcement, signed, one)
    liar(announcement, world.hospitals[3])
    result = world.collect(announcement)
    expected = sum(one.num_examples for one in contributions)
    assert result.included == ("h00", "h01", "h02")
    assert result.total_weight == expected
    plain = np.average(
        [c.update[0] for c in contributions], axis=0, weights=[c.num_examples for c in contributions]
    )
    assert np.abs(result.arrays[0] - plain).max() < 1e-5
    return result


@pytest.mark.parametrize("aggregators", [2, 3, 5])
@pytest.mark.parametrize("victim", ["holder", "seed"])
def test_threat_17_a_wrong_part_that_its_header_confirms_excludes_by_name(tmp_path, aggregators, victim):
    with World(tmp_path, aggregator_count=aggregators) as world:

        def liar(announcement, hospital):
            parts = parts_of(world, announcement, hospital, contribution(9))
            holder = announcement.vector_holder(hospital.name)
            name = holder if victim == "holder" else next(n for n in parts.parts if n != holder)
            wrong = bytearray(parts.parts[name])
            wrong[40] ^= 1
            header = consistent_digests(hospital, parts, {name: bytes(wrong)})
            outcomes = send(
                world, hospital, parts, header, lambda n, part: bytes(wrong) if n == name else part
            )
            assert set(outcomes.values()) == {"stored"}

        result = honest_round_with(world, liar)
        assert result.excluded == {"h03": "inconsistent"}


@pytest.mark.parametrize(
    "change",
    [
        lambda part: part[:-1],
        lambda part: part + b"\0",
        lambda part: b"",
        lambda part: bytes(len(part)),
        lambda part: part[::-1],
        lambda part: part * 1000,
    ],
)
def test_threat_17_a_part_that_is_not_the_one_in_the_header_is_dropped(world, change):
    def liar(announcement, hospital):
        parts = parts_of(world, announcement, hospital, contribution(9))
        outcomes = send(world, hospital, parts, change=lambda n, part: change(part) if n == "agg-1" else part)
        assert outcomes == {"agg-0": "stored", "agg-1": "ProtocolError", "agg-2": "stored"}

    assert honest_round_with(world, liar).excluded == {"h03": "incomplete"}
    for name in world.network.aggregators:
        assert not list(world.state_of(name).rglob("*.part"))


def test_threat_17_two_headers_to_two_aggregators_exclude(world):
    def liar(announcement, hospital):
        for seed, name in ((1, "agg-0"), (2, "agg-1"), (3, "agg-2")):
            parts = parts_of(world, announcement, hospital, contribution(seed))
            assert send(world, hospital, parts, only=[name]) == {name: "stored"}

    assert honest_round_with(world, liar).excluded == {"h03": "incomplete"}


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 2}, {"upload_id": b"short"}, {"hospital": "h00"}, {"hospital": "nobody"},
        {"recipients": ("agg-0", "agg-1")}, {"recipients": ("agg-2", "agg-1", "agg-0")}, {"digests": ()},
        {"encoding_version": 9}, {"proof": b"x"}, {"announcement": bytes(32)},
    ],
)  # fmt: skip
def test_threat_17_headers_that_do_not_fit_are_refused(world, fields):
    def liar(announcement, hospital):
        parts = parts_of(world, announcement, hospital, contribution(9))
        outcomes = send(world, hospital, parts, resigned(hospital, parts, **fields))
        assert set(outcomes.values()) <= {"ProtocolError", "TrustError"}

    assert honest_round_with(world, liar).excluded == {"h03": "missing"}


def test_threat_17_an_upload_for_another_round_is_refused(world):
    old = world.announcement(round=1)
    parts = parts_of(world, old, world.hospitals[0], contribution(0))
    world.open(replaced(old, round=2))
    assert set(send(world, world.hospitals[0], parts).values()) == {"ProtocolError"}
    moved = resigned(world.hospitals[0], parts, round=replaced(old, round=2).id)
    assert set(send(world, world.hospitals[0], parts, moved).values()) == {"ProtocolError"}


def test_threat_17_a_stranger_or_another_hospital_cannot_upload_for_one(world):
    announcement = world.announcement()
    world.open(announcement)
    parts = parts_of(world, announcement, world.hospitals[0], contribution(0))
    stranger = FakeIdentity("h00", Role.HOSPITAL)
    assert set(send(world, stranger, parts).values()) == {"TrustError"}
    assert set(send(world, world.hospitals[1], parts).values()) == {"TrustError"}
    forged = resigned(world.hospitals[1], parts)
    assert set(send(world, world.hospitals[0], parts, forged).values()) == {"TrustError"}


def test_threat_18_the_same_bytes_again_change_nothing_and_other_bytes_are_refused(world):
    announcement = world.announcement()
    world.open(announcement)
    hospital = world.hospitals[0]
    parts = parts_of(world, announcement, hospital, contribution(0))
    assert set(send(world, hospital, parts).values()) == {"stored"}
    assert set(send(world, hospital, parts).values()) == {"stored"}
    for name in world.network.aggregators:
        world.restart(name)
    assert set(send(world, hospital, parts).values()) == {"stored"}
    other = parts_of(world, announcement, hospital, contribution(1))
    assert set(send(world, hospital, other).values()) == {"ProtocolError"}
    same_id = replaced(announcement, round=2)
    world.open(same_id)
    replay = resigned(hospital, parts, round=same_id.id, announcement=same_id.digest)
    assert set(send(world, hospital, parts, replay).values()) == {"ProtocolError"}


def test_threat_17_a_hospital_cannot_squat_the_upload_id_of_another(world):
    """A corrupt server tells a hospital the random id of another's upload before all its parts are there."""
    announcement = world.announcement()
    world.open(announcement)
    victim, squatter = world.hospitals[:2]
    parts = parts_of(world, announcement, victim, contribution(0))
    theirs = parts_of(world, announcement, squatter, contribution(1))
    digests = tuple(
        part_digest(parts.upload_id, name, [part], len(part)) for name, part in theirs.parts.items()
    )
    header = resigned(squatter, theirs, upload_id=parts.upload_id, digests=digests)
    assert set(send(world, squatter, theirs, header).values()) == {"stored"}
    assert set(send(world, victim, parts).values()) == {"stored"}
    result = world.collect(announcement)
    assert result.included == (victim.name, squatter.name)
    assert result.total_weight == sum(contribution(seed).num_examples for seed in (0, 1))


def test_threat_18_a_retry_sends_identical_bytes_and_a_restart_sends_nothing(world):
    announcement = world.announcement()
    signed = world.open(announcement)
    hospital, one = world.hospitals[0], contribution(0)
    sent = []
    ask = world.network.ask

    def record(peer, name, message, body=b""):
        if isinstance(message, Upload):
            sent.append((name, message.header, bytes(body)))
        return ask(peer, name, message, body)

    world.network.ask = record
    world.network.offline.add("agg-2")
    with pytest.raises(FedsecError, match="agg-2"):
        world.submit(hospital, announcement, signed, one)
    first, sent[:] = sent[:], []
    world.network.offline.clear()
    world.submit(hospital, announcement, signed, one)
    assert {row[0]: row for row in sent} == {row[0]: row for row in first}
    sent.clear()
    world.submit(hospital, announcement, signed, one)
    assert sent == []
    world.restart_client(hospital)
    with pytest.raises(ProtocolError, match="before a restart"):
        world.submit(hospital, announcement, signed, one)
    assert sent == []


def agreed_round(world, present=4):
    announcement = world.announcement()
    signed = world.open(announcement)
    for seed, hospital in enumerate(world.hospitals[:present]):
        world.submit(hospital, announcement, signed, contribution(seed))
    world.close_uploads(announcement)
    return announcement


def own_set(world, name, key):
    return world.network.aggregators[name]._store.statements(key, "set")[name]


@pytest.mark.parametrize("restart", [False, True])
def test_threat_23_a_second_set_for_a_round_is_refused(world, restart):
    announcement = agreed_round(world)
    key = announcement.id.key
    if restart:
        for name in world.network.aggregators:
            world.restart(name)
    for name in world.network.aggregators:
        before = own_set(world, name, key)
        world.close_uploads(announcement)
        world.now += 10
        world.network.pump()
        assert own_set(world, name, key) == before

    # A peer that asks for S without one hospital: its second statement is refused, the first stands.
    party = world.parties[1]
    mine = read(own_set(world, "agg-1", key), SetStatement)
    head = read(mine.chain, ChainHead)
    chain = seal(party, replaced(head, counter=head.counter + 1))
    smaller = seal(party, replaced(mine, included=mine.included - 1, root=bytes(32), chain=chain))
    with pytest.raises(StateError, match="two different set statements"):
        world.network.ask(party.peer, "agg-0", SetSignature(smaller))
    assert world.collect(announcement).included_count == 4


def every_message(world, announcement, uploads):
    """One of each request, the harmless ones first; ``uploads`` holds a hospital's parts by its name."""
    key, party = announcement.id.key, world.parties[1]
    chain = seal(party, ChainHead(1, bytes(32)))
    yield Announce(world.sign(announcement)), b""
    for parts in uploads.values():
        yield GetReceipt(announcement.id, parts.upload_id), b""
        yield Upload(parts.header), parts.parts["agg-0"]
    yield CollectSum(announcement.id), b""
    yield Hello("agg-1", chain), b""
    for kind, message in (("list", UploadList), ("set", SetSignature)):
        known = world.network.aggregators["agg-1"]._store.statements(key, kind)
        yield message(known.get("agg-1", chain)), b""
    yield AbortRound(announcement.id, "why"), b""
    yield CloseUploads(announcement.id), b""
    yield FinishRound(announcement.id), b""


@pytest.mark.parametrize("agreed", [False, True])
def test_threat_21_there_is_no_message_that_opens_one_part(world, agreed):
    """The one reply with bytes of a share: the sum over S, to the server, once all have agreed."""
    announcement = world.announcement()
    world.open(announcement)
    uploads = {}
    for seed, hospital in enumerate(world.hospitals[:2]):
        uploads[hospital.name] = parts_of(world, announcement, hospital, contribution(seed))
        send(world, hospital, uploads[hospital.name])
    if agreed:
        world.close_uploads(announcement)
    parts = [part for one in uploads.values() for part in one.parts.values()]
    askers = [world.server, *world.hospitals, *world.parties]
    answered, with_body = set(), set()
    for message, body in every_message(world, announcement, uploads):
        for asker in askers:
            try:
                reply, answer = world.network.ask(asker.peer, "agg-0", message, body)
            except FedsecError as error:
                reply, answer = str(error).encode(), b""
            else:
                answered.add(type(message))
            if answer:
                with_body.add((asker.name, type(message)))
            for part in parts:
                pieces = [part[at : at + 8] for at in range(0, len(part) - 7, 8)]
                assert not any(piece in reply or piece in answer for piece in pieces)
    assert answered >= {Announce, GetReceipt, Upload, CollectSum, Hello, AbortRound, FinishRound}
    assert with_body == ({("server", CollectSum)} if agreed else set())


def test_threat_24_an_included_set_that_was_not_signed_is_refused(world):
    announcement = agreed_round(world)
    ask = world.network.ask

    def rename(peer, name, message, body=b""):
        reply, answer = ask(peer, name, message, body)
        if isinstance(message, CollectSum) and name == "agg-1":
            share = decode(reply, SumShare)
            included = (replaced(share.included[0], upload_id=bytes(16)), *share.included[1:])
            reply = encode(replaced(share, included=included))
        return reply, answer

    world.network.ask = rename
    with pytest.raises(ProtocolError, match="'agg-1' sent another included set than it signed"):
        world.collect(announcement)


def test_threat_50_every_commitment_to_a_sum_share_has_a_nonce_of_its_own(world):
    """Without one, whoever knows n-1 shares could test guesses of the sum against the last commitment."""
    nonces = []
    for number in (1, 2):
        announcement = world.announcement(round=number)
        world.open(announcement)
        for seed, hospital in enumerate(world.hospitals):
            send(world, hospital, parts_of(world, announcement, hospital, contribution(seed)))
        world.close_uploads(announcement)
        for name in world.network.aggregators:
            _, body = world.network.ask(world.server.peer, name, CollectSum(announcement.id))
            nonces.append(body[:32])
    assert len(set(nonces)) == 6
    assert bytes(32) not in nonces


def test_threat_24_a_flipped_bit_in_a_sum_share_is_blamed_on_its_aggregator(world):
    announcement = agreed_round(world)
    ask = world.network.ask

    def flip(peer, name, message, body=b""):
        reply, answer = ask(peer, name, message, body)
        if isinstance(message, CollectSum) and name == "agg-1" and answer:
            answer = answer[:50] + bytes([answer[50] ^ 4]) + answer[51:]
        return reply, answer

    world.network.ask = flip
    with pytest.raises(ProtocolError, match="'agg-1' sent another sum share"):
        world.collect(announcement)


def test_threat_24_a_share_altered_before_its_commitment_is_never_accepted(world):
    announcement = world.announcement()
    signed = world.open(announcement)
    for seed, hospital in enumerate(world.hospitals):
        if seed == 3:
            target = world.network.aggregators["agg-2"]._rounds[announcement.id.key].holdings
            target.sum = lambda included, honest=target.sum: honest(included) + np.uint32(1)
        world.submit(hospital, announcement, signed, contribution(seed))
    with pytest.raises(RoundAbortedError, match="checksum"):
        world.collect(announcement)


@pytest.mark.parametrize("field", ["included", "root", "commitment", "aggregator"])
def test_threat_24_a_changed_statement_is_refused_everywhere(world, field):
    announcement = agreed_round(world)
    ask = world.network.ask

    def change(peer, name, message, body=b""):
        reply, answer = ask(peer, name, message, body)
        if isinstance(message, CollectSum) and name == "agg-0":
            share = decode(reply, SumShare)
            statement = read(share.statements[1], SetStatement)
            value = {"included": 3, "root": bytes(32), "commitment": bytes(32), "aggregator": "agg-0"}[field]
            forged = seal(world.parties[1], replaced(statement, **{field: value}))
            statements = (share.statements[0], forged, share.statements[2])
            reply = encode(replaced(share, statements=statements))
        return reply, answer

    world.network.ask = change
    with pytest.raises(ProtocolError, match=r"agg-1|agg-0"):
        world.collect(announcement)


def decode(payload, kind):
    return msgspec.msgpack.decode(payload, type=kind)


def encode(message):
    return msgspec.msgpack.encode(message)


def test_threat_24_aggregators_that_were_told_different_lists_abort(world):
    """An aggregator that signs one list for one peer and another for the other ends the round, named."""
    announcement = world.announcement()
    signed = world.open(announcement)
    for seed, hospital in enumerate(world.hospitals[:3]):
        world.submit(hospital, announcement, signed, contribution(seed))
    liar = world.parties[2]
    ask, seen = world.network.ask, []

    def two_lists(peer, name, message, body=b""):
        if isinstance(message, UploadList) and peer.name == "agg-2" and name == "agg-1":
            statement = read(message.statement, ListStatement)
            message = UploadList(seal(liar, replaced(statement, entries=statement.entries[:2])))
            seen.append(name)
        return ask(peer, name, message, body)

    world.network.ask = two_lists
    world.close_uploads(announcement)
    assert seen
    with pytest.raises(RoundAbortedError, match=r"signed another included set|ended the round"):
        world.collect(announcement)


def test_threat_25_a_dropped_hospital_learns_it_and_others_get_proofs(world):
    announcement = world.announcement()
    signed = world.open(announcement)
    for seed, hospital in enumerate(world.hospitals):
        world.submit(hospital, announcement, signed, contribution(seed)) if seed < 3 else None
    # The server lets agg-1 forget one hospital: its acknowledgement stands against the missing receipt.
    store = world.network.aggregators["agg-1"]._store
    store._db.execute("DELETE FROM uploads WHERE hospital='h01'")
    world.collect(announcement)

    assert world.client(world.hospitals[0]).receipt(announcement, soon()).included == 2
    with pytest.raises(TrustError, match="not in the sum"):
        world.client(world.hospitals[1]).receipt(announcement, soon())


def test_threat_25_a_receipt_names_no_other_hospital_and_cannot_be_forged(world):
    announcement = agreed_round(world)
    hospital = world.hospitals[2]
    client: HospitalClient = world.client(hospital)
    upload_id = client._state.submitted(announcement.id).upload_id
    reply, _ = world.network.ask(hospital.peer, "agg-0", GetReceipt(announcement.id, upload_id))
    for other in ("h00", "h01", "h03"):
        assert other.encode() not in reply
    good = decode(reply, Receipt)
    ask = world.network.ask
    for bad in (
        replaced(good, index=1),
        replaced(good, path=good.path[:-1]),
        replaced(good, path=(bytes(32), *good.path[1:])),
        replaced(good, statements=good.statements[:2]),
        replaced(good, statements=good.statements[::-1]),
    ):
        world.network.ask = lambda *_, bad=bad: (encode(bad), b"")
        with pytest.raises((TrustError, ProtocolError)):
            client.receipt(announcement, soon())
    world.network.ask = ask
    assert client.receipt(announcement, soon()).included == 4


@pytest.mark.parametrize("state", ["open", "agreed"])
def test_threat_29_one_aggregator_with_an_older_state_is_refused(tmp_path, state):
    with World(tmp_path) as world:
        first = world.announcement(round=1)
        signed = world.open(first)
        for seed, hospital in enumerate(world.hospitals[:3]):
            world.submit(hospital, first, signed, contribution(seed))
        backup = tmp_path / "backup"
        shutil.copytree(world.state_of("agg-1"), backup)
        world.close_uploads(first)
        if state == "agreed":
            world.collect(first)

        world.network.aggregators["agg-1"].close()
        shutil.rmtree(world.state_of("agg-1"))
        shutil.copytree(backup, world.state_of("agg-1"))
        world.network.aggregators["agg-1"] = world.start(world.parties[1])
        world.network.pump()

        # It closes again, now with one upload less, as a differencing server would have it.
        store = world.network.aggregators["agg-1"]._store
        store._db.execute("DELETE FROM uploads WHERE hospital='h02'")
        world.now += 1000
        world.network.pump()
        world.network.pump()
        with pytest.raises(RoundAbortedError, match="rolled back"):
            world.network.ask(world.server.peer, "agg-1", CollectSum(first.id))
        assert "agg-1" not in world.network.aggregators["agg-1"]._store.statements(first.id.key, "set")
        store = world.network.aggregators["agg-0"]._store
        assert read(store.statements(first.id.key, "set")["agg-0"], SetStatement).included == 3


def two_rounds_then_set_back(world, backup):
    """agg-1 is restored to its state after the first of two rounds."""
    for number in (1, 2):
        announcement = world.announcement(round=number)
        signed = world.open(announcement)
        for seed, hospital in enumerate(world.hospitals):
            world.submit(hospital, announcement, signed, contribution(10 * number + seed))
        world.collect(announcement)
        if number == 1:
            shutil.copytree(world.state_of("agg-1"), backup)
    world.network.aggregators["agg-1"].close()
    shutil.rmtree(world.state_of("agg-1"))
    shutil.copytree(backup, world.state_of("agg-1"))
    world.network.aggregators["agg-1"] = world.start(world.parties[1])


def test_threat_29_a_rolled_back_aggregator_notices_at_its_start(tmp_path):
    with World(tmp_path) as world:
        two_rounds_then_set_back(world, tmp_path / "backup")
        world.network.pump()
        with pytest.raises(StateError, match="behind"):
            world.open(world.announcement(round=3))


def test_threat_29_one_that_keeps_silent_about_it_is_refused_in_the_next_round(tmp_path):
    with World(tmp_path) as world:
        two_rounds_then_set_back(world, tmp_path / "backup")
        world.network.aggregators["agg-1"]._history._to_greet.clear()
        announcement = world.announcement(round=3)
        signed = world.open(announcement)
        for seed, hospital in enumerate(world.hospitals[:3]):
            world.submit(hospital, announcement, signed, contribution(30 + seed))
        with pytest.raises(RoundAbortedError, match="'agg-1' is behind"):
            world.collect(announcement)


def set_back_by_one_event(world, backup):
    """agg-1 is restored to its state before its last event, the list of a round that was aborted."""
    shutil.copytree(world.state_of("agg-1"), backup)
    aborted = world.announcement(round=1)
    world.open(aborted)
    with pytest.raises(RoundAbortedError):
        world.collect(aborted)
    world.network.aggregators["agg-1"].close()
    shutil.rmtree(world.state_of("agg-1"))
    shutil.copytree(backup, world.state_of("agg-1"))
    world.network.aggregators["agg-1"] = world.start(world.parties[1])
    return world.network.aggregators["agg-1"]


def announce(world, name, number):
    announcement = Announce(world.sign(world.announcement(round=number)))
    return world.network.ask(world.server.peer, name, announcement)


def test_threat_29_no_round_begins_before_all_peers_have_answered(world):
    world.restart("agg-1")
    world.network.offline.add("agg-2")
    world.network.pump()
    with pytest.raises(PeerLostError, match="aggregator 'agg-2' has not answered the greeting of 'agg-1'"):
        announce(world, "agg-1", 1)
    world.network.offline.clear()
    world.network.pump()
    announce(world, "agg-1", 1)


def test_threat_29_another_event_under_a_number_that_was_seen_is_noticed_in_the_greeting(tmp_path):
    """As many events as its peers saw, but not the same: the counter alone would not tell."""
    with World(tmp_path) as world:
        store = set_back_by_one_event(world, tmp_path / "backup")._store
        store.add_event(ChainHead(store.chain().counter + 1, bytes(32)), bytes(32))
        world.network.pump()
        for _ in range(2):
            for name in world.network.aggregators:
                with pytest.raises(StateError, match=r"'agg-1' is behind"):
                    announce(world, name, 2)
            # Both sides keep it, whatever happens to the processes.
            for name in world.network.aggregators:
                world.restart(name)._history._to_greet.clear()


def test_threat_29_a_peer_that_was_once_behind_stays_refused(tmp_path):
    """It hides its rollback until its first list; from the second event on its counter would look new."""
    with World(tmp_path) as world:
        set_back_by_one_event(world, tmp_path / "backup")._history._to_greet.clear()
        announcement = world.announcement(round=2)
        world.open(announcement)
        with pytest.raises(RoundAbortedError, match="'agg-1' is behind"):
            world.collect(announcement)
        for number in (3, 4):
            with pytest.raises(StateError, match="'agg-1' is behind"):
                announce(world, "agg-0", number)
            world.restart("agg-0")
            world.network.pump()


def test_threat_29_who_signed_two_statements_stays_refused(world):
    announcement = agreed_round(world)
    mine = read(own_set(world, "agg-1", announcement.id.key), SetStatement)
    other = seal(world.parties[1], replaced(mine, commitment=bytes(32)))
    with pytest.raises(StateError, match="two different set statements"):
        world.network.ask(world.parties[1].peer, "agg-0", SetSignature(other))
    with pytest.raises(StateError, match="'agg-1' signed two different"):
        announce(world, "agg-0", 2)


def test_threat_29_an_aggregator_enrolled_anew_under_its_name_takes_part_again(tmp_path):
    with World(tmp_path) as world:
        set_back_by_one_event(world, tmp_path / "backup")
        world.network.pump()
        with pytest.raises(StateError, match="behind"):
            announce(world, "agg-1", 2)

        shutil.rmtree(world.state_of("agg-1"))
        world.parties[1] = FakeIdentity("agg-1", Role.PARTY)
        world.network._peers["agg-1"] = world.parties[1].peer
        keys = {one.name: one.public_key for one in world.parties}
        world.policy = dataclasses.replace(world.policy, aggregators=keys)
        for name in world.network.aggregators:
            world.restart(name)
        announcement = world.announcement(round=2)
        signed = world.open(announcement)
        for seed, hospital in enumerate(world.hospitals):
            world.submit(hospital, announcement, signed, contribution(seed))
        assert world.collect(announcement).included_count == 4


def test_threat_50_digests_do_not_tell_which_of_two_updates_was_sent(world):
    """With n-1 parts and every public message, both candidates stay possible: no digest can be recomputed."""
    announcement = world.announcement()
    hospital = world.hospitals[0]
    candidates = [contribution(1), contribution(2)]
    parts = parts_of(world, announcement, hospital, candidates[0])
    header = read(parts.header, UploadHeader)
    holder = announcement.vector_holder(hospital.name)
    digest = header.digests[header.recipients.index(holder)]
    guesses = []
    for one in candidates:
        words = encode_update(announcement.layout, one.update, one.num_examples, one.metrics)
        vector = Checksum(announcement.layout, announcement.digest).append(words)
        seeds = [part[32:] for name, part in parts.parts.items() if name != holder]
        guesses.append(compressed.share_compressed(vector, seeds).tobytes())
    # The first guess is the true body; without the nonce its digest does not match, with it it does.
    assert parts.parts[holder][32:] == guesses[0]
    blind = [
        part_digest(header.upload_id, holder, [nonce + guess], 32 + len(guess))
        for guess in guesses
        for nonce in (b"", bytes(32))
    ]
    assert digest not in blind
    nonce = parts.parts[holder][:32]
    assert digest == part_digest(header.upload_id, holder, [nonce + guesses[0]], 32 + len(guesses[0]))


def test_threat_03_nothing_is_drawn_twice(world):
    announcement = world.announcement()
    seen = set()
    for _ in range(50):
        parts = parts_of(world, announcement, world.hospitals[0], contribution(0))
        fresh = [
            parts.upload_id,
            *(bytes(part[:32]) for part in parts.parts.values()),
            *(bytes(p[32:64]) for p in parts.parts.values()),
        ]
        assert not seen & set(fresh)
        seen |= set(fresh)


def test_threat_45_errors_hold_no_values(world):
    canary = 0.123456789
    one = contribution(0)
    one.update[0][0, 0] = canary * 100
    announcement = world.announcement()
    with pytest.raises(FedsecError) as caught:
        world.submit(world.hospitals[0], announcement, world.open(announcement), one)
    assert "12.3" not in str(caught.value)
    parts = parts_of(world, announcement, world.hospitals[1], contribution(1))
    assert repr(parts.parts["agg-0"])[2:20] not in repr(parts)
