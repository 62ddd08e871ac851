"""From a Keras model whose trained parameters nobody has to the plan by which parties serve it.

A sealed model is there in shares only. Its plan follows from what is public: the architecture, the initial
parameters, and how far rounds can move each of them. Which word of the state each parameter of the plan is,
is found by exporting the network with numbered parameters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ldexp

import numpy as np

from fedsec.errors import UnsupportedModelError, UsageError
from fedsec.learning.backend import keras
from fedsec.learning.export.building import Floats
from fedsec.learning.export.conversion import IGNORED, network_of
from fedsec.learning.export.graph import calls_of
from fedsec.nn import Plan, WeightSpec
from fedsec.nn.network import AffineLayer, ConvLayer, DenseLayer, Network, ReluLayer
from fedsec.nn.planner import plan_unseen
from fedsec.nn.sealed import WORD_BITS, Source

MOST_WORDS = 1 << 24
"""Parameters of a sealed model: so many are told apart by numbers that float32 holds exactly."""

_FACTOR_BITS = 20
"""Significant bits of a public factor that is no power of two."""

_INSTEAD = 'which reveal_to = "nobody" needs: nobody can fold or divide what nobody has'

_LOOSE = 1 + 2.0**-9
"""What encoding a mean and dividing it on shares may add to a clip, as a part of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedPlan:
    """How a sealed model is served.

    Attributes:
        plan: The public plan.
        sources: For each of its arrays of parameters, which words of the state it comes from.
    """

    plan: Plan
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far training can move parameters; all of it public.

    Attributes:
        clips: Of each array in the order of ``model.get_weights()``: the largest change in one round.
        rounds: Number of rounds.
        fraction_bits: Of the state's words.
    """

    clips: Sequence[float]
    rounds: int
    fraction_bits: int

    def bounds(self, initial: Sequence[Floats]) -> list[Floats]:
        """Return a bound of every parameter's size after the last round, for hospitals that keep the clip."""
        unit = 2.0**-self.fraction_bits
        steps = [self.rounds * (clip * _LOOSE + 4 * unit) + unit for clip in self.clips]
        return [np.abs(array) + step for array, step in zip(initial, steps, strict=True)]


def plan_sealed(
    model: keras.Model,
    reach: Reach,
    fraction_bits: int = 16,
    *,
    input_range: tuple[float, float] = (0.0, 1.0),
    largest_activation: float | None = None,
) -> SealedPlan:
    """Plan a model that will be trained and then served without anyone having its parameters.

    Args:
        model: A built Keras model as for ``export``; its parameters at this moment are the initial ones. They
            are overwritten while this runs.
        reach: How far training can move them.
        fraction_bits: As for ``export``; values and kernels get fewer where bounds ask for it.
        input_range: As for ``export``.
        largest_activation: What a relu gives above it counts as it. Bounds multiply from layer to layer; cut
            where trained values never are, they stay small enough for labels to be compared. None: not cut.

    Raises:
        UnsupportedModelError: As for ``export``; or a layer needs more than its parameters one by one, as
            batch normalisation does; the text names it.
        UsageError: There are not as many clips as arrays.
    """
    initial = [np.asarray(array, dtype=np.float64) for array in model.get_weights()]
    if len(reach.clips) != len(initial):
        raise UsageError(f"the model has {len(initial)} arrays, got {len(reach.clips)} clips")
    _check_layers(model, initial)
    bounds = reach.bounds(initial)
    with _parameters_kept(model):
        starts = _starts(model, [array.shape for array in initial], input_range)
        network = _cut_off(_with_parameters(model, bounds, input_range), largest_activation)
    unseen = plan_unseen(_renamed(network), fraction_bits=fraction_bits)
    most = max(float(array.max()) for array in bounds if array.size)
    divisors = [divisor for kernel in unseen.divisors for divisor in (kernel, 1)]
    sources = tuple(
        _source(start, spec, divisor, reach.fraction_bits)
        for start, spec, divisor in zip(starts, unseen.plan.weight_specs, divisors, strict=True)
    )
    largest = max(source.factor for source in sources)
    if most * 2.0**reach.fraction_bits * largest >= 2.0**WORD_BITS:
        raise UnsupportedModelError(
            f"model {model.name!r}: parameters can reach {most:.4g}, too large to be re-scaled on shares; run"
            " fewer rounds, or with a smaller clip"
        )
    return SealedPlan(plan=unseen.plan, sources=sources)


def _renamed(network: Network) -> Network:
    """Number layers by their order: Keras counts all that its process has made, and plans are to be equal."""
    known: dict[str, str] = {}
    seen: Counter[str] = Counter()

    def renamed(name: str) -> str:
        layer, *rest = name.split(" ")
        if layer not in known:
            kind = re.sub(r"_\d+$", "", layer)
            known[layer] = f"{kind}_{seen[kind]}" if seen[kind] else kind
            seen[kind] += 1
        return " ".join([known[layer], *rest])

    layers = tuple(replace(layer, name=renamed(layer.name)) for layer in network.layers)
    return replace(network, name=re.sub(r"_\d+$", "", network.name), layers=layers)


