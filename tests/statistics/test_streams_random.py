"""Bit tests on the streams, in the manner of NIST SP 800-22, and generators that they must catch."""

import numpy as np
import pytest
from scipy import stats

from fedsec.ring import RING32, RING64, KeyedStream, Ring, derive_key
from fedsec.sharing import compressed

P_LIMIT = 1e-6
BITS = 1 << 22


def _monobit(bits):
    """SP 800-22, 2.1: as many ones as zeros."""
    return stats.chisquare(np.bincount(bits, minlength=2)).pvalue


def _block_frequency(bits):
    """2.2: as many ones as zeros in every block of 1,024 bits."""
    ones = bits.reshape(-1, 1024).sum(axis=1)
    return stats.chi2.sf(4 * 1024 * np.sum((ones / 1024 - 0.5) ** 2), len(ones))


def _runs(bits):
    """2.3: neighbours differ half of the time."""
    return stats.chisquare(np.bincount((bits[1:] != bits[:-1]).astype(int), minlength=2)).pvalue


def _serial(bits):
    """2.11 on disjoint windows: every byte, and every pair of half bytes a block apart, is equally likely."""
    values = np.packbits(bits)
    pairs = (values[:-16].astype(int) >> 4) * 16 + (values[16:] >> 4)
    return min(stats.chisquare(np.bincount(v, minlength=256)).pvalue for v in (values, pairs))


def _spectrum(bits):
    """2.6: no period stands out in the Fourier transform."""
    size = 1 << 16
    blocks = bits[: 16 * size].reshape(16, size) * 2.0 - 1
    height = np.abs(np.fft.rfft(blocks, axis=1))[:, 1:-1].max() ** 2 / size
    return -np.expm1(16 * (size // 2 - 1) * np.log1p(-np.exp(-height)))


def _worst_p(stream_bytes):
    bits = np.unpackbits(np.frombuffer(stream_bytes, dtype=np.uint8))
    return min(test(bits) for test in (_monobit, _block_frequency, _runs, _serial, _spectrum))


@pytest.mark.parametrize("number", range(4))
def test_threat_01_streams_pass_bit_tests(number):
    assert (
        _worst_p(
            KeyedStream(derive_key(bytes(32), purpose="bit tests", context=bytes([number]))).take(BITS // 8)
        )
        > P_LIMIT
    )


def test_threat_01_the_first_words_of_many_streams_pass_bit_tests():
    """Neighbouring seeds, as bad a choice as one can make: the beginnings of their streams are unrelated."""
    first = b"".join(compressed.expand(i.to_bytes(32, "big"), 8).tobytes() for i in range(BITS // 512))

    assert _worst_p(first) > P_LIMIT


def _counter():
    return np.arange(BITS // 64, dtype="<u8").tobytes()


def _biased():
    values = np.frombuffer(KeyedStream(bytes(32)).take(BITS // 8), dtype=np.uint8)
    rare = np.frombuffer(KeyedStream(bytes([1] * 32)).take(BITS // 8), dtype=np.uint8) < 8
    return (values | rare).tobytes()


def _linear_congruential():
    state, out = 1, bytearray()
    for _ in range(BITS // 32):
        state = (1103515245 * state + 12345) % 2**31
        out += (2 * state).to_bytes(4, "little")
    return bytes(out)


def _without_the_top():
    """As ``randint(0, 255)`` draws bytes: 255 never comes (Flower's SecAgg+ mask)."""
    values = np.frombuffer(KeyedStream(bytes(32)).take(BITS // 8), dtype=np.uint8)
    return np.where(values == 255, values[::-1] % 255, values).astype(np.uint8).tobytes()


def _one_block_again():
    return KeyedStream(bytes(32)).take(1 << 12) * (BITS // 8 >> 12)


@pytest.mark.parametrize(
    "broken", [_counter, _biased, _linear_congruential, _without_the_top, _one_block_again]
)
def test_threat_01_power_broken_generators_are_caught(broken):
    assert _worst_p(broken()) < P_LIMIT


@pytest.mark.parametrize("ring", [Ring(8), Ring(16)], ids=str)
def test_threat_06_every_word_of_a_small_ring_is_drawn_equally_often(ring, stream):
    counts = np.bincount(stream.words(1 << 22, ring), minlength=ring.modulus)

    assert counts[-1] > 0
    assert stats.chisquare(counts).pvalue > P_LIMIT


@pytest.mark.parametrize("ring", [RING32, RING64], ids=str)
def test_threat_06_words_fill_the_whole_ring(ring, stream):
    """The top 16 bits of the words, the uppermost value included, are equally likely."""
    top = (stream.words(1 << 21, ring) >> ring.dtype.type(ring.bits - 16)).astype(np.int64)

    assert stats.chisquare(np.bincount(top, minlength=1 << 16)).pvalue > P_LIMIT


def _flips(expand):
    """Fraction of output bits that change, for each single bit of the seed that flips."""
    seed = bytes(range(32))
    before = expand(seed)
    changed = []
    for bit in range(256):
        flipped = bytearray(seed)
        flipped[bit // 8] ^= 1 << bit % 8
        difference = np.frombuffer(expand(bytes(flipped)), np.uint8) ^ np.frombuffer(before, np.uint8)
        changed.append(np.unpackbits(difference).mean())
    return np.array(changed)


def _expand(seed):
    return compressed.expand(seed, 256).tobytes()


def _folded(seed):
    """Flower's SecAgg+ way: the seed XORed into 32 bits."""
    return np.bitwise_xor.reduce(np.frombuffer(seed, dtype="<u4")).tobytes() * 8


def _truncated(seed):
    return seed[:16] + bytes(16)


def _base64_like(seed):
    """Two bits of every byte do not count."""
    return bytes(byte & 0x3F for byte in seed)


def test_threat_02_every_seed_bit_changes_half_of_the_output():
    for flips in (_flips(_expand), _flips(lambda key: KeyedStream(key).take(2048))):
        assert np.all(
            np.abs(flips - 0.5) < 6 * 0.5 / np.sqrt(256 * 64)
        )  # six standard deviations of fair coins


@pytest.mark.parametrize("weaken", [_truncated, _base64_like])
def test_threat_02_power_seed_bits_that_do_not_count_are_caught(weaken):
    assert np.any(_flips(lambda seed: _expand(weaken(seed))) == 0)


def _distinct(count, first_words):
    """How many different outputs ``count`` seeds give that differ in two words in the same way."""
    seeds = (i.to_bytes(4, "little") + bytes(12) + i.to_bytes(4, "little") + bytes(12) for i in range(count))
    return len({first_words(seed) for seed in seeds})


def test_threat_02_no_two_structured_seeds_collide():
    count = 1 << 14

    assert _distinct(count, lambda seed: compressed.expand(seed, 2).tobytes()) == count
    assert _distinct(count, lambda seed: compressed.expand(_folded(seed), 2).tobytes()) < count  # power


@pytest.mark.slow
def test_threat_02_no_two_of_a_million_seeds_collide():
    """A fold to 32 bits would give about 128 collisions among 2^20 random seeds."""
    count = 1 << 20
    seeds = np.frombuffer(KeyedStream(bytes(32)).take(32 * count), dtype=np.uint8).reshape(count, 32)

    assert len({compressed.expand(seed.tobytes(), 2).tobytes() for seed in seeds}) == count
    assert len({_folded(seed.tobytes())[:4] for seed in seeds}) < count  # power
