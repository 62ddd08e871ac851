"""An aggregator behind a port: routes for the party process, a clock and senders to its peers."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import msgspec

from fedsec.aggregation.aggregator import Aggregator
from fedsec.aggregation.announcement import decode_announcement
from fedsec.aggregation.links import TlsLinks
from fedsec.aggregation.messages import (
    AbortRound,
    Announce,
    CloseUploads,
    CollectSum,
    FinishRound,
    GetReceipt,
    Greeted,
    Hello,
    MissedEvents,
    Received,
    SetSignature,
    SumShare,
    Upload,
    UploadList,
)
from fedsec.aggregation.policy import Policy
from fedsec.aggregation.sealed.rounds import SealedRounds
from fedsec.aggregation.sealed.terms import REVEAL_TO
from fedsec.errors import FedsecError, UsageError
from fedsec.transport import ClusterFile, Deadline, Identity, Meter, Role
from fedsec.transport.service import Call, Reply, Route

_log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 18
_SEND_S = 10.0
_RETRY_S = 0.2
_LONGEST_NAP_S = 1.0
_COLLECT_WAIT_S = 5.0
_GREETING_WAIT_S = 5.0


def policy_from(
    cluster: ClusterFile,
    minimum_cohort: int,
    agreement_s: float = 30.0,
    reveal_to: tuple[str, ...] = REVEAL_TO,
) -> Policy:
    """Return the policy that a cluster file's pinned keys make.

    Raises:
        UsageError: The cluster file pins no server, so no round could ever be announced.
    """
    if cluster.server is None:
        raise UsageError("the cluster file has no server key, so nobody could announce a round; add `server`")
    return Policy(
        server=cluster.server,
        aggregators={endpoint.name: endpoint.public_key for endpoint in cluster.parties},
        hospitals=dict(cluster.hospitals),
        minimum_cohort=minimum_cohort,
        agreement_s=agreement_s,
        reveal_to=reveal_to,
    )


class AggregatorService:
    """Runs one aggregator in the party process.

    Args:
        identity: The party's identity.
        cluster: The cluster file with every pinned key.
        state: The folder of its durable state.
        minimum_cohort: Fewest hospitals in a sum, the aggregator's own limit.
        agreement_s: Longest wait for the other aggregators in each step of the agreement.
        reveal_to: Who may have the average of a round that it takes part in.
        meter: Counts the bytes to its peers.

    Raises:
        UsageError: The cluster file pins no server.
        StateError: The state folder cannot be used.
    """

    def __init__(
        self,
        identity: Identity,
        cluster: ClusterFile,
        state: Path,
        *,
        minimum_cohort: int = 3,
        agreement_s: float = 30.0,
        reveal_to: tuple[str, ...] = REVEAL_TO,
        meter: Meter | None = None,
    ) -> None:
        policy = policy_from(cluster, minimum_cohort, agreement_s, reveal_to)
        self.aggregator = Aggregator(identity, policy, state)
        peers = [endpoint for endpoint in cluster.parties if endpoint.name != identity.name]
        self._links = {peer.name: TlsLinks([peer], identity, meter) for peer in peers}
        self._sealed = SealedRounds(
            identity, cluster.parties, state, self.aggregator.round, wait_s=agreement_s, meter=meter
        )
        self._sealed.maker.resume(self.aggregator.active())
        self._changed = threading.Condition()
        self._version = 0
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def routes(self) -> list[Route]:
        """Return the routes of the aggregation for the party's one port."""
        server, hospital, party = (frozenset({role}) for role in (Role.SERVER, Role.HOSPITAL, Role.PARTY))
        return [
            Route(Announce, server, self._announce),
            Route(CloseUploads, server, self._answer),
            Route(CollectSum, server, self._collect),
            Route(FinishRound, server, self._answer),
            Route(Upload, hospital, self._answer, self.aggregator.most_upload_bytes),
            Route(GetReceipt, hospital, self._answer),
            Route(UploadList, party, self._answer),
            Route(SetSignature, party, self._answer),
            Route(Hello, party, self._answer),
            Route(MissedEvents, party, self._answer),
            Route(AbortRound, party, self._answer),
            *self._sealed.routes(),
        ]

    def start(self) -> None:
        """Start the clock and the senders."""
        targets = [(self._run_clock, ())] + [(self._run_sender, (peer,)) for peer in self._links]
        for target, arguments in targets:
            thread = threading.Thread(target=target, args=arguments, name="aggregation", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Stop the threads and close state and connections; what was said stays durable."""
        self._stopping.set()
        self._notify()
        for links in self._links.values():
            links.interrupt()
        self._sealed.maker.stop()
        for thread in self._threads:
            thread.join(timeout=_SEND_S)
        for links in self._links.values():
            links.close()
        self.aggregator.close()

    def _answer(self, call: Call) -> Reply:
        try:
            message, body = self.aggregator.handle(call.peer, call.message, call.body.chunks(CHUNK_BYTES))
        finally:
            # Nothing is due after these, and there are many: one a hospital, or one a look at the state.
            if not isinstance(call.message, Upload | GetReceipt | CollectSum):
                self._due.set()
        return Reply(message, body)

    def _announce(self, call: Call) -> Reply:
        # The parties of a cluster start together: a server that comes right after waits for their greetings.
        give_up = time.monotonic() + _GREETING_WAIT_S
        while not self.aggregator.greeted and (left := give_up - time.monotonic()) > 0:
            version = self._version
            if not self.aggregator.greeted:
                self._wait_for_change(version, left)
        announcement = decode_announcement(call.message.announcement.payload)
        self._sealed.check(announcement)
        reply = self._answer(call)
        self._sealed.announced(announcement)
        return reply

    def _collect(self, call: Call) -> Reply:
        give_up = time.monotonic() + _COLLECT_WAIT_S
        while True:
            version = self._version
            reply = self._answer(call)
            left = give_up - time.monotonic()
            if not isinstance(reply.message, SumShare) or reply.message.ready or left <= 0:
                return reply
            self._wait_for_change(version, left)

    def _run_clock(self) -> None:
        while not self._stopping.is_set():
            self._due.clear()
            try:
                self.aggregator.advance()
                self._sealed.maker.look(self.aggregator.active())
                nap = self.aggregator.next_deadline() - time.time()
            except Exception as error:
                # Whatever it is (no memory, a full disk): without its clock no round would ever end.
                _report("the aggregation cannot go on", error)
                self._stopping.wait(_LONGEST_NAP_S)
                nap = 0.0
            self._notify()
            self._due.wait(min(max(nap, 0.0), _LONGEST_NAP_S))

    def _run_sender(self, peer: str) -> None:
        while not self._stopping.is_set():
            version = self._version
            try:
                sent = self._send_all(peer)
            except Exception as error:
                # As for the clock: a sender that has ended would void every round from now on.
                _report(f"nothing reaches '{peer}'", error)
                sent = False
            if sent:
                self._wait_for_change(version, _LONGEST_NAP_S)
            else:
                self._stopping.wait(_RETRY_S)

    def _send_all(self, peer: str) -> bool:
        """Say what is due to one peer, in order; False when it has to be tried again."""
        for outgoing in self.aggregator.outgoing(peer):
            kind: type[msgspec.Struct] = Greeted if isinstance(outgoing.message, Hello) else Received
            deadline = Deadline.after(_SEND_S)
            try:
                reply, _ = self._links[peer].call(peer, outgoing.message, kind, deadline=deadline)
            except FedsecError as error:
                self.aggregator.refused(outgoing, error)
                _log.debug("'%s' did not take a statement: %s", peer, type(error).__name__)
                return False
            self.aggregator.delivered(outgoing, reply)
            self._due.set()
        return True

    def _wait_for_change(self, seen: int, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen, timeout=timeout)

    def _notify(self) -> None:
        with self._changed:
            self._version += 1
            self._changed.notify_all()
        if self._stopping.is_set():
            self._due.set()


def _report(what: str, error: Exception) -> None:
    # The text of an error that is not ours could hold anything; its kind does not.
    text = str(error) if isinstance(error, FedsecError) else type(error).__name__
    _log.error("%s: %s", what, text)
