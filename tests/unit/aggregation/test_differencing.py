"""A server that wants S and then S without one hospital: in one round, in a new one, after restarts."""

from __future__ import annotations

import pytest
from aggregation_world import contribution, replaced

from fedsec.aggregation.messages import (
    Announce,
    CloseUploads,
    CollectSum,
    FinishRound,
    Upload,
    UploadHeader,
    read,
    seal,
)
from fedsec.errors import FedsecError, ProtocolError, RoundAbortedError, TrustError

HOSPITALS = 4


@pytest.fixture
def spied(world):
    """The world, with a list of all uploads as they were sent."""
    world.sent, ask = [], world.network.ask

    def record(peer, name, message, body=b""):
        if isinstance(message, Upload):
            world.sent.append((peer, name, message, bytes(body)))
        return ask(peer, name, message, body)

    world.network.ask = record
    world.ask = ask
    return world


def everyone_uploads(world, announcement, signed):
    for seed, hospital in enumerate(world.hospitals):
        world.submit(hospital, announcement, signed, contribution(seed))


def restart_all(world):
    for name in list(world.network.aggregators):
        world.restart(name)
    for hospital in world.hospitals:
        world.restart_client(hospital)
    world.network.pump()


def shares_of(world, announcement):
    """What a server gets that asks every aggregator for its sum share."""
    found = []
    for name in world.network.aggregators:
        try:
            _, body = world.ask(world.server.peer, name, CollectSum(announcement.id))
        except (RoundAbortedError, ProtocolError):
            continue
        if body:
            found.append(body)
    return found


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("first", ["opened", "agreed, then ended by the server"])
def test_threat_23_the_same_round_is_never_opened_over_fewer(spied, first, restart):
    world = spied
    announcement = world.announcement()
    signed = world.open(announcement)
    everyone_uploads(world, announcement, signed)
    world.close_uploads(announcement)
    if first == "opened":
        assert world.collect(announcement).included_count == HOSPITALS
    else:
        for name in world.network.aggregators:
            world.ask(world.server.peer, name, FinishRound(announcement.id))
    if restart:
        restart_all(world)
    # It begins the round again, with everyone's uploads but one.
    for name in world.network.aggregators:
        world.ask(world.server.peer, name, Announce(signed))
        other = world.sign(replaced(announcement, roster=announcement.roster[:-1]))
        with pytest.raises(TrustError, match="two announcements"):
            world.ask(world.server.peer, name, Announce(other))
    for peer, name, message, body in world.sent:
        if peer.name != "h03":
            world.ask(peer, name, message, body)  # the same bytes get the same acknowledgement, no more
    for name in world.network.aggregators:
        world.ask(world.server.peer, name, CloseUploads(announcement.id))
    world.now += 1000
    world.network.pump()
    assert shares_of(world, announcement) == []


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("first", ["opened", "ended by the server"])
def test_threat_23_the_same_uploads_are_counted_in_no_other_round(spied, first, restart):
    world = spied
    announcement = world.announcement()
    signed = world.open(announcement)
    everyone_uploads(world, announcement, signed)
    if first == "opened":
        world.collect(announcement)
    else:
        for name in world.network.aggregators:
            world.ask(world.server.peer, name, FinishRound(announcement.id))
    if restart:
        restart_all(world)
    for fields in ({"round": 2}, {"session": bytes(16)}):
        second = world.announcement(**fields)
        again = world.open(second)
        # The hospitals do not send the same training's result again ...
        for seed, hospital in enumerate(world.hospitals[:3]):
            with pytest.raises(ProtocolError, match="another round id"):
                world.submit(hospital, second, again, contribution(seed))
        # ... and what they sent before is for its own round.
        for peer, name, message, body in world.sent:
            # An upload that was stored is acknowledged again, by the same bytes; that is all.
            world.ask(peer, name, message, body)
        with pytest.raises(RoundAbortedError, match="0 complete uploads"):
            world.collect(second)


def test_an_upload_id_is_for_one_round_whoever_signs_the_header_again(spied):
    """Even a hospital's own key does not bring one upload into two sums."""
    world = spied
    announcement = world.announcement()
    signed = world.open(announcement)
    everyone_uploads(world, announcement, signed)
    world.collect(announcement)
    second = world.announcement(round=2)
    world.open(second)
    refused = 0
    for peer, name, message, body in world.sent:
        moved = resigned(world, peer.name, message, second)
        with pytest.raises(FedsecError, match="was used before"):
            world.ask(peer, name, moved, body)
        refused += 1
    assert refused == HOSPITALS * len(world.parties)


def resigned(world, name, message, announcement):
    hospital = next(one for one in world.hospitals if one.name == name)
    header = read(message.header, UploadHeader)
    fields = {"round": announcement.id, "announcement": announcement.digest}
    return Upload(seal(hospital, replaced(header, **fields)))
