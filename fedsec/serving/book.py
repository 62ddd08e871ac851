"""The charges of one service at one party: what the rules ask, counted in memory beside the ledger's file."""

from __future__ import annotations

import threading
from collections.abc import Container, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from fedsec.serving.agreement import RequestKey, key_of
from fedsec.serving.messages import Entry
from fedsec.serving.spending import MILLION, Account, Price, Spending

if TYPE_CHECKING:
    from fedsec.serving.ledger import Ledger

_MOST_UNUSED = 4096
"""Requests that wait at a party, and those that were refused, are remembered as not charged up to so many."""


class ServiceBook:
    """The charges of one service, as :class:`fedsec.serving.agreement.Book` asks for them.

    Counts are kept in memory beside the file, which nobody else writes: a party's state belongs to one
    process. They change only after the file has.

    Args:
        ledger: the party's.
        service: the service's id.
        model: the model's id.
        num_requests: images that the service may answer; None means no limit.
        quota: images that one certificate may ask of the model; None means no limit.
        answered: images answered so far.
        price: what an answer spends, and the limits; None if nothing is noisy.
    """

    def __init__(
        self,
        ledger: Ledger,
        service: bytes,
        model: bytes,
        num_requests: int | None,
        quota: int | None,
        *,
        answered: int = 0,
        price: Price | None = None,
    ) -> None:
        self.ledger = ledger
        self.service = service
        self.model = model
        self.num_requests = num_requests
        self.quota = quota
        self._lock = threading.Lock()
        self._answered = answered
        self._usage: dict[bytes, int] = {}
        self._unused: set[RequestKey] = set()
        self._ahead: dict[RequestKey, Entry] = {}
        self._names: dict[bytes, str] = {}
        self._spending = None if price is None else Spending(price, ledger.spent_on(model), self._spent_by)

    def _spent_by(self, fingerprint: bytes) -> int:
        """Return what the file says that a certificate has spent, without what is not decided."""
        ahead = sum(one.images for one in self._ahead.values() if one.fingerprint == fingerprint)
        return self.ledger.spent_on(self.model, fingerprint) - self.millionths(ahead)

    def millionths(self, images: int) -> int:
        """Return what answers to so many images spend, in millionths of epsilon."""
        return 0 if self._spending is None else images * self._spending.price.answer

    @property
    def answer_epsilon(self) -> float:
        """What one answer spends; 0 if nothing is noisy."""
        return self.millionths(1) / MILLION

    def spent_epsilon(self) -> float:
        """What was spent on the model in all; 0 if nothing is noisy."""
        return 0.0 if self._spending is None else self._spending.total / MILLION

    def short_of_epsilon(self, fingerprint: bytes | None, images: int) -> Account | None:
        """Return how a limit stands that these images would exceed; see ``agreement.Accounts``."""
        if self._spending is None:
            return None
        with self._lock:
            account = self._spending.account(fingerprint)
        if account is None or account.spent + self.millionths(images) <= account.limit:
            return None
        return account

    def meet(self, fingerprint: bytes, name: str) -> None:
        """Remember whose certificate this is, for the ledger's readers."""
        self._names[fingerprint] = name

    def name_of(self, fingerprint: bytes) -> str:
        """Return the name in a certificate; empty if none of its holders was met."""
        return self._names.get(fingerprint, "")

    def used(self, key: RequestKey) -> bool:
        """Whether this request was charged before, also by an earlier run of this party."""
        with self._lock:
            # Looked up when a request comes, and not again when the parties judge it.
            if key in self._unused or key in self._ahead:
                return False
            query = "SELECT 1 FROM charge WHERE model = ? AND fingerprint = ? AND request = ?"
            used = self.ledger.read_one(query, (self.model, *key)) is not None
            if not used:
                if len(self._unused) >= _MOST_UNUSED:
                    self._unused.clear()
                self._unused.add(key)
            return used

    def answered(self) -> int:
        """Images answered by this service; what a crash interrupted counts as answered."""
        return self._answered

    def finished(self) -> bool:
        """Whether the service has answered its number, at all three parties alike.

        A service whose epsilon is spent goes on to refuse, as what interrupted requests have spent may differ
        at the parties.
        """
        return self.num_requests is not None and self._answered >= self.num_requests

    def left(self) -> int | None:
        """Images that the service may still answer, by number and by epsilon; None means no limit."""
        by_number = None if self.num_requests is None else self.num_requests - self._answered
        return _fewer(by_number, None if self._spending is None else self._spending.left())

    def left_for(self, fingerprint: bytes) -> int | None:
        """Images that this certificate may still ask for, by quota and by epsilon; None means no limit."""
        with self._lock:
            by_epsilon = None if self._spending is None else self._spending.left_for(fingerprint)
            return _fewer(self._left_of_quota(fingerprint), by_epsilon)

    def _left_of_quota(self, fingerprint: bytes) -> int | None:
        if self.quota is None:
            return None
        if fingerprint not in self._usage:
            ahead = sum(one.images for one in self._ahead.values() if one.fingerprint == fingerprint)
            self._usage[fingerprint] = self.ledger.used_by(self.model, fingerprint) - ahead
        return max(0, self.quota - self._usage[fingerprint])

    @property
    def ahead(self) -> AbstractSet[RequestKey]:
        """What is charged ahead and not decided."""
        return self._ahead.keys()

    def charge_ahead(self, entries: Sequence[Entry]) -> None:
        """Charge durably what is not decided yet; ``charge`` or ``take_back`` has to follow.

        Until then it counts in the file, and so after a crash, but against no limit.
        """
        with self._lock:
            self._write(entries)
            self._ahead.update((key_of(entry), entry) for entry in entries)

    def charge(self, entries: Sequence[Entry]) -> None:
        """Charge a whole batch, durably: what was charged ahead is in the file already."""
        with self._lock:
            self._write(entries)
            for entry in entries:
                self._ahead.pop(key_of(entry), None)
                self._unused.discard(key_of(entry))
                if entry.fingerprint in self._usage:
                    self._usage[entry.fingerprint] += entry.images
            self._answered += sum(entry.images for entry in entries)
            if self._spending is not None:
                self._spending.add(entries)

    def _write(self, entries: Sequence[Entry]) -> None:
        """Write those of the charges that are not in the file."""
        missing = [entry for entry in entries if self._ahead.get(key_of(entry)) != entry]
        # The same id may have come back for another number of images.
        self._take_back([key_of(entry) for entry in missing if key_of(entry) in self._ahead])
        if missing:
            self.ledger.charge(self, missing)

    def take_back(self, waiting: Container[RequestKey]) -> None:
        """Forget what was charged ahead, but for requests that still wait."""
        with self._lock:
            self._take_back([key for key in self._ahead if key not in waiting])

    def _take_back(self, keys: Sequence[RequestKey]) -> None:
        if keys:
            self.ledger.take_back(self, keys)
            for key in keys:
                del self._ahead[key]

    def void(self, entries: Sequence[Entry]) -> None:
        """Note that these charges were never answered by this party."""
        with self._lock:
            self._answered -= self.ledger.void(self, entries)


def _fewer(first: int | None, second: int | None) -> int | None:
    """Return the smaller of two limits, of which None is none."""
    return min((limit for limit in (first, second) if limit is not None), default=None)
