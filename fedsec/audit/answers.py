"""What a service of a run's model answers, for an attacker who may only ask.

The parties' own plan is computed on real numbers, softmax in pieces and all, and rounded to the fraction bits
that a user is shown. So an audit asks a hundred thousand times in seconds. The parties' answers differ from
these by the truncations of the protocol, which their plan bounds, and by nothing else: an attack
takes ``Client.predict`` in the same place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fedsec.learning import export
from fedsec.learning.backend import keras
from fedsec.nn import Reveal, plaintext
from fedsec.ring import decode, encode
from fedsec.serving.answers import AnswerForm, Values

Images = npt.NDArray[np.floating]
Ask = Callable[[Images, Reveal], Values]
"""Images of shape [N, 28, 28, 1] and what is to be revealed, to answers; ``Client.predict`` is one."""


class Asked:
    """Asks, and counts what was asked: each image is one query of a user's quota.

    Args:
        ask: The service.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.queries = 0

    def probabilities(self, images: Images) -> npt.NDArray[np.float64]:
        """Return the probabilities of all classes, shape [N, classes]."""
        self.queries += len(images)
        return self._ask(images, "probabilities").astype(np.float64)

    def labels(self, images: Images) -> npt.NDArray[np.int64]:
        """Return the most likely classes, shape [N]."""
        self.queries += len(images)
        return self._ask(images, "label").astype(np.int64)


def stand_in(model: keras.Model, fraction_bits: int) -> Ask:
    """Return the service's answers without the parties.

    Args:
        model: What would be served.
        fraction_bits: Of weights and images, as the scenario says.

    Raises:
        UnsupportedModelError: The model cannot be served.
    """
    plan, weights = export.export(model, fraction_bits)
    forms: dict[Reveal, AnswerForm] = {
        reveal: AnswerForm.of(plan, reveal) for reveal in ("probabilities", "label")
    }

    def ask(images: Images, reveal: Reveal) -> Values:
        head = forms[reveal].head
        answers = plaintext.predict(head, weights, images)
        if reveal == "label":
            return answers[:, 0].astype(np.int64)
        bits = head.values[-1].fraction_bits
        return decode(encode(answers, bits), bits)

    return ask
