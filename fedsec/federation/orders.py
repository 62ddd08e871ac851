"""What comes to a hospital and what its app answers, taken apart and checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedsec.aggregation.announcement import Announcement, ConfigValue
from fedsec.errors import InputError, TrustError
from fedsec.federation.records import (
    ANNOUNCEMENT_KEY,
    RECORD,
    SIGNATURE_KEY,
    WEIGHTED_BY_KEY,
    array_names,
    config_items,
    numpy_of,
    only_arrays,
    plain_content,
)

_Record = TypeVar("_Record", ArrayRecord, MetricRecord)


@dataclass(frozen=True, slots=True)
class Order:
    """What the ServerApp asks for, taken apart: every part is compared with the announcement.

    Attributes:
        phase: The message's type, ``train`` or ``evaluate``.
        announcement: The announcement as it came.
        signature: The server's signature of it.
        weighted_by: Which metric of the app's reply is its weight.
        names: The arrays' announced names.
        arrays: The arrays by their own names, as they came, or the sealed model's exact ones.
        config: Every config value that the app will see.
        content: What the app will see, made of the above only.
    """

    phase: str
    announcement: bytes
    signature: bytes
    weighted_by: str
    names: list[str]
    arrays: dict[str, npt.NDArray[np.generic]]
    config: dict[str, ConfigValue]
    content: RecordDict

    @classmethod
    def read(cls, message: Message, context: Context) -> Order:
        """Take a message apart.

        Raises:
            TrustError: It has no announcement, or holds what an announcement does not cover.
        """
        phase = message.metadata.message_type
        if phase not in {"train", "evaluate"}:
            raise TrustError(
                f"expected a message of type train or evaluate, got {phase}: its answer could carry "
                "anything, so the app is not asked"
            )
        content = RecordDict(dict(message.content))
        ours = content.pop(RECORD, None)
        if not isinstance(ours, ConfigRecord):
            raise TrustError(
                "the message has no announcement: the ServerApp asks for an update in the clear; nothing was "
                "trained. Wrap its strategy in SecureAggregation"
            )
        given = only_arrays(content)
        if given is None:
            raise TrustError("expected one ArrayRecord and otherwise ConfigRecords; nothing was trained")
        name, record = given
        weighted_by = str(ours.get(WEIGHTED_BY_KEY))
        arrays = {key: numpy_of(array) for key, array in record.items()}
        return cls(
            phase=phase,
            announcement=_bytes(ours, ANNOUNCEMENT_KEY),
            signature=_bytes(ours, SIGNATURE_KEY),
            weighted_by=weighted_by,
            names=array_names(name, record),
            arrays=arrays,
            config=config_items(content.config_records, context.run_config, weighted_by),
            content=plain_content(name, arrays, content.config_records, record),
        )

    def as_given(self, model: list[npt.NDArray[np.float64]]) -> dict[str, npt.NDArray[np.generic]]:
        """Return a sealed model's arrays under the names and with the dtypes of those that came."""
        return {
            name: new.astype(old.dtype) for (name, old), new in zip(self.arrays.items(), model, strict=True)
        }

    def about(self, model: list[npt.NDArray[np.float64]]) -> Order:
        """Return the same order about a sealed model: the app gets it in place of the arrays that came.

        The update is taken from its exact parameters, not from what their dtype leaves of them.
        """
        (name,) = self.content.array_records
        content = plain_content(name, self.as_given(model), self.content.config_records)
        exact: dict[str, npt.NDArray[np.generic]] = dict(zip(self.arrays, model, strict=True))
        return replace(self, arrays=exact, content=content)

    def check(self, announcement: Announcement) -> None:
        """Compare what the trust file's own check does not see: the phase and the names of the arrays."""
        if announcement.phase != self.phase:
            raise TrustError(f"a {self.phase} message came with an announcement for {announcement.phase}")
        announced = [spec.name for spec in announcement.arrays]
        if announced != self.names:
            raise TrustError("the arrays have other names than the announced ones; nothing was trained")


@dataclass(frozen=True, slots=True)
class Result:
    """What the training code returned, in the announcement's order.

    Attributes:
        trained: The trained arrays; empty after an evaluation.
        num_examples: The weight; 1 in a round with noise, whatever the app says.
        metrics: The announced metrics.
    """

    trained: list[npt.NDArray[np.generic]]
    num_examples: int
    metrics: dict[str, float]

    @classmethod
    def read(cls, reply: Message, order: Order, announcement: Announcement) -> Result:
        """Take a reply of the app apart.

        Raises:
            InputError: It does not fit the order. Nothing of it may leave the hospital.
        """
        if reply.has_error():
            raise InputError(
                f"the app answered with Flower's error code {reply.error.code}; nothing was sent"
            )
        values: Mapping[str, object] = _only(reply.content.metric_records, "MetricRecord")
        # With noise no weight counts, and staying away for one would tell something without any noise.
        noisy = announcement.encoding.noise is not None
        num_examples = 1 if noisy else values.get(order.weighted_by)
        if isinstance(num_examples, bool) or not isinstance(num_examples, int):
            raise InputError(f"expected the metric '{order.weighted_by}' as an integer; nothing was sent")
        trained = []
        if announcement.phase == "train":
            trained = _trained(_only(reply.content.array_records, "ArrayRecord"), order.arrays)
        return cls(
            trained=trained,
            num_examples=num_examples,
            metrics={spec.name: _metric(values, spec.name) for spec in announcement.metrics},
        )


def _trained(
    record: ArrayRecord, before: Mapping[str, npt.NDArray[np.generic]]
) -> list[npt.NDArray[np.generic]]:
    if record.keys() != before.keys():
        raise InputError("the app returned arrays of other names than it was given; nothing was sent")
    trained = []
    for name, old in before.items():
        new = numpy_of(record[name])
        if new.shape != old.shape:
            raise InputError(
                f"array '{name}': expected shape {old.shape} as given, got {new.shape}; nothing was sent"
            )
        trained.append(new)
    return trained


def _metric(values: Mapping[str, object], name: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"expected the announced metric '{name}' as a number; nothing was sent")
    return float(value)


def _only(records: Mapping[str, _Record], kind: str) -> _Record:
    if len(records) != 1:
        raise InputError(f"expected one {kind} in the app's reply, got {len(records)}; nothing was sent")
    return next(iter(records.values()))


def _bytes(record: ConfigRecord, key: str) -> bytes:
    value = record.get(key)
    if not isinstance(value, bytes):
        raise TrustError(f"expected the {key} as bytes in the message; nothing was trained")
    return value
