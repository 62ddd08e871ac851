"""Linear layers: matrix product and convolution of two secrets, pooling of one."""

from __future__ import annotations

from math import prod

from numpy.lib.stride_tricks import sliding_window_view

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.party import Party
from fedsec.mpc.patches import convolve, convolved_shape
from fedsec.mpc.products import require_one_ring, reshare
from fedsec.mpc.two_holders import WORDS, Pair
from fedsec.mpc.two_parties import draw_mask, open_halves
from fedsec.ring import RingArray, kernels, ring_of
from fedsec.sharing.replicated import RepShare

Strides = int | tuple[int, int]
"""Distance of neighbouring results along both axes, or along rows and columns."""

_SOURCE = "ABY3 (Mohassel & Rindal 2018), section 5.1: inner products are reshared once a result element"


def _matmul_shape(x: RepShare, w: RepShare) -> tuple[int, int]:
    if len(x.shape) != 2 or len(w.shape) != 2 or x.shape[1] != w.shape[0]:
        raise UsageError(f"a matrix product needs shapes [M, K] and [K, N], got {x.shape} and {w.shape}")
    return x.shape[0], w.shape[1]


def _matmul_cost(x: RepShare, w: RepShare) -> Cost:
    return Cost.each(rounds=1, sent_bytes=prod(_matmul_shape(x, w)) * x.ring.element_bytes)


@protocol(cost=_matmul_cost, source=_SOURCE)
def matmul(party: Party, x: RepShare, w: RepShare) -> RepShare:
    """Multiply two secret matrices: ``[z] = [x @ w]``.

    Shapes:    x [M, K], w [K, N], z [M, N].
    Units:     ring elements; fraction bits add, nothing is truncated here.
    Cost:      1 round; each party sends one word an element of z, whatever K is.
    Security:  semi-honest, one corrupt party of three. Sums of products are formed locally before anything is
               sent; what is sent is masked by ``reshare``.
    Source:    ABY3 (Mohassel & Rindal 2018), section 5.1.

    Raises:
        UsageError: The shapes do not fit, or the rings differ.
    """
    return reshare(party, _matmul_part(x, w), x.fraction_bits + w.fraction_bits)


def _matmul_pair_cost(x: RepShare, w: RepShare) -> Cost:
    return _pair_cost(prod(_matmul_shape(x, w)), x)


@protocol(cost=_matmul_pair_cost, source=_SOURCE)
def matmul_pair(party: Party, x: RepShare, w: RepShare) -> Pair:
    """Multiply two secret matrices as ``matmul`` does, for what cuts bits of the product next.

    Shapes:    x [M, K], w [K, N], z [M, N].
    Units:     ring elements; fraction bits add, nothing is truncated here.
    Cost:      1 round; parties 1 and 2 each send one word an element of z.
    Security:  semi-honest, one corrupt party of three. Parties 1 and 2 open their parts of the sum to each
               other, each minus a stream that it shares with party 0 and that the other does not know: both
               messages are uniform to their receivers, party 0 receives nothing.
    Source:    ABY3 (Mohassel & Rindal 2018), section 5.1.

    Raises:
        UsageError: The shapes do not fit, or the rings differ.
    """
    return _open_pair(party, _matmul_part(x, w), x.fraction_bits + w.fraction_bits)


def _conv2d_shape(x: RepShare, w: RepShare, strides: Strides, dilation: Strides) -> tuple[int, int, int, int]:
    return convolved_shape(x.shape, w.shape, _both(strides), _both(dilation))


def _conv2d_cost(x: RepShare, w: RepShare, strides: Strides = 1, dilation: Strides = 1) -> Cost:
    elements = prod(_conv2d_shape(x, w, strides, dilation))
    return Cost.each(rounds=1, sent_bytes=elements * x.ring.element_bytes)


@protocol(cost=_conv2d_cost, source=_SOURCE)
def conv2d(party: Party, x: RepShare, w: RepShare, strides: Strides = 1, dilation: Strides = 1) -> RepShare:
    """Convolve secret images with secret kernels, without padding ("valid"), as Keras' Conv2D does.

    Shapes:    x [N, H, W, C], w [h, w, C / groups, F], z [N, H', W', F] with H' = (H - dilation * (h - 1) -
               1) // strides + 1; groups follow from the channels of x and w.
    Units:     ring elements; fraction bits add, nothing is truncated here.
    Cost:      1 round; each party sends one word an element of z.
    Security:  semi-honest, one corrupt party of three: the argument of ``matmul``.
    Source:    ABY3 (Mohassel & Rindal 2018), section 5.1.

    Raises:
        UsageError: The shapes do not fit, or the rings differ.
    """
    return reshare(party, _conv2d_part(x, w, strides, dilation), x.fraction_bits + w.fraction_bits)


