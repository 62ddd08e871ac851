import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import InputError, ProtocolError, UsageError
from fedsec.ring import RING32, RING64, WORD_SIZES, KeyedStream, Ring, decode, encode, fresh_stream
from fedsec.sharing import additive

PARTIES = range(2, 8)


def test_the_blog_example_77777_split_in_three_and_joined():
    shares = additive.share(encode(77777, 0), 3, fresh_stream())

    assert len(shares) == 3
    assert decode(additive.reconstruct(shares), 0) == 77777


def test_the_blog_example_11_and_122_make_133_on_shares():
    a = additive.share(encode(11, 0), 3, fresh_stream())
    b = additive.share(encode(122, 0), 3, fresh_stream())

    total = [a_i + b_i for a_i, b_i in zip(a, b, strict=True)]

    assert decode(additive.reconstruct(total), 0) == 133


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("bits", WORD_SIZES)
def test_threat_12_any_number_of_parties_joins_to_the_secret(parties, bits, stream):
    ring = Ring(bits)
    for shape in [(), (0,), (1,), (5, 3)]:
        secret = stream.words(shape, ring)
        shares = additive.share(secret, parties, stream)

        assert [s.shape for s in shares] == [shape] * parties
        assert all(s.dtype == ring.dtype for s in shares)
        np.testing.assert_array_equal(additive.reconstruct(shares), secret)
        np.testing.assert_array_equal(additive.reconstruct(shares[::-1]), secret)


@pytest.mark.parametrize("parties", PARTIES)
def test_every_byte_is_shared_and_joined(parties, stream):
    secret = np.arange(256, dtype=np.uint8)

    np.testing.assert_array_equal(additive.reconstruct(additive.share(secret, parties, stream)), secret)


@settings(deadline=None)
@given(
    values=st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 2), min_size=1, max_size=20),
    parties=st.integers(2, 7),
    ring=st.sampled_from([RING32, RING64]),
    key=st.binary(min_size=32, max_size=32),
)
def test_the_sum_of_shares_is_a_sharing_of_the_sum(values, parties, ring, key):
    stream = KeyedStream(key)
    a, b = (np.array([v[i] % ring.modulus for v in values], dtype=ring.dtype) for i in (0, 1))
    shares = zip(additive.share(a, parties, stream), additive.share(b, parties, stream), strict=True)

    total = additive.reconstruct([a_i + b_i for a_i, b_i in shares])

    assert total.tolist() == [(v[0] + v[1]) % ring.modulus for v in values]


def test_neither_secret_nor_shares_are_changed(stream):
    secret = stream.words(4)
    before = secret.copy()
    shares = additive.share(secret, 3, stream)
    copies = [s.copy() for s in shares]
    additive.reconstruct(shares)

    np.testing.assert_array_equal(secret, before)
    np.testing.assert_array_equal(shares, copies)


def test_threat_03_sharing_twice_gives_other_shares(stream):
    secret = np.zeros(8, dtype=np.uint64)
    first, again = additive.share(secret, 3, stream), additive.share(secret, 3, stream)

    for a, b in zip(first, again, strict=True):
        assert not np.any(a == b)


@pytest.mark.parametrize("parties", [-1, 0, 1, 8, 100])
def test_other_numbers_of_parties_are_refused(parties, stream):
    with pytest.raises(UsageError, match="2 to 7"):
        additive.share(np.zeros(3, dtype=np.uint64), parties, stream)
    with pytest.raises(UsageError, match="2 to 7"):
        additive.reconstruct([np.zeros(3, dtype=np.uint64)] * max(parties, 0))
    assert stream.position == 0


@pytest.mark.parametrize(
    "other", [np.zeros(4, dtype=np.uint64), np.zeros(3, dtype=np.uint32)], ids=["shape", "dtype"]
)
def test_shares_that_do_not_belong_together_are_refused(other):
    with pytest.raises(ProtocolError, match="not shares of one secret"):
        additive.reconstruct([np.zeros(3, dtype=np.uint64), other])


def test_only_ring_elements_are_shared(stream):
    with pytest.raises(InputError):
        additive.share(np.zeros(3), 3, stream)
    assert stream.position == 0
