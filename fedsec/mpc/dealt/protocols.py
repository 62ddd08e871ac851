"""Each gate as a protocol of its own, prepared and run at once: for tests, lessons and single steps.

In the costs the dealer's bytes are those of the preparation, which needs no input, and its one round is the
first; all other bytes and rounds are online. A service prepares ahead (``fedsec.nn.engine``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.dealt.gates import DEALER, FIRST, Gate
from fedsec.mpc.dealt.linear import InputGate, LinearGate
from fedsec.mpc.dealt.relu import ReluGate
from fedsec.mpc.dealt.rounds import run_together
from fedsec.mpc.dealt.supply import Supply
from fedsec.mpc.dealt.truncation import TruncateGate
from fedsec.mpc.party import Layout, Party
from fedsec.mpc.patches import Sizes, convolve, convolved_shape
from fedsec.ring import Ring, RingArray, kernels
from fedsec.sharing.replicated import RepShare

_MASKS = "masks fixed ahead as in ASTRA (Chaudhari, Choudhury, Patra, Suresh 2019)"
_TABLES = "fedsec, with one-time tables (Ishai, Kushilevitz, Meldgaard, Orlandi, Paskin-Cherniavsky 2013)"


def run_alone(party: Party, gate: Gate, inputs: Sequence[RepShare], fraction_bits: int) -> RepShare:
    """Prepare and run one gate on replicated shares, whose components serve as masked value and mask.

    Args:
        party: This party.
        gate: The gate, not final; the same at all three parties.
        inputs: Its inputs, [N, *shape] each.
        fraction_bits: Fraction bits of the result.

    Returns:
        A replicated share of the result: r_2, r_1 and the masked value are its components 0, 1 and 2.

    Raises:
        UsageError: The gate is final, or there are no inputs.
    """
    if gate.final or not inputs:
        raise UsageError("a gate that runs alone has inputs and opens its result under a mask")
    if party.id == DEALER:
        r, m = [x.own + x.next for x in inputs], []
    elif party.id == FIRST:
        r, m = [x.own for x in inputs], [x.next for x in inputs]
    else:
        r, m = [x.next for x in inputs], [x.own for x in inputs]
    return replace(_prepare_and_run(party, gate, r, m, len(r[0])), fraction_bits=fraction_bits)


def _prepare_and_run(
    party: Party, gate: Gate, r: Sequence[RingArray], m: Sequence[RingArray], images: int
) -> RepShare:
    supply = Supply([gate], images)
    (part,) = supply.parts(party, b"alone %d" % party.take_index())
    if party.id == DEALER:
        gate.deal(r, part.shares, part.pairs)
        supply.send(party)
        first, second = part.pairs[-1]
        return RepShare(second, first)
    material, mask = gate.prepare(r, part.shares, part.masks)
    (result,) = run_together(party, [gate.run(m, material)])
    if mask is None:
        raise UsageError("a gate that runs alone opens its result under a mask")
    return RepShare(mask, result) if party.id == FIRST else RepShare(result, mask)


def _source(x: RepShare) -> Layout:
    return Layout(x.shape[1:], x.ring)


def _input_cost(x: RepShare) -> Cost:
    return InputGate(DEALER, _source(x)).cost(x.shape[0])


@protocol(cost=_input_cost, source=_MASKS)
def dealt_input(party: Party, x: RepShare) -> RepShare:
    """Move a secret under a mask of the dealer's streams: the same secret, freshly shared.

    Shapes:    as x, [N, ...].
    Units:     as x.
    Cost:      1 round; parties 1 and 2 send one word an element.
    Security:  semi-honest, one corrupt party of three. Party 0 receives nothing. An evaluator receives the
               other's additive share minus the other's part of the mask, a stream that it does not have.
    Source:    masks fixed ahead as in ASTRA.
    """
    gate = InputGate(party.id, _source(x))
    # Local: parties 1 and 2 have all three components between them, x_1 + x_2 and x_0.
    share = x.own + x.next if party.id == FIRST else x.next
    # One round: the additive shares under the new mask.
    fresh = _prepare_and_run(party, gate, [], [share], x.shape[0])
    return replace(fresh, fraction_bits=x.fraction_bits)


def _dense(x: RingArray, w: RingArray) -> RingArray:
    return kernels.matmul(x.reshape(-1, w.shape[0]), w).reshape(*x.shape[:-1], w.shape[1])


def _linear_cost(elements: int, ring: Ring) -> Cost:
    size = elements * ring.element_bytes
    return Cost(2, (size, size, size))


def _matmul_cost(x: RepShare, w: RepShare, b: RepShare) -> Cost:
    return _linear_cost(x.shape[0] * w.shape[1], x.ring)


@protocol(cost=_matmul_cost, source=_MASKS)
def dealt_matmul(party: Party, x: RepShare, w: RepShare, b: RepShare) -> RepShare:
    """Multiply two secret matrices and add a secret vector: ``[z] = [x @ w + b]``.

    Shapes:    x [N, K], w [K, M], b [M], z [N, M].
    Units:     ring elements; fraction bits add, nothing is truncated here.
    Cost:      prepared, 1 round: one word an element of z. Online, 1 round: parties 1 and 2 send as much.
    Security:  semi-honest, one corrupt party of three. Party 0 receives nothing. Party 2 receives
               r_x @ r_w minus a stream of parties 0 and 1. Online an evaluator receives the other's additive
               share of z minus the other's part of the mask of z, a stream that it does not have and that is
               used for this alone.
    Source:    masks fixed ahead as in ASTRA.
    """
    gate = LinearGate(party.id, _dense, w, b, (w.shape[1],), ring=x.ring)
    return run_alone(party, gate, [x], x.fraction_bits + w.fraction_bits)


def _conv2d_cost(
    x: RepShare, w: RepShare, b: RepShare, *, strides: Sizes = (1, 1), dilation: Sizes = (1, 1)
) -> Cost:
    return _linear_cost(prod(convolved_shape(x.shape, w.shape, strides, dilation)), x.ring)


@protocol(cost=_conv2d_cost, source=_MASKS)
def dealt_conv2d(
    party: Party,
    x: RepShare,
    w: RepShare,
    b: RepShare,
    *,
    strides: Sizes = (1, 1),
    dilation: Sizes = (1, 1),
) -> RepShare:
    """Convolve secret images with secret kernels and add a bias, without padding, as Keras' Conv2D does.

    Shapes:    x [N, H, W, C], w [h, w, C / groups, F], b [F], z [N, H', W', F].
    Units:     ring elements; fraction bits add, nothing is truncated here.
    Cost:      that of ``dealt_matmul``, an element of z.
    Security:  that of ``dealt_matmul``: a convolution is as bilinear as a matrix product.
    Source:    masks fixed ahead as in ASTRA.
    """
    shape = convolved_shape(x.shape, w.shape, strides, dilation)[1:]
    product = partial(convolve, strides=strides, dilation=dilation)
    gate = LinearGate(party.id, product, w, b, shape, ring=x.ring)
    return run_alone(party, gate, [x], x.fraction_bits + w.fraction_bits)


def _relu_cost(
    x: RepShare, *, bits: int, window_bits: int, ignore_bits: int = 0, ring: Ring | None = None
) -> Cost:
    gate = ReluGate(
        DEALER, _source(x), bits=bits, window_bits=window_bits, ignore_bits=ignore_bits, ring=ring or x.ring
    )
    return gate.cost(x.shape[0])


@protocol(cost=_relu_cost, source=_TABLES)
def dealt_relu(
    party: Party,
    x: RepShare,
    *,
    bits: int,
    window_bits: int,
    ignore_bits: int = 0,
    ring: Ring | None = None,
) -> RepShare:
    """Truncate and drop what is negative: ``[y] = [max(0, T)]``, T = floor(x / 2^bits) or one less.

    Shapes:    y as x, [N, ...].
    Units:     -2^(w-1+d) + 2^(d+g) <= x < 2^(w-1+d) with d = ``bits``, w = ``window_bits``,
               g = ``ignore_bits`` is required. T in [0, 2^g) may come out as 0. The result is in ``ring``
               (that of x if not given), its fraction bits are those of x minus ``bits``.
    Cost:      prepared, 1 round: party 0 sends tables and payloads, about 90 bytes an element at w = 14 in
               the 32-bit ring. Online, 2 rounds: parties 1 and 2 send n bits, then one word an element, with
               n about w / 5.
    Security:  semi-honest, one corrupt party of three. Party 0 receives nothing. Party 2 receives functions
               of the mask minus streams of parties 0 and 1, one word of stream for each word. Online an
               evaluator first receives the other's share of the digit plus the other's part of delta, a
               stream that it does not have: it learns D + delta and no more, uniform whatever D is. Then it
               receives the other's share of the result minus the other's part of the mask of the result,
               a stream likewise. Which table entries are looked up follows from the masked value, which both
               evaluators know. All streams are used once.
    Source:    fedsec; see ``fedsec.mpc.dealt.signs``.

    Raises:
        UsageError: The window does not fit.
    """
    gate = ReluGate(
        party.id, _source(x), bits=bits, window_bits=window_bits, ignore_bits=ignore_bits, ring=ring or x.ring
    )
    return run_alone(party, gate, [x], x.fraction_bits - bits)


def _truncate_cost(x: RepShare, *, bits: int, window_bits: int, ring: Ring | None = None) -> Cost:
    gate = TruncateGate(DEALER, _source(x), bits=bits, window_bits=window_bits, ring=ring or x.ring)
    return gate.cost(x.shape[0])


@protocol(cost=_truncate_cost, source=_MASKS)
def dealt_truncate(
    party: Party, x: RepShare, *, bits: int, window_bits: int, ring: Ring | None = None
) -> RepShare:
    """Divide a secret by 2^bits: the result is ``floor(x / 2^bits)`` or one less, never anything else.

    Shapes:    y as x, [N, ...].
    Units:     the result and one less fit ``window_bits`` signed bits; it is in ``ring`` (that of x if not
               given), its fraction bits are those of x minus ``bits``.
    Cost:      prepared, 1 round: party 0 sends one word and one of the rest of the ring an element. Online,
               1 round: parties 1 and 2 send one word an element.
    Security:  semi-honest, one corrupt party of three. Party 0 receives nothing; party 2 receives functions
               of the mask minus streams of parties 0 and 1; online an evaluator receives the other's share
               of the result minus the other's part of its mask, a stream that it does not have.
    Source:    the wrap of two known summands is ``fedsec.mpc.truncate``'s.

    Raises:
        UsageError: The window does not fit.
    """
    gate = TruncateGate(party.id, _source(x), bits=bits, window_bits=window_bits, ring=ring or x.ring)
    return run_alone(party, gate, [x], x.fraction_bits - bits)
