"""What is prepared ahead of any request, in which portions, and when.

Preparing is a step like any other: the leader proposes it, so all three parties deal in one order. A request
that comes meanwhile waits for the end of one portion.
"""

from __future__ import annotations

import time

from fedsec.errors import ProtocolError
from fedsec.nn import Reveal
from fedsec.nn.engine import Engine

PORTION_S = 0.0015
"""What one portion may take: the longest that a request waits for it."""
BUSY = 4
"""A portion may take so many times as long as its work: other processes, or links, before it gets smaller."""
QUIET_S = 0.003
"""Preparing begins when nobody has asked for so long: who asks again and again is not kept waiting."""
MOST_IMAGES = 16
"""Images in one portion: more gain nothing."""
STOCK_IMAGES = 256
"""Images prepared for the answers that were asked for last; what was prepared for others stays."""
STOCK_BYTES = 1 << 26
"""Memory for all of it at each party; 180 kB an image of the short-conv network."""


class Stock:
    """How many images are prepared for what reveals, and the leader's choice of how many more to prepare.

    Args:
        engine: the computation.
        reveals: what may be asked for; the first is prepared before anyone has asked.
        images: how many the service will answer, the same at all parties; None for no limit.
    """

    def __init__(self, engine: Engine, reveals: tuple[Reveal, ...], images: int | None = None) -> None:
        self._engine = engine
        self._asked_for = [reveals[0]]
        self._portion = 1
        self._quiet_since = 0.0
        memory = STOCK_BYTES // len(reveals)
        useful = STOCK_IMAGES if images is None else images
        self._most = {reveal: min(useful, most_in_stock(engine, reveal, memory)) for reveal in reveals}

    def asked(self, reveal: Reveal, now: float) -> None:
        """Take note of a batch that was answered."""
        self._asked_for = [reveal, *(other for other in self._asked_for if other != reveal)]
        self._quiet_since = now

    def due(self, now: float, *, idle: bool) -> float | None:
        """Leader: seconds until a portion is to be prepared; None if nothing is wanted.

        Args:
            now: a clock that never runs back, in seconds.
            idle: whether no request waits that is likely to be answered soon.
        """
        reveal = self._lacking()
        if not idle or reveal is None:
            return None
        if self._engine.ready(reveal) == 0:
            # Dealing one by one inside of requests costs more than a portion now.
            return 0.0
        return max(0.0, self._quiet_since + QUIET_S - now)

    def wanted(self) -> tuple[int, Reveal]:
        """Leader: the next portion, after ``due`` said that there is one."""
        reveal = self._lacking() or self._asked_for[0]
        return min(self._portion, self._room(reveal)), reveal

    def prepare(self, images: int, reveal: Reveal) -> None:
        """Prepare one portion, at all three parties after the same step.

        Raises:
            ProtocolError: the leader asks for what no leader of ours would; the service ends.
        """
        if (
            reveal not in self._most
            or not 1 <= images <= MOST_IMAGES
            or self._engine.ready(reveal) + images > self._most[reveal]
        ):
            raise ProtocolError(
                f"expected to prepare 1 to {MOST_IMAGES} images within the stock, got {images} for {reveal!r}"
            )
        began, began_work = time.monotonic(), time.thread_time()
        self._engine.prepare(images, reveal)
        # A busy machine stretches a portion, and small ones are dear: work counts, unless links are slow.
        worked, waited = time.thread_time() - began_work, time.monotonic() - began
        took = max(worked, waited / BUSY, 1e-6)
        # Half as many or twice as many as before at most: one slow portion says little.
        fitting = int(images * PORTION_S / took)
        self._portion = max(1, min(MOST_IMAGES, max(images // 2, min(2 * images, fitting))))

    def _lacking(self) -> Reveal | None:
        """Return what was asked for last of that of which the stock is not full: nobody's is forgotten."""
        return next((reveal for reveal in self._asked_for if self._room(reveal) > 0), None)

    def _room(self, reveal: Reveal) -> int:
        return self._most[reveal] - self._engine.ready(reveal)


def most_in_stock(engine: Engine, reveal: Reveal, memory: int) -> int:
    """Return how many images may be prepared: the same at all parties; none in plain mode."""
    if engine.mode == "plain":
        return 0
    return min(STOCK_IMAGES, memory // engine.image_bytes(reveal))
