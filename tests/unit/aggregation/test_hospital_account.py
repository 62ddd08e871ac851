"""What a hospital pins about itself as a whole, and its account on disk. Epsilons come from the bound."""

import logging
import math

import numpy as np
import pytest
from aggregation_world import Contribution, World

from fedsec.aggregation import RoundId, plan_encoding
from fedsec.aggregation.noise.terms import Noise
from fedsec.errors import FedsecError, TrustError, UsageError
from fedsec.privacy.ledger import DurableSumLedger

MODEL = [np.zeros(100, np.float32)]
NOISE = Noise(l2_clip=1.0, clip_words=8192, variance=(2.0 * 8197) ** 2, aggregators=3, colluding=2)
"""Twice what one hospital can change: 8192 words and half of ten for rounding."""


def epsilon_of_rounds(rounds, delta=1e-5):
    """Rounds with noise multiplier 2; at this variance the law is a Gaussian's to seven digits."""
    return min(
        rounds * order / 8 + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        for order in range(2, 300)
    )


def announced(world, number=1, noise=NOISE, **fields):
    encoding = plan_encoding(world.hospital_count, 1.0, 1, 1.0, weights="equal", noise=noise)
    return world.announcement(
        MODEL, clips=[1.0], round=number, **{"encoding": encoding, "metrics": (), **fields}
    )


def accept(world, announcement, hospital=0):
    signed = world.sign(announcement)
    client = world.client(world.hospitals[hospital])
    return client.accept(signed.payload, signed.signature, MODEL, {"lr": 0.01, "epochs": 1})


@pytest.fixture
def pinning(tmp_path):
    """A world whose hospitals pin what is given."""

    def make(**limits):
        world = World(tmp_path)
        trust = world.trust
        world.trust = lambda hospital, **more: trust(hospital, **limits, **more)
        worlds.append(world)
        return world

    worlds = []
    yield make
    for world in worlds:
        world.__exit__()


def spent(world, hospital=0):
    return DurableSumLedger(world.trust(world.hospitals[hospital]).state).spent()


def test_a_hospital_pays_before_it_uploads_and_stops_before_it_exceeds_what_it_pins(pinning):
    # Room for two rounds and not for three.
    world = pinning(hospital_epsilon=(epsilon_of_rounds(2) + epsilon_of_rounds(3)) / 2)
    for number in (1, 2):
        announcement = announced(world, number)
        signed = world.open(announcement)
        for hospital in world.hospitals[:3]:
            update = Contribution([np.full(100, 0.01 * number)], 1, {})
            world.submit(hospital, announcement, signed, update, MODEL)
        assert world.collect(announcement).included_count == 3
        assert len(spent(world)) == number
    third = announced(world, 3)
    with pytest.raises(TrustError, match="would exceed what its trust file pins"):
        accept(world, third)
    # A new session, another process of the hospital: the account is the same.
    world.restart_client(world.hospitals[0])
    with pytest.raises(TrustError, match="would exceed"):
        accept(world, announced(world, 1, session=bytes(16)))
    # Who did not pay may still take part: the round goes on with the others.
    accept(world, third, hospital=3)
    assert [len(spent(world, hospital)) for hospital in range(4)] == [2, 2, 2, 0]


def test_what_was_charged_for_counts_when_nothing_was_sent(pinning):
    world = pinning(hospital_epsilon=1.01 * epsilon_of_rounds(1))
    announcement = announced(world)
    world.network.offline = {"agg-2"}
    client = world.client(world.hospitals[0])
    accepted = accept(world, announcement)
    with pytest.raises(FedsecError):
        client.submit(accepted, [np.zeros(100)], 1, {})
    assert len(spent(world)) == 1
    # The same round again, also after accepting it again, costs nothing more; the next one does.
    accept(world, announcement)
    with pytest.raises(TrustError, match="would exceed"):
        accept(world, announced(world, 2))


def test_a_budget_that_was_spent_in_between_is_noticed_before_anything_leaves(pinning):
    world = pinning(hospital_epsilon=1.01 * epsilon_of_rounds(1))
    first, second = announced(world, 1), announced(world, 1, session=bytes(range(16)))
    accepted = [accept(world, one) for one in (first, second)]
    client = world.client(world.hospitals[0])
    world.network.offline = set(world.network.aggregators)
    with pytest.raises(FedsecError):
        client.submit(accepted[0], [np.zeros(100)], 1, {})
    with pytest.raises(UsageError, match="takes part no more"):
        client.submit(accepted[1], [np.ones(100) / 20], 1, {})
    assert len(spent(world)) == 1


