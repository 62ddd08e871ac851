"""An audit of DP-SGD itself: does it protect records that are made to be found?

Every canary is a record of its own input feature, so its clipped gradient moves weights that no other record
moves: the worst case of the mechanism, where its noise is all that hides the canary. A fair coin decides
whether it is in the training. The final weights are guessed from, and the guesses bound epsilon from below.

The same training without differential privacy stands beside it: what the guesses find where nothing hides.

An honest mechanism stays below what it claims. One without noise, with too little, or without clipping (the
canaries' gradients are a hundred times the clip) is found out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
        plain: What they rule out of the same training without differential privacy.
    """

    claimed: float
    found: LowerBound
    plain: LowerBound

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
    model = private(_model(canaries))
    scores, included = _guessed(model, canaries, steps)
    report = model.privacy()
    plain_scores, plain_included = _guessed(_model(canaries), canaries, steps)
    delta = report.epsilon.delta
    return MechanismAudit(
        report.epsilon.value,
        lower_bound(scores, included, canaries // 2, delta, _CONFIDENCE),
        lower_bound(plain_scores, plain_included, canaries // 2, delta, _CONFIDENCE),
    )


def _guessed(
    model: keras.Model, canaries: int, steps: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Train on the canaries that coins choose; return a score of each, and the coins."""
    included = np.frombuffer(fresh_stream().take(canaries), dtype=np.uint8) % 2 == 0
    records = np.flatnonzero(included)
    # Plain sums of noised gradients: what the accountant takes to be published.
    model.compile(keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs = np.zeros((len(records), canaries), dtype=np.float32)
    inputs[np.arange(len(records)), records] = _LOUDNESS
    batch = max(1, len(records) // 10)
    labels = np.ones(len(records), dtype=np.int64)
    # As many steps with and without: ten are a pass.
    epochs = max(1, round(steps * batch / len(records)))
    length = {"steps_per_epoch": steps} if isinstance(model, PrivateModel) else {"epochs": epochs}
    model.fit(inputs, labels, batch_size=batch, verbose=0, **length)
    weights = model.get_weights()[0]
    # A record of class 1 raises its feature's weight for class 1 and lowers that for class 0.
    return (weights[:, 1] - weights[:, 0]).astype(np.float64), included


def _model(canaries: int) -> keras.Model:
    layer = keras.layers.Dense(_FEATURES, use_bias=False, kernel_initializer="zeros")
    return keras.Sequential([keras.Input((canaries,)), layer])
