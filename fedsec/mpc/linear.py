"""Linear layers: matrix product and convolution of two secrets, pooling of one."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.party import Party
from fedsec.mpc.products import require_ring, reshare
from fedsec.ring import RingArray, kernels
from fedsec.sharing.replicated import RepShare

Strides = int | tuple[int, int]
"""Distance of neighbouring results along both axes, or along rows and columns."""

_SOURCE = "ABY3 (Mohassel & Rindal 2018), section 5.1: inner products are reshared once a result element"


def _matmul_cost(x: RepShare, w: RepShare) -> Cost:
    return Cost.each(rounds=1, sent_bytes=x.shape[0] * w.shape[1] * x.ring.element_bytes)


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
        UsageError: The shapes do not fit, or a ring differs.
    """
    _check_factors(party, x, w)
    if len(x.shape) != 2 or len(w.shape) != 2 or x.shape[1] != w.shape[0]:
        raise UsageError(f"a matrix product needs shapes [M, K] and [K, N], got {x.shape} and {w.shape}")
    # Local: this party's three of the nine products, x_i (w_i + w_(i+1)) + x_(i+1) w_i.
    products = kernels.matmul(x.own, w.own + w.next)
    products += kernels.matmul(x.next, w.own)

    # One round: add a zero share and pass on.
    return reshare(party, products, x.fraction_bits + w.fraction_bits)


def _pair(strides: Strides) -> tuple[int, int]:
    return (strides, strides) if isinstance(strides, int) else strides


def _conv2d_shape(x: RepShare, w: RepShare, strides: Strides) -> tuple[int, int, int, int]:
    if len(x.shape) != 4 or len(w.shape) != 4 or x.shape[3] != w.shape[2]:
        raise UsageError(
            f"a convolution needs shapes [N, H, W, C] and [h, w, C, F], got {x.shape} and {w.shape}"
        )
    rows, columns = x.shape[1] - w.shape[0], x.shape[2] - w.shape[1]
    down, across = _pair(strides)
    if min(rows, columns) < 0 or min(down, across) < 1:
        raise UsageError(
            f"a kernel of {w.shape[:2]} with strides {strides} does not fit images of {x.shape[1:3]}"
        )
    return x.shape[0], rows // down + 1, columns // across + 1, w.shape[3]


def _conv2d_cost(x: RepShare, w: RepShare, strides: Strides = 1) -> Cost:
    images, rows, columns, filters = _conv2d_shape(x, w, strides)
    return Cost.each(rounds=1, sent_bytes=images * rows * columns * filters * x.ring.element_bytes)


@protocol(cost=_conv2d_cost, source=_SOURCE)
def conv2d(party: Party, x: RepShare, w: RepShare, strides: Strides = 1) -> RepShare:
    """Convolve secret images with secret kernels, without padding ("valid"), as Keras' Conv2D does.

    Shapes:    x [N, H, W, C], w [h, w, C, F], z [N, (H - h) // strides + 1, (W - w) // strides + 1, F].
    Units:     ring elements; fraction bits add, nothing is truncated here.
    Cost:      1 round; each party sends one word an element of z.
    Security:  semi-honest, one corrupt party of three: the argument of ``matmul``.
    Source:    ABY3 (Mohassel & Rindal 2018), section 5.1.

    Raises:
        UsageError: The shapes do not fit, or a ring differs.
    """
    _check_factors(party, x, w)
    shape = _conv2d_shape(x, w, strides)
    kernel_own, kernel_next = (part.reshape(-1, w.shape[3]) for part in (w.own, w.next))
    # Local: as in matmul, on rows of image patches.
    products = kernels.matmul(_patches(x.own, w.shape, strides), kernel_own + kernel_next)
    products += kernels.matmul(_patches(x.next, w.shape, strides), kernel_own)

    # One round: add a zero share and pass on.
    return reshare(party, products.reshape(shape), x.fraction_bits + w.fraction_bits)


def _patches(images: RingArray, kernel_shape: tuple[int, ...], strides: Strides) -> RingArray:
    """Return the patches under a kernel as rows [N * H' * W', h * w * C]."""
    height, width, channels = kernel_shape[:3]
    down, across = _pair(strides)
    windows = sliding_window_view(images, (height, width), axis=(1, 2))[:, ::down, ::across]
    return np.ascontiguousarray(windows.transpose(0, 1, 2, 4, 5, 3)).reshape(-1, height * width * channels)


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


def _check_factors(party: Party, x: RepShare, w: RepShare) -> None:
    require_ring(party, x)
    require_ring(party, w)
