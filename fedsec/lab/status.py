"""How a cluster's prediction service is: what ``fedsec status`` shows to the model's owner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fedsec.errors import PeerLostError, ServiceEndedError
from fedsec.lab.rundir import RunFolder
from fedsec.serving.messages import LedgerPage, QueryRecord, ReadLedger, ReadStatus, Status
from fedsec.transport import ClusterFile, Deadline, Endpoint, Identity, MeterReading, connect, read_meter
from fedsec.transport.calling import call

ANSWER_S = 5.0
"""Longest wait for one party; a party never computes to answer how it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyHealth:
    """One party, as it answered or did not.

    Attributes:
        name: The party's.
        address: Where it listens.
        status: What it says of its newest service; None if it did not answer.
        reading: Bytes and messages by kind since its start; None if it did not answer.
        queries: The newest queries in its ledger, if they were asked for.
        error: Why it did not answer.
    """

    name: str
    address: str
    status: Status | None = None
    reading: MeterReading | None = None
    queries: tuple[QueryRecord, ...] = ()
    error: str = ""

    @property
    def state(self) -> str:
        """The service's state at this party; ``lost`` if it did not answer."""
        return "lost" if self.status is None else self.status.state

    @property
    def why(self) -> str:
        """What the party, or its silence, tells of an interruption; often nothing."""
        return self.error if self.status is None else self.status.text

    def summary(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold."""
        values: dict[str, Any] = {"name": self.name, "address": self.address, "state": self.state}
        if self.status is None or self.reading is None:
            return {**values, "error": self.error}
        status, reading = self.status, self.reading
        return {
            **values,
            "answered": status.answered,
            "waiting": status.waiting,
            "prepared": status.prepared,
            "since": status.since,
            "code": status.code,
            "text": status.text,
            "models_held": len(status.models),
            "sent_bytes": reading.sent_bytes,
            "received_bytes": reading.received_bytes,
            "by_kind": {
                kind: dict(zip(("sent", "sent_bytes", "received", "received_bytes"), counts, strict=True))
                for kind, counts in sorted(reading.by_label.items())
            },
        }


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """All three parties together.

    Attributes:
        parties: In the cluster file's order.
    """

    parties: tuple[PartyHealth, ...]

    @property
    def state(self) -> str:
        """``serving`` if all three serve the same; else the state that needs a look the most."""
        states = [party.state for party in self.parties]
        services = {party.status.service for party in self.parties if party.status is not None}
        for state in ("lost", "failed"):
            if state in states:
                return state
        if len(set(states)) > 1 or len(services) > 1:
            return "interrupted"
        return states[0]

    @property
    def terms(self) -> Status | None:
        """A status that tells what is served, from the first party that knows.

        What was spent may differ by interrupted requests; the party that counts most refuses first.
        """
        told = [party.status for party in self.parties if party.status is not None]
        known = [status for status in told if status.service is not None]
        if not known:
            return None
        most = max(status.spent_epsilon for status in known if status.service == known[0].service)
        return msgspec.structs.replace(known[0], spent_epsilon=most)

    @property
    def queries(self) -> tuple[QueryRecord, ...]:
        """The ledger of the first party that answered: the three differ by interrupted requests at most."""
        return next((party.queries for party in self.parties if party.status is not None), ())

    def check(self) -> None:
        """Raise unless users can ask; so the command's exit code tells.

        Raises:
            PeerLostError: A party does not answer, or the service has failed or is interrupted.
            ServiceEndedError: No service runs.
        """
        if self.state in {"starting", "serving"}:
            return
        if self.state in {"lost", "failed", "interrupted"}:
            why = next((party.why for party in self.parties if party.why), "see the parties' logs")
            if all(party.status is None for party in self.parties):
                raise PeerLostError(f"no party answers: {why}. `fedsec serve` starts a service")
            raise PeerLostError(f"the service is {self.state}: {why}")
        raise ServiceEndedError(f"no service runs: {self.state}")

    def summary(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold; ids and fingerprints in hexadecimal."""
        values: dict[str, Any] = {"state": self.state}
        if (terms := self.terms) is not None:
            limit = terms.num_requests
            values |= {
                "service": _hex(terms.service),
                "model": _hex(terms.model),
                "mode": terms.mode,
                "reveals": list(terms.reveals),
                "num_requests": limit,
                "quota": terms.quota,
                "label_noise": _noise(terms),
                "answered": terms.answered,
                "left": None if limit is None else limit - terms.answered,
                "since": terms.since,
            }
        values["parties"] = [party.summary() for party in self.parties]
        return values

    def ledger(self) -> list[dict[str, Any]]:
        """Return the newest queries as values that JSON can hold."""
        return [
            {
                "number": query.number,
                "at": query.at,
                "name": query.name,
                "fingerprint": query.fingerprint.hex(),
                "model": query.model.hex(),
                "images": query.images,
                "reveal": query.reveal,
                "answered": query.answered,
                "epsilon": query.epsilon,
            }
            for query in self.queries
        ]


def run_owner(path: Path) -> tuple[Path, Path]:
    """Return the cluster file and the owner's identity of a local run.

    Raises:
        UsageError: If there is no run in ``path``, or it was never served.
    """
    return RunFolder.open(path).credentials("owner")


def service_health(cluster: Path, identity: Path, queries: int = 0) -> ServiceHealth:
    """Ask every computing party how it is; one that does not answer is part of the result.

    Args:
        cluster: The cluster file.
        identity: The owner's identity.
        queries: How many of the newest queries to read from the ledgers.

    Raises:
        UsageError: A file is missing or is none of these.
    """
    file, own = ClusterFile.load(cluster), Identity.load(identity)
    return ServiceHealth(tuple(_health(party, own, queries) for party in file.computing))


def _health(party: Endpoint, identity: Identity, queries: int) -> PartyHealth:
    deadline = Deadline.after(ANSWER_S)
    try:
        with connect(party, identity, deadline=deadline) as channel:
            status = call(channel, ReadStatus(), Status, deadline=deadline)[0]
            reading = read_meter(channel, deadline)
            page = LedgerPage(queries=())
            if queries:
                page = call(channel, ReadLedger(most=queries), LedgerPage, deadline=deadline)[0]
    except PeerLostError as error:
        return PartyHealth(name=party.name, address=party.address, error=str(error))
    return PartyHealth(
        name=party.name, address=party.address, status=status, reading=reading, queries=page.queries
    )


def _noise(terms: Status) -> dict[str, Any] | None:
    """Return how noisy labels are and what they have spent; None if they are told as they are."""
    noise = terms.noise
    if noise is None:
        return None
    return {
        "label_epsilon": noise.epsilon,
        "answer_epsilon": terms.answer_epsilon,
        "identity_epsilon": noise.identity_epsilon,
        "total_epsilon": noise.total_epsilon,
        "spent_epsilon": terms.spent_epsilon,
    }


def _hex(identifier: bytes | None) -> str | None:
    return None if identifier is None else identifier.hex()
