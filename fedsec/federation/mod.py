"""The client side in one line: ``ClientApp(mods=[secure_aggregation])``.

The mod stands between Flower and the training function. It refuses a message that is not covered by a
signed announcement within this hospital's trust file *before* training, takes the trained arrays out of
the reply, shares the *update* (what came out minus what came in) to the aggregators over connections of its
own, and answers Flower with an upload id and a status code.

Put it first in the list: mods after it, such as ``fixedclipping_mod``, work on the plain update inside
the hospital; a mod before it would see nothing but the status.
"""

from __future__ import annotations

import copy
import logging
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import Context, Message, Metadata
from flwr.clientapp.typing import ClientAppCallable

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.client import HospitalClient
from fedsec.aggregation.trust import TRUST_NODE_KEY, TRUST_VARIABLE, TrustFile
from fedsec.errors import FedsecError, UsageError
from fedsec.federation.orders import Order, Result
from fedsec.federation.receipts import ask_receipts
from fedsec.federation.records import STORED, status_content
from fedsec.transport import Deadline, Meter

RECEIPT_S = 2.0
"""Longest wait for the receipt of the round before; it is answered at once when that round has ended."""
_RECEIPTS_A_SECOND = 50
"""So many hospitals of one process at least have their answer in a second, also on a busy machine."""

_log = logging.getLogger(__name__)


class SecureAggregationMod:
    """A Flower mod; :data:`secure_aggregation` is the one to use.

    It keeps one connected client a trust file, so that in a simulation each hospital keeps its own keys,
    state and connections, and between rounds no handshake is repeated.
    """

    def __init__(self) -> None:
        self._clients: dict[Path, HospitalClient] = {}
        self._meters: dict[Path, Meter] = {}
        self._sealed: dict[Path, tuple[Announcement, Order]] = {}

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Answer one message of the ServerApp.

        Never raises and never passes a reply of the app on: whatever happens, what goes back is an upload
        id and a status code, since even an error's text can carry data.
        """
        status, upload_id = STORED, b""
        try:
            task = self._accept(message, context)
        except Exception as error:  # a message that breaks the checks must not end the ClientApp
            status = error.code if isinstance(error, FedsecError) else FedsecError.code
            _log_refusal(error)
        else:
            try:
                upload_id = task.run(message, context, call_next)
            except Exception as error:  # whatever the training code raises must not leave the hospital
                # One code for all: which check failed after training would tell something about the data.
                status = FedsecError.code
                _log_refusal(error)
        return Message(status_content(status, upload_id), reply_to=message)

    def meters(self) -> dict[Path, Meter]:
        """Return, by trust file, the meter of each hospital that this process has served."""
        return dict(self._meters)

    def last_sealed(self, trust: Path) -> tuple[int, dict[str, npt.NDArray[np.generic]]]:
        """Return the newest state of the sealed model that a hospital of this process trained.

        Args:
            trust: The hospital's trust file.

        Returns:
            The number of the round that made it, and its arrays by name.

        Raises:
            UsageError: This hospital took part in no sealed round here.
            TrustError: The state is closed: nobody may have it.
            PeerLostError: A party cannot be reached; it is named.
        """
        path = Path(trust).resolve()
        if path not in self._sealed:
            raise UsageError(f"the hospital of {path} took part in no sealed round of this process")
        announcement, order = self._sealed[path]
        number, model = self._client(path).last_model(announcement, list(order.arrays.values()))
        return number, order.as_given(model)

    def close(self) -> None:
        """Ask for the receipts of the last uploads, then close the connections of every client."""
        deadline = Deadline.after(RECEIPT_S + len(self._clients) / _RECEIPTS_A_SECOND)
        for client in self._clients.values():
            ask_receipts(client, deadline)
        while self._clients:
            self._clients.popitem()[1].close()

    def _accept(self, message: Message, context: Context) -> _Task:
        """Check a message; nothing in here has seen the hospital's data."""
        order = Order.read(message, context)
        path = _required(find_trust(context))
        client = self._client(path)
        announcement = client.accept(
            order.announcement, order.signature, list(order.arrays.values()), order.config
        )
        order.check(announcement)
        ask_receipts(client, Deadline.after(RECEIPT_S), announcement.id)
        if announcement.sealed is not None and announcement.phase == "train":
            self._sealed[path] = (announcement, order)
        return _Task(client, order, announcement)

    def _client(self, path: Path) -> HospitalClient:
        if path not in self._clients:
            meter = self._meters.setdefault(path, Meter())
            self._clients[path] = HospitalClient(TrustFile.load(path), meter=meter)
        return self._clients[path]


