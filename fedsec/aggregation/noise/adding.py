"""An aggregator's part of the noise, on its share of the sum.

The checksum word stays a known combination of the words before it: it gets the same combination of the
noise. Left as it was it would be opened beside the noisy words, and together they would give the server
``<rho, sum>`` without any noise.
"""

from __future__ import annotations

from fedsec.aggregation.checksum import PIECE_WORDS, Checksum
from fedsec.aggregation.planner import Layout
from fedsec.ring import RingArray
from fedsec.ring.streams import KeyedStream


def add_noise(words: RingArray, layout: Layout, announcement: bytes, key: bytes) -> None:
    """Draw this aggregator's noise and add it to its share of the sum; nothing of it is kept but the sum.

    Args:
        words: The share, shape [layout.words]; changed in place. A layout without noise leaves it.
        layout: The layout of the round.
        announcement: The announcement digest, which keys the checksum.
        key: 32 secret bytes that belong to this aggregator, round and included set alone. The same key
            makes the same noise: with two draws on one sum their difference would be known, and with many
            the sum.
    """
    noise = layout.encoding.noise
    if noise is None:
        return
    # Loaded when the first round has noise: an aggregator without any needs no sampler.
    from fedsec.privacy.skellam import SkellamSampler  # noqa: PLC0415 - as said above

    running = Checksum(layout, announcement).running()
    update = words[: layout.update_words]
    sampler = SkellamSampler(noise.part, KeyedStream(key))
    for start in range(0, update.size, PIECE_WORDS):
        piece = update[start : start + PIECE_WORDS]
        drawn = sampler.draw(piece.size).astype(words.dtype)  # what is negative wraps, as in the ring
        piece += drawn
        running.add(drawn)
    words[-1:] += words.dtype.type(running.value)
