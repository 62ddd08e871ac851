"""What the owner of a model grants its users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsec.errors import UsageError
from fedsec.mpc.randomised_response import MOST_EPSILON
from fedsec.nn import Reveal
from fedsec.serving.messages import MOST_BUDGET, LabelNoise, Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the owner of a model grants its users.

    Attributes:
        num_requests: Images to answer, after which the service ends by itself; a batch of three counts three.
        quota: Images that one certificate may ask for, over all services of the model.
        reveals: What users may ask for: ``logits``, ``probabilities``, ``label``, ``top3``.
        mode: How the parties compute: ``dealt``, with randomness prepared while idle, or ``plain``.
        noise: How noisy labels are, and what may be spent on them; then nothing but them is revealed.
    """

    num_requests: int | None = None
    quota: int | None = None
    reveals: Sequence[Reveal] = ("logits",)
    mode: Mode = "dealt"
    noise: LabelNoise | None = None


def noise_of(
    label_epsilon: float | None, identity_epsilon: float | None, total_epsilon: float | None
) -> LabelNoise | None:
    """Return what noisy labels are to be, or None if they are told as they are.

    Raises:
        UsageError: An epsilon is out of its range, or a limit is given of what nothing spends.
    """
    limits = {"identity_epsilon": identity_epsilon, "total_epsilon": total_epsilon}
    for name, limit in limits.items():
        if limit is not None and label_epsilon is None:
            raise UsageError(f"{name} limits what noisy labels spend: give label_epsilon too")
        if limit is not None and not 0 < limit <= MOST_BUDGET:
            raise UsageError(f"{name}: expected above 0 and up to {MOST_BUDGET:g}, got {limit:g}")
    if label_epsilon is None:
        return None
    if not 0 < label_epsilon <= MOST_EPSILON:
        raise UsageError(f"label_epsilon: expected above 0 and up to {MOST_EPSILON:g}, got {label_epsilon:g}")
    return LabelNoise(float(label_epsilon), identity_epsilon, total_epsilon)


def usual_reveal(noise: LabelNoise | None) -> Reveal:
    """Return what is offered if nobody says what."""
    return "logits" if noise is None else "label"
