"""Noise nobody holds. Keys of the noise are fixed here, so what these tests draw never changes.

Expected values are Python integers, plain numpy and SciPy's Skellam law.
"""

import math
import shutil

import numpy as np
import pytest
from aggregation_world import Contribution, World, replaced
from scipy import special, stats

from fedsec.aggregation import ArraySpec, Layout, encode_update, plan_encoding
from fedsec.aggregation.checksum import Checksum
from fedsec.aggregation.encoding import UpdateWords, decode_sum
from fedsec.aggregation.history import History
from fedsec.aggregation.messages import CollectSum, Hello, SumShare
from fedsec.aggregation.noise import adding
from fedsec.aggregation.noise.planning import HospitalLevel, plan_noise, sum_of
from fedsec.aggregation.noise.terms import LARGEST_PART, Noise
from fedsec.aggregation.parts import PartFolder
from fedsec.aggregation.round import Round
from fedsec.errors import (
    FedsecError,
    PeerLostError,
    ProtocolError,
    RangeError,
    RoundAbortedError,
    UsageError,
)
from fedsec.privacy import skellam
from fedsec.privacy.skellam import LARGEST_VARIANCE, SkellamSampler
from fedsec.privacy.skellam_accounting import epsilon_of_sums
from fedsec.ring.streams import KeyedStream, fresh_key
from fedsec.transport.decoding import decode_as

WORDS = 12_000
CLIP = 2.0
SMALL = Noise(l2_clip=CLIP, clip_words=8192, variance=6.0, aggregators=3, colluding=2)
BOUNDS_OF_P = 1e-6


def encoding(noise, hospitals=4, ring_bits=32):
    return plan_encoding(hospitals, noise.l2_clip, 1, 1.0, ring_bits, weights="equal", noise=noise)


def layout(noise=SMALL, words=WORDS):
    return Layout(encoding(noise), (ArraySpec("a", "float32", (words,), noise.l2_clip),), ())


def announced(world, noise=SMALL, words=WORDS, **fields):
    model = [np.zeros(words, np.float32)]
    announcement = world.announcement(
        model,
        clips=[noise.l2_clip],
        encoding=encoding(noise, world.hospital_count),
        **{"metrics": (), "upload_seconds": 60.0, **fields},
    )
    return announcement, model


