"""Secrets planted in a training: does the model know them by heart?

Canaries are images of random blocks with random labels: nothing else in the data helps to learn them. After
the training each one's loss is ranked among those of canaries made alike that no training has seen.

Source: Carlini et al. 2019, The Secret Sharer, section 4: exposure, with ranks by sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.audit.curve import FEWEST, Attack, Spread
from fedsec.audit.losses import losses_of
from fedsec.audit.subject import Examples
from fedsec.errors import UsageError
from fedsec.learning.backend import keras
from fedsec.learning.evaluation import set_parameters
from fedsec.learning.private.trainer import HospitalPrivacy, PrivateTrainer
from fedsec.learning.training import LocalTrainer
from fedsec.privacy.ledger import MemoryLedger
from fedsec.ring.streams import fresh_stream

CLASSES = 10
_BLOCKS, _SIDE = 7, 4


@dataclass(frozen=True, slots=True)
class Exposure:
    """How far canaries stand out, in bits: log2 of the references and itself, minus log2 of the rank.

    Attributes:
        median: Over the canaries; about 1 when nothing was memorised.
        low: End of its 95 % interval, by order statistics.
        high: The other end.
        largest: Of one canary; at most log2(references + 1).
        attack: Telling canaries from references by the loss.
    """

    median: float
    low: float
    high: float
    largest: float
    attack: Attack

    @classmethod
    def of(cls, canaries: npt.NDArray[np.floating], references: npt.NDArray[np.floating]) -> Exposure:
        """Return what losses tell.

        Args:
            canaries: Losses of those that were in the training, at least 6.
            references: Losses of those that were not.

        Raises:
            UsageError: There are too few for an interval.
        """
        if len(canaries) < FEWEST or not len(references):
            raise UsageError(
                f"expected at least {FEWEST} canaries and a reference, got {len(canaries)} and"
                f" {len(references)}"
            )
        # Ties count against the attacker.
        ranks = 1 + np.searchsorted(np.sort(references), canaries, side="right")
        bits = np.log2(len(references) + 1) - np.log2(ranks)
        middle, attack = Spread.of(bits), Attack.of(-canaries, -references)
        return cls(middle.value, middle.low, middle.high, float(bits.max()), attack)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planting:
    """The training that canaries are planted in.

    Attributes:
        records: The real ones: how many of the hospital's at most.
        canaries: How many, each once.
        references: How many others they are ranked among.
        epochs: Passes over all.
        batch_size: Of a step.
        learning_rate: Of Adam.
        epsilon: Of the training with differential privacy.
        delta: At which it holds.
        l2_norm_clip: Of it.
    """

    records: int = 500
    canaries: int = 30
    references: int = 2000
    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 2e-3
    epsilon: float = 8.0
    delta: float = 1e-5
    l2_norm_clip: float = 1.0


def made(count: int) -> Examples:
    """Return so many new canaries: 7 x 7 random black and white blocks, random labels.

    From the operating system's randomness: nobody can have trained on them before.
    """
    stream = fresh_stream()
    blocks = np.frombuffer(stream.take(count * _BLOCKS**2), dtype=np.uint8).reshape(
        count, _BLOCKS, _BLOCKS, 1
    )
    images = (blocks & 1).astype(np.float32).repeat(_SIDE, axis=1).repeat(_SIDE, axis=2)
    labels = np.frombuffer(stream.take(4 * count), dtype=np.uint32) % CLASSES
    return Examples(images, labels.astype(np.int64))


def exposures(model: keras.Model, records: Examples, planting: Planting) -> tuple[Exposure, Exposure]:
    """Train twice from the model's parameters on records and canaries, without and with DP-SGD.

    Args:
        model: A network for 28 x 28 images and ten classes; its parameters end up changed.
        records: Of a hospital.
        planting: The rest.

    Returns:
        The exposure without and with differential privacy.
    """
    canaries, references = made(planting.canaries), made(planting.references)
    own = slice(planting.records)
    images = np.concatenate([records.images[own], canaries.images])
    labels = np.concatenate([records.labels[own].astype(np.int64), canaries.labels])
    initial = model.get_weights()

    def measured(parameters: list[Any]) -> Exposure:
        set_parameters(model, parameters)
        return Exposure.of(
            losses_of(model, canaries.images, canaries.labels),
            losses_of(model, references.images, references.labels),
        )

    plain = LocalTrainer(model, planting.learning_rate, planting.batch_size, planting.epochs)
    without = measured(plain.fit(initial, images, labels, seed=1)[0])
    wanted = HospitalPrivacy(
        target_epsilon=planting.epsilon, delta=planting.delta, l2_norm_clip=planting.l2_norm_clip, rounds=1
    )
    private = PrivateTrainer(model, planting.learning_rate, planting.batch_size, planting.epochs, wanted)
    return without, measured(private.fit(initial, images, labels, MemoryLedger())[0])
