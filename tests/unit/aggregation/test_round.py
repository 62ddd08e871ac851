"""Whole rounds with every role in one process."""

import inspect
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from aggregation_world import World, contribution, replaced, soon
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsec.aggregation import Policy, TrustLimits
from fedsec.aggregation.announcement import SIGNATURE_LABEL
from fedsec.aggregation.messages import Announce, CollectSum, Signed
from fedsec.aggregation.service import AggregatorService
from fedsec.aggregation.signing import sign
from fedsec.cluster.cluster import Cluster
from fedsec.errors import FedsecError, PeerLostError, ProtocolError, RoundAbortedError, TrustError
from fedsec.federation.plan import RoundPlan
from fedsec.transport.party_config import PartyConfig


def run(world, announcement, contributions, present=None):
    signed = world.open(announcement)
    for hospital, one in zip(world.hospitals, contributions, strict=True):
        if present is None or hospital.name in present:
            world.submit(hospital, announcement, signed, one)
    return world.collect(announcement)


def integer_sum(announcement, contributions):
    """The sum in plain Python integers, by the formula in docs/reference/wire-format.md."""
    encoding = announcement.encoding
    largest_word = (2 ** (encoding.ring_bits - 1) - 1) // encoding.hospitals
    total = None
    for one in contributions:
        words = []
        for spec, array in zip(announcement.arrays, one.update, strict=True):
            factor = one.num_examples * (largest_word / (encoding.largest_weight * spec.clip))
            words += [round(float(value) * factor) for value in array.ravel()]
        words.append(one.num_examples)
        for metric in announcement.metrics:
            factor = one.num_examples * (largest_word / (encoding.largest_weight * metric.clip))
            words.append(round(one.metrics[metric.name] * factor))
        total = words if total is None else [a + b for a, b in zip(total, words, strict=True)]
    return total


@pytest.mark.parametrize("aggregators", range(2, 8))
def test_the_opened_sum_is_the_integer_sum_bit_for_bit(tmp_path, aggregators):
    with World(tmp_path, aggregator_count=aggregators, hospital_count=5) as world:
        contributions = [contribution(seed) for seed in range(5)]
        announcement = world.announcement()

        result = run(world, announcement, contributions)

        assert result.words.view(np.int32).tolist() == integer_sum(announcement, contributions)
        assert result.included == ("h00", "h01", "h02", "h03", "h04")
        assert result.total_weight == sum(one.num_examples for one in contributions)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(aggregators=st.integers(2, 7), hospitals=st.integers(2, 6), seed=st.integers(0, 2**32), data=st.data())
def test_exactly_the_included_set_is_summed(tmp_path_factory, aggregators, hospitals, seed, data):
    names = [f"h{i:02}" for i in range(hospitals)]
    present = data.draw(st.sets(st.sampled_from(names), min_size=2))
    with World(tmp_path_factory.mktemp("world"), aggregators, hospitals) as world:
        contributions = [contribution(seed + i) for i in range(hospitals)]
        announcement = world.announcement()

        result = run(world, announcement, contributions, present)

        counted = [one for name, one in zip(names, contributions, strict=True) if name in present]
        assert set(result.included) == present
        assert result.excluded == dict.fromkeys(sorted(set(names) - present), "missing")
        assert result.words.view(np.int32).tolist() == integer_sum(announcement, counted)


def test_the_mean_is_within_the_stated_bound(world):
    contributions = [contribution(seed) for seed in range(4)]
    announcement = world.announcement()

    result = run(world, announcement, contributions)

    weights = np.array([one.num_examples for one in contributions], float)
    for index, opened in enumerate(result.arrays):
        plain = np.average(
            [one.update[index].astype(float) for one in contributions], axis=0, weights=weights
        )
        assert np.abs(opened - plain).max() <= result.error_bound * (1 + 1e-6)
    plain_loss = np.average([one.metrics["loss"] for one in contributions], weights=weights)
    assert result.metrics["loss"] == pytest.approx(plain_loss, abs=1e-4)


@pytest.mark.parametrize(("rule", "expected"), [("examples", 100 + 7), ("bucketed", 64 + 4), ("equal", 2)])
def test_weight_rules(tmp_path, rule, expected):
    with World(tmp_path, hospital_count=2) as world:
        ones = [replaced_examples(contribution(0), 100), replaced_examples(contribution(1), 7)]
        announcement = world.announcement(weights=rule)
        assert run(world, announcement, ones).total_weight == expected


def replaced_examples(one, num_examples):
    return type(one)(one.update, num_examples, one.metrics)


def test_evaluation_sums_metrics_only(world):
    announcement = world.announcement(phase="evaluate")
    contributions = [contribution(seed) for seed in range(4)]

    result = run(world, announcement, contributions)

    assert result.arrays == ()
    assert announcement.layout.words == 4
    weights = [one.num_examples for one in contributions]
    accuracy = np.average([one.metrics["accuracy"] for one in contributions], weights=weights)
    assert result.metrics["accuracy"] == pytest.approx(accuracy, abs=1e-5)


