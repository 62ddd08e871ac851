"""An audit of DP-SGD itself: does it protect records that are made to be found?

Every canary is a record of its own input feature, so its clipped gradient moves weights that no other record
moves: the worst case of the mechanism, where its noise is all that hides the canary. A fair coin decides
whether it is in the training. The final weights are guessed from, and the guesses bound epsilon from below.

An honest mechanism stays below what it claims. One without noise, with too little, or without clipping (the
canaries' gradients are a hundred times the clip) is found out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedsec.audit.one_run import LowerBound, lower_bound
from fedsec.learning.backend import keras
from fedsec.learning.private.model import PrivateModel
from fedsec.ring.streams import fresh_stream

_CONFIDENCE = 0.999
"""An audit that cries wolf once in twenty is of no use in a test suite."""
_LOUDNESS = 100.0
_FEATURES = 2


@dataclass(frozen=True, slots=True)
class MechanismAudit:
    """What was claimed and what was found.

    Attributes:
        claimed: Epsilon by the accountant, of the steps that were taken.
        found: What the guesses rule out.
    """

    claimed: float
    found: LowerBound

    @property
    def broken(self) -> bool:
        """Whether the claim is refuted."""
        return self.found.epsilon > self.claimed


def audit_mechanism(
    private: Callable[[keras.Model], PrivateModel], *, canaries: int = 1000, steps: int = 60
) -> MechanismAudit:
    """Train on canaries and guess which ones were there.

    Args:
        private: Makes a model private; what is audited.
        canaries: How many are made; half of them are in the training.
        steps: Steps of the training, each with a tenth of the records: with 60 one in 500 is in none.
    """
    included = np.frombuffer(fresh_stream().take(canaries), dtype=np.uint8) % 2 == 0
    records = np.flatnonzero(included)
    model = private(_model(canaries))
    # Plain sums of noised gradients: what the accountant takes to be published.
    model.compile(keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs = np.zeros((len(records), canaries), dtype=np.float32)
    inputs[np.arange(len(records)), records] = _LOUDNESS
    batch = max(1, len(records) // 10)
    model.fit(
        inputs,
        np.ones(len(records), dtype=np.int64),
        batch_size=batch,
        epochs=1,
        steps_per_epoch=steps,
        verbose=0,
    )
    weights = model.get_weights()[0]
    # A record of class 1 raises its feature's weight for class 1 and lowers that for class 0.
    scores = (weights[:, 1] - weights[:, 0]).astype(np.float64)
    report = model.privacy()
    found = lower_bound(scores, included, canaries // 2, report.epsilon.delta, _CONFIDENCE)
    return MechanismAudit(report.epsilon.value, found)


def _model(canaries: int) -> keras.Model:
    layer = keras.layers.Dense(_FEATURES, use_bias=False, kernel_initializer="zeros")
    return keras.Sequential([keras.Input((canaries,)), layer])
