"""Shares say nothing: exactly, over all masks of a small ring, and by tests on samples of the rings in use.

Every check comes with schemes broken on purpose that it must catch (power). All of them still reconstruct.
"""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from fedsec.ring import RING32, RING64, Ring, derive_key, fresh_key
from fedsec.sharing import additive, boolean, compressed, conversion, replicated

BYTE = Ring(8)
P_LIMIT = 1e-6
SAMPLES = 100_000


class AllMasks:
    """Stands in for a stream: its k draws together run through every k-tuple of bytes exactly once."""

    def __init__(self, draws):
        self._grid = iter(np.indices((256,) * draws).reshape(draws, -1).astype(np.uint8))

    def words(self, shape, ring):
        mask = next(self._grid)
        assert ring == BYTE
        assert shape == mask.shape
        return mask


class AllMasksButTheTop(AllMasks):
    """As ``randint(0, 255)`` draws them: the bound is exclusive and 255 never comes (Flower's SecAgg+)."""

    def __init__(self, draws):
        self._grid = iter(np.indices((255,) * draws).reshape(draws, -1).astype(np.uint8))


def _secret(value, stream_class, draws):
    size = 255**draws if stream_class is AllMasksButTheTop else 256**draws
    return np.full(size, value, dtype=np.uint8)


def _is_uniform(words):
    """Whether a joint sample of bytes, shape [draws, samples], has every tuple equally often."""
    tuples = np.zeros(words[0].shape, dtype=np.int64)
    for column in words:
        tuples = tuples * 256 + column
    counts = np.bincount(tuples, minlength=256 ** len(words))
    return bool(np.all(counts == counts[0]))


@pytest.mark.parametrize("secret", range(256))
def test_threat_06_two_additive_shares_are_each_uniform_over_all_masks(secret):
    shares = additive.share(_secret(secret, AllMasks, 1), 2, AllMasks(1))

    assert all(_is_uniform([share]) for share in shares)


@pytest.mark.parametrize("secret", [0, 1, 127, 128, 200, 255])
def test_threat_05_any_two_of_three_additive_shares_are_uniform_over_all_masks(secret):
    shares = additive.share(_secret(secret, AllMasks, 2), 3, AllMasks(2))

    for pair in combinations(shares, 2):
        assert _is_uniform(pair)


@pytest.mark.parametrize("secret", [0, 1, 127, 128, 200, 255])
def test_threat_05_each_replicated_pair_is_uniform_over_all_masks(secret):
    for share in replicated.share(_secret(secret, AllMasks, 2), AllMasks(2)):
        assert _is_uniform([share.own, share.next])


@pytest.mark.parametrize("secret", [0, 1, 128, 255])
def test_threat_05_each_conversion_pair_is_uniform_over_all_masks(secret):
    parts = conversion.split_for_three(_secret(secret, AllMasks, 2), AllMasks(2))

    for i in range(3):
        assert _is_uniform([parts[i], parts[(i + 1) % 3]])


@pytest.mark.parametrize("secret", [0, 100, 255])
def test_threat_06_power_masks_without_the_top_value_are_caught(secret):
    shares = additive.share(_secret(secret, AllMasksButTheTop, 1), 2, AllMasksButTheTop(1))

    assert additive.reconstruct(shares)[0] == secret
    assert not any(_is_uniform([share]) for share in shares)


@pytest.mark.parametrize("secret", [0, 100])
def test_threat_05_power_one_mask_used_twice_is_caught(secret):
    mask = np.arange(256, dtype=np.uint8)
    shares = [mask, mask, np.uint8(secret) - mask - mask]

    assert not _is_uniform([shares[2]])


def _p_of_bytes(words):
    """The smallest p-value over byte positions of: every value of this byte is equally likely."""
    rows = np.ascontiguousarray(words).reshape(-1, 1).view(np.uint8)
    return min(stats.chisquare(np.bincount(column, minlength=256)).pvalue for column in rows.T)


def _p_of_two(words, others):
    """The smallest p-value over byte positions of: these two samples have one distribution."""
    pairs = zip(
        *(np.ascontiguousarray(w).reshape(-1, 1).view(np.uint8).T for w in (words, others)), strict=True
    )
    tables = (np.array([np.bincount(column, minlength=256) for column in pair]) for pair in pairs)
    return min(stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue for table in tables)


def _p_of_coins(words, secret_bits):
    """p-value of: lowest and highest bit of a share are coins, whatever the secret's lowest bit is."""
    found = []
    for shift in (0, 8 * words.itemsize - 1):
        bit = (words >> words.dtype.type(shift) & words.dtype.type(1)).astype(int)
        table = np.bincount(2 * bit + secret_bits, minlength=4).reshape(2, 2)
        constant = np.any(table.sum(axis=1) == 0)
        found.append(0.0 if constant else stats.chi2_contingency(table).pvalue)
    return min(found)


def _share_compressed(secret, parties, stream):
    seeds = [stream.take(32) for _ in range(parties - 1)]
    vector = compressed.share_compressed(secret, seeds)
    return [vector, *(compressed.expand(seed, secret.size, _ring(secret)) for seed in seeds)]


def _ring(words):
    return Ring(8 * words.itemsize)


def _share_replicated(secret, parties, stream):
    return [share.own for share in replicated.share(secret, stream)]


SCHEMES = {"additive": additive.share, "compressed": _share_compressed}
CASES = [(name, n) for name in SCHEMES for n in (2, 3, 7)] + [("replicated", 3)]
SCHEMES["replicated"] = _share_replicated


