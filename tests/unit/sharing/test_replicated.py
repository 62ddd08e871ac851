import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import InputError, ProtocolError, UsageError
from fedsec.ring import RING32, RING64, WORD_SIZES, KeyedStream, Ring, decode, encode, fresh_stream
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare

BYTES = np.arange(256, dtype=np.uint8)


def _each(function, *shared):
    """Let each of the three parties compute on its own shares, then reconstruct."""
    return replicated.reconstruct([function(i, *(s[i] for s in shared)) for i in range(3)])


def test_the_blog_examples_on_replicated_shares():
    assert decode(replicated.reconstruct(replicated.share(encode(77777, 0), fresh_stream())), 0) == 77777
    a, b = (replicated.share(encode(value, 0), fresh_stream()) for value in (11, 122))
    assert decode(_each(lambda _, x, y: x + y, a, b), 0) == 133


@pytest.mark.parametrize("bits", WORD_SIZES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5, 3), (2, 3, 4, 1)], ids=str)
def test_share_and_reconstruct(bits, shape, stream):
    secret = stream.words(shape, Ring(bits))
    shares = replicated.share(secret, stream, fraction_bits=3)

    for i, share in enumerate(shares):
        assert (share.shape, share.size, share.ring, share.fraction_bits) == (
            shape,
            secret.size,
            Ring(bits),
            3,
        )
        np.testing.assert_array_equal(share.next, shares[(i + 1) % 3].own)
    np.testing.assert_array_equal(replicated.reconstruct(shares), secret)


def test_every_pair_of_bytes_adds_subtracts_and_scales(stream):
    a, b = np.repeat(BYTES, 256), np.tile(BYTES, 256)
    x, y = replicated.share(a, stream), replicated.share(b, stream)

    np.testing.assert_array_equal(_each(lambda _, x, y: x + y, x, y), a + b)
    np.testing.assert_array_equal(_each(lambda _, x, y: x - y, x, y), a - b)
    np.testing.assert_array_equal(_each(lambda _, x: -x, x), -a)
    np.testing.assert_array_equal(_each(lambda i, x: x.add_public(i, b), x), a + b)
    np.testing.assert_array_equal(_each(lambda _, x: x.scale_public(b), x), a * b)


@settings(deadline=None)
@given(
    values=st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 2), min_size=1, max_size=10),
    constant=st.integers(-(2**70), 2**70),
    ring=st.sampled_from([RING32, RING64]),
    key=st.binary(min_size=32, max_size=32),
)
def test_local_operations_follow_the_ring(values, constant, ring, key):
    stream = KeyedStream(key)
    a, b = (np.array([v[i] % ring.modulus for v in values], dtype=ring.dtype) for i in (0, 1))
    x, y = replicated.share(a, stream), replicated.share(b, stream)

    opened = _each(lambda i, x, y: (x - y).scale_public(constant).add_public(i, constant), x, y)

    assert opened.tolist() == [((v - w) * constant + constant) % ring.modulus for v, w in values]


def test_scalars_wrap_without_a_warning():
    x = replicated.share(np.array(2**64 - 1, dtype=np.uint64), fresh_stream())
    row = replicated.share(np.full(2, 2**64 - 1, dtype=np.uint64), fresh_stream())

    assert int(_each(lambda i, x: (x + x).scale_public(7).add_public(i, 20), x)) == 6
    assert int(_each(lambda _, r: -(r[0] + r[1]), row)) == 2


def test_shapes_broadcast_as_in_numpy(stream):
    a, b = stream.words((4, 1)), stream.words(3)
    x, y = replicated.share(a, stream), replicated.share(b, stream)

    np.testing.assert_array_equal(_each(lambda _, x, y: x + y, x, y), a + b)
    np.testing.assert_array_equal(_each(lambda _, x: x.scale_public(b), x), a * b)
    np.testing.assert_array_equal(_each(lambda i, x, y: (x + y).add_public(i, b), x, y), a + b + b)
    with pytest.raises(UsageError, match="broadcast"):
        x[0].add_public(0, b)


