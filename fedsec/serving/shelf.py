"""The models of which a party holds a part: in memory only, bounded, gone with the process."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from fedsec.errors import UsageError
from fedsec.nn import Plan
from fedsec.nn.sealed import Source
from fedsec.sharing.replicated import RepShare


@dataclass(frozen=True, slots=True)
class HeldModel:
    """One party's part of one model.

    Attributes:
        model: the owner's id for it.
        plan: the public plan.
        plan_bytes: the plan as it travelled, so that all parties describe the same bytes.
        digest: the plan's digest.
        sharing: names the one splitting that all three parts must come from.
        weights: this party's shares of the weights, in plan order; of a sealed model the words of its state.
        sources: of a sealed model how those words become weights, when a service starts.
    """

    model: bytes
    plan: Plan
    plan_bytes: bytes = field(repr=False)
    digest: bytes
    sharing: bytes
    weights: tuple[RepShare, ...] = field(repr=False)
    sources: tuple[Source, ...] | None = field(default=None, repr=False)


class Shelf:
    """All models held here."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._models: dict[bytes, HeldModel] = {}

    def check_room(self, model: bytes) -> None:
        """Refuse a model before its part is read.

        Raises:
            UsageError: the shelf is full, or holds the model already.
        """
        with self._lock:
            self._check_room(model)

    def put(self, held: HeldModel) -> None:
        """Hold a model.

        Raises:
            UsageError: the shelf has filled up meanwhile, or holds the model already.
        """
        with self._lock:
            self._check_room(held.model)
            self._models[held.model] = held

    def _check_room(self, model: bytes) -> None:
        """Do the check, with the lock held."""
        if model in self._models:
            raise UsageError(
                "this model is held here already, for example because its owner's process died: serve it "
                "with --replace, or let the parties forget it first"
            )
        if len(self._models) >= self._most:
            raise UsageError(f"{len(self._models)} models are held here, the most there may be: forget one")

    def get(self, model: bytes) -> HeldModel:
        """Return a held model.

        Raises:
            UsageError: no part of it is here, for example after a restart.
        """
        with self._lock:
            if model not in self._models:
                raise UsageError("no part of this model is held here (a restart forgets it): share it again")
            return self._models[model]

    def drop(self, model: bytes, sharing: bytes | None = None) -> None:
        """Forget a model, or only this sharing of it; nothing happens if it is not held."""
        with self._lock:
            held = self._models.get(model)
            if held is not None and sharing in {None, held.sharing}:
                del self._models[model]

    def ids(self) -> tuple[bytes, ...]:
        """Ids of all models held."""
        with self._lock:
            return tuple(self._models)
