"""What a hospital's client sends once, brings into range, and does not believe."""

import dataclasses

import msgspec
import numpy as np
import pytest
from aggregation_world import contribution, replaced

from fedsec.aggregation import ArraySpec
from fedsec.aggregation.announcement import array_digest, decode_announcement
from fedsec.aggregation.hospital_state import Submitted
from fedsec.aggregation.messages import Stored, Upload
from fedsec.errors import ProtocolError, RangeError, TrustError

MODEL = (np.zeros((2, 3), np.float32), np.zeros(4, np.float32))
CONFIG = {"lr": 0.01, "epochs": 1}
SENT = Submitted(bytes(32), bytes(16), bytes(32))


def accepted(world, announcement, model=MODEL, hospital=0):
    signed = world.open(announcement)
    client = world.client(world.hospitals[hospital])
    return client, client.accept(signed.payload, signed.signature, model, CONFIG)


def submitted(world, announcement, one, model=MODEL, hospital=0):
    client, good = accepted(world, announcement, model, hospital)
    return client.submit(good, one.update, one.num_examples, one.metrics, saturate=True)


def swapped(announcement):
    """The same model with its arrays in another order and under other names."""
    first, second = announcement.arrays
    return replaced(
        announcement,
        arrays=(replaced(second, name="array-0"), replaced(first, name="array-1")),
        array_digests=announcement.array_digests[::-1],
    )


def with_more(announcement):
    """The same model and an array that training leaves as it is."""
    more = np.ones(2, np.float32)
    return replaced(
        announcement,
        arrays=(*announcement.arrays, ArraySpec("unused", "float32", (2,), 1.0)),
        array_digests=(*announcement.array_digests, array_digest(more)),
    )


def again(world, one, change):
    """An announcement for another round, and the same training's result as it would fit to it."""
    announcement, model = world.announcement(round=2), MODEL
    fields = {
        "session": {"session": bytes(16)},
        "largest weight": {"round": 2, "largest_weight": 999},
        "weights": {"round": 2, "weights": "bucketed"},
        "clip": {"round": 2, "clips": (2.0, 1.0)},
        "low clip": {"round": 2, "clips": (0.1, 0.1)},
        "metrics": {"round": 2, "metrics": ()},
    }
    if change in fields:
        announcement = world.announcement(**fields[change])
    if change == "metrics":
        one = dataclasses.replace(one, metrics={})
    elif change == "other metrics":
        metrics = {"accuracy": 0.0, "loss": 0.0}
        one = dataclasses.replace(one, num_examples=one.num_examples + 1, metrics=metrics)
    elif change == "order":
        announcement, model = swapped(announcement), MODEL[::-1]
        one = dataclasses.replace(one, update=one.update[::-1])
    elif change == "more arrays":
        announcement, model = with_more(announcement), (*MODEL, np.ones(2, np.float32))
        one = dataclasses.replace(one, update=[*one.update, np.array([0.0, -0.0])])
    return announcement, model, one


@pytest.mark.parametrize(
    "change",
    [
        "round", "session", "largest weight", "weights", "clip", "low clip", "metrics", "other metrics",
        "order", "more arrays", "restart",
    ],
)  # fmt: skip
def test_threat_23_an_update_goes_out_under_one_round_id(world, change):
    """Whatever the server announces beside it: the tag is over the update as training made it."""
    submitted(world, world.announcement(), contribution(0))
    announcement, model, one = again(world, contribution(0), change)
    if change == "restart":
        world.restart_client(world.hospitals[0])
    with pytest.raises(ProtocolError, match="another round id"):
        submitted(world, announcement, one, model)
    trained_again = dataclasses.replace(one, update=other(one))
    submitted(world, replaced(announcement, round=3), trained_again, model)


def other(one):
    return [array + np.float32(2**-20) for array in one.update]


def test_threat_23_a_model_is_evaluated_once(world):
    one = dataclasses.replace(contribution(0), update=[])
    submitted(world, world.announcement(phase="evaluate"), one)
    world.restart_client(world.hospitals[0])
    for again in (
        world.announcement(phase="evaluate", round=2),
        world.announcement(phase="evaluate", session=bytes(16), largest_weight=999),
        swapped(world.announcement(phase="evaluate", round=4)),
    ):
        model = MODEL if again.arrays[0].size == 6 else MODEL[::-1]
        with pytest.raises(TrustError, match="evaluated here before"):
            accepted(world, again, model)
    other_model = (MODEL[0], np.full(4, 0.5, np.float32))
    submitted(world, world.announcement(other_model, phase="evaluate", round=5), one, other_model)