def test_reshape_and_index(stream):
    a = stream.words((4, 6))
    x = replicated.share(a, stream, 5)

    np.testing.assert_array_equal(_each(lambda _, x: x.reshape(2, -1), x), a.reshape(2, -1))
    np.testing.assert_array_equal(_each(lambda _, x: x[1:3, ::2], x), a[1:3, ::2])
    np.testing.assert_array_equal(_each(lambda _, x: x[..., None, 2], x), a[..., None, 2])
    np.testing.assert_array_equal(_each(lambda _, x: x[np.array([3, 0])], x), a[[3, 0]])
    assert x[0][1, 2].shape == ()
    assert x[0][1].fraction_bits == x[0].reshape(24).fraction_bits == 5


def test_fraction_bits_are_kept_added_and_never_mixed(stream):
    x = replicated.share(encode([1.5], 16), stream, fraction_bits=16)
    y = replicated.share(encode([0.25], 8), stream, fraction_bits=8)

    assert (x[0] + x[0]).fraction_bits == (-x[0]).fraction_bits == x[0].add_public(0, 1).fraction_bits == 16
    scaled = [s.scale_public(encode([-2.5], 8), fraction_bits_of_factor=8) for s in x]
    assert scaled[0].fraction_bits == 24
    assert decode(replicated.reconstruct(scaled), 24) == [-3.75]
    for mixed in (lambda: x[0] + y[0], lambda: x[0] - y[0]):
        with pytest.raises(UsageError, match="16 and 8 fraction bits"):
            mixed()


def test_rings_are_never_mixed(stream):
    wide, narrow = (replicated.share(stream.words(2, ring), stream)[0] for ring in (RING64, RING32))
    refused = [
        lambda: wide + narrow,
        lambda: wide.add_public(0, narrow.own),
        lambda: wide.scale_public(narrow.own),
    ]
    for mixed in refused:
        with pytest.raises(UsageError):
            mixed()


@pytest.mark.parametrize("party_id", [-1, 3])
def test_there_are_three_parties(party_id, stream):
    shares = replicated.share(stream.words(2), stream)
    with pytest.raises(UsageError, match="0, 1 and 2"):
        shares[0].add_public(party_id, 1)
    for count in (0, 2):
        with pytest.raises(UsageError, match="3 shares"):
            replicated.reconstruct(shares[:count])


def test_copies_that_disagree_are_refused(stream):
    for i in range(3):
        shares = list(replicated.share(stream.words(4), stream))
        lie = shares[i].own.copy()
        lie[2] ^= np.uint64(1)
        shares[i] = RepShare(lie, shares[i].next)
        with pytest.raises(ProtocolError, match=f"different copies of part {i}"):
            replicated.reconstruct(shares)


def test_shares_of_different_kinds_are_not_joined(stream):
    x_0, x_1, x_2 = replicated.share(stream.words(4), stream, 8)
    with pytest.raises(ProtocolError):
        replicated.reconstruct([x_0, x_1, RepShare(x_2.own, x_2.next, 9)])
    with pytest.raises(ProtocolError):
        replicated.reconstruct([x_0, x_1, x_2.reshape(2, 2)])
    with pytest.raises(ProtocolError):
        replicated.reconstruct([x_2, x_1, x_0])


def test_halves_of_different_kinds_make_no_share():
    words = np.zeros(3, dtype=np.uint64)
    for other in (np.zeros(4, dtype=np.uint64), np.zeros(3, dtype=np.uint32)):
        with pytest.raises(ProtocolError, match="not halves"):
            RepShare(words, other)
    with pytest.raises(InputError):
        RepShare(np.zeros(3), np.zeros(3))


def test_threat_45_a_share_prints_its_shape_only(stream):
    share = replicated.share(stream.words((2, 3)), stream, 16)[0]

    assert repr(share) == str(share) == "RepShare(shape=(2, 3), ring=64 bits, fraction_bits=16)"


def test_shares_refuse_what_has_no_meaning(stream):
    share = replicated.share(stream.words(1), stream)[0]
    meaningless = [
        lambda: share == share,  # noqa: PLR0124 - the comparison itself is what is refused
        lambda: share != 0,
        lambda: bool(share),
        lambda: hash(share),
        lambda: share.own + share,
        lambda: share * share,
    ]
    for operation in meaningless:
        with pytest.raises(TypeError):
            operation()
    with pytest.raises(AttributeError):
        share.own = share.next
