"""Was this image in the training? The model's own loss answers."""

from __future__ import annotations

from fedsec.audit.curve import Attack
from fedsec.audit.losses import losses_of
from fedsec.audit.subject import Subject


def membership(subject: Subject) -> Attack:
    """Return how well a threshold on the loss tells the hospitals' images from others.

    Source: Yeom et al. 2018, Privacy risk in machine learning, adversary 2: members have a smaller loss.
    """
    members, others = subject.members(), subject.others
    return Attack.of(
        -losses_of(subject.model, members.images, members.labels),
        -losses_of(subject.model, others.images, others.labels),
    )
