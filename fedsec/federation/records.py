"""What the mod and the strategy wrapper put into Flower's records, and how both read a round's config.

Both sides build the announced config with :func:`config_items`, from what they sent and from what arrived;
a key that reaches the training code and is not in it would be a way to treat one hospital differently.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict, UserConfig

from fedsec.aggregation.announcement import ConfigValue

RECORD = "fedsec"
"""The ConfigRecord that carries the announcement to a hospital, and its status back."""

ANNOUNCEMENT_KEY = "announcement"
SIGNATURE_KEY = "signature"
WEIGHTED_BY_KEY = "weighted-by"
STATUS_KEY = "status"
UPLOAD_ID_KEY = "upload-id"

STORED = "stored"
"""The status of an upload that every aggregator has stored; any other is the code of an error."""

EMPTY_ARRAYS = "arrays"

_NUMPY = "numpy.ndarray"
_FIRST_VERSION = npy.magic(1, 0)


def config_items(
    records: Mapping[str, ConfigRecord], run_config: UserConfig, weighted_by: str
) -> dict[str, ConfigValue]:
    """Return every config value that training code can see, by a name that is unique over their sources.

    No two contents have the same items: a record's name has no "/" in its item, and its size is an item
    of its own, so that an empty record is one, too.

    Args:
        records: The message's ConfigRecords without ours.
        run_config: The run config of the app's context; a server sets it for each hospital, too.
        weighted_by: Which metric of the app's reply is its weight.
    """
    items: dict[str, ConfigValue] = {
        f"record/{_part(name)}/{key}": cast(ConfigValue, value)
        for name, record in records.items()
        for key, value in record.items()
    }
    items.update({f"record/{_part(name)}": len(record) for name, record in records.items()})
    items.update({f"run/{key}": value for key, value in run_config.items()})
    items[WEIGHTED_BY_KEY] = weighted_by
    return items


def array_names(record_name: str, record: ArrayRecord) -> list[str]:
    """Return the names under which a record's arrays are announced."""
    return [f"{_part(record_name)}/{key}" for key in record]


def numpy_of(array: Array) -> npt.NDArray[np.generic]:
    """Return what ``array.numpy()`` returns, without a copy where that is possible; not to be written to."""
    stream = io.BytesIO(array.data)
    if array.stype != _NUMPY or not array.data.startswith(_FIRST_VERSION):
        return array.numpy()
    npy.read_magic(stream)
    shape, fortran_order, dtype = npy.read_array_header_1_0(stream)
    count = math.prod(shape)
    left = len(array.data) - stream.tell()
    if fortran_order or dtype.hasobject or not count or left < count * dtype.itemsize:
        return array.numpy()
    values: npt.NDArray[np.generic] = np.frombuffer(array.data, dtype, count=count, offset=stream.tell())
    return values.reshape(shape)


def plain_content(
    record_name: str,
    arrays: Mapping[str, npt.NDArray[np.generic]],
    records: Mapping[str, ConfigRecord],
    came: Mapping[str, Array] | None = None,
) -> RecordDict:
    """Return a message's content made again from nothing but what the announcement covers.

    How the arrays were packed and in which order records and keys came is the server's to choose for each
    hospital; none of it reaches the training code.

    Args:
        record_name: Name of the one ArrayRecord.
        arrays: Its arrays.
        records: The ConfigRecords.
        came: What ``arrays`` were read from, if they were not made here: bytes that are packed as we pack
            them need no copy.
    """
    packed = ArrayRecord(
        {key: _packed(one, None if came is None else came[key]) for key, one in arrays.items()}
    )
    content = RecordDict({record_name: packed})
    for name in sorted(records):
        content[name] = ConfigRecord({key: records[name][key] for key in sorted(records[name])})
    return content


def _packed(array: npt.NDArray[np.generic], came: Array | None) -> Array:
    """Pack an array as Flower does, in the byte order and memory order of the announced digests."""
    same = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, npy.header_data_from_array_1_0(same))
    header, data = stream.getvalue(), b"" if came is None else came.data
    if len(data) != len(header) + same.nbytes or not data.startswith(header):
        data = b"".join((header, same.data))
    return Array(dtype=str(same.dtype), shape=same.shape, stype=_NUMPY, data=data)


def _part(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")


def only_arrays(content: RecordDict) -> tuple[str, ArrayRecord] | None:
    """Return name and record when ``content`` has one ArrayRecord and otherwise only ConfigRecords."""
    if len(content.array_records) != 1 or content.metric_records:
        return None
    return next(iter(content.array_records.items()))


def status_content(status: str, upload_id: bytes) -> RecordDict:
    """Return all that a hospital ever answers through Flower: an upload id and a status code."""
    answer = ConfigRecord({STATUS_KEY: status, UPLOAD_ID_KEY: upload_id})
    return RecordDict({EMPTY_ARRAYS: ArrayRecord(), RECORD: answer})


def status_of(reply: Message) -> str:
    """Return the status code in a hospital's reply; ``no_status`` for anything that is none of ours."""
    if reply.has_error() or not reply.has_content():
        return "no_answer"
    record = reply.content.config_records.get(RECORD)
    status = record.get(STATUS_KEY) if record is not None else None
    return status if isinstance(status, str) and len(status) <= 32 and status.isidentifier() else "no_status"


def one_reply(
    order: Message, arrays: tuple[str, ArrayRecord] | None, metrics: Mapping[str, float]
) -> Message:
    """Return the one reply that an inner strategy gets: it holds the average of the included hospitals.

    Args:
        order: Any of the round's messages, to reply to.
        arrays: Record name and the averaged parameters; None when evaluating.
        metrics: The weight under the strategy's key, and the averaged metrics.
    """
    content = RecordDict({"metrics": MetricRecord(dict(metrics))})
    if arrays is not None:
        content[arrays[0]] = arrays[1]
    return Message(content, reply_to=order)
