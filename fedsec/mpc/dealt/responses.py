"""Randomised response: a masked label is answered as another one by a shift that no party knows.

The shift is looked up in a table of the law at the place u = a + b, uniform in [0, 2^bits). Of u the dealer
knows a, from its streams with both evaluators, and the evaluators know b, from a stream of their own. So the
dealer deals the table turned by a, of which the evaluators read the entry b: who knows the table does not
know which entry, and who knows which entry has half of it.

The label is m + r as every value here, and it is looked up as well: whatever m + r is, what comes out is one
of the K labels, so that the law holds for every input that a user can send. Label and shift are added up and
opened under a mask, and a last table, over the opened word, takes their sum modulo K.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.dealt.gates import DEALER, Fields, Gate, Masks, Material, Rounds
from fedsec.mpc.dealt.protocols import run_alone
from fedsec.mpc.party import Layout, Party
from fedsec.mpc.randomised_response import ResponseLaw
from fedsec.ring import RING64, Ring, RingArray
from fedsec.sharing.replicated import RepShare

_PLACES = Ring(16)
"""Holds a place in the largest table."""


class ResponseGate(Gate):
    """The label, shifted by e modulo K: e is drawn by the law, anew for each image."""

    def __init__(self, party_id: int, law: ResponseLaw, *, final: bool = False) -> None:
        """Lay out the tables.

        Args:
            party_id: Id of this party.
            law: How often each shift is drawn.
            final: Whether the answer stays in additive shares.
        """
        self._law = law
        self._places, self._sums = 1 << law.bits, 1 << law.sum_bits
        self._labels = 1 << (law.classes - 1).bit_length()
        tables = (
            Layout((self._places,), law.ring),
            Layout((self._labels,), law.ring),
            Layout((self._sums,), RING64),
        )
        fields = Fields(tables, masks=(Layout((1,), law.ring),), joint=(Layout((1,), _PLACES),))
        super().__init__(party_id, fields, 1, Layout((1,), RING64), final=final)

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Deal the shifts turned by a, the labels turned by r, and sums modulo K turned by the sum's mask."""
        shifts, labels, answers = shares
        (a_1, a_2), (s_1, s_2), *_ = masks
        # Rows of the table, twice as long, that begin at a: entry b is the shift at a + b.
        twice = np.concatenate([self._law.shifts, self._law.shifts])
        rows = np.lib.stride_tricks.sliding_window_view(twice, self._places)
        np.subtract(rows[(a_1 + a_2)[:, 0] & (self._places - 1)], shifts, out=shifts)
        label = _turned(self._labels, r[0]) % self._law.classes
        np.subtract(label.astype(labels.dtype), labels, out=labels)
        answer = _turned(self._sums, np.negative(s_1 + s_2)) % self._law.classes
        np.subtract(answer.astype(answers.dtype), answers, out=answers)
        return self.result_mask(masks)

    def prepare(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[RingArray]
    ) -> tuple[Material, RingArray | None]:
        """Read this evaluator's share of the shift, and add its part of the sum's mask."""
        shifts, labels, answers = shares
        b, *others = masks
        shift = _entry(shifts, b & b.dtype.type(self._places - 1))
        shift += others[0]
        return (shift, labels, answers, *others[1:]), None if self.final else others[-1]

    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Look up the label, open its sum with the shift under the mask, look up the answer."""
        shift, labels, answers, *_ = material
        share = _entry(labels, m[0] & m[0].dtype.type(self._labels - 1))
        share += shift
        # One round: label and shift, added up, under their mask.
        theirs = yield share

        answer = _entry(answers, (share + theirs) & share.dtype.type(self._sums - 1))
        # One round: the answer under its mask, unless it stays in shares.
        return (yield from self.opened(answer, material))


def _turned(size: int, by: RingArray) -> RingArray:
    """Return for each place x, [N, size], the number (x + by) modulo ``size``, a power of two."""
    places = np.arange(size, dtype=by.dtype)
    turned: RingArray = (places + by) & by.dtype.type(size - 1)
    return turned


def _entry(table: RingArray, place: RingArray) -> RingArray:
    """Return a new array of the entries at [N, 1] places of [N, size] tables."""
    return np.take_along_axis(table, place.astype(np.intp), axis=1)


def _cost(label: RepShare, law: ResponseLaw) -> Cost:
    return ResponseGate(DEALER, law).cost(label.shape[0])


@protocol(
    cost=_cost,
    source="Warner 1965; Kairouz, Oh, Viswanath 2014 for K labels; drawn in one-time tables: fedsec",
)
def randomised_response(party: Party, label: RepShare, law: ResponseLaw) -> RepShare:
    """Answer a secret label by itself or, by chance, by another one: ``[(label + e) mod K]``.

    Shapes:    label and answer [N, 1].
    Units:     integers of the 64-bit ring without fraction bits, 0 to K - 1; of any other integer the lowest
               bits are taken, modulo K.
    Cost:      prepared, 1 round: party 0 sends the law's table, 2^bits bytes an image (twice that for more
               than 128 classes), and two small ones. Online, 2 rounds: parties 1 and 2 send one or two bytes,
               then one word.
    Security:  semi-honest, one corrupt party of three, together with any receivers of answers. e is the entry
               of a public table at u = a_1 + a_2 + b, where a_1 comes from the stream of parties 0 and 1, a_2
               from that of 0 and 2, b from that of 1 and 2: to each party u is uniform, because it lacks one
               of the three, which is used for nothing else. Party 0 receives nothing. Party 2 receives the
               tables minus a stream of parties 0 and 1; of each table the evaluators use one entry, whose
               places (b, the masked label, the masked sum) both know. An evaluator receives the other's share
               of label plus shift plus the other's part of its mask, a stream that it does not have, and the
               answer likewise. So no view depends on the label or on e, and who is told the answer learns of
               e what the answer says: it is the label with chance p, and any other one with chance q each.
    Source:    Warner 1965; Kairouz, Oh, Viswanath 2014.
    """
    return run_alone(party, ResponseGate(party.id, law), [label], 0)
