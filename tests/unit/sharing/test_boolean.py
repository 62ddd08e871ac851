import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import InputError, ProtocolError, UsageError
from fedsec.ring import RING32, RING64, WORD_SIZES, KeyedStream, Ring
from fedsec.sharing import boolean
from fedsec.sharing.boolean import BitShare, pack_bits, pack_bits_plain, unpack_bits


def _packed_plainly(words, planes):
    """Bit e of plane p is bit p of word e, one bit at a time."""
    packed = np.zeros((planes, -(-len(words) // 64)), dtype=np.uint64)
    for p in range(planes):
        for e, word in enumerate(words.tolist()):
            packed[p, e // 64] |= np.uint64((word >> p & 1) << e % 64)
    return packed


def test_every_byte_in_every_number_of_planes():
    words = np.arange(256, dtype=np.uint8)
    for planes in range(1, 9):
        packed = pack_bits(words, planes)
        np.testing.assert_array_equal(packed, _packed_plainly(words, planes))
        np.testing.assert_array_equal(unpack_bits(packed, 256, Ring(8)), words & (2**planes - 1))


@settings(deadline=None, max_examples=50)
@given(
    count=st.integers(0, 140),
    bits=st.sampled_from(WORD_SIZES),
    data=st.data(),
    key=st.binary(min_size=32, max_size=32),
)
def test_packing_equals_its_plain_twin(count, bits, data, key):
    planes = data.draw(st.integers(1, bits))
    words = KeyedStream(key).words(count, Ring(bits))

    packed = pack_bits(words, planes)

    assert packed.dtype == np.uint64
    np.testing.assert_array_equal(packed, pack_bits_plain(words, planes))
    np.testing.assert_array_equal(packed, _packed_plainly(words, planes))
    kept = words & Ring(bits).dtype.type(2**planes - 1)
    np.testing.assert_array_equal(unpack_bits(packed, count, Ring(bits)), kept)


def test_planes_unpack_into_a_wider_ring(stream):
    words = stream.words(70, RING32)
    packed = pack_bits(words, 21)

    np.testing.assert_array_equal(unpack_bits(packed, 70), words % 2**21)
    with pytest.raises(UsageError, match="do not fit"):
        unpack_bits(packed, 70, Ring(16))


def test_no_planes_are_zeros():
    np.testing.assert_array_equal(unpack_bits(np.zeros((0, 2), dtype=np.uint64), 70), np.zeros(70))


def test_strided_words_are_packed(stream):
    words = stream.words(200)

    np.testing.assert_array_equal(pack_bits(words[::-3], 9), pack_bits(words[::-3].copy(), 9))


def test_what_cannot_be_packed_is_refused(stream):
    for planes in (0, -1, 65):
        with pytest.raises(UsageError, match="1 to 64"):
            pack_bits(stream.words(3), planes)
    with pytest.raises(UsageError, match="flat"):
        pack_bits(stream.words((3, 3)), 4)
    with pytest.raises(InputError):
        pack_bits(np.zeros(3), 4)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 500])
def test_share_and_reconstruct(count, stream):
    words = stream.words(count, RING32)
    shares = boolean.share(pack_bits(words, 32), count, stream)

    assert [(s.planes, s.count) for s in shares] == [(32, count)] * 3
    np.testing.assert_array_equal(unpack_bits(boolean.reconstruct(shares), count, RING32), words)


def test_every_pair_of_bytes_xors(stream):
    a = np.repeat(np.arange(256, dtype=np.uint8), 256)
    b = np.tile(np.arange(256, dtype=np.uint8), 256)
    x, y = (boolean.share(pack_bits(words, 8), a.size, stream) for words in (a, b))

    secret = boolean.reconstruct([x_i ^ y_i for x_i, y_i in zip(x, y, strict=True)])
    public = boolean.reconstruct([x_i.xor_public(i, pack_bits(b, 8)) for i, x_i in enumerate(x)])

    np.testing.assert_array_equal(unpack_bits(secret, a.size, Ring(8)), a ^ b)
    np.testing.assert_array_equal(unpack_bits(public, a.size, Ring(8)), a ^ b)


def test_planes_are_picked(stream):
    bits = pack_bits(stream.words(70), 10)
    shares = boolean.share(bits, 70, stream)
    picks = [(3, bits[3:4]), (-1, bits[9:]), (slice(2, 5), bits[2:5]), (slice(None, None, 2), bits[::2])]

    for pick, expected in picks:
        np.testing.assert_array_equal(boolean.reconstruct([s[pick] for s in shares]), expected)
    for outside in (10, -11):
        with pytest.raises(IndexError):
            shares[0][outside]
    assert len(list(shares[0])) == 10


def test_what_does_not_fit_is_refused(stream):
    x, y = (boolean.share(pack_bits(stream.words(n), planes), n, stream) for n, planes in ((70, 4), (70, 5)))
    z = boolean.share(pack_bits(stream.words(71), 4), 71, stream)
    for other in (y, z):
        with pytest.raises(UsageError, match="cannot be combined"):
            x[0] ^ other[0]
    with pytest.raises(UsageError, match="0, 1 and 2"):
        x[0].xor_public(3, x[0].own)
    with pytest.raises(ProtocolError):
        x[0].xor_public(0, x[0].own[:, :1])
    with pytest.raises(UsageError, match="do not fit a share"):
        x[0].xor_public(0, y[0].own)
    with pytest.raises(UsageError, match="3 shares"):
        boolean.reconstruct(x[:2])


@pytest.mark.parametrize(
    "planes",
    [np.zeros((4, 1), dtype=np.uint64), np.zeros((4, 2), dtype=np.uint32), np.zeros(2, dtype=np.uint64)],
    ids=["too short", "dtype", "flat"],
)
def test_arrays_that_are_no_planes_make_no_share(planes, stream):
    good = pack_bits(RING64.dtype.type(3) * stream.words(70), 4)
    for halves in ((planes, good), (good, planes), (good, good[:3])):
        with pytest.raises(ProtocolError):
            BitShare(*halves, 70)
    with pytest.raises(ProtocolError):
        boolean.share(planes, 70, stream)


def test_copies_that_disagree_are_refused(stream):
    for i in range(3):
        shares = list(boolean.share(pack_bits(stream.words(70), 4), 70, stream))
        lie = shares[i].own.copy()
        lie[1, 0] ^= np.uint64(8)
        shares[i] = BitShare(lie, shares[i].next, 70)
        with pytest.raises(ProtocolError, match=f"different copies of part {i}"):
            boolean.reconstruct(shares)


def test_threat_45_a_share_prints_its_size_only(stream):
    share = boolean.share(pack_bits(stream.words(70), 4), 70, stream)[0]

    assert repr(share) == "BitShare(planes=4, count=70)"


def test_shares_refuse_what_has_no_meaning(stream):
    share = boolean.share(pack_bits(stream.words(70), 4), 70, stream)[0]
    for operation in (
        lambda: share == share,  # noqa: PLR0124 - the comparison itself is what is refused
        lambda: bool(share),
        lambda: hash(share),
        lambda: share.own ^ share,
    ):
        with pytest.raises(TypeError):
            operation()
