import numpy as np
import pytest

from fedsec.errors import InputError, UsageError
from fedsec.ring import RING32, RING64, WORD_SIZES, Ring, fresh_key
from fedsec.sharing import additive, compressed


def _seeds(count, stream):
    return [stream.take(compressed.SEED_BYTES) for _ in range(count)]


@pytest.mark.parametrize("parties", range(2, 8))
@pytest.mark.parametrize("bits", WORD_SIZES)
def test_vector_and_expanded_seeds_join_to_the_secret(parties, bits, stream):
    ring = Ring(bits)
    secret, seeds = stream.words(1000, ring), _seeds(parties - 1, stream)

    vector = compressed.share_compressed(secret, seeds)

    assert vector.dtype == ring.dtype
    shares = [vector, *(compressed.expand(seed, 1000, ring) for seed in seeds)]
    np.testing.assert_array_equal(additive.reconstruct(shares), secret)


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 8193, 40_000])
def test_the_pieces_join_without_a_seam(size, stream):
    """Masks are made in pieces of 64 KiB: 8,192 words of 8 bytes."""
    secret, seeds = stream.words(size), _seeds(2, stream)

    vector = compressed.share_compressed(secret, seeds)

    masks = sum(compressed.expand(seed, size) for seed in seeds)
    np.testing.assert_array_equal(vector + masks, secret)


def test_any_shape_and_layout_is_taken_and_left_as_it_was(stream):
    secret, seeds = stream.words((6, 4))[::2].T, _seeds(1, stream)
    before = secret.copy()

    vector = compressed.share_compressed(secret, seeds)

    assert vector.shape == (4, 3)
    np.testing.assert_array_equal(vector + compressed.expand(seeds[0], 12).reshape(4, 3), secret)
    np.testing.assert_array_equal(secret, before)


def test_threat_03_the_rings_are_separated():
    seed = fresh_key()
    narrow, wide = compressed.expand(seed, 8, RING32), compressed.expand(seed, 4, RING64)

    assert narrow.tobytes() != wide.tobytes()


def test_threat_03_equal_seeds_are_refused_because_their_masks_leave_the_low_bit(stream):
    seed, secret = fresh_key(), stream.words(100)
    with pytest.raises(UsageError, match="equal"):
        compressed.share_compressed(secret, [seed, seed])

    unmasked = secret - np.uint64(2) * compressed.expand(seed, 100)  # what the vector holder would have got
    np.testing.assert_array_equal(unmasked & np.uint64(1), secret & np.uint64(1))


@pytest.mark.parametrize("count", [0, 7])
def test_other_numbers_of_parties_are_refused(count, stream):
    with pytest.raises(UsageError, match="2 to 7"):
        compressed.share_compressed(np.zeros(3, dtype=np.uint64), _seeds(count, stream))


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_threat_02_seeds_of_another_length_are_refused(size):
    with pytest.raises(UsageError, match="32 bytes"):
        compressed.share_compressed(np.zeros(3, dtype=np.uint64), [bytes(size)])
    with pytest.raises(UsageError, match="32 bytes"):
        compressed.expand(bytes(size), 3)


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(InputError):
        compressed.share_compressed(np.zeros(3), [fresh_key()])
    with pytest.raises(UsageError):
        compressed.expand(fresh_key(), -1)


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 8193, 40_000])
@pytest.mark.parametrize("bits", [32, 64])
def test_a_seed_expands_in_pieces_to_the_same_words(size, bits):
    seed, ring = fresh_key(), Ring(bits)
    pieces = [piece.copy() for piece in compressed.expand_pieces(seed, size, ring)]
    whole = np.concatenate(pieces) if pieces else np.empty(0, ring.dtype)
    np.testing.assert_array_equal(whole, compressed.expand(seed, size, ring))


@pytest.mark.parametrize("step", [1, 1000, 8192, 20_001])
def test_masks_taken_off_piece_by_piece_are_those_taken_off_at_once(step, stream):
    secret, seeds = stream.words(20_000), _seeds(2, stream)
    masks, vector = compressed.Masks(seeds, RING64), secret.copy()
    for start in range(0, vector.size, step):
        masks.take_off(vector[start : start + step])
    np.testing.assert_array_equal(vector, compressed.share_compressed(secret, seeds))
