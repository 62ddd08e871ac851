"""Every message of the prediction service, with the sizes that a receiver checks first.

All travel as msgpack inside the frames of :mod:`fedsec.transport`. Bodies (shares) follow a message
and are laid out by :mod:`fedsec.serving.parts`. No message of this file carries a share.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from fedsec.mpc.randomised_response import MOST_EPSILON
from fedsec.nn import Reveal
from fedsec.nn.sealed import Source

ID_BYTES = 16
"""Length of model, service and request ids: 16 bytes from the operating system's generator."""

DIGEST_BYTES = 32
"""Length of a SHA-256 digest and of a certificate's fingerprint."""

MAX_IMAGES = 128
"""Images in one request. At 28 x 28 one such request is a body of 803 kB for the larger part."""

MAX_SOURCES = 1024
"""Arrays of parameters: two for each of the most steps that a plan has."""

MAX_LISTED = 1000
"""Queries in one page of the ledger: about 100 kB."""

MAX_COUNT = 2**53
"""Largest number of requests that a limit may name; stays exact in every language's JSON."""

Id = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNT)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
ImageCount = Annotated[int, msgspec.Meta(ge=1, le=MAX_IMAGES)]
PlanBytes = Annotated[bytes, msgspec.Meta(max_length=262_144)]

Reveals = Annotated[tuple[Reveal, ...], msgspec.Meta(min_length=1, max_length=4)]
"""What the owner of a model allows to be opened."""

MOST_BUDGET = 1e6
"""Largest epsilon that a limit may name: no limit at all would do as well."""

Budget = Annotated[float, msgspec.Meta(gt=0, le=MOST_BUDGET)]
"""An epsilon that answers may spend together."""

Mode = Literal["dealt", "plain"]
"""How the parties compute: with correlated randomness dealt ahead, or without."""

State = Literal["idle", "starting", "serving", "ended", "stopped", "failed"]
"""Life of a service: ``ended`` has answered its number, ``stopped`` was asked to, ``failed`` broke."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all messages share: immutable, named fields, unknown fields refused."""


