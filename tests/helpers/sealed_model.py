"""A small network whose parameters lie sealed at three parties, without TensorFlow or rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from fedsec.aggregation.planner import ArraySpec
from fedsec.aggregation.sealed.state import SealedState, SealedStates
from fedsec.nn.network import AveragePoolLayer, ConvLayer, DenseLayer, FlattenLayer, Network, ReluLayer
from fedsec.nn.planner import plan_unseen
from fedsec.nn.sealed import Source, serving_digest
from fedsec.ring import RING64, encode, fresh_stream
from fedsec.serving.sealed import SealedModel
from fedsec.sharing import replicated

STATE_BITS = 24
SESSION = b"session of tests"
NUMBER = 7


def network(seed: int = 7, side: int = 6) -> Network:
    """A convolution with a pooling, and a Dense layer; values of a trained network's size."""
    rng = np.random.default_rng(seed)
    flat = 3 * ((side - 1) // 2) ** 2
    layers = (
        ConvLayer("conv", rng.normal(size=(2, 2, 1, 3)) / 2, rng.normal(size=3) / 4),
        AveragePoolLayer("pool", (2, 2), (2, 2)),
        ReluLayer("relu"),
        FlattenLayer("flat"),
        DenseLayer("dense", rng.normal(size=(flat, 4)) / 2, rng.normal(size=4)),
    )
    return Network("tiny", (side, side, 1), layers)


def arrays_of(real: Network) -> list[np.ndarray]:
    """Kernel and bias of each layer that has them, in order."""
    layers = [layer for layer in real.layers if isinstance(layer, ConvLayer | DenseLayer)]
    return [array for layer in layers for array in (layer.kernel, layer.bias)]


@dataclass(frozen=True)
class Sealed:
    """A network, what is public of it, and each party's state."""

    real: Network
    model: SealedModel
    states: tuple[SealedState, ...]

    @classmethod
    def of(cls, real: Network, size: float = 8.0) -> Sealed:
        """Seal a network; the plan follows from a bound of its parameters' sizes alone."""
        model = public_model(real, size)
        return cls(real, model, _states(real, model))

    def store(self, folders: Mapping[int, Path], **changes: object) -> None:
        """Write each party's state into its state folder."""
        for party, folder in folders.items():
            SealedStates(folder).write(replace(self.states[party], **changes))


def public_model(real: Network, size: float) -> SealedModel:
    """Return what is public of a network whose parameters are within ``size``."""
    layers = tuple(
        replace(layer, kernel=np.full_like(layer.kernel, size), bias=np.full_like(layer.bias, size))
        if isinstance(layer, ConvLayer | DenseLayer)
        else layer
        for layer in real.layers
    )
    unseen = plan_unseen(replace(real, layers=layers))
    sources, start = [], 0
    for number, spec in enumerate(unseen.plan.weight_specs):
        divisor = 1 if number % 2 else unseen.divisors[number // 2]
        up = spec.fraction_bits - STATE_BITS - (divisor.bit_length() - 1)
        sources.append(Source(start, 1 << max(up, 0), max(-up, 0)))
        start += prod(spec.shape)
    return SealedModel(
        plan=unseen.plan, sources=tuple(sources), session=SESSION, number=NUMBER, words=start,
        fraction_bits=STATE_BITS,
    )  # fmt: skip


def _states(real: Network, model: SealedModel) -> tuple[SealedState, ...]:
    arrays = arrays_of(real)
    words = encode(np.concatenate([array.reshape(-1) for array in arrays]), STATE_BITS, RING64)
    specs = tuple(
        ArraySpec(name=str(i), dtype="float32", shape=array.shape, clip=1.0) for i, array in enumerate(arrays)
    )
    serves = serving_digest(model.plan, model.sources)
    return tuple(
        SealedState(SESSION, NUMBER, specs, STATE_BITS, share, closed=True, serves=serves)
        for share in replicated.share(words, fresh_stream(), STATE_BITS)
    )
