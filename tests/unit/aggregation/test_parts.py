"""Part files: what stays and what goes when attempts meet; final rounds that are asked about."""

from __future__ import annotations

import secrets

import pytest
from aggregation_world import contribution

from fedsec.aggregation import aggregator as aggregators
from fedsec.aggregation import merkle
from fedsec.aggregation.messages import GetReceipt
from fedsec.aggregation.parts import PartFolder, PartWriter
from fedsec.aggregation.signing import digest
from fedsec.errors import FedsecError, ProtocolError


@pytest.fixture
def folder(tmp_path):
    made = PartFolder(tmp_path, b"round")
    made.create()
    return made


def written(folder, body=b"x" * 100):
    writer = PartWriter(folder.part(bytes(32)), len(body))
    writer.write(body)
    writer.sync()
    return writer


def test_a_part_that_is_whole_stays_when_a_later_attempt_begins(folder):
    with written(folder) as writer:
        writer.commit()
        writer.give_way()
        assert folder.part(bytes(32)).read_bytes() == b"x" * 100
    assert folder.part(bytes(32)).exists()


def test_a_part_that_is_not_whole_gives_way_at_once(folder):
    with written(folder) as writer:
        writer.give_way()
        assert [path.name for path in folder.path.iterdir()] == ["key"]
        with pytest.raises(ProtocolError, match="begun this upload again"):
            writer.commit()
    assert [path.name for path in folder.path.iterdir()] == ["key"]


def test_a_part_that_came_too_late_is_withdrawn(folder):
    with written(folder) as writer:
        writer.commit()
        writer.withdraw()
        writer.withdraw()
    assert [path.name for path in folder.path.iterdir()] == ["key"]


def test_a_part_that_is_too_short_or_too_long_is_refused(folder):
    with PartWriter(folder.part(bytes(32)), 100) as writer:
        writer.write(b"x" * 99)
        for check in (writer.require_whole, writer.sync):
            with pytest.raises(ProtocolError, match="100 bytes was expected, 99 arrived"):
                check()
        with pytest.raises(ProtocolError, match="more arrived"):
            writer.write(b"xx")
    assert [path.name for path in folder.path.iterdir()] == ["key"]


@pytest.mark.parametrize("size", [1, 100, (1 << 20) - 1, (1 << 20) + 1, 3 << 20])
def test_what_is_written_out_early_is_what_was_written(folder, size):
    body = secrets.token_bytes(size)
    with PartWriter(folder.part(bytes(32)), size) as writer:
        for start in range(0, size, 65536):
            writer.write(body[start : start + 65536])
        writer.sync()
        writer.commit()
    assert folder.part(bytes(32)).read_bytes() == body


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["closed", "aborted"])
def test_an_upload_that_ends_after_the_round_leaves_no_file(world, monkeypatch, when, how):
    """The disk is waited for without the lock: the round may close meanwhile."""
    announcement = world.announcement()
    signed = world.open(announcement)
    late = next(one for one in world.hospitals if announcement.vector_holder(one.name) == "agg-0")
    aggregator = world.network.aggregators["agg-0"]
    commit = PartWriter.commit

    def ends_meanwhile(writer):
        if when == "after":
            commit(writer)
        round_ = aggregator._rounds[announcement.id.key]
        if how == "closed":
            round_.ask_to_close()
        else:
            round_.abort("a test ends it")
        aggregator.advance()
        if when == "before":
            commit(writer)

    monkeypatch.setattr(PartWriter, "commit", ends_meanwhile)
    text = "too late" if how == "closed" else "was aborted"
    with pytest.raises(FedsecError, match=text):
        world.submit(late, announcement, signed, contribution(0))
    assert not list(world.state_of("agg-0").rglob("*.part"))
    assert not list(world.state_of("agg-0").rglob("*.draft"))


def test_receipts_are_given_for_rounds_that_are_no_longer_in_memory(world, monkeypatch):
    monkeypatch.setattr(aggregators, "_MOST_FINAL", 1)
    rounds = []
    for number in range(1, 4):
        announcement = world.announcement(round=number)
        signed = world.open(announcement)
        for index, hospital in enumerate(world.hospitals[:2]):
            world.submit(hospital, announcement, signed, contribution(10 * number + index))
        world.collect(announcement)
        rounds.append(announcement)
    for aggregator in world.network.aggregators.values():
        assert len(aggregator._final) <= 1
    for announcement in (rounds[0], rounds[-1]):
        client = world.client(world.hospitals[0])
        upload_id = client._state.submitted(announcement.id).upload_id
        for aggregator in world.network.aggregators.values():
            reply, _ = aggregator.handle(world.hospitals[0].peer, GetReceipt(announcement.id, upload_id))
            assert reply.status == "included"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 1000])
def test_every_path_of_a_tree_leads_to_its_root(count):
    leaves = [digest("leaf", bytes([index % 256]), index.to_bytes(4, "big")) for index in range(count)]
    tree = merkle.Tree(leaves)
    for index in {0, count // 2, count - 1}:
        path = tree.path(index)
        assert merkle.root_from_path(leaves[index], index, count, path) == tree.root
        if path:
            assert merkle.root_from_path(leaves[index], index, count, [bytes(32), *path[1:]]) != tree.root
