"""Crashes, restarts, full disks, damaged files; what is left on disk afterwards; memory."""

import hashlib
import hmac
import os
import shutil
import sqlite3
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from aggregation_world import World, contribution, soon

from fedsec.aggregation.encoding import encode_update
from fedsec.aggregation.making import make_parts
from fedsec.aggregation.messages import NONCE_BYTES, CollectSum, FinishRound, SetSignature, Upload, UploadList
from fedsec.aggregation.parts import PartWriter
from fedsec.aggregation.running import RunningSum
from fedsec.aggregation.store import _sqlite_errors
from fedsec.errors import FedsecError, PeerLostError, ProtocolError, RoundAbortedError, StateError


def opened(world):
    announcement = world.announcement()
    signed = world.open(announcement)
    return announcement, signed


class Crash(BaseException):
    """kill -9 at this line: nothing after it runs."""


STEPS = [
    "add_upload", "add_statement", "set_included", "add_event", "set_state", "set_seen", "forget",
    "erase_parts", "write_sum", "erase",
]  # fmt: skip


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_threat_42_a_crash_at_any_step_resumes_with_identical_bytes_or_aborts(tmp_path, step, when):
    with World(tmp_path) as world:
        announcement = world.announcement(upload_seconds=20.0)
        signed = world.open(announcement)
        contributions = [contribution(seed) for seed in range(4)]
        crashed = crash_at(world, "agg-1", step, when, announcement.id.key)
        said = record_statements(world)
        restart_after_a_crash(world, "agg-1")
        for hospital, one in zip(world.hospitals, contributions, strict=True):
            world.submit(hospital, announcement, signed, one)

        result = world.collect(announcement)

        assert crashed
        assert len(said) == 6
        assert all(len(statements) == 1 for statements in said.values())
        assert result.total_weight == sum(one.num_examples for one in contributions)
        assert files_of_rounds(world) == []


def restart_after_a_crash(world, victim):
    """Start the victim again when it crashed, and ask it again, as every client and sender does."""

    def again(function):
        def call(*arguments):
            try:
                return function(*arguments)
            except Crash:
                world.restart(victim)
                return function(*arguments)

        return call

    world.network.ask, world.network.pump = again(world.network.ask), again(world.network.pump)


def record_statements(world):
    """What each aggregator said in each step of the agreement: it may repeat itself, never differ."""
    said: dict[tuple[str, str], set] = {}
    ask = world.network.ask

    def record(peer, name, message, body=b""):
        if isinstance(message, UploadList | SetSignature):
            said.setdefault((peer.name, type(message).__name__), set()).add(message.statement)
        return ask(peer, name, message, body)

    world.network.ask = record
    return said


def crash_at(world, victim, step, when, key):
    """Crash the victim once, before or after the named step took effect."""
    aggregator = world.network.aggregators[victim]
    target = aggregator._store if hasattr(aggregator._store, step) else aggregator._rounds[key].folder
    original, crashed = getattr(target, step), []

    def crash(*arguments, **keywords):
        if crashed:
            return original(*arguments, **keywords)
        crashed.append(step)
        if when == "after":
            original(*arguments, **keywords)
        raise Crash

    setattr(target, step, crash)
    return crashed


def test_threat_42_a_restart_between_all_steps_gives_the_same_sum(world):
    announcement, signed = opened(world)
    for seed, hospital in enumerate(world.hospitals):
        world.submit(hospital, announcement, signed, contribution(seed)) if seed < 3 else None
        for name in world.network.aggregators:
            world.restart(name)
    world.close_uploads(announcement)
    shares = [world.network.ask(world.server.peer, "agg-1", CollectSum(announcement.id)) for _ in range(2)]
    world.restart("agg-1")
    shares.append(world.network.ask(world.server.peer, "agg-1", CollectSum(announcement.id)))
    assert shares[0] == shares[1] == shares[2]
    assert world.collect(announcement).included_count == 3


def test_threat_42_an_aborted_round_stays_aborted_after_a_restart(world):
    announcement, signed = opened(world)
    world.submit(world.hospitals[0], announcement, signed, contribution(0))
    with pytest.raises(RoundAbortedError):
        world.collect(announcement)
    for name in world.network.aggregators:
        world.restart(name)
    for hospital in world.hospitals[1:]:
        with pytest.raises(FedsecError):
            world.submit(hospital, announcement, signed, contribution(1))
    with pytest.raises(RoundAbortedError):
        world.open(announcement)


