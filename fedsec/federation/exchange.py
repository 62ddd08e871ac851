"""One secured exchange at the server: what was sent out, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.collector import RoundResult

Phase = Literal["train", "evaluate"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SecureRound:
    """What the ServerApp knows of one secured exchange, for logs and reports.

    Attributes:
        server_round: The federated round.
        phase: ``train`` or ``evaluate``.
        statuses: How many hospitals answered with each status code.
        result: The opened average and who is in it; None when the round was aborted.
        aborted: Why there is no result; empty otherwise.
        seconds: From the last reply to the decoded average.
    """

    server_round: int
    phase: Phase
    statuses: dict[str, int] = field(default_factory=dict)
    result: RoundResult | None = None
    aborted: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class OpenRound:
    """An exchange that hospitals work on.

    Attributes:
        announcement: What was announced.
        order: One of its messages, to reply to.
        record_name: Of the model's arrays.
        base: The arrays that were sent, by name.
    """

    announcement: Announcement
    order: Message
    record_name: str
    base: dict[str, npt.NDArray[Any]]

    def moved(self, mean: Sequence[npt.NDArray[np.floating]]) -> ArrayRecord:
        """Return the arrays that were sent, moved by the opened mean update."""
        return ArrayRecord(
            {
                name: Array(np.asarray(before + by, dtype=_averaged_dtype(before.dtype)))
                for (name, before), by in zip(self.base.items(), mean, strict=True)
            }
        )

    def unmoved(self) -> ArrayRecord:
        """Return the arrays that were sent."""
        return ArrayRecord({name: Array(array) for name, array in self.base.items()})


def _averaged_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of an average: integers and booleans become float64, as in plain Flower."""
    return dtype if dtype.kind == "f" else np.dtype(np.float64)