def test_a_vector_as_long_as_a_seed_is_not_taken_for_one(world):
    # Four float32 elements, the weight, two metrics and the checksum are 32 bytes, like a seed.
    arrays = [np.zeros(4, np.float32)]
    announcement = world.announcement(arrays, clips=[1.0])
    assert announcement.layout.vector_bytes == 32
    contributions = [contribution(seed, [((4,), 1.0)]) for seed in range(4)]
    signed = world.open(announcement)
    for hospital, one in zip(world.hospitals, contributions, strict=True):
        world.submit(hospital, announcement, signed, one, arrays)
    result = world.collect(announcement)
    assert result.words.view(np.int32).tolist() == integer_sum(announcement, contributions)


def test_64_bit_words(world):
    announcement = world.announcement(ring_bits=64)
    world.clients = {
        one.name: type(world.client(one))(
            world.trust(one, ring_bits=(32, 64)), identity=one, links=world.network.links(one.peer)
        )
        for one in world.hospitals
    }
    contributions = [contribution(seed) for seed in range(4)]
    result = run(world, announcement, contributions)
    assert result.error_bound < 1e-10
    assert result.total_weight == sum(one.num_examples for one in contributions)


def test_a_round_closes_by_itself_at_its_deadline(world):
    announcement = world.announcement()
    signed = world.open(announcement)
    for hospital in world.hospitals[:3]:
        world.submit(hospital, announcement, signed, contribution(1 + int(hospital.name[1:])))
    world.network.pump()
    states = {one._rounds[announcement.id.key].state for one in world.network.aggregators.values()}
    assert states == {"open"}

    world.now += announcement.upload_seconds
    world.network.pump()

    states = {one._rounds[announcement.id.key].state for one in world.network.aggregators.values()}
    assert states == {"agreed"}
    assert world.collect(announcement).included == ("h00", "h01", "h02")


def test_threat_16_a_hospital_that_uploads_to_one_aggregator_and_waits_costs_only_itself(world):
    """The whole roster is complete at agg-0 long before the end of the uploads: nobody may be late yet."""
    announcement = world.announcement(upload_seconds=600.0)
    signed = world.open(announcement)
    for seed, hospital in enumerate(world.hospitals[:3]):
        world.submit(hospital, announcement, signed, contribution(seed))
    world.network.offline |= {"agg-1", "agg-2"}
    with pytest.raises(PeerLostError):
        world.submit(world.hospitals[3], announcement, signed, contribution(3))
    world.network.offline.clear()
    assert "h03" in world.network.aggregators["agg-0"]._store.uploads(announcement.id.key)

    world.now += announcement.upload_seconds - 1
    world.network.pump()

    result = world.collect(announcement)
    assert result.included == ("h00", "h01", "h02")
    assert result.excluded == {"h03": "incomplete"}


def test_a_late_upload_is_refused_and_costs_only_itself(world):
    announcement = world.announcement()
    signed = world.open(announcement)
    for hospital in world.hospitals[:3]:
        world.submit(hospital, announcement, signed, contribution(int(hospital.name[1:])))
    world.close_uploads(announcement)
    with pytest.raises(ProtocolError, match="too late"):
        world.submit(world.hospitals[3], announcement, signed, contribution(3))
    result = world.collect(announcement)
    assert result.included == ("h00", "h01", "h02")
    assert result.excluded == {"h03": "missing"}


def test_threat_43_a_dead_aggregator_is_named_within_the_deadline(world):
    announcement = world.announcement()
    signed = world.open(announcement)
    for seed, hospital in enumerate(world.hospitals):
        if seed == 3:
            world.network.offline.add("agg-1")
            with pytest.raises(PeerLostError, match="agg-1"):
                world.submit(hospital, announcement, signed, contribution(seed))
        else:
            world.submit(hospital, announcement, signed, contribution(seed))
    with pytest.raises(PeerLostError, match="agg-1"):
        world.collect(announcement)


def test_threat_43_peers_abort_naming_the_aggregator_that_is_silent(world):
    announcement = world.announcement()
    signed = world.open(announcement)
    for seed, hospital in enumerate(world.hospitals[:3]):
        world.submit(hospital, announcement, signed, contribution(seed))
    world.network.offline.add("agg-2")
    world.now += announcement.upload_seconds
    world.network.pump()
    world.now += world.policy.agreement_s
    world.network.pump()
    for name in ("agg-0", "agg-1"):
        with pytest.raises(RoundAbortedError, match=r"'agg-2' did not send its list"):
            world.network.ask(world.server.peer, name, collect_message(announcement))


def collect_message(announcement):
    return CollectSum(announcement.id)


def test_rounds_follow_each_other_over_the_same_clients(world):
    for number in (1, 2, 3):
        for phase in ("train", "evaluate"):
            # A model is evaluated once, so every round has its own.
            model = (np.full((2, 3), number, np.float32), np.zeros(4, np.float32))
            announcement = world.announcement(model, round=number, phase=phase)
            signed = world.open(announcement)
            for seed, hospital in enumerate(world.hospitals):
                world.submit(hospital, announcement, signed, contribution(10 * number + seed), model)
            assert world.collect(announcement).included_count == 4


