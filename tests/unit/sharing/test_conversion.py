import numpy as np
import pytest

from fedsec.errors import ProtocolError, UsageError
from fedsec.ring import RING32, RING64, Ring
from fedsec.sharing import additive, conversion, replicated


def _convert(shares, stream, fraction_bits=0):
    """Every additive party splits its share; computing party i adds the pairs (i, i+1)."""
    parts = [conversion.split_for_three(share, stream) for share in shares]
    pairs = [[(split[i], split[(i + 1) % 3]) for split in parts] for i in range(3)]
    return [conversion.combine_pairs(own, fraction_bits) for own in pairs]


@pytest.mark.parametrize("parties", range(2, 8))
@pytest.mark.parametrize("ring", [Ring(8), RING32, RING64], ids=str)
def test_threat_12_from_any_number_of_parties_to_three(parties, ring, stream):
    secret = stream.words((5, 3), ring)

    converted = _convert(additive.share(secret, parties, stream), stream, fraction_bits=4)

    assert all(share.fraction_bits == 4 for share in converted)
    np.testing.assert_array_equal(replicated.reconstruct(converted), secret)


def test_the_result_does_not_repeat_the_additive_shares(stream):
    shares = additive.share(stream.words(100), 3, stream)
    converted = _convert(shares, stream)

    for old in shares:
        for new in converted:
            assert not np.any(old == new.own)


def test_pairs_that_do_not_belong_together_are_refused(stream):
    a, b = stream.words(3), stream.words(3)
    with pytest.raises(ProtocolError, match="pair 1"):
        conversion.combine_pairs([(a, b), (a[:2], b[:2])])
    with pytest.raises(ProtocolError, match="pair 1"):
        conversion.combine_pairs([(a, b), (a.astype(np.uint32), b.astype(np.uint32))])
    with pytest.raises(ProtocolError, match="halves"):
        conversion.combine_pairs([(a, b), (a, b[:2])])
    for count in (0, 1, 8):
        with pytest.raises(UsageError, match="2 to 7"):
            conversion.combine_pairs([(a, b)] * count)