def everything_under(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def uncovered(world, announcement):
    """Return each seed that is stored at an aggregator, read with the key from its disk."""
    key, found = announcement.id.key, {}
    for name, aggregator in world.network.aggregators.items():
        cover = (world.state_of(name) / "rounds" / key.hex() / "key").read_bytes()
        rows = aggregator._store.uploads(key)
        for hospital, seed in aggregator._store.seeds(key).items():
            pad = hmac.new(cover, rows[hospital].entry.header_digest, hashlib.sha256).digest()
            found[hospital, name] = (int.from_bytes(seed) ^ int.from_bytes(pad)).to_bytes(32)
    return found


@pytest.mark.parametrize("outcome", ["collected", "aborted", "never collected"])
def test_threat_54_after_a_round_no_share_of_an_update_is_on_disk(world, outcome):
    announcement, signed = opened(world)
    secrets_seen = {}
    ask = world.network.ask

    def record(peer, name, message, body=b""):
        if isinstance(message, Upload):
            secrets_seen[(peer.name, name)] = bytes(body)
        reply = ask(peer, name, message, body)
        if isinstance(message, CollectSum) and reply[1]:
            secrets_seen[(name, "sum")] = reply[1]
        return reply

    world.network.ask = record
    for seed, hospital in enumerate(world.hospitals[: 1 if outcome == "aborted" else 3]):
        world.submit(hospital, announcement, signed, contribution(seed))

    def found():
        held = everything_under(world.folder / "parties").values()
        return [who for who, part in secrets_seen.items() if any(part[32:48] in one for one in held)]

    # The search does find what is there: the vectors. Seeds lie under covers, whose keys are in the folders.
    assert found() == [who for who, part in secrets_seen.items() if len(part) > 64]
    assert uncovered(world, announcement) == {
        who: part[32:] for who, part in secrets_seen.items() if len(part) == 64
    }
    if outcome == "collected":
        world.collect(announcement)
        assert ("agg-0", "sum") in secrets_seen
    elif outcome == "aborted":
        with pytest.raises(RoundAbortedError):
            world.collect(announcement)
    else:
        world.close_uploads(announcement)
        world.network.ask(world.server.peer, "agg-0", CollectSum(announcement.id))
        world.now += world.policy.collect_s + 1
        world.network.pump()
    assert found() == []
    for name in world.network.aggregators:
        rounds = world.state_of(name) / "rounds"
        assert list(rounds.iterdir()) == []
        rows = world.network.aggregators[name]._store._db.execute("SELECT checksum FROM uploads").fetchall()
        assert all(row == (None,) for row in rows)


def test_threat_54_checksum_shares_are_overwritten_too(world):
    announcement, signed = opened(world)
    for seed, hospital in enumerate(world.hospitals[:3]):
        world.submit(hospital, announcement, signed, contribution(seed))
    store = world.network.aggregators["agg-1"]._store
    shares = [row.entry.checksum.to_bytes(4, "big") for row in store.uploads(announcement.id.key).values()]

    def found():
        held = everything_under(world.state_of("agg-1")).values()
        # As stored beside the upload, and as MessagePack in the signed list.
        return any(first + one in content for content in held for one in shares for first in (b"\0", b"\xce"))

    assert found()
    world.collect(announcement)
    assert not found()


def test_threat_54_parts_are_gone_as_soon_as_the_set_is_signed(world):
    announcement, signed = opened(world)
    for seed, hospital in enumerate(world.hospitals):
        world.submit(hospital, announcement, signed, contribution(seed)) if seed < 3 else None
    world.close_uploads(announcement)
    for name in world.network.aggregators:
        files = [path.name for path in (world.state_of(name) / "rounds").rglob("*") if path.is_file()]
        assert files == ["sum"]


def half_an_upload(world, announcement, hospital, meanwhile):
    """Begin an upload to every aggregator, do something and lose the connection."""
    one = contribution(9)
    words = encode_update(announcement.layout, one.update, one.num_examples, one.metrics)
    parts = make_parts(announcement, hospital, words)
    aggregators = list(parts.parts)

    def begin():
        if not aggregators:
            meanwhile()
            return
        name = aggregators.pop()

        def chunks():
            yield parts.parts[name][:40]
            begin()
            raise PeerLostError("the hospital closed its connection")

        with pytest.raises(PeerLostError):
            world.network.aggregators[name].handle(hospital.peer, Upload(parts.header), chunks())

    begin()
    return {name: part[32:40] for name, part in parts.parts.items()}


def files_of_rounds(world):
    return [path.name for path in (world.folder / "parties").glob("*/rounds/**/*")]


@pytest.mark.parametrize("present", [3, 1], ids=["finished", "aborted"])
def test_threat_54_an_upload_under_way_leaves_nothing_behind(world, present):
    announcement, signed = opened(world)
    for seed, hospital in enumerate(world.hospitals[:present]):
        world.submit(hospital, announcement, signed, contribution(seed))
    seen = []

    def end():
        seen.extend(name for name in files_of_rounds(world) if name.endswith(".draft"))
        world.close_uploads(announcement)
        for name in world.network.aggregators:
            world.network.ask(world.server.peer, name, FinishRound(announcement.id))
        world.network.pump()
        assert files_of_rounds(world) == []

    half_an_upload(world, announcement, world.hospitals[3], end)
    assert len(seen) == 1  # the vector; a seed is nowhere before its row
    assert files_of_rounds(world) == []


def test_threat_16_an_upload_that_ends_while_parts_are_erased_costs_nobody_the_round(world, monkeypatch):
    """Between the listing of the folder and the removal of a draft, the upload may remove it itself."""
    announcement, signed = opened(world)
    for seed, hospital in enumerate(world.hospitals[:3]):
        world.submit(hospital, announcement, signed, contribution(seed))
    glob = Path.glob

    def listed_before_it_ended(self, pattern):
        return [*glob(self, pattern), *([self / "ended.draft"] if pattern == "*.draft" else [])]

    monkeypatch.setattr(Path, "glob", listed_before_it_ended)
    assert world.collect(announcement).included_count == 3


def test_threat_16_parts_that_cannot_be_removed_yet_do_not_undo_a_signed_set(world, monkeypatch):
    announcement, signed = opened(world)
    for seed, hospital in enumerate(world.hospitals[:3]):
        world.submit(hospital, announcement, signed, contribution(seed))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        world.close_uploads(announcement)
    assert world.collect(announcement).included_count == 3
    assert files_of_rounds(world) == []


def test_threat_54_a_draft_that_vanishes_meanwhile_keeps_no_other_part(world, monkeypatch):
    announcement, signed = opened(world)
    for seed, hospital in enumerate(world.hospitals[:3]):
        world.submit(hospital, announcement, signed, contribution(seed))
    unlink, gone = os.unlink, []

    def vanishes_first(path, **keywords):
        unlink(path, **keywords)
        if not gone:
            gone.append(path)
            raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "unlink", vanishes_first)
    world.network.ask(world.server.peer, "agg-0", FinishRound(announcement.id))
    assert gone
    assert list((world.state_of("agg-0") / "rounds").iterdir()) == []


