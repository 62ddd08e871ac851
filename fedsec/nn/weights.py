"""A plan's parameters: as floats in its order, in files, as ring elements, as shares."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedsec.errors import InputError
from fedsec.nn.plan import Linear, Plan, Relu, Truncate
from fedsec.ring import RING64, KeyedStream, RingArray, decode, encode
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare

Weights = list[npt.NDArray[np.float64]]
"""Kernel and bias of each linear step of a plan, in turn."""

_DAMAGED = (OSError, ValueError, EOFError, MemoryError, RuntimeError, zlib.error, zipfile.BadZipFile)
"""What numpy and zipfile raise for files that are cut off, altered, encrypted or say they are huge."""


def save_weights(path: Path, weights: Weights) -> None:
    """Write the parameters as ``.npz``, in the clear: for the owner only."""
    with path.open("wb") as file:
        # Without names numpy calls them arr_0, arr_1, ... in this order.
        np.savez(file, *weights)


def load_weights(path: Path, plan: Plan) -> Weights:
    """Read what ``save_weights`` wrote.

    Raises:
        InputError: If the file cannot be read, or its arrays are not those of the plan.
    """
    try:
        # Opened here: numpy leaves the file open when it is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            weights = [np.asarray(archive[name], dtype=np.float64) for name in archive.files]
    except _DAMAGED as error:
        raise InputError(f"cannot read the parameters in {path}: {type(error).__name__}") from error
    _check_weights(plan, weights)
    return weights


def encode_weights(plan: Plan, weights: Weights) -> list[RingArray]:
    """Return the parameters as ring elements, each with the fraction bits that the plan gives it.

    A bias is larger by what the truncation after it loses on average (``bias_corrections``).

    Raises:
        InputError: If number or shapes are not those of the plan.
        RangeError: If a parameter does not fit the ring.
    """
    _check_weights(plan, weights)
    return [
        encode(array, spec.fraction_bits, RING64) + np.uint64(more)
        for array, spec, more in zip(weights, plan.weight_specs, bias_corrections(plan), strict=True)
    ]


def bias_corrections(plan: Plan) -> list[int]:
    """Return what is added to every element of each array, in units: 0 for kernels, see ``dropped_bits``."""
    return [more for bits in dropped_bits(plan) for more in (0, 1 << bits if bits else 0)]


def dropped_bits(plan: Plan) -> list[int]:
    """Return for each linear step how many bits are dropped from its product next, 0 if it depends.

    Dropping bits gives the floor or one unit less, on average one unit too little. A bias that is one such
    unit larger makes up for it: then nothing is lost on average, and at most one unit either way.
    """
    takers: list[set[int]] = [set() for _ in plan.values]
    for step in plan.layers:
        for value in step.inputs:
            takers[value].add(step.bits if isinstance(step, Truncate | Relu) else 0)
    return [
        max(takers[number + 1], default=0) if len(takers[number + 1]) == 1 else 0
        for number, step in enumerate(plan.layers)
        if isinstance(step, Linear)
    ]


def share_weights(
    plan: Plan, weights: Weights, stream: KeyedStream
) -> tuple[list[RepShare], list[RepShare], list[RepShare]]:
    """Split the parameters for parties 0, 1 and 2.

    Args:
        plan: Gives the fraction bits.
        weights: The owner's parameters.
        stream: A fresh keyed stream that nobody else has.

    Raises:
        InputError, RangeError: As ``encode_weights``.
    """
    shares = [
        replicated.share(words, stream, spec.fraction_bits)
        for words, spec in zip(encode_weights(plan, weights), plan.weight_specs, strict=True)
    ]
    first, second, third = ([triple[party] for triple in shares] for party in range(3))
    return first, second, third


def encode_input(plan: Plan, images: npt.ArrayLike) -> RingArray:
    """Return a user's examples as ring elements, after checking all that only the user can check.

    Args:
        plan: The plan that will be asked.
        images: Real numbers, shape [N, *input shape], within the plan's input range.

    Raises:
        InputError: If shape, dtype or range do not fit; the text says what to do.
    """
    array = np.asarray(images)
    if array.dtype.kind not in "fiub" or array.shape[1:] != plan.input_shape or array.ndim == 0:
        raise InputError(
            f"expected examples of shape [N, {', '.join(map(str, plan.input_shape))}] as numbers,"
            f" got {array.dtype}{list(array.shape)}"
        )
    # Written so that NaN, which compares false, is refused too.
    if not bool(np.all((array >= plan.input_low) & (array <= plan.input_high))):
        raise InputError(
            f"examples must lie between {plan.input_low:g} and {plan.input_high:g}; at least one value does"
            " not. Grey values from 0 to 255 must be divided by 255. Nothing was sent"
        )
    return encode(array, plan.fraction_bits, RING64)


def decode_output(plan: Plan, words: RingArray) -> npt.NDArray[np.float64]:
    """Return reconstructed answers as real numbers, shape [N, *output shape]."""
    return decode(words, plan.output_fraction_bits)


def check_shares(plan: Plan, weights: Sequence[RepShare]) -> None:
    """Refuse shares that are not those of the plan's parameters.

    Raises:
        InputError: If number, shapes or fraction bits differ.
    """
    given = [(share.shape, share.fraction_bits) for share in weights]
    _compare(plan, given, [tuple(spec) for spec in plan.weight_specs])


def _check_weights(plan: Plan, weights: Weights) -> None:
    _compare(plan, [array.shape for array in weights], [spec.shape for spec in plan.weight_specs])


def _compare(plan: Plan, given: Sequence[object], expected: Sequence[object]) -> None:
    if list(given) != list(expected):
        raise InputError(f"plan {plan.name!r} has parameters {list(expected)}, got {list(given)}")