@pytest.mark.parametrize("left_out", ["agg-0", "agg-4"])
def test_threat_20_the_server_cannot_pick_the_aggregators(tmp_path, left_out):
    with World(tmp_path, aggregator_count=5) as world:
        everybody = world.announcement().aggregators
        fewer = tuple(one for one in everybody if one.name != left_out)
        announcement = world.announcement(aggregators=fewer)
        for name in world.network.aggregators:
            with pytest.raises(TrustError, match=rf"\['{left_out}'\] are left out"):
                world.network.ask(world.server.peer, name, Announce(world.sign(announcement)))


@pytest.mark.parametrize(
    ("limits", "text"),
    [({"longest_upload_s": 59.0}, "59 s at most"), ({"minimum_cohort": 3}, "below the 3 of 'agg-0'")],
)
def test_an_aggregators_limits_hold_on_their_own(tmp_path, limits, text):
    with World(tmp_path) as world:
        restarted_with(world, "agg-0", **limits)
        with pytest.raises(TrustError, match=text):
            world.network.ask(world.server.peer, "agg-0", Announce(world.sign(world.announcement())))


def test_threat_43_an_aggregator_has_no_more_than_most_rounds_open(world):
    restarted_with(world, "agg-0", most_rounds=2)
    for number in (1, 2):
        world.open(world.announcement(round=number))
    with pytest.raises(ProtocolError, match="has 2 rounds open"):
        world.open(world.announcement(round=3))
    with pytest.raises(RoundAbortedError):
        world.collect(world.announcement(round=1))
    world.open(world.announcement(round=3))


def restarted_with(world, name, **limits):
    world.network.aggregators[name].close()
    (party,) = (one for one in world.parties if one.name == name)
    world.network.aggregators[name] = world.start(party, replaced_policy(world, **limits))
    world.network.pump()


def test_threat_22_each_aggregator_refuses_small_cohorts_on_its_own(world):
    """One that is stricter than the others refuses; a cohort of one is refused by the format itself."""
    restarted_with(world, "agg-1", minimum_cohort=3)
    announcement = world.announcement(minimum_cohort=2)
    world.network.ask(world.server.peer, "agg-0", Announce(world.sign(announcement)))
    with pytest.raises(TrustError, match="below the 3 of 'agg-1'"):
        world.network.ask(world.server.peer, "agg-1", Announce(world.sign(announcement)))

    one = msgspec.structs.replace(world.announcement(round=2), minimum_cohort=1)
    payload = msgspec.msgpack.encode(one)
    forged = Signed(payload, sign(world.server, SIGNATURE_LABEL, payload))
    for name in world.network.aggregators:
        with pytest.raises(ProtocolError, match="below 2"):
            world.network.ask(world.server.peer, name, Announce(forged))


def replaced_policy(world, **fields):
    return replace(world.policy, **fields)


def test_threat_22_a_cohort_that_shrinks_below_the_minimum_aborts(world):
    announcement = world.announcement()
    signed = world.open(announcement)
    world.submit(world.hospitals[0], announcement, signed, contribution(0))
    with pytest.raises(RoundAbortedError, match="1 complete uploads, the minimum cohort is 2"):
        world.collect(announcement)
    with pytest.raises(RoundAbortedError):
        world.client(world.hospitals[0]).receipt(announcement, soon())


def test_threat_22_every_default_of_the_smallest_cohort_is_the_same():
    """A hospital that has set nothing must not meet parties that have set nothing and open smaller sums."""
    defaults = [
        Policy.__dataclass_fields__["minimum_cohort"].default,
        PartyConfig.minimum_cohort,
        TrustLimits().minimum_cohort,
        RoundPlan.__dataclass_fields__["minimum_cohort"].default,
        *(
            inspect.signature(one).parameters["minimum_cohort"].default
            for one in (AggregatorService, Cluster, Cluster.local)
        ),
    ]
    assert defaults == [3] * len(defaults)


@pytest.mark.parametrize(("announced", "own"), [(3, 2), (2, 3)])
def test_threat_22_the_larger_minimum_holds_whatever_was_announced(world, announced, own):
    """Of the announcement's minimum and the aggregator's own; the own one may have grown since."""
    announcement = world.announcement(minimum_cohort=announced)
    signed = world.open(announcement)
    restarted_with(world, "agg-1", minimum_cohort=own)
    for hospital in world.hospitals[:2]:
        world.submit(hospital, announcement, signed, contribution(int(hospital.name[1:])))
    with pytest.raises(RoundAbortedError, match="minimum cohort is 3"):
        world.collect(announcement)


def test_unknown_rounds_are_refused(world):
    announcement = world.announcement()
    with pytest.raises(ProtocolError, match="not told"):
        world.network.ask(world.server.peer, "agg-0", collect_message(announcement))
    bad = replaced(announcement.id, session=b"short")
    with pytest.raises(FedsecError):
        world.network.ask(world.server.peer, "agg-0", replaced(collect_message(announcement), round=bad))