def _cut_off(network: Network, largest: float | None) -> Network:
    """Return a network whose relus give at most ``largest``; where no value reaches it nothing changes."""
    if largest is None:
        return network
    layers = (
        replace(layer, max_value=largest if layer.max_value is None else min(layer.max_value, largest))
        if isinstance(layer, ReluLayer)
        else layer
        for layer in network.layers
    )
    return replace(network, layers=tuple(layers))


def _check_layers(model: keras.Model, initial: Sequence[Floats]) -> None:
    """Refuse what cannot be read off by numbered parameters."""
    for call in calls_of(model, IGNORED):
        if isinstance(call.operation, keras.layers.BatchNormalization | keras.layers.Normalization):
            raise UnsupportedModelError(
                f"layer {call.name!r} is a {type(call.operation).__name__}: it divides by a variance and does"
                f" not compute with its parameters one by one, {_INSTEAD}; leave the layer out"
            )
    words = sum(array.size for array in initial)
    if not words:
        raise UnsupportedModelError(
            f"model {model.name!r} has no parameters: there is nothing to keep sealed"
        )
    kinds = {variable.dtype for variable in model.weights}
    if words >= MOST_WORDS or not kinds <= {"float32", "float64"}:
        raise UnsupportedModelError(
            f"model {model.name!r} has {words} parameters of {' and '.join(sorted(kinds))}; a model that"
            f" nobody has may have {MOST_WORDS - 1} of float32"
        )


@contextmanager
def _parameters_kept(model: keras.Model) -> Iterator[None]:
    before = model.get_weights()
    try:
        yield
    finally:
        model.set_weights(before)


def _with_parameters(
    model: keras.Model, arrays: Sequence[Floats], input_range: tuple[float, float]
) -> Network:
    model.set_weights(arrays)
    # Products and roots of what stands for parameters here may be no numbers; then they are refused.
    with np.errstate(all="ignore"):
        return network_of(model, input_range=input_range)


def _starts(
    model: keras.Model, shapes: Sequence[tuple[int, ...]], input_range: tuple[float, float]
) -> list[int | None]:
    """Return for each array of parameters in the network its first word, or None for zeros.

    Three networks are exported: with parameter i as i + 1, as n - i and as -(i + 1), for n parameters. What
    is i + 1 for the same i in all three is the parameter i; sums, products and constants are not.
    """
    words = sum(int(np.prod(shape)) for shape in shapes)
    numbers = np.arange(1, words + 1, dtype=np.float64)
    probes = [
        _linear_arrays(_with_parameters(model, _cut(markers, shapes), input_range))
        for markers in (numbers, words + 1 - numbers, -numbers)
    ]
    return [
        _start(layer, (first, second, third), words)
        for (layer, first), (_, second), (_, third) in zip(*probes, strict=True)
    ]


def _start(name: str, found: tuple[Floats, Floats, Floats], words: int) -> int | None:
    first, second, third = found
    if not any(array.any() for array in found):
        return None
    start = first[0] if np.isfinite(first[0]) else 0.0
    expected = start + np.arange(first.size)
    if not (
        np.array_equal(first, expected)
        and np.array_equal(second, words + 1 - expected)
        and np.array_equal(third, -expected)
    ):
        raise UnsupportedModelError(
            f"layer {name!r} does not compute with its parameters as they are, one by one and in their order,"
            f" {_INSTEAD}; Dense, Conv and DepthwiseConv layers do"
        )
    return int(start) - 1


def _linear_arrays(network: Network) -> list[tuple[str, Floats]]:
    """Return name and flat parameters of each linear layer in turn: kernel, then bias."""
    found: list[tuple[str, Floats]] = []
    for layer in network.layers:
        if isinstance(layer, ConvLayer | DenseLayer):
            found += [(layer.name, layer.kernel.reshape(-1)), (layer.name, layer.bias.reshape(-1))]
        elif isinstance(layer, AffineLayer):
            found += [(layer.name, layer.scale.reshape(-1)), (layer.name, layer.shift.reshape(-1))]
    return found


def _cut(flat: Floats, shapes: Sequence[tuple[int, ...]]) -> list[Floats]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = np.split(flat, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _source(start: int | None, spec: WeightSpec, divisor: int, state_bits: int) -> Source:
    """Return where an array comes from: word * 2^(f - F) / divisor, as a factor and bits to drop."""
    if start is None:
        return Source(None)
    up = spec.fraction_bits - state_bits
    if divisor & (divisor - 1) == 0:
        up -= divisor.bit_length() - 1
        return Source(start, 1 << max(up, 0), max(-up, 0))
    # The nearest number with 20 significant bits, and so many bits to drop that nothing else is lost.
    bits = max(_FACTOR_BITS + divisor.bit_length(), up)
    return Source(start, round(ldexp(1.0, bits) / divisor), bits - up)