def _conv2d_pair_cost(x: RepShare, w: RepShare, strides: Strides = 1, dilation: Strides = 1) -> Cost:
    return _pair_cost(prod(_conv2d_shape(x, w, strides, dilation)), x)


@protocol(cost=_conv2d_pair_cost, source=_SOURCE)
def conv2d_pair(party: Party, x: RepShare, w: RepShare, strides: Strides = 1, dilation: Strides = 1) -> Pair:
    """Convolve as ``conv2d`` does, for what cuts bits of the product next.

    Shapes:    as ``conv2d``.
    Units:     ring elements; fraction bits add, nothing is truncated here.
    Cost:      1 round; parties 1 and 2 each send one word an element of z.
    Security:  semi-honest, one corrupt party of three: the argument of ``matmul_pair``.
    Source:    ABY3 (Mohassel & Rindal 2018), section 5.1.

    Raises:
        UsageError: The shapes do not fit, or the rings differ.
    """
    return _open_pair(party, _conv2d_part(x, w, strides, dilation), x.fraction_bits + w.fraction_bits)


def _both(strides: Strides) -> tuple[int, int]:
    return (strides, strides) if isinstance(strides, int) else strides


def _matmul_part(x: RepShare, w: RepShare) -> RingArray:
    """Return this party's three of the nine products, x_i (w_i + w_(i+1)) + x_(i+1) w_i."""
    require_one_ring(x, w)
    _matmul_shape(x, w)
    products = kernels.matmul(x.own, w.own + w.next)
    products += kernels.matmul(x.next, w.own)
    return products


def _conv2d_part(x: RepShare, w: RepShare, strides: Strides, dilation: Strides) -> RingArray:
    """As ``_matmul_part``, on patches of the images."""
    require_one_ring(x, w)
    _conv2d_shape(x, w, strides, dilation)
    apart = _both(strides), _both(dilation)
    products = convolve(x.own, w.own + w.next, *apart)
    products += convolve(x.next, w.own, *apart)
    return products


def _pair_cost(elements: int, x: RepShare) -> Cost:
    size = elements * x.ring.element_bytes
    return Cost(1, (0, size, size))


def _open_pair(party: Party, part: RingArray, fraction_bits: int) -> Pair:
    """Turn an additive sharing, one summand a party, into a pair; one round between parties 1 and 2."""
    mask = draw_mask(party, part.shape, ring_of(part))
    if party.id == 0:
        part += mask[0]
        part += mask[1]
        return Pair(part, fraction_bits)
    return Pair(open_halves(party, WORDS, part, mask[0]), fraction_bits)


def sum_pool(x: RepShare, pool: tuple[int, int], strides: tuple[int, int]) -> RepShare:
    """Add up blocks of pixels, locally: average pooling without the division, which the encoding takes over.

    A sum is linear with public constants, so both halves of a share are summed alike and nothing is sent.

    Args:
        x: Shares of images, shape [N, H, W, C].
        pool: Height and width of a block.
        strides: Distance of blocks along rows and columns.

    Returns:
        Shares of shape [N, (H - pool[0]) // strides[0] + 1, (W - pool[1]) // strides[1] + 1, C], with the
        fraction bits of x.

    Raises:
        UsageError: The shape is not that of images, or a block does not fit.
    """
    if len(x.shape) != 4 or min(*pool, *strides) < 1 or x.shape[1] < pool[0] or x.shape[2] < pool[1]:
        raise UsageError(f"blocks of {pool} at distances {strides} do not fit images of shape {x.shape}")
    return RepShare(_block_sums(x.own, pool, strides), _block_sums(x.next, pool, strides), x.fraction_bits)


def _block_sums(images: RingArray, pool: tuple[int, int], strides: tuple[int, int]) -> RingArray:
    blocks = sliding_window_view(images, pool, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    total: RingArray = blocks.sum(axis=(4, 5), dtype=images.dtype)
    return total