def updates(count, words=WORDS, length=1.0):
    generator = np.random.default_rng(7)
    drawn = generator.normal(size=(count, words))
    return list(length * drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


@pytest.fixture
def drawn(monkeypatch):
    """Fixed keys, one for each aggregator that draws, and what they drew, in the order of their rounds."""
    parts = []

    class Recorded:
        def __init__(self, variance, stream):
            self._of = SkellamSampler(variance, KeyedStream(bytes([len(parts) + 1]) * 32))
            parts.append([])
            self._mine = parts[-1]

        def draw(self, size):
            self._mine.append(self._of.draw(size))
            return self._mine[-1]

    monkeypatch.setattr(skellam, "SkellamSampler", Recorded)
    return lambda: [np.concatenate(one) for one in parts]


def opened(world, noise=SMALL, words=WORDS):
    """Run a round with everybody, and return the signed opened words and the integer sum without noise."""
    announcement, model = announced(world, noise, words)
    signed = world.open(announcement)
    contributions = updates(world.hospital_count, words, 0.9 * CLIP)
    for hospital, update in zip(world.hospitals, contributions, strict=True):
        world.submit(hospital, announcement, signed, Contribution([update], 17, {}), model)
    result = world.collect(announcement)
    unit = noise.clip_words / noise.l2_clip
    plain = sum(np.rint(update * unit).astype(np.int64) for update in contributions)
    return announcement, result, result.words.view(np.int32)[:words] - plain


def p_of_skellam(values, variance):
    """P-value of a chi-squared test against SciPy's law, in cells of which the ends are open."""
    law = stats.skellam(variance / 2, variance / 2)
    # Of large variances some values share a cell, so that each cell has enough of them.
    edges = np.unique(law.ppf(np.linspace(0.0, 1.0, 42)[1:-1]))
    cells = np.searchsorted(edges, values, side="left")
    mass = np.diff(np.concatenate([[0.0], law.cdf(edges), [1.0]]))
    counts = np.bincount(cells, minlength=edges.size + 1)
    kept = mass * values.size >= 5
    counts = np.append(counts[kept], counts[~kept].sum())
    mass = np.append(mass[kept], mass[~kept].sum())
    keep = mass > 0
    return stats.chisquare(counts[keep], mass[keep] / mass[keep].sum() * values.size).pvalue


@pytest.fixture(scope="module")
def quiet_world(tmp_path_factory):
    """A world of which only the announcements are used."""
    with World(tmp_path_factory.mktemp("quiet")) as world:
        yield world


# What is opened.


def test_what_is_opened_is_the_integer_sum_and_the_noise_of_all(tmp_path, drawn):
    noise = Noise(CLIP, 8192, 6.0, aggregators=3, colluding=1)
    with World(tmp_path) as world:
        _, result, found = opened(world, noise)
    assert np.array_equal(found, sum(drawn()))
    assert p_of_skellam(found, 3 * 6.0 / 2) > BOUNDS_OF_P
    # Without the part of the one that may collude the full variance is left.
    assert p_of_skellam(found - drawn()[0], 6.0) > BOUNDS_OF_P
    assert result.total_weight == world.hospital_count
    # The test has the power to see a tenth less noise.
    assert p_of_skellam(found, 0.9 * 9.0) < BOUNDS_OF_P


def left_by(noise, drawn):
    """What nobody in a coalition knows of the noise on a sum: all parts are on it, its own are taken off."""
    total = np.zeros(WORDS + 2, np.uint32)
    for _ in range(noise.aggregators):
        share = np.zeros(WORDS + 2, np.uint32)
        adding.add_noise(share, layout(noise), bytes(32), fresh_key())
        total += share
    return total[:WORDS].view(np.int32) - sum(drawn()[: noise.colluding])


@pytest.mark.parametrize(("aggregators", "colluding"), [(2, 1), (3, 2), (3, 1), (5, 2), (7, 6)])
def test_any_coalition_removed_leaves_the_full_variance(drawn, aggregators, colluding):
    left = left_by(Noise(CLIP, 8192, 40.0, aggregators, colluding), drawn)
    assert p_of_skellam(left, 40.0) > BOUNDS_OF_P
    # The mean square of 12,000 values is within a tenth of the variance but with a probability below 1e-13.
    assert float(np.mean(left.astype(float) ** 2)) == pytest.approx(40.0, rel=0.1)


def test_scaling_that_forgets_the_coalition_is_found(drawn, monkeypatch):
    monkeypatch.setattr(Noise, "part", property(lambda noise: noise.variance / noise.aggregators))
    left = left_by(Noise(CLIP, 8192, 40.0, 3, 2), drawn)
    assert p_of_skellam(left, 40.0) < BOUNDS_OF_P
    assert float(np.mean(left.astype(float) ** 2)) < 20.0


def test_the_noise_of_a_run_is_drawn_from_keys_of_its_own(tmp_path):
    """No fixed keys. Two draws of this variance agree in a word with a probability below 1e-4."""
    noise = Noise(CLIP, 8192, 2.0**24, 3, 2)
    folders = [PartFolder(tmp_path / name, bytes(20)) for name in ("one", "other")]
    for folder in folders:
        folder.create()
    # Two aggregators in a round; another announcement and another included set of one of them.
    contexts = [(bytes(32), bytes(32)), (bytes(31) + b"1", bytes(32)), (bytes(32), bytes(31) + b"1")]
    keys = [folders[1].noise_key(*contexts[0]), *(folders[0].noise_key(*one) for one in contexts)]
    assert [PartFolder(tmp_path / "one", bytes(20)).noise_key(*one) for one in contexts] == keys[1:]
    shares = [np.zeros(WORDS + 2, np.uint32) for _ in keys]
    for share, key in zip(shares, keys, strict=True):
        adding.add_noise(share, layout(noise), bytes(32), key)
    for place, one in enumerate(shares):
        assert np.count_nonzero(one[:WORDS]) > 0.99 * WORDS
        assert int(one[WORDS]) == 0
        for other in shares[:place]:
            assert np.count_nonzero(one == other) < 0.01 * WORDS


def test_the_weight_is_exact_and_the_checksum_belongs_to_the_noisy_words(drawn):
    share = np.arange(WORDS + 2, dtype=np.uint32)
    before = share.copy()
    adding.add_noise(share, layout(), bytes(32), fresh_key())
    (noise,) = drawn()
    assert np.array_equal((share - before)[:WORDS].view(np.int32), noise)
    assert share[WORDS] == before[WORDS]
    checksum = Checksum(layout(), bytes(32))
    # Linear: the difference of the share has not changed, so neither has that of the opened sum.
    assert checksum.difference(share) == checksum.difference(before)


def test_noise_that_leaves_the_checksum_word_out_is_noticed(tmp_path, drawn, monkeypatch):
    """It would open <rho, sum> of the exact sum beside the noisy words."""

    def careless(words, layout, announcement, key):
        words[: layout.update_words] += (
            skellam.SkellamSampler(6.0, None).draw(layout.update_words).astype(np.uint32)
        )

    monkeypatch.setattr("fedsec.aggregation.round.add_noise", careless)
    with World(tmp_path) as world, pytest.raises(RoundAbortedError, match="checksum word"):
        opened(world)


# Drawn once.


def share_of(world, name, announcement):
    return world.network.ask(world.server.peer, name, CollectSum(announcement.id))


def complete(world, before_the_end=lambda: None):
    announcement, model = announced(world)
    signed = world.open(announcement)
    for hospital, update in zip(world.hospitals, updates(4), strict=True):
        world.submit(hospital, announcement, signed, Contribution([update], 17, {}), model)
    before_the_end()
    world.close_uploads(announcement)
    return announcement


def set_back(world, tmp_path, monkeypatch):
    """Let agg-1 give its share, set its disk back to the open round, and agree again before it has greeted.

    Whoever set it back also restarts its peers, so that they say again what it had confirmed, and delays its
    greetings. Returns the announcement and the first share.
    """
    state, backup = world.state_of("agg-1"), tmp_path / "backup"
    announcement = complete(world, lambda: shutil.copytree(state, backup))
    first = share_of(world, "agg-1", announcement)
    world.network.aggregators["agg-1"].close()
    shutil.rmtree(state)
    shutil.copytree(backup, state)
    for peer in ("agg-0", "agg-2"):
        world.restart(peer)
    world.network.aggregators["agg-1"] = world.start(world.parties[1])
    ask = world.network.ask

    def slow(peer, name, message, body=b""):
        if peer.name == "agg-1" and isinstance(message, Hello):
            raise PeerLostError("the greeting is on its way")
        return ask(peer, name, message, body)

    monkeypatch.setattr(world.network, "ask", slow)
    world.close_uploads(announcement)
    return announcement, first


def test_threat_53_an_aggregator_that_was_set_back_gives_no_share_before_its_peers_answer(
    tmp_path, monkeypatch
):
    with World(tmp_path) as world:
        announcement, _ = set_back(world, tmp_path, monkeypatch)
        reply, body = share_of(world, "agg-1", announcement)
        assert (decode_as(reply, SumShare).ready, body) == (False, b"")
        monkeypatch.undo()
        world.network.pump()
        with pytest.raises(FedsecError, match="rolled back"):
            share_of(world, "agg-1", announcement)


def test_threat_53_noise_on_a_disk_that_was_set_back_is_the_same(tmp_path, monkeypatch):
    """All its peers are corrupt: they pretend to have seen nothing of it."""
    with World(tmp_path) as world:
        announcement, first = set_back(world, tmp_path, monkeypatch)
        monkeypatch.setattr(History, "require_current", lambda history: None)
        reply, body = share_of(world, "agg-1", announcement)
        assert decode_as(reply, SumShare).ready
        # The nonce is a new one: it was agreed again.
        assert body[:32] != first[1][:32]
        assert body[32:] == first[1][32:]


def test_threat_53_a_share_with_noise_is_sent_again_with_identical_bytes_also_after_a_restart(tmp_path):
    with World(tmp_path) as world:
        announcement = complete(world)
        first = share_of(world, "agg-1", announcement)
        assert share_of(world, "agg-1", announcement) == first
        world.restart("agg-1")
        world.network.pump()
        assert share_of(world, "agg-1", announcement) == first
        assert len(first[1]) == 32 + 4 * (WORDS + 2)
        assert world.collect(announcement).included_count == 4


def test_threat_53_noise_that_is_drawn_a_second_time_is_found(tmp_path, monkeypatch):
    collect = Round.collect

    def drawing_again(round_, public_key):
        reply, body = collect(round_, public_key)
        words = np.frombuffer(body, np.uint32, offset=32).copy()
        adding.add_noise(words, round_.announcement.layout, round_.digest, fresh_key())
        return reply, body[:32] + words.tobytes()

    with World(tmp_path) as world:
        announcement = complete(world)
        monkeypatch.setattr(Round, "collect", drawing_again)
        with pytest.raises(ProtocolError, match="another sum share than it had committed to"):
            world.collect(announcement)


def test_no_message_and_no_file_holds_the_noise_of_an_aggregator(tmp_path, drawn):
    """The total noise could only be put together from all parts, and no part leaves its process alone."""
    seen = []
    with World(tmp_path) as world:
        ask = world.network.ask

        def recorded(peer, name, message, body=b""):
            reply, answer = ask(peer, name, message, body)
            seen.extend(bytes(one) for one in (body, reply, answer))
            return reply, answer

        world.network.ask = recorded
        announcement = complete(world)
        shares = [world.network.aggregators[name]._rounds[announcement.id.key] for name in ("agg-0", "agg-1")]
        stored = [one.folder.read_sum() for one in shares]
        world.collect(announcement)
        seen.extend(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    parts = drawn()
    everything = b"\0".join([*seen, *stored])
    assert len(parts) == 3
    for noise in (*parts, parts[0] + parts[1], sum(parts)):
        for encoded in (noise.astype(np.uint32), noise, noise.astype(np.float64)):
            raw = encoded.tobytes()
            # 64 words of noise in a row are elsewhere with a probability below 4^-64.
            assert not any(raw[at : at + 64 * encoded.itemsize] in everything for at in (0, 8000, 32_000))
    assert stored[0][32:] in everything


# A hospital's update.


def test_an_update_is_scaled_down_as_a_whole():
    one = layout(words=WORDS)
    (update,) = updates(1, length=5 * CLIP)
    words = np.empty(one.payload_words, np.uint32)
    source = UpdateWords(one, [update], 3, {}, saturate=True)
    assert list(source.fill(words))[-1] == one.payload_words
    unit = SMALL.clip_words / CLIP
    expected = np.rint(update / 5 * unit)
    assert np.abs(words[:WORDS].view(np.int32) - expected).max() <= 1
    assert int(words[WORDS]) == 1
    assert source.report.clipped == WORDS


def test_an_update_within_the_norm_goes_out_as_it_is():
    one = Layout(
        encoding(SMALL),
        (ArraySpec("a", "float32", (3,), CLIP), ArraySpec("b", "float32", (2, 2), CLIP)),
        (),
    )
    update = [np.array([0.5, -0.25, 1.0]), np.array([[0.0, 1e-5], [-1.0, 0.125]])]
    words = encode_update(one, update, 1, {})
    unit = 8192 / CLIP
    assert [int(w) for w in words.view(np.int32)] == [
        *(round(x * unit) for x in (0.5, -0.25, 1.0, 0.0, 1e-5, -1.0, 0.125)), 1,
    ]  # fmt: skip


def test_what_is_too_long_is_refused_unless_it_may_be_scaled():
    for length in (1.001, 1.0):
        with pytest.raises(RangeError, match=r"above this round's 2, or .* submit with saturate=True"):
            encode_update(layout(words=4), [np.array([length * CLIP, 0.0, 0.0, 0.0])], 1, {})
    encode_update(layout(words=4), [np.array([(1 - 1e-9) * CLIP, 0.0, 0.0, 0.0])], 1, {})


@pytest.mark.parametrize("count", [0, -1, 10**9, 0.0, None])
def test_no_number_of_examples_keeps_a_hospital_out(count):
    """All weights are equal: a refusal would tell the count, which no noise is on."""
    one = layout(words=4)
    words = np.empty(one.payload_words, np.uint32)
    list(UpdateWords(one, [np.array([0.0, 0.5, 0.0, 0.0])], count, {}, saturate=True).fill(words))
    assert words.tolist() == [0, 2048, 0, 0, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_goes_out(value):
    update = updates(1)
    update[0][5] = value
    with pytest.raises(RangeError, match="NaN or infinity"):
        encode_update(layout(), update, 1, {})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("length", [0.5, 5.0])
def test_what_a_hospital_trained_counts_as_nothing_where_it_is_not_finite(value, length):
    """A refusal would tell the server, without any noise, that training went wrong on these data."""
    one = layout()
    (update,) = updates(1, length=length * CLIP)
    spoilt = update.copy()
    spoilt[[5, 700]] = value
    source = UpdateWords(one, [spoilt], 1, {}, saturate=True)
    words = np.empty(one.payload_words, np.uint32)
    list(source.fill(words))
    update[[5, 700]] = 0.0
    expected = np.rint(update * min(1.0, CLIP / np.linalg.norm(update)) * SMALL.clip_words / CLIP)
    assert np.abs(words[:WORDS].view(np.int32) - expected).max() <= 1
    assert words[5] == words[700] == 0
    assert source.report.clipped == (2 if length < 1 else WORDS)


def test_a_difference_that_overflows_counts_as_nothing():
    one = layout(words=4)
    words = np.empty(one.payload_words, np.uint32)
    base = [np.array([-1.7e308, 0.0, np.inf, 0.0])]
    list(UpdateWords(one, [-base[0] + [0, 1, 0, 0]], 1, {}, base=base, saturate=True).fill(words))
    assert words.view(np.int32).tolist() == [0, 4096, 0, 0, 1]


@pytest.mark.parametrize("size", [1e30, 1e200, 1e308])
def test_a_huge_update_is_scaled_to_the_norm_without_overflow(size):
    one = layout(words=4)
    words = np.empty(one.payload_words, np.uint32)
    list(UpdateWords(one, [np.array([size, -size, 0.0, 1.0])], 1, {}, saturate=True).fill(words))
    assert words.view(np.int32).tolist() == [5793, -5793, 0, 0, 1]


def test_the_rounded_norm_is_checked(monkeypatch):
    monkeypatch.setattr(Noise, "l2_sensitivity", lambda noise, words: 0.5 * noise.clip_words)
    with pytest.raises(RangeError, match="rounded update is longer"):
        encode_update(layout(), updates(1, length=0.9 * CLIP), 1, {})


def test_a_sum_that_no_honest_hospitals_can_reach_is_void():
    """One modified client: its word is far above the norm of all, and of the noise."""
    words = np.zeros(WORDS + 2, np.uint32)
    words[WORDS] = 4
    reach = 4 * 8192 + SMALL.tail
    words[0] = reach
    assert decode_sum(layout(), words, 4).total_weight == 4
    words[0] = reach + 4
    with pytest.raises(RoundAbortedError, match="a client cheated"):
        decode_sum(layout(), words, 4)


# The planner.


@pytest.mark.parametrize("words", [1, 10, 22_158, 1_000_000])
@pytest.mark.parametrize("target", [1.0, 8.0])
def test_the_planner_reaches_the_target_and_rounds_at_most_one_percent_longer(words, target):
    wanted = HospitalLevel(l2_norm_clip=0.5, target_epsilon=target, delta=1e-6)
    noise = plan_noise(wanted, words=words, rounds=15, hospitals=20, aggregators=3, ring_bits=32)
    assert math.sqrt(words) / 2 <= 0.01 * noise.clip_words
    assert noise.part == noise.variance <= LARGEST_PART
    epsilon = epsilon_of_sums([sum_of(noise, words)] * 15, 1e-6)
    assert 0.999 * target < epsilon <= target
    # The leading term of the bound, in closed form: rounds * alpha / (2 z^2), alpha over all orders.
    z = math.sqrt(noise.variance) / (noise.clip_words + math.sqrt(words) / 2)
    alphas = np.arange(2, 5000)
    closed = 15 * alphas / (2 * z * z) + np.log1p(-1 / alphas) - np.log(1e-6 * alphas) / (alphas - 1)
    assert epsilon == pytest.approx(closed.min(), rel=2e-3)


def test_a_noise_multiplier_is_in_units_of_the_rounded_norm():
    wanted = HospitalLevel(l2_norm_clip=1.0, noise_multiplier=2.5)
    noise = plan_noise(wanted, words=100, rounds=1, hospitals=3, aggregators=5, ring_bits=32)
    assert math.sqrt(noise.variance) == pytest.approx(2.5 * (noise.clip_words + 5.0))
    assert (noise.colluding, noise.part, noise.total) == (4, noise.variance, 5 * noise.variance)
    weaker = plan_noise(
        HospitalLevel(l2_norm_clip=1.0, noise_multiplier=2.5, colluding=2),
        words=100, rounds=1, hospitals=3, aggregators=5, ring_bits=32,
    )  # fmt: skip
    assert weaker.part == pytest.approx(weaker.variance / 3)


def test_the_stated_tail_is_that_of_the_law():
    """The law of variance v has mass ive(|k|, v) at k (Skellam 1946), with the scaled Bessel function."""

    def beyond(largest):
        return 2 * float(special.ive(np.arange(largest + 1, largest + 200), SMALL.total).sum())

    assert 0 < beyond(SMALL.tail) <= 2.0**-90
    assert beyond(int(0.9 * SMALL.tail)) > 2.0**-90


def test_the_range_is_checked_at_its_bound():
    noise = Noise(1.0, 2**20, 2.0**40, 3, 2)
    room = 2**31 - noise.tail - 1
    fits = room // math.ceil(2**20 * 1.01)
    encoding(noise, fits)
    with pytest.raises(RangeError, match="can wrap a sum in 32 bits"):
        encoding(noise, fits + 1)
    encoding(noise, fits + 1, ring_bits=64)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"l2_clip": 0.0}, "norm above 0"),
        ({"clip_words": 0}, "norm above 0"),
        ({"colluding": 0}, "colluding"),
        ({"colluding": 3}, "colluding"),
        ({"variance": 0.0}, "variance"),
        ({"variance": 2.0**40 + 1}, "variance"),
        ({"variance": math.nan}, "variance"),
        ({"l2_clip": math.nan}, "norm above 0"),
    ],
)
def test_terms_that_make_no_sense_are_refused(fields, text):
    values = {"l2_clip": 1.0, "clip_words": 8192, "variance": 6.0, "aggregators": 3, "colluding": 2}
    with pytest.raises(RangeError, match=text):
        Noise(**{**values, **fields}).check(4, 32)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"phase": "evaluate"}, "only training rounds"),
        ({"metrics": None}, "no metrics are opened"),
        ({"weights": "examples"}, "all weights are equal"),
        ({"aggregators": 4}, "noise of 4 aggregators"),
        ({"clip": 1.5}, "clip of every array"),
        ({"dtype": "int32"}, "floating-point"),
        ({"clip_words": 5000}, "too long"),
        ({"shape": (-WORDS,)}, "a shape is negative"),
        ({"shape": (2**63 - 1,) * 20}, "too long"),
    ],
)
def test_an_announcement_whose_noise_does_not_fit_is_refused(quiet_world, fields, text):
    values = {"l2_clip": CLIP, "clip_words": 8192, "variance": 6.0, "aggregators": 3, "colluding": 2}
    noise = Noise(**{key: fields.get(key, value) for key, value in values.items()})
    model = [np.zeros(WORDS, fields.get("dtype", "float32"))]
    announcement = quiet_world.announcement(
        model, clips=[fields.get("clip", CLIP)], phase=fields.get("phase", "train"),
        encoding=plan_encoding(4, CLIP, 1, 1.0, weights=fields.get("weights", "equal"), noise=noise),
        **({} if "metrics" in fields else {"metrics": ()}),
    )  # fmt: skip
    if "shape" in fields:
        announcement = replaced(
            announcement, arrays=(ArraySpec("array-0", "float32", fields["shape"], CLIP),)
        )
    with pytest.raises(ProtocolError, match=text):
        announcement.check()


def test_asking_for_nonsense_is_refused():
    with pytest.raises(UsageError, match="not both"):
        HospitalLevel(l2_norm_clip=1.0)
    with pytest.raises(UsageError, match="not both"):
        HospitalLevel(l2_norm_clip=1.0, target_epsilon=1.0, noise_multiplier=1.0)
    with pytest.raises(UsageError, match="delta"):
        HospitalLevel(l2_norm_clip=1.0, target_epsilon=1.0, delta=1.0)
    with pytest.raises(UsageError, match="one at least must be honest"):
        plan_noise(
            HospitalLevel(l2_norm_clip=1.0, target_epsilon=1.0, colluding=3),
            words=10, rounds=1, hospitals=3, aggregators=3, ring_bits=32,
        )  # fmt: skip
    with pytest.raises(RangeError, match="do not fit"):
        plan_noise(
            HospitalLevel(l2_norm_clip=1.0, target_epsilon=0.01),
            words=10**6, rounds=100, hospitals=3, aggregators=3, ring_bits=32,
        )  # fmt: skip


def test_the_largest_part_is_what_the_sampler_covers():
    assert LARGEST_PART == LARGEST_VARIANCE
    SkellamSampler(LARGEST_PART)