secure_aggregation = SecureAggregationMod()
"""The mod: ``app = ClientApp(mods=[secure_aggregation])``."""


def find_trust(context: Context) -> Path | None:
    """Return the path of this hospital's trust file; None when none is named.

    It comes from what the hospital itself sets: the node config of its SuperNode or its environment.
    Messages and the run config come from the server and are not asked. In a simulation, where all hospitals
    have one environment, it may name a folder with everyone's files, in the order of the partition ids.

    Raises:
        UsageError: A folder has none for this partition id.
    """
    path = context.node_config.get(TRUST_NODE_KEY) or os.environ.get(TRUST_VARIABLE)
    if not path:
        return None
    found = Path(str(path)).resolve()
    return _file_of(found, context.node_config.get("partition-id")) if found.is_dir() else found


def _required(path: Path | None) -> Path:
    if path is None:
        raise UsageError(
            f"no trust file: expected its path in the node config as '{TRUST_NODE_KEY}' or in the "
            f"environment variable {TRUST_VARIABLE}; without one nothing is trained or sent"
        )
    return path


def _file_of(folder: Path, partition: object) -> Path:
    """Return the trust file of a simulated hospital."""
    files = sorted(folder.glob("*.toml"))
    if not isinstance(partition, int) or not 0 <= partition < len(files):
        raise UsageError(
            f"{folder} has {len(files)} trust files, and this hospital's partition-id is {partition}; outside"
            " of a simulation name the one file of this hospital"
        )
    return files[partition]


@dataclass(frozen=True, slots=True)
class _Task:
    """An accepted order of the ServerApp."""

    client: HospitalClient
    order: Order
    announcement: Announcement

    def run(self, message: Message, context: Context, call_next: ClientAppCallable) -> bytes:
        """Pay, train or evaluate, share what came out and return the upload id."""
        self.client.pay(self.announcement)
        order = self._to_train()
        reply = call_next(self._plain(message, order), context)
        result = Result.read(reply, order, self.announcement)
        base = list(order.arrays.values()) if self.announcement.phase == "train" else None
        return self.client.submit(
            self.announcement, result.trained, result.num_examples, result.metrics, base=base, saturate=True
        )

    def _to_train(self) -> Order:
        """Return the order with the model that it is about, which a sealed round's message does not have."""
        if self.announcement.sealed is None:
            return self.order
        # Not among the checks before: why a hospital does not take a model that the server must not know
        # would be something about that model.
        return self.order.about(self.client.sealed_model(self.announcement, list(self.order.arrays.values())))

    def _plain(self, message: Message, order: Order) -> Message:
        """Return the message as training code may see it: with nothing that is not announced to all."""
        came = message.metadata
        metadata = Metadata(
            run_id=came.run_id,
            message_id="",
            src_node_id=came.src_node_id,
            dst_node_id=came.dst_node_id,
            reply_to_message_id="",
            group_id=str(self.announcement.round),
            created_at=time.time(),
            ttl=self.announcement.upload_seconds,
            message_type=came.message_type,
            src_task_id=came.src_task_id,
            dst_task_id=came.dst_task_id,
        )
        metadata.delivered_at = ""
        # Flower's constructors know no message with given metadata, but from a task of this process.
        plain = copy.copy(message)
        plain.__dict__.update(_metadata=metadata, _content=order.content)
        return plain


def _log_refusal(error: Exception) -> None:
    if isinstance(error, FedsecError):
        _log.warning("nothing of this hospital is in the sum: %s", error)
    else:
        _log.error("training failed with %s; its text may hold data: not logged", _origin(error))


def _origin(error: Exception) -> str:
    """Return an exception's type and where it was raised: enough to find it, and no text of it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
