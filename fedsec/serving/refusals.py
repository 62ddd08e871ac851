"""What the sender of a request is told that will never be answered."""

from __future__ import annotations

from typing import Protocol

from fedsec.errors import FedsecError, ProtocolError, ServiceEndedError, TrustError
from fedsec.serving.agreement import Book, Verdict
from fedsec.serving.spending import Account


class Accounts(Book, Protocol):
    """A book that can say why something has no room."""

    def short_of_epsilon(self, fingerprint: bytes | None, images: int) -> Account | None:
        """Return how a limit of epsilon stands that these images would exceed; None if none would be.

        Args:
            fingerprint: whose limit; that of all certificates together if not given.
            images: how many are asked for.
        """
        ...


def refusal(verdict: Verdict, images: int, book: Accounts, fingerprint: bytes) -> FedsecError:
    """Return the error that the sender of a finally refused request gets."""
    spent = book.short_of_epsilon(fingerprint if verdict is Verdict.QUOTA else None, images)
    if verdict is Verdict.DIFFERS:
        return ProtocolError(
            "the parties were asked for different numbers of images or to reveal different things; nothing "
            "was charged"
        )
    if verdict is Verdict.REPEATED:
        return ProtocolError("this request id was used before: draw a fresh one for every request")
    if verdict is Verdict.QUOTA:
        if spent is not None:
            return TrustError(f"{spent}; the request has {images} image(s); nothing was charged")
        return TrustError(
            f"this certificate may ask for {book.left_for(fingerprint)} more images of this model, "
            f"the request has {images}; nothing was charged"
        )
    if spent is not None:
        return ServiceEndedError(f"{spent}; the request has {images} image(s); nothing was charged")
    return ServiceEndedError(
        f"the service answers {book.left()} more images, the request has {images}; nothing was charged"
    )
