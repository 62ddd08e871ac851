"""What would let records past the mechanism, found by its effect: mixed records, own state, lost steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.errors import UnsupportedModelError
from fedsec.learning.backend import keras, tf
from fedsec.privacy.accounting import SampledGaussian
from fedsec.privacy.budget import Budget

_PROBED = 4
"""Records on which a model is probed before it is trained."""
_SAME = 1e-3
"""Part of the largest value by which answers may differ for rounding's sake."""

State = list[tuple[Any, npt.NDArray[Any]]]
"""Variables and their values."""


@dataclass(slots=True)
class UnderWay:
    """The steps of one ``fit``.

    Attributes:
        mechanism: What is spent for each pass.
        pass_steps: Steps of a pass: 1 with Poisson samples, all batches of a pipeline.
        taken: Steps so far.
    """

    mechanism: SampledGaussian
    pass_steps: int
    taken: int = 0

    def step(self, budget: Budget) -> None:
        """Spend, before the first step of each pass is taken."""
        if self.taken % self.pass_steps == 0:
            budget.spend(self.mechanism)
        self.taken += 1


def check_independence(model: keras.Model, loss_each: Callable[[Any, Any], Any], x: Any, y: Any) -> None:
    """Check on a few records that what model and loss say of one does not depend on the others.

    Args:
        model: In prediction: what is random in training would differ anyway.
        loss_each: From (labels, answers) to the loss of each record.
        x: Inputs; the first few are used.
        y: Their labels.

    Raises:
        UnsupportedModelError: It does, so no record's part in a step could be bounded.
    """

    def said(rows: slice) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        one_x, one_y = (
            keras.tree.map_structure(lambda part: tf.convert_to_tensor(part[rows]), tree) for tree in (x, y)
        )
        answers = model(one_x, training=False)
        return np.asarray(answers), np.asarray(loss_each(one_y, answers))

    count = min(_PROBED, len(keras.tree.flatten(y)[0]))
    together = said(slice(0, count))
    alone = [said(slice(i, i + 1)) for i in range(count)]
    for place, what in enumerate(("the model's answers", "the loss")):
        if not _same(together[place], np.concatenate([one[place] for one in alone])):
            raise UnsupportedModelError(
                f"{what} for one record depend on the other records of its batch, so no record's part in a"
                " step can be bounded: take out what joins records (a mean over the batch, a loss over pairs"
                " or with weights from the batch)"
            )


def _same(together: npt.NDArray[Any], alone: npt.NDArray[Any]) -> bool:
    largest = np.max(np.abs(alone), initial=1.0, where=np.isfinite(alone))
    return together.shape == alone.shape and np.allclose(
        together, alone, rtol=0, atol=_SAME * float(largest), equal_nan=True
    )


def state_of(model: keras.Model) -> State:
    """Return what training does not move, but layers of somebody's own might: moving averages, counters."""
    return [(v, v.numpy()) for v in model.non_trainable_variables if "seed_generator" not in v.path]


def check_state(before: State) -> None:
    """Put layers' own state back, and say so, if records moved it past the mechanism.

    Raises:
        UnsupportedModelError: They did.
    """
    moved = [variable for variable, value in before if not np.array_equal(variable.numpy(), value)]
    if not moved:
        return
    for variable, value in before:
        variable.assign(value)
    raise UnsupportedModelError(
        f"{moved[0].path!r} follows the records without any noise while the model is trained; it was"
        " put back. Use a layer without state of its own, or freeze it (trainable=False)"
    )