def test_threat_54_what_cannot_be_erased_at_once_is_erased_later(world, monkeypatch):
    announcement, signed = opened(world)
    for seed, hospital in enumerate(world.hospitals[:3]):
        world.submit(hospital, announcement, signed, contribution(seed))
    aggregator = world.network.aggregators["agg-0"]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        world.network.ask(world.server.peer, "agg-0", FinishRound(announcement.id))
        aggregator.advance()
        assert list((world.state_of("agg-0") / "rounds").rglob("*.part"))
        # The shares of the checksums are in the database; a folder that stays must not keep them.
        rows = aggregator._store._db.execute("SELECT checksum FROM uploads").fetchall()
        assert rows == [(None,)] * 3
    aggregator.advance()
    assert list((world.state_of("agg-0") / "rounds").iterdir()) == []


def test_threat_37_a_hospital_has_one_draft_a_round_and_the_latest_attempt_counts(world):
    announcement, _ = opened(world)
    hospital, one = world.hospitals[0], contribution(0)
    words = encode_update(announcement.layout, one.update, one.num_examples, one.metrics)
    parts = make_parts(announcement, hospital, words)
    name = announcement.vector_holder(hospital.name)
    aggregator, body = world.network.aggregators[name], parts.parts[name]

    def attempt(left):
        yield body[:40]
        if left:
            again = parts if left == 1 else make_parts(announcement, hospital, words)
            aggregator.handle(hospital.peer, Upload(again.header), attempt(left - 1))
        else:
            drafts = list((world.state_of(name) / "rounds").rglob("*.draft"))
            assert [path.stat().st_size for path in drafts] == [40]
        yield body[40:]

    with pytest.raises(ProtocolError, match="earlier attempt was dropped"):
        aggregator.handle(hospital.peer, Upload(parts.header), attempt(1))
    stored = aggregator._store.uploads(announcement.id.key)
    assert list(stored) == [hospital.name]
    assert [path.name for path in (world.state_of(name) / "rounds").rglob("*.*")] == [
        f"{stored[hospital.name].entry.header_digest.hex()}.part"
    ]
    assert aggregator._reception.drafts == {}


def test_threat_37_an_earlier_attempt_frees_its_space_while_its_connection_still_hangs(tmp_path):
    with PartWriter(tmp_path / "one.part", 100) as writer:
        writer.write(bytes(40))
        writer.give_way()
        assert os.fstat(writer._file.fileno()).st_size == 0
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(ProtocolError, match="begun this upload again"):
            writer.write(bytes(60))