class LabelNoise(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Labels are answered by randomised response, and nothing else is revealed.

    ``epsilon`` is what one answer spends at most; the law that follows from it and the number of classes
    spends a little less. ``identity_epsilon`` is what one certificate may spend over the model's life,
    ``total_epsilon`` what all may spend together. ``None`` means no limit.
    """

    epsilon: Annotated[float, msgspec.Meta(gt=0, le=MOST_EPSILON)]
    identity_epsilon: Budget | None = None
    total_epsilon: Budget | None = None


class ShareModel(Message, frozen=True, tag="share_model"):
    """Owner to party: hold this part of a model's weights in memory. The body is the part.

    ``sharing`` is drawn anew for every splitting: parts of two splittings of one model join to noise.
    """

    model: Id
    plan: PlanBytes
    digest: Digest
    sharing: Id


class ShareSealed(Message, frozen=True, tag="share_sealed"):
    """Owner to party: hold the model that lies sealed at the three parties. There is no body.

    Each party takes its share of state ``number`` of a training's ``session``; ``sources`` say from which of
    its ``words`` each array of the plan's parameters comes. The reply is ``model_held``.
    """

    model: Id
    plan: PlanBytes
    digest: Digest
    session: Id
    number: Count
    sources: Annotated[tuple[Source, ...], msgspec.Meta(max_length=MAX_SOURCES)]
    words: Count
    fraction_bits: Annotated[int, msgspec.Meta(ge=0, le=62)]


class ModelHeld(Message, frozen=True, tag="model_held"):
    """The party holds its part; ``digest`` is the plan's as the party computed it."""

    model: Id
    digest: Digest


class ForgetModel(Message, frozen=True, tag="forget_model"):
    """Owner to party: drop the part of this model; with ``sharing``, only if it is of that splitting."""

    model: Id
    sharing: Id | None = None


class ModelForgotten(Message, frozen=True, tag="model_forgotten"):
    """The party holds no part of the model any more."""

    model: Id


class Serve(Message, frozen=True, tag="serve"):
    """Owner to party: link up with the other two and answer predictions.

    ``num_requests`` counts images answered by this service before it ends by itself; ``quota``
    counts images charged to one certificate over the model's life. ``None`` means no limit. ``answered``
    images were answered by earlier runs of a service that is resumed: they count against its number.
    """

    service: Id
    model: Id
    num_requests: Limit | None = None
    quota: Limit | None = None
    answered: Count = 0
    mode: Mode = "dealt"
    reveals: Reveals = ("logits",)
    noise: LabelNoise | None = None


class ReadCount(Message, frozen=True, tag="read_count"):
    """Owner to party: how many images did this service answer, also before your last restart?"""

    service: Id


class ServiceCount(Message, frozen=True, tag="service_count"):
    """What the party's ledger says of a service; ``known`` is false if it never ran here."""

    service: Id
    known: bool
    answered: int = 0


class ReadLedger(Message, frozen=True, tag="read_ledger"):
    """Owner to party: the newest queries, the last one first; ``before`` pages on to older ones."""

    most: Annotated[int, msgspec.Meta(ge=1, le=MAX_LISTED)] = 20
    before: Count | None = None


class QueryRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One charged query: who, when, how much. ``name`` is empty if the party never learnt it.

    ``at`` is the UNIX time in seconds of the charge by this party's clock. ``answered`` is false if this
    party has given out nothing for it. ``epsilon`` is what was charged for it; 0 if its answer had no noise.
    """

    number: int
    at: float
    name: str
    fingerprint: Digest
    model: Id
    images: ImageCount
    reveal: Reveal
    answered: bool
    epsilon: float = 0.0


class LedgerPage(Message, frozen=True, tag="ledger_page"):
    """Queries from this party's ledger."""

    queries: tuple[QueryRecord, ...]


class ReadStatus(Message, frozen=True, tag="read_status"):
    """Owner or party: how is the service? The reply waits up to ``wait_s`` seconds for its end."""

    wait_s: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0


class StopService(Message, frozen=True, tag="stop_service"):
    """Owner to party: end the service; the reply comes when it has ended."""


class Status(Message, frozen=True, tag="status"):
    """What a party says of its newest service; ``text`` and ``code`` tell why one failed.

    ``since`` is the UNIX time in seconds at which the service began; ``waiting`` counts requests in
    line, ``prepared`` images for which correlated randomness lies ready. ``by_owner`` tells a service
    that its owner has stopped from one that a party has left. Where labels are noisy ``answer_epsilon``
    is what one image's answer spends, ``spent_epsilon`` what was spent on the model in all.
    """

    state: State
    models: tuple[Id, ...] = ()
    service: Id | None = None
    model: Id | None = None
    num_requests: int | None = None
    quota: int | None = None
    mode: Mode | None = None
    reveals: tuple[Reveal, ...] = ()
    noise: LabelNoise | None = None
    answer_epsilon: float = 0.0
    spent_epsilon: float = 0.0
    answered: int = 0
    waiting: int = 0
    prepared: int = 0
    since: float | None = None
    by_owner: bool = False
    code: str = ""
    text: str = ""


class OpenLink(Message, frozen=True, tag="open_link"):
    """Party to the next party: this connection becomes the link of the two for one service."""

    service: Id
    terms: Digest


class LinkOpened(Message, frozen=True, tag="link_opened"):
    """The link is taken; the next bytes on it belong to the session."""

    service: Id


class Describe(Message, frozen=True, tag="describe"):
    """User to party: which model is served here?"""


class Description(Message, frozen=True, tag="description"):
    """The served model; a client goes on only if three parties describe the same one."""

    service: Id
    model: Id
    plan: PlanBytes
    digest: Digest
    mode: Mode = "dealt"
    reveals: Reveals = ("logits",)
    noise: LabelNoise | None = None


class Query(Message, frozen=True, tag="query"):
    """User to party: one part of a request; the body is the part of ``images`` images."""

    service: Id
    request: Id
    images: ImageCount
    reveal: Reveal = "logits"


class Answer(Message, frozen=True, tag="answer"):
    """Party to user: the body is this party's additive share of what is revealed, re-randomised."""

    request: Id
    images: ImageCount
    fraction_bits: Annotated[int, msgspec.Meta(ge=0, le=64)]
    reveal: Reveal = "logits"


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One request as the parties talk of it: whose, which, how many images, what is revealed."""

    fingerprint: Digest
    request: Id
    images: ImageCount
    reveal: Reveal = "logits"