def test_threat_23_two_accepted_evaluations_of_a_model_still_send_one(world):
    one = contribution(0)
    client, first = accepted(world, world.announcement(phase="evaluate"))
    _, second = accepted(world, world.announcement(phase="evaluate", round=2))
    client.submit(first, [], one.num_examples, one.metrics)
    with pytest.raises(ProtocolError, match="another round id"):
        client.submit(second, [], one.num_examples, one.metrics)


@pytest.mark.parametrize("number", range(1, 5))
def test_threat_26_after_two_announcements_neither_is_accepted(world, number):
    """Whichever digest is the smaller one, by which the database sorts."""
    one = world.announcement(round=number)
    pair = sorted((one, replaced(one, upload_seconds=61.0)), key=lambda two: two.digest)
    first, second = pair if number % 2 else pair[::-1]
    client = world.client(world.hospitals[0])
    for announcement in (first, second, second, first):
        signed = world.sign(announcement)
        if announcement is first and not client._state.submitted(first.id):
            client.accept(signed.payload, signed.signature, MODEL, CONFIG)
            client._state.record(first.id, SENT, bytes(32))
            continue
        with pytest.raises(TrustError, match="two announcements"):
            client.accept(signed.payload, signed.signature, MODEL, CONFIG)


@pytest.mark.parametrize("lie", ["signature", "other round", "other aggregator"])
def test_threat_25_an_acknowledgement_counts_only_with_its_signature(world, lie):
    announcement = world.announcement()
    client, good = accepted(world, announcement)
    one, ask = contribution(0), world.network.ask

    def lying(peer, name, message, body=b""):
        reply, answer = ask(peer, name, message, body)
        if isinstance(message, Upload) and name == "agg-1":
            stored = msgspec.msgpack.decode(reply, type=Stored)
            forged = {
                "signature": replaced(stored, signature=bytes(64)),
                "other round": replaced(stored, signature=world.parties[1].sign(b"stored")),
                "other aggregator": replaced(stored, aggregator="agg-0"),
            }[lie]
            reply = msgspec.msgpack.encode(forged)
        return reply, answer

    world.network.ask = lying
    with pytest.raises((TrustError, ProtocolError)):
        client.submit(good, one.update, one.num_examples, one.metrics)


def test_only_one_encoding_of_an_announcement_is_taken(world):
    """Twelve as a 16-bit integer is the same round number in other bytes, so it would have another digest."""
    announcement = world.announcement(round=12)
    payload = announcement.encode()
    at = payload.index(announcement.session) + 16
    assert payload[at] == 12
    longer = payload[:at] + b"\xcd\x00\x0c" + payload[at + 1 :]
    assert msgspec.msgpack.decode(longer) == msgspec.msgpack.decode(payload)
    with pytest.raises(ProtocolError, match="canonical"):
        decode_announcement(longer)


def test_threat_14_saturation_leaves_what_is_not_a_number_to_be_refused(world):
    client, good = accepted(world, world.announcement())
    one = contribution(0)
    for bad in (np.nan, np.inf, -np.inf):
        update = [one.update[0], np.array([bad, 0, 0, 0])]
        with pytest.raises(RangeError):
            client.submit(good, update, one.num_examples, one.metrics, saturate=True)
        with pytest.raises(RangeError):
            client.submit(good, one.update, one.num_examples, {**one.metrics, "loss": bad}, saturate=True)
    for weight in (0, -1, 1e9, True):
        with pytest.raises(RangeError):
            client.submit(good, one.update, weight, one.metrics, saturate=True)


def test_threat_14_without_saturation_what_is_out_of_range_is_refused(world):
    client, good = accepted(world, world.announcement())
    one = contribution(0)
    with pytest.raises(RangeError):
        client.submit(good, [one.update[0] * 9, one.update[1]], one.num_examples, one.metrics)
    assert client.submit(good, one.update, one.num_examples, one.metrics)


def test_threat_49_all_pinned_aggregators_are_required_unless_the_trust_file_says_otherwise(world):
    two = replaced(world.announcement(), aggregators=world.announcement().aggregators[:2])
    signed = world.sign(two)
    trust = world.trust(world.hospitals[0])
    with pytest.raises(TrustError, match="aggregators = 2"):
        trust.check(signed.payload, signed.signature, MODEL, CONFIG)
    fewer = world.trust(world.hospitals[0], fewest_aggregators=2)
    assert fewer.check(signed.payload, signed.signature, MODEL, CONFIG) == two
