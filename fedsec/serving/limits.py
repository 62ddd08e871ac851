"""Bounds of a party's prediction service: memory, waiting and silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsec.errors import UsageError
from fedsec.nn import Plan, Reveal
from fedsec.serving.messages import MAX_IMAGES

BATCH_ELEMENTS = 1 << 22
"""Ring elements of the largest array of one step for a whole batch: a message of 32 MB, which has to pass
within ``step_s`` (27 Mbit/s at 10 s). A plan's single image may exceed it and is then computed alone."""


def most_images(
    plan: Plan, reveals: Sequence[Reveal] = ("logits",), label_epsilon: float | None = None
) -> int:
    """Images of one batch, and of one request.

    All parties and clients derive it from what is public: the plan, and what may be revealed of its answers.
    """
    largest = max(plan.with_head(reveal, label_epsilon).largest_array for reveal in reveals)
    return max(1, min(MAX_IMAGES, BATCH_ELEMENTS // largest))


def check_model_bytes(size: int, most: int) -> None:
    """Refuse too large a part of a model before it has memory.

    Raises:
        UsageError: it has more bytes than a party holds of one model.
    """
    if size > most:
        raise UsageError(f"a model's part may have {most} bytes here, this one has {size}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one party grants, in images and seconds.

    Attributes:
        batch_images: images computed together, if the plan allows as many.
        waiting_images: images whose parts wait in memory; 25 MB at 28 x 28 on 64-bit words.
        waiting_bytes: the same in bytes of shares, which counts for larger images.
        waiting_per_user: requests of one certificate that wait at a time.
        waiting_images_per_user: images of one certificate that wait at a time: nobody takes all the room.
        models: models held in memory.
        model_bytes: largest part of one model's weights, as it travels.
        heartbeat_s: an idle leader speaks this often, so that silence means something.
        silence_s: longest wait between batches for another party's word; then the service ends naming it.
        step_s: longest wait within a batch for another party's next step.
        probe_s: time for another party to say how it is, once a service is broken.
        body_s: time for a request's part to come.
        part_s: how long a part waits for the others to have theirs and for its turn.
        answer_s: how long a request waits on once it is being computed.
        setup_s: time for the three parties to link up.
        drain_s: how long a service that is to end goes on answering what it has accepted.
    """

    batch_images: int = MAX_IMAGES
    waiting_images: int = 2048
    waiting_bytes: int = 1 << 28
    waiting_per_user: int = 16
    waiting_images_per_user: int = 256
    models: int = 8
    model_bytes: int = 1 << 29
    heartbeat_s: float = 1.0
    silence_s: float = 5.0
    step_s: float = 10.0
    probe_s: float = 1.5
    body_s: float = 30.0
    part_s: float = 10.0
    answer_s: float = 60.0
    setup_s: float = 20.0
    drain_s: float = 3.0
