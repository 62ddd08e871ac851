"""What noisy answers spend of a model's privacy: an epsilon each, added up per identity and over all.

Each noisy label is an answer of pure differential privacy, whatever was asked before and by whom, so the
epsilons add up (Dwork, Roth 2014, The Algorithmic Foundations of Differential Privacy, section 3.5). Sums are
kept in whole millionths, rounded up for each answer, so that no sum depends on an order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedsec.errors import UsageError
from fedsec.mpc.randomised_response import ResponseLaw
from fedsec.nn import Plan, Reveal
from fedsec.serving.messages import Entry, LabelNoise

MILLION = 10**6


@dataclass(frozen=True, slots=True)
class Price:
    """What an answer costs, and how much may be spent, in millionths of epsilon.

    Attributes:
        answer: One image's.
        identity: Limit of a certificate, over all services of the model; None for no limit.
        total: Limit of all together.
    """

    answer: int
    identity: int | None = None
    total: int | None = None

    @classmethod
    def of(cls, noise: LabelNoise, plan: Plan) -> Price:
        """Return what a noise means for a model.

        Raises:
            UsageError: There is no such noise for so many classes, or a limit is below one answer's epsilon.
        """
        answer = ResponseLaw.of(plan.output_shape[-1], noise.epsilon).epsilon_millionths
        limits = {"identity": noise.identity_epsilon, "total": noise.total_epsilon}
        for name, limit in limits.items():
            if limit is not None and limit * MILLION < answer:
                raise UsageError(
                    f"an answer spends epsilon {_shown(answer)}: a limit of {limit:g} ({name}) allows none"
                )
        # Rounded down: what is below a millionth cannot be spent.
        identity, total = (None if limit is None else int(limit * MILLION) for limit in limits.values())
        return cls(answer, identity, total)


def check_noise(noise: LabelNoise | None, reveals: Iterable[Reveal]) -> None:
    """Refuse to reveal beside noisy labels what would tell more than they do.

    Raises:
        UsageError: The text names it.
    """
    others = [reveal for reveal in reveals if reveal != "label"]
    if noise is not None and others:
        raise UsageError(
            f"{' and '.join(others)} cannot be revealed where labels are noisy: one such answer would tell"
            " what the noise hides; reveal label alone"
        )


@dataclass(frozen=True, slots=True)
class Account:
    """How a limit stands.

    Attributes:
        whose: ``this certificate`` or ``all users together``.
        spent: Millionths of epsilon so far.
        limit: Millionths of epsilon.
        answer: What one image costs.
    """

    whose: str
    spent: int
    limit: int
    answer: int

    def __str__(self) -> str:
        return (
            f"{self.whose} may spend epsilon {_shown(self.limit)} on answers of this model,"
            f" {_shown(self.spent)} is spent, and one image costs {_shown(self.answer)}"
        )


class Spending:
    """What was spent on a model's answers, as one service's book counts it; not safe to share by threads.

    Args:
        price: What an answer costs.
        total: Millionths of epsilon that all certificates together have spent.
        of: Returns what a certificate has spent; asked once each.
    """

    def __init__(self, price: Price, total: int, of: Callable[[bytes], int]) -> None:
        self.price = price
        self.total = total
        self._of = of
        self._spent: dict[bytes, int] = {}

    def add(self, entries: Iterable[Entry]) -> None:
        """Count answers to these requests."""
        for entry in entries:
            cost = entry.images * self.price.answer
            self.total += cost
            if entry.fingerprint in self._spent:
                self._spent[entry.fingerprint] += cost

    def left(self) -> int | None:
        """Images that all certificates together may still ask for; None means no limit."""
        return self._images(self.price.total, self.total)

    def left_for(self, fingerprint: bytes) -> int | None:
        """Images that a certificate may still ask for; None means no limit."""
        if self.price.identity is None:
            return None
        return self._images(self.price.identity, self._spent_by(fingerprint))

    def account(self, fingerprint: bytes | None) -> Account | None:
        """Return how the limit of a certificate stands, or the one of all; None if there is none."""
        limit = self.price.total if fingerprint is None else self.price.identity
        if limit is None:
            return None
        spent = self.total if fingerprint is None else self._spent_by(fingerprint)
        whose = "all users together" if fingerprint is None else "this certificate"
        return Account(whose, spent, limit, self.price.answer)

    def _spent_by(self, fingerprint: bytes) -> int:
        if fingerprint not in self._spent:
            self._spent[fingerprint] = self._of(fingerprint)
        return self._spent[fingerprint]

    def _images(self, limit: int | None, spent: int) -> int | None:
        return None if limit is None else max(0, limit - spent) // self.price.answer


def _shown(millionths: int) -> str:
    """Return an epsilon as people read it: no more digits than it has."""
    return f"{millionths / MILLION:.6f}".rstrip("0").rstrip(".")