@pytest.mark.parametrize(
    ("limits", "fields", "text"),
    [
        ({"hospital_epsilon": 8.0}, {"noise": None}, "without noise"),
        ({"hospital_epsilon": 8.0}, {"noise": None, "phase": "evaluate"}, "evaluates on data of its own"),
        ({"hospital_epsilon": 0.5}, {}, "would exceed what its trust file pins, epsilon 0.5"),
        ({"hospital_epsilon": 8.0, "hospital_noise_multiplier": 2.01}, {}, "noise multiplier .* is 2,"),
        ({"hospital_epsilon": 8.0}, {"colluding": 1}, "protects from 1 colluding"),
        ({"hospital_epsilon": 2.0, "hospital_delta": 1e-12}, {}, "at delta 1e-12"),
        # Each of them holds without the others.
        ({"hospital_noise_multiplier": 2.01}, {}, "noise multiplier .* is 2,"),
        ({"hospital_noise_multiplier": 1.0}, {"noise": None}, "pins hospital_noise_multiplier = 1"),
        ({"hospital_noise_multiplier": 1.0}, {"colluding": 1}, "protects from 1 colluding"),
        ({"hospital_colluding": 2}, {"colluding": 1}, "protects from 1 colluding"),
        ({"hospital_colluding": 1}, {"noise": None}, "pins hospital_colluding = 1"),
    ],
)
def test_a_round_outside_of_what_is_pinned_is_refused_before_training(pinning, limits, fields, text):
    world = pinning(**limits)
    noise = None if "noise" in fields else Noise(1.0, 8192, NOISE.variance, 3, fields.get("colluding", 2))
    with pytest.raises(TrustError, match=text):
        accept(world, announced(world, 1, noise, phase=fields.get("phase", "train")))
    assert spent(world) == ()


def test_what_is_pinned_exactly_is_accepted(pinning):
    world = pinning(
        hospital_epsilon=1.001 * epsilon_of_rounds(1), hospital_noise_multiplier=2.0, hospital_colluding=2
    )
    assert accept(world, announced(world)).id == RoundId(world.session, 1, "train")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_paid_for_and_uploaded_as_any_other(pinning, value):
    world = pinning(hospital_epsilon=1.01 * epsilon_of_rounds(1))
    announcement = announced(world)
    world.open(announcement)
    client = world.client(world.hospitals[0])
    upload = client.submit(accept(world, announcement), [np.full(100, value)], 1, {}, saturate=True)
    assert len(upload) == 16
    assert len(spent(world)) == 1


def test_it_is_paid_before_anything_is_read(pinning):
    world = pinning(hospital_epsilon=1.01 * epsilon_of_rounds(1))
    client, accepted = world.client(world.hospitals[0]), accept(world, announced(world))
    with pytest.raises(FedsecError, match="NaN or infinity"):
        client.submit(accepted, [np.full(100, np.nan)], 1, {})
    assert len(spent(world)) == 1


def test_an_update_that_comes_again_is_paid_for_again_and_not_told_by_a_refusal(pinning):
    world = pinning(hospital_epsilon=1.01 * epsilon_of_rounds(2))
    client = world.client(world.hospitals[0])
    for number in (1, 2):
        announcement = announced(world, number)
        world.open(announcement)
        client.submit(accept(world, announcement), [np.full(100, 0.01)], 1, {})
        assert len(spent(world)) == number


@pytest.mark.parametrize("limits", [{}, {"hospital_epsilon": 1e9}])
@pytest.mark.parametrize(("factor", "level"), [(1.0, logging.INFO), (0.01, logging.WARNING)])
def test_what_a_round_costs_is_said_and_loudly_when_its_noise_is_next_to_nothing(
    pinning, caplog, limits, factor, level
):
    world = pinning(**limits)
    noise = Noise(1.0, 8192, NOISE.variance * factor**2, 3, 2)
    announcement = announced(world, noise=noise)
    with caplog.at_level(logging.INFO, "fedsec.aggregation.noise.account"):
        world.client(world.hospitals[0]).pay(announcement)
    ((_, said, text),) = caplog.record_tuples
    assert said == level
    assert f"noise multiplier {2 * factor:.3g}, epsilon " in text
    if factor == 1:
        assert float(text.split("epsilon ")[1].split()[0]) == pytest.approx(epsilon_of_rounds(1), abs=2e-3)


@pytest.mark.parametrize("value", [0.02, 0.2, np.nan])
def test_an_update_that_was_scaled_down_is_no_warning(pinning, caplog, value):
    """A hundred values of 0.2 are an update of length 2, and the clip is 1."""
    world = pinning()
    announcement = announced(world)
    world.open(announcement)
    with caplog.at_level(logging.INFO, "fedsec.aggregation.client"):
        accepted = accept(world, announcement)
        world.client(world.hospitals[0]).submit(accepted, [np.full(100, value)], 0, {}, saturate=True)
    said = [
        (level, text) for name, level, text in caplog.record_tuples if name == "fedsec.aggregation.client"
    ]
    assert [level for level, _ in said] == ([] if value == 0.02 else [logging.INFO])
    assert all("longer than the L2 norm of the round, or had values that are not" in text for _, text in said)


def test_a_hospital_that_pins_nothing_keeps_account_all_the_same(pinning):
    world = pinning()
    announcement = announced(world)
    world.open(announcement)
    client = world.client(world.hospitals[0])
    client.submit(accept(world, announcement), [np.zeros(100)], 1, {})
    (one,) = spent(world)
    assert (one.l2_sensitivity, one.variance, one.rounds) == (8197.0, NOISE.variance, 1)
    # Integers: no L1 norm is above sqrt(100) times the L2 norm.
    assert one.l1_sensitivity == 81970.0