def test_threat_54_the_hospital_keeps_no_update(world):
    announcement, signed = opened(world)
    one = contribution(0)
    world.submit(world.hospitals[0], announcement, signed, one)
    words = encode_update(announcement.layout, one.update, one.num_examples, one.metrics).tobytes()
    for content in everything_under(world.folder / "hospitals").values():
        assert words[:16] not in content
        assert one.update[0].tobytes()[:16] not in content


@pytest.mark.parametrize(
    "damage", [b"", b"not a database at all, but long enough to be read as a page" * 100]
)
def test_threat_44_a_damaged_database_stops_the_aggregator(tmp_path, damage):
    with World(tmp_path) as world:
        path = world.state_of("agg-1") / "aggregator.sqlite"
        world.network.aggregators["agg-1"].close()
        for one in path.parent.glob("aggregator.sqlite-*"):
            one.unlink()
        content = path.read_bytes()
        path.write_bytes(damage or content[:4096] + b"\xff" * (len(content) - 4096))
        with pytest.raises(StateError):
            world.start(world.parties[1])
        path.unlink()
        world.network.aggregators["agg-1"] = world.start(world.parties[1])


@pytest.mark.parametrize("damage", ["truncated", "removed"])
def test_threat_44_a_damaged_part_aborts_the_round_and_says_so(world, damage):
    announcement, signed = opened(world)
    for seed, hospital in enumerate(world.hospitals):
        world.submit(hospital, announcement, signed, contribution(seed)) if seed < 3 else None
    part = next((world.state_of("agg-2") / "rounds").rglob("*.part"))
    part.write_bytes(part.read_bytes()[:-1]) if damage == "truncated" else part.unlink()
    with pytest.raises(RoundAbortedError, match="agg-2"):
        world.collect(announcement)


def test_threat_44_a_full_disk_refuses_the_upload_and_goes_on(world):
    announcement, signed = opened(world)
    for seed, hospital in enumerate(world.hospitals[:2]):
        world.submit(hospital, announcement, signed, contribution(seed))
    store = world.network.aggregators["agg-1"]._store

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    write, store._write = store._write, lambda *a: wrapped(full, *a)
    with pytest.raises(StateError, match="nothing was said"):
        world.submit(world.hospitals[2], announcement, signed, contribution(3))
    store._write = write
    world.submit(world.hospitals[2], announcement, signed, contribution(3))
    assert world.collect(announcement).included_count == 3


def wrapped(function, *arguments):
    with _sqlite_errors():
        function(*arguments)


def test_the_sum_streams_its_memory_is_constant_in_hospitals(world, tmp_path):
    size = 200_000
    arrays = [np.zeros(size, np.float32)]
    announcement = world.announcement(arrays, clips=[1.0])
    layout = announcement.layout
    one = contribution(0, [((size,), 1.0)])
    words = encode_update(layout, one.update, one.num_examples, one.metrics)
    parts = make_parts(announcement, world.hospitals[0], words)
    holder = announcement.vector_holder("h00")
    path = tmp_path / "vector.part"
    path.write_bytes(parts.parts[holder])
    seeds = [part[NONCE_BYTES:] for name, part in parts.parts.items() if name != holder]
    peaks = []
    for repeats in (1, 40):
        tracemalloc.start()
        held = [path, *seeds] * repeats
        total = RunningSum(layout, 0).take({bytes([index]): part for index, part in enumerate(held)})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert np.array_equal(total[:-1], words * np.uint32(repeats))
    assert peaks[1] < peaks[0] * 1.1
    assert peaks[1] < 4 * layout.vector_bytes


def test_upload_sizes_and_rotation_of_the_vector_holder(world):
    announcement = world.announcement()
    holders = []
    for hospital in world.hospitals[:3]:
        one = contribution(0)
        words = encode_update(announcement.layout, one.update, one.num_examples, one.metrics)
        sizes = {name: len(part) for name, part in make_parts(announcement, hospital, words).parts.items()}
        (holder,) = [name for name, size in sizes.items() if size == 32 + announcement.layout.vector_bytes]
        assert sorted(sizes.values()) == [64, 64, 32 + announcement.layout.vector_bytes]
        holders.append(holder)
    assert sorted(holders) == ["agg-0", "agg-1", "agg-2"]
    for name in world.network.aggregators:
        expected = {one.name for one in world.hospitals if announcement.vector_holder(one.name) == name}
        assert announcement.vector_hospitals(name) == expected


def test_receipts_are_given_after_a_restart_and_after_the_end(world):
    announcement, signed = opened(world)
    for seed, hospital in enumerate(world.hospitals):
        world.submit(hospital, announcement, signed, contribution(seed)) if seed < 3 else None
    world.collect(announcement)
    for name in world.network.aggregators:
        world.restart(name)
    world.restart_client(world.hospitals[0])
    assert world.client(world.hospitals[0]).receipt(announcement, soon()).included == 3