def _worst_p(share, parties, ring, stream):
    """The smallest p-value of every test on every single share, for fixed and for random secrets."""
    zero = np.zeros(SAMPLES, dtype=ring.dtype)
    adverse = np.full(SAMPLES, ring.modulus - 1, dtype=ring.dtype)
    random = stream.words(SAMPLES, ring)
    bits = (random & ring.dtype.type(1)).astype(int)
    first, second, third = (share(secret, parties, stream) for secret in (zero, adverse, random))
    p_values = [_p_of_bytes(part) for part in (*first, *second)]
    p_values += [_p_of_two(a, b) for a, b in zip(first, second, strict=True)]
    p_values += [_p_of_coins(part, bits) for part in third]
    return min(p_values)


@pytest.mark.parametrize(("scheme", "parties"), CASES)
@pytest.mark.parametrize("ring", [RING32, RING64], ids=str)
def test_threat_04_no_single_share_tells_two_secrets_apart(scheme, parties, ring, stream):
    assert _worst_p(SCHEMES[scheme], parties, ring, stream) > P_LIMIT


def _narrow_mask(secret, parties, stream):
    """The mask fills the lower half of the word only."""
    ring = _ring(secret)
    mask = stream.words(secret.size, ring) >> ring.dtype.type(ring.bits // 2)
    return [mask, secret - mask]


def _scalar_mask(secret, parties, stream):
    """One mask for all elements."""
    mask = np.repeat(stream.words(1, _ring(secret)), secret.size)
    return [mask, secret - mask]


def _mean_shift(secret, parties, stream):
    """A normal mask, as on real numbers: wide, but its mean is the secret's."""
    generator = np.random.default_rng(int.from_bytes(stream.take(8), "little"))
    width = 2.0 ** (8 * secret.itemsize - 6)
    mask = generator.normal(0, width, secret.size).astype(np.int64).astype(secret.dtype)
    return [mask, secret - mask]


def _even_mask(secret, parties, stream):
    """Twice a uniform word, as two equal seeds would give."""
    mask = stream.words(secret.size, _ring(secret))
    return [mask, mask, secret - mask - mask]


def _biased_mask(secret, parties, stream):
    """The lowest bit of the mask is 1 with probability 0.52 instead of 0.5."""
    ring = _ring(secret)
    rare = stream.words(secret.size, BYTE) < 10
    mask = stream.words(secret.size, ring) | rare.astype(ring.dtype)
    return [mask, secret - mask]


@pytest.mark.parametrize("broken", [_narrow_mask, _scalar_mask, _mean_shift, _even_mask, _biased_mask])
@pytest.mark.parametrize("ring", [RING32, RING64], ids=str)
def test_threat_04_power_broken_sharings_are_caught(broken, ring, stream):
    secret = stream.words(100, ring)
    np.testing.assert_array_equal(additive.reconstruct(broken(secret, 2, stream)), secret)

    assert _worst_p(broken, 2, ring, stream) < P_LIMIT


@pytest.mark.parametrize("secret", [0, 2**64 - 1])
def test_threat_04_boolean_shares_are_uniform(secret, stream):
    planes = np.full((8, SAMPLES // 8), secret, dtype=np.uint64)
    for share in boolean.share(planes, 64 * (SAMPLES // 8), stream):
        assert _p_of_bytes(share.own.ravel()) > P_LIMIT
        assert _p_of_bytes((share.own ^ share.next).ravel()) > P_LIMIT


def _classifier_accuracy(make, stream):
    """Fit a classifier that tells two secrets apart from ``make(secret, stream)``; return its accuracy.

    The features are the single bits; the classifier is linear, by least squares, and judged on new samples.
    """
    samples = 4000
    views = [make(np.full(samples, secret, dtype=np.uint32), stream) for secret in (0, 0xDEADBEEF)]
    bits = np.concatenate([np.unpackbits(np.stack(view, axis=1).view(np.uint8), axis=1) for view in views])
    features = np.column_stack([bits * 2.0 - 1, np.ones(2 * samples)])
    labels = np.repeat([-1.0, 1.0], samples)
    train = np.arange(2 * samples) % 2 == 0
    weights = np.linalg.lstsq(features[train], labels[train], rcond=None)[0]
    return float(np.mean(np.sign(features[~train] @ weights) == labels[~train]))


HALF = (0.46, 0.54)  # five standard deviations of 4,000 fair coins


@pytest.mark.parametrize("missing", range(3))
def test_threat_05_two_of_three_views_classify_like_a_coin(missing, stream):
    def view(secret, stream):
        shares = additive.share(secret, 3, stream)
        return shares[:missing] + shares[missing + 1 :]

    assert HALF[0] < _classifier_accuracy(view, stream) < HALF[1]


def test_threat_05_power_all_three_views_give_the_secret_away(stream):
    def joined(secret, stream):
        return [additive.reconstruct(additive.share(secret, 3, stream))]

    assert _classifier_accuracy(joined, stream) > 0.99


def test_threat_05_seeds_are_too_long_to_search_and_power_16_bits_are_not():
    def short_seed(number):
        return derive_key(number.to_bytes(32, "big"), purpose="16 bits")

    secrets = [np.zeros(4, dtype=np.uint64), np.arange(4, dtype=np.uint64)]
    masks = {compressed.expand(short_seed(number), 4).tobytes() for number in range(2**16)}

    def found(seed, truth):
        vector = compressed.share_compressed(secrets[truth], [seed])
        return [(secret - vector).tobytes() in masks for secret in secrets]

    for truth in (0, 1):
        assert found(fresh_key(), truth) == [False, False]
        assert found(short_seed(54_321), truth) == [truth == 0, truth == 1]
