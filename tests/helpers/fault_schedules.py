"""Two rounds under faults that are drawn from a seed, with every role in one process and a clock of its own.

::

    python tests/helpers/fault_schedules.py SEED     run one schedule and print its steps

Every request of the message table is a numbered step. A schedule picks some steps and spoils them: the
request or its reply is lost, comes late, twice or altered, or the aggregator is killed before, inside or
after it and comes back a while later, perhaps with an older disk. Two aggregators may lose sight of each
other, and each hospital behaves in a way that is drawn, too. Whatever happens, :meth:`Schedule.check` holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
from aggregation_world import Contribution, FakeIdentity, World, contribution, replaced

from fedsec.aggregation import Aggregator, Announcement, Collector, MemoryNetwork, RoundResult, Signed
from fedsec.aggregation.encoding import encode_update
from fedsec.aggregation.making import UploadParts, make_parts
from fedsec.aggregation.messages import (
    AbortRound,
    Announce,
    CloseUploads,
    CollectSum,
    FinishRound,
    GetReceipt,
    Hello,
    SetSignature,
    SumShare,
    Upload,
    UploadHeader,
    UploadList,
    header_digest,
    part_digest,
    read,
    seal,
)
from fedsec.aggregation.parts import PartFolder, PartWriter
from fedsec.aggregation.store import Store
from fedsec.errors import (
    FedsecError,
    PeerLostError,
    ProtocolError,
    RoundAbortedError,
    StateError,
    TrustError,
)
from fedsec.transport import Deadline, Peer

# How many requests of a kind a schedule has, about: the step to spoil is drawn among these.
STEPS: dict[type[msgspec.Struct], int] = {
    Announce: 6, Upload: 30, CloseUploads: 6, UploadList: 12, SetSignature: 12, CollectSum: 8,
    FinishRound: 6, GetReceipt: 8, Hello: 4, AbortRound: 4,
}  # fmt: skip
FAULTS = ("lost", "reply_lost", "late", "twice", "altered", "crash_before", "crash_inside", "crash_after")
BEHAVIOURS = (
    "honest", "vanishes", "twice", "altered", "wrong_length", "wrong_seed", "other_round", "two_headers",
    "some_only",
)  # fmt: skip
DURABLE = (
    (Store, ("add_round", "set_state", "add_upload", "set_included", "add_statement", "add_event")),
    (Store, ("set_seen", "set_rollback", "forget")),
    (PartFolder, ("create", "write_sum", "erase_parts", "erase")),
    (PartWriter, ("sync", "commit")),
)
UPLOAD_S, AGREEMENT_S, COLLECT_S = 60.0, 5.0, 20.0
ACCUSED = re.compile("contradicts|sent another|signed two|signed another|behind|rolled back|does not show")
NAMED = re.compile(r"agg-\d|minimum cohort|the server ended")


class CrashError(BaseException):
    """kill -9 at this line: nothing after it runs."""


class VirtualWorld(World):
    """A world without waits on disks, whose aggregators have short deadlines of the virtual clock."""

    def start(self, party: FakeIdentity, policy: Any = None) -> Aggregator:
        policy = dataclasses.replace(policy or self.policy, agreement_s=AGREEMENT_S, collect_s=COLLECT_S)
        aggregator = super().start(party, policy)
        aggregator._store._db.execute("PRAGMA synchronous=OFF")
        return aggregator


class FaultyNetwork(MemoryNetwork):
    """Moves a little at a time, in a drawn order, and spoils the steps that the schedule names."""

    def __init__(self, schedule: Schedule) -> None:
        world = schedule.world
        super().__init__(world.network.aggregators.values(), [one.peer for one in world.parties])
        self._schedule = schedule
        self._late: list[tuple[float, Callable[[], object]]] = []

    def pump(self) -> None:
        for _ in range(int(self._schedule.rng.integers(0, 6))):
            self.move()

    def move(self) -> None:
        """Let one aggregator take its due steps, or say what it has to say to one peer."""
        schedule = self._schedule
        schedule.come_back()
        self._deliver_late()
        pairs = self._pairs()
        if not pairs:
            return
        sender, receiver = pairs[int(schedule.rng.integers(len(pairs)))]
        with schedule.running(sender):
            self.aggregators[sender].advance()
            self._deliver(sender, receiver)

    def settle(self) -> None:
        """Move until nothing is left to be done at this time."""
        for _ in range(50):
            self._schedule.come_back()
            self._deliver_late()
            moved = False
            for sender, receiver in self._pairs():
                with self._schedule.running(sender):
                    self.aggregators[sender].advance()
                    moved |= self._deliver(sender, receiver)
            if not moved:
                return

    def ask(self, peer: Peer, name: str, message: msgspec.Struct, body: Any = b"") -> tuple[bytes, bytes]:
        schedule = self._schedule
        schedule.world.now += float(schedule.rng.exponential(0.02))
        fault = schedule.fault_for(peer.name, name, message)
        if {peer.name, name} == schedule.parted:
            raise PeerLostError(f"aggregator '{name}' cannot be reached")
        if isinstance(message, Upload):
            schedule.parts.append(bytes(body))
        answer = lambda: self._answer(peer, name, message, body)  # noqa: E731 - a step that may come later
        if fault is None:
            return answer()
        return self._spoil(fault, name, answer, lambda: self._answer(peer, name, message, _other(body)))

    def _spoil(
        self, fault: str, name: str, answer: Callable[[], Any], altered: Callable[[], Any]
    ) -> tuple[bytes, bytes]:
        lost, schedule = PeerLostError(f"aggregator '{name}' broke the connection"), self._schedule
        if fault == "twice":
            with contextlib.suppress(FedsecError):
                answer()
            return answer()  # type: ignore[no-any-return]
        if fault == "crash_inside":
            schedule.doomed = [name, int(schedule.rng.integers(1, 16))]
            return answer()  # type: ignore[no-any-return]
        if fault == "late":
            self._late.append((schedule.world.now + float(schedule.rng.exponential(3.0)), answer))
        if fault == "crash_before":
            schedule.crash(name)
        if fault in {"reply_lost", "crash_after"}:
            answer()
        if fault == "altered":
            altered()
        if fault == "crash_after":
            schedule.crash(name)
        raise lost

    def _answer(self, peer: Peer, name: str, message: msgspec.Struct, body: Any) -> tuple[bytes, bytes]:
        schedule = self._schedule
        with schedule.running(name, PeerLostError(f"aggregator '{name}' broke the connection")):
            reply, answer = super().ask(peer, name, message, body)
        schedule.note(peer, name, message, reply, answer)
        return reply, answer

    def _deliver_late(self) -> None:
        due = [one for one in self._late if one[0] <= self._schedule.world.now]
        self._late = [one for one in self._late if one not in due]
        for _, answer in due:
            with contextlib.suppress(FedsecError):
                answer()


class TenaciousLinks:
    """The server's requests: one that gets no answer is mostly sent again, as over a new connection."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._links = schedule.network.links(schedule.world.server.peer)

    def call(self, aggregator: str, message: Any, reply: Any, **rest: Any) -> Any:
        for _ in range(2):
            try:
                return self._links.call(aggregator, message, reply, **rest)
            except PeerLostError:
                if self._schedule.rng.random() < 0.2:
                    raise
                self._schedule.world.now += 0.5
        return self._links.call(aggregator, message, reply, **rest)

    def call_each(self, message: Any, bodies: Any, reply: Any, *, deadline: Deadline) -> Any:
        return self._links.call_each(message, bodies, reply, deadline=deadline)

    def close(self) -> None:
        self._links.close()


def _other(body: Any) -> bytes:
    """Return a body with one bit flipped; a message without a body cannot be altered on its way (TLS)."""
    return bytes(body[:-1]) + bytes([body[-1] ^ 1]) if body else b""


@dataclass
class RoundUnderFaults:
    """A round and what is known about it."""

    announcement: Announcement
    signed: Signed
    contributions: dict[str, Contribution] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    liars: set[str] = field(default_factory=set)
    result: RoundResult | None = None
    errors: list[FedsecError] = field(default_factory=list)


class Schedule:
    """One seed's world, faults and rounds."""

    def __init__(self, seed: int, folder: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.seed, self._say = seed, say
        self.rng = np.random.default_rng(seed)
        count = int(self.rng.integers(2, 4))
        self.world = VirtualWorld(folder, aggregator_count=count, hospital_count=4, cohort=2)
        self.world.network = self.network = FaultyNetwork(self)
        self.world.collector = Collector([], self.world.server, links=TenaciousLinks(self))
        self.faults = self._drawn_faults()
        self.counts: Counter[str] = Counter()
        self.fired: list[tuple[str, str]] = []
        self.parted: set[str] = set()
        self.doomed: list[Any] | None = None
        self.set_back: set[str] = set()
        self.parts: list[bytes] = []
        self.said: dict[tuple[str, str, bytes], set[Signed]] = {}
        self.opened: dict[bytes, dict[str, set[tuple[Any, bytes]]]] = {}
        self.rounds: list[RoundUnderFaults] = []
        self.model = [np.zeros((2, 3)), np.zeros(4)]
        self._active: str | None = None
        self._down: dict[str, float] = {}
        # With an older disk: who, when it is copied and when it is put back, in steps.
        self._older: tuple[str, int, int] | None = None
        if self.rng.random() < 0.2:
            steps = sorted(int(one) for one in self.rng.integers(0, 110, 2))
            self._older = (str(self.rng.choice([one.name for one in self.world.parties])), *steps)
        self._backup = folder / "backup"
        self._parting = float(self.rng.uniform(0, 2)) if self.rng.random() < 0.15 else np.inf

    def _drawn_faults(self) -> dict[tuple[str, int], str]:
        found = {}
        for _ in range(int(self.rng.integers(0, 5))):
            kind = list(STEPS)[int(self.rng.integers(len(STEPS)))]
            step = int(self.rng.integers(STEPS[kind]))
            found[kind.__name__, step] = FAULTS[int(self.rng.integers(len(FAULTS)))]
        return found

    # Faults.

    def fault_for(self, sender: str, name: str, message: msgspec.Struct) -> str | None:
        """Number the step and return how it is to be spoilt, if it is."""
        kind = type(message).__name__
        fault = self.faults.get((kind, self.counts[kind]))
        self._say(f"{self.world.now:8.2f} {kind} {self.counts[kind]}: {sender} -> {name} {fault or ''}")
        self.counts[kind] += 1
        if self.world.now - 1000 > self._parting and not self.parted and len(self.rounds) > 0:
            self.parted = {one.name for one in self.world.parties[:2]}
            self._say(f"{self.world.now:8.2f} {self.parted} lose sight of each other")
        if fault is not None:
            self.fired.append((kind, fault))
        self._use_older_disk()
        return fault

    def _use_older_disk(self) -> None:
        if self._older is None:
            return
        name, copied, put_back = self._older
        if sum(self.counts.values()) >= copied and not self._backup.exists():
            shutil.copytree(self.world.state_of(name), self._backup)
        elif sum(self.counts.values()) >= put_back and name not in self.network.offline:
            self._older = None
            self.set_back.add(name)
            if self._active == name:
                raise CrashError
            self.crash(name)

    @contextlib.contextmanager
    def running(self, name: str, broken: FedsecError | None = None) -> Iterator[None]:
        """Mark whose code runs; a crash inside takes it down."""
        before, self._active = self._active, name
        try:
            yield
        except CrashError:
            self.crash(name)
            if broken is not None:
                raise broken from None
        finally:
            self._active = before

    def durable_step(self) -> None:
        """Crash if this is the one; called before and after whatever an aggregator makes durable."""
        if self.doomed is not None and self._active == self.doomed[0]:
            self.doomed[1] -= 1
            if self.doomed[1] <= 0:
                self.doomed = None
                raise CrashError

    def crash(self, name: str) -> None:
        """Kill an aggregator; it comes back after a while."""
        if name in self.network.offline:
            return
        away = float(self.rng.choice([0.0, 0.0, 1.0, 10.0]))
        self._say(f"{self.world.now:8.2f} {name} is killed, away for {away:g} s")
        self.network.aggregators[name].close()
        self.network.offline.add(name)
        self._down[name] = self.world.now + away
        state = self.world.state_of(name)
        if name in self.set_back and self._backup.exists():
            self._say(f"         {name} is set back to an older disk")
            shutil.rmtree(state)
            self._backup.rename(state)

    def come_back(self) -> None:
        """Start again what has been away long enough."""
        for name, when in list(self._down.items()):
            if self.world.now >= when:
                del self._down[name]
                self._say(f"{self.world.now:8.2f} {name} is back")
                (party,) = (one for one in self.world.parties if one.name == name)
                self.network.aggregators[name] = self.world.start(party)
                self.network.offline.discard(name)

    def note(self, peer: Peer, name: str, message: msgspec.Struct, reply: bytes, body: bytes) -> None:
        """Remember what was signed and heard, and what was opened."""
        if isinstance(message, UploadList | SetSignature):
            subject = message.statement
            key = msgspec.msgpack.decode(subject.payload)[0]
            said = self.said.setdefault((peer.name, type(message).__name__, repr(key).encode()), set())
            said.add(subject)
        elif isinstance(message, CollectSum):
            share = msgspec.msgpack.decode(reply, type=SumShare)
            if share.ready:
                shares = self.opened.setdefault(message.round.key, {})
                shares.setdefault(name, set()).add((share.included, body))
            else:
                self.world.now += 1.0

    # The rounds.

    def run(self) -> None:
        """Run both rounds, let time pass until everything has ended, and check it."""
        with self.world, self._patched():
            for number in (1, 2):
                self._round(number)
            self._let_time_pass()
            self.check()

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch("os.fsync", return_value=None))
            for owner, names in DURABLE:
                for name in names:
                    stack.enter_context(mock.patch.object(owner, name, self._around(getattr(owner, name))))
            yield

    def _around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.durable_step()
            result = work(*arguments, **named)
            self.durable_step()
            return result

        return call

    def _round(self, number: int) -> None:
        world = self.world
        announcement = world.announcement(round=number, upload_seconds=UPLOAD_S)
        one = RoundUnderFaults(announcement, world.sign(announcement))
        self.rounds.append(one)
        if not self._announced(one):
            return
        actions: list[Callable[[], None]] = [
            lambda hospital=hospital: self._hospital(one, hospital)  # type: ignore[misc]
            for hospital in world.hospitals
        ]
        self.rng.shuffle(actions)  # type: ignore[arg-type]
        closes = len(actions) if self.rng.random() < 0.7 else int(self.rng.integers(len(actions)))
        for action in actions[:closes]:
            action()
            if self.rng.random() < 0.03:
                world.now += UPLOAD_S + 1  # everybody else comes too late
            self.network.pump()
        if self.rng.random() < 0.95:  # a server that vanishes closes nothing and collects nothing
            self._collect(one)
        for action in actions[closes:]:
            action()
        for hospital in world.hospitals:
            self._ask_receipt(one, hospital)

    def _ask_receipt(self, one: RoundUnderFaults, hospital: FakeIdentity) -> None:
        known = hospital.name in self.world.clients and self.world.clients[hospital.name]._state.submitted(
            one.announcement.id
        )
        if known:
            name = str(self.rng.choice([party.name for party in self.world.parties]))
            with contextlib.suppress(FedsecError):
                self.network.ask(hospital.peer, name, GetReceipt(one.announcement.id, known.upload_id))

    def _announced(self, one: RoundUnderFaults) -> bool:
        for _ in range(3):
            self.network.settle()
            try:
                self.world.collector.announce(one.announcement, Deadline.after(60))
            except FedsecError as error:
                one.errors.append(error)
                self.world.now += 2.0
            else:
                return True
        return False

    def _collect(self, one: RoundUnderFaults) -> None:
        try:
            one.result = self.world.collector.collect(one.announcement, Deadline.after(60))
        except FedsecError as error:
            one.errors.append(error)
        else:
            self.model = [old + mean for old, mean in zip(self.model, one.result.arrays, strict=True)]
        self._say(f"{self.world.now:8.2f} outcome: {(one.result and one.result.included) or one.errors[-1:]}")

    def _hospital(self, one: RoundUnderFaults, hospital: FakeIdentity) -> None:
        behaviour = (
            BEHAVIOURS[int(self.rng.integers(len(BEHAVIOURS)))] if self.rng.random() < 0.4 else "honest"
        )
        self._say(f"{self.world.now:8.2f} {hospital.name}: {behaviour}")
        number = one.announcement.round
        made = contribution(1000 * number + int(hospital.name[1:]))
        if behaviour == "honest":
            one.contributions[hospital.name] = made
            for _ in range(int(self.rng.integers(1, 4))):
                try:
                    self.world.submit(hospital, one.announcement, one.signed, made)
                except FedsecError:
                    continue
                one.acknowledged.add(hospital.name)
                return
            return
        parts = self._parts(one.announcement, hospital, made)
        if behaviour in {"twice", "some_only"}:
            # All parts are true: it is counted if every aggregator has its own in time, else it is not.
            one.contributions[hospital.name] = made
        else:
            one.liars.add(hospital.name)
        getattr(self, f"_{behaviour}")(one, hospital, parts)

    def _parts(self, announcement: Announcement, hospital: FakeIdentity, made: Contribution) -> UploadParts:
        words = encode_update(announcement.layout, made.update, made.num_examples, made.metrics)
        return make_parts(announcement, hospital, words)

    def _send(
        self, hospital: FakeIdentity, parts: UploadParts, header: Signed | None = None, **bodies: bytes
    ) -> None:
        """Upload as a program that is not our client would."""
        names = list(parts.parts)
        self.rng.shuffle(names)
        for name in names:
            body = bodies.get(name.replace("-", "_"), parts.parts[name])
            with contextlib.suppress(FedsecError):
                self.network.ask(hospital.peer, name, Upload(header or parts.header), body)
            self.network.pump()

    def _one(self, parts: UploadParts) -> str:
        return str(self.rng.choice(sorted(parts.parts)))

    def _vanishes(self, _one: RoundUnderFaults, hospital: FakeIdentity, parts: UploadParts) -> None:
        # Somebody gets nothing at all, so that nobody may count it.
        spared = self._one(parts)
        rest = {name: part for name, part in parts.parts.items() if name != spared}
        self._send(hospital, dataclasses.replace(parts, parts=rest))

    def _some_only(self, one: RoundUnderFaults, hospital: FakeIdentity, parts: UploadParts) -> None:
        self._vanishes(one, hospital, parts)
        self.world.now += float(self.rng.exponential(20.0))
        self._send(hospital, parts)

    def _twice(self, one: RoundUnderFaults, hospital: FakeIdentity, parts: UploadParts) -> None:
        self._send(hospital, parts)
        self._send(hospital, parts)
        if all(self._holds(name, one, hospital, parts) for name in parts.parts):
            self._send(hospital, self._parts(one.announcement, hospital, contribution(7)))

    def _holds(self, name: str, one: RoundUnderFaults, hospital: FakeIdentity, parts: UploadParts) -> bool:
        if name in self.network.offline:
            return False
        row = self.network.aggregators[name]._store.upload(one.announcement.id.key, hospital.name)
        return row is not None and row.entry.header_digest == header_digest(parts.header.payload)

    def _altered(self, _one: RoundUnderFaults, hospital: FakeIdentity, parts: UploadParts) -> None:
        name = self._one(parts)
        self._send(hospital, parts, None, **{name.replace("-", "_"): _other(parts.parts[name])})

    def _wrong_length(self, _one: RoundUnderFaults, hospital: FakeIdentity, parts: UploadParts) -> None:
        name = self._one(parts)
        part = bytes(parts.parts[name])
        other = part[:-1] if self.rng.random() < 0.5 else part + b"x"
        self._send(hospital, parts, None, **{name.replace("-", "_"): other})

    def _wrong_seed(self, _one: RoundUnderFaults, hospital: FakeIdentity, parts: UploadParts) -> None:
        """Another seed or vector, and a header that is true for it: only the checksum tells."""
        name = self._one(parts)
        changed = {**parts.parts, name: _other(parts.parts[name])}
        header = read(parts.header, UploadHeader)
        digests = tuple(
            part_digest(header.upload_id, one, [changed[one]], len(changed[one])) for one in header.recipients
        )
        signed = seal(hospital, replaced(header, digests=digests))
        self._send(hospital, dataclasses.replace(parts, header=signed, parts=changed))

    def _other_round(self, one: RoundUnderFaults, hospital: FakeIdentity, parts: UploadParts) -> None:
        number = 3 - one.announcement.round
        other = self.world.announcement(round=number, upload_seconds=UPLOAD_S)
        foreign = self._parts(other, hospital, contribution(8))
        self._send(hospital, foreign)
        self._send(hospital, dataclasses.replace(foreign, header=parts.header))
        # The upload to the other round may even be taken, if that is still open: then it counts there.
        for round_ in self.rounds:
            if round_.announcement.round == number:
                round_.contributions.setdefault(hospital.name, contribution(8))

    def _two_headers(self, one: RoundUnderFaults, hospital: FakeIdentity, parts: UploadParts) -> None:
        second = self._parts(one.announcement, hospital, contribution(9))
        first = self._one(parts)
        rest = {name: part for name, part in second.parts.items() if name != first}
        self._send(hospital, dataclasses.replace(parts, parts={first: parts.parts[first]}))
        self._send(hospital, dataclasses.replace(second, parts=rest))

    def _let_time_pass(self) -> None:
        """Heal everything and let every deadline pass: by then each round has ended everywhere."""
        self.faults, self.doomed, self._older, self.parted, self._parting = {}, None, None, set(), np.inf
        for _ in range(int((UPLOAD_S + 2 * AGREEMENT_S + COLLECT_S + 10) / AGREEMENT_S)):
            self.network.settle()
            if not self._down and not any(one._rounds for one in self.network.aggregators.values()):
                break
            self.world.now += AGREEMENT_S
        self.network.settle()

    # What must hold.

    def check(self) -> None:
        """Check every promise of a round; see the comments."""
        for name, aggregator in self.network.aggregators.items():
            assert not aggregator._rounds, f"{name} has a round open after every deadline"
        for one in self.rounds:
            self._check_sets(one)
            self._check_opened(one)
            self._check_result(one)
            self._check_names(one)
        self._check_model()
        self._check_said()
        self._check_greed()
        self._check_receipts()
        self._check_erased()

    def _check_sets(self, one: RoundUnderFaults) -> None:
        """Whoever has signed a set has signed the same; nobody is in it twice; liars are not."""
        sets = {}
        for name, aggregator in self.network.aggregators.items():
            if name in self.set_back:
                continue
            names = [row.hospital for row in aggregator._store.included(one.announcement.id.key)]
            assert len(names) == len(set(names))
            assert not set(names) & one.liars, f"{name} counts a hospital that lied: {names}"
            if names:
                sets[name] = names
        assert len({tuple(names) for names in sets.values()}) <= 1, f"different included sets: {sets}"

    def _check_opened(self, one: RoundUnderFaults) -> None:
        """Each aggregator has given away one sum share over one set, all over the same, of enough."""
        shares = self.opened.get(one.announcement.id.key, {})
        assert all(len(given) == 1 for given in shares.values()), "a round was opened twice"
        sets = {included for given in shares.values() for included, _ in given}
        assert len(sets) <= 1, "aggregators opened different sets"
        assert all(len(included) >= self.world.cohort for included in sets)

    def _check_result(self, one: RoundUnderFaults) -> None:
        """The opened sum is the sum in Python's integers over exactly the included set."""
        if one.result is None:
            return
        chosen = [one.contributions[name] for name in one.result.included]
        words = [int(word) for word in one.result.words.view(np.int32)]
        assert words == integer_sum(one.announcement, chosen), "the opened sum is not the integer sum"
        assert len(chosen) >= self.world.cohort
        weights = [made.num_examples for made in chosen]
        for index, mean in enumerate(one.result.arrays):
            plain = np.average([made.update[index] for made in chosen], axis=0, weights=weights)
            assert np.abs(mean - plain).max() <= one.result.error_bound + 1e-7
        if not self.set_back:
            lost = one.acknowledged - set(one.result.included)
            assert not lost, f"all aggregators acknowledged {lost}, and it is not in the sum"

    def _check_model(self) -> None:
        """The model has moved by whole averages, and by nothing else."""
        moved = [np.zeros((2, 3)), np.zeros(4)]
        bound = 1e-6
        for result, one in ((one.result, one) for one in self.rounds if one.result is not None):
            chosen = [one.contributions[name] for name in result.included]
            weights = [made.num_examples for made in chosen]
            for index, old in enumerate(moved):
                moved[index] = old + np.average(
                    [made.update[index] for made in chosen], axis=0, weights=weights
                )
            bound += result.error_bound
        far = [np.abs(old - new).max() for old, new in zip(self.model, moved, strict=True)]
        assert max(far) <= bound, f"the model is {max(far)} away from whole averages"

    def _check_names(self, one: RoundUnderFaults) -> None:
        """A round without a result says whose fault it is or that the cohort is too small."""
        for error in one.errors:
            assert NAMED.search(str(error)), f"an error without a name: {error}"
            # Nobody lies here but hospitals: an aggregator is accused only when its disk is an older one.
            assert self.set_back or not ACCUSED.search(str(error)), (
                f"an honest aggregator is accused: {error}"
            )
        for aggregator in self.network.aggregators.values():
            row = aggregator._store.round(one.announcement.id.key)
            if row is not None and row.state == "aborted":
                assert NAMED.search(row.reason), f"ended without a name: {row.reason}"

    def _check_said(self) -> None:
        """Nobody whose disk is its newest has signed two different lists or sets for one round."""
        for (name, _, _), statements in self.said.items():
            assert len(statements) == 1 or name in self.set_back, (
                f"{name} signed two statements for one round"
            )

    def _check_greed(self) -> None:
        """Asked again for everything, nobody opens anything that is new."""
        server = self.world.server
        # Whoever was set back, or knows of one that was, begins no round any more.
        refusals = (RoundAbortedError, ProtocolError, *([StateError] if self.set_back else []))
        for one in self.rounds:
            before = {
                name: set(given) for name, given in self.opened.get(one.announcement.id.key, {}).items()
            }
            for name in self.network.aggregators:
                for message in (
                    Announce(one.signed), CloseUploads(one.announcement.id), CollectSum(one.announcement.id)
                ):  # fmt: skip
                    with contextlib.suppress(*refusals):
                        self.network.ask(server.peer, name, message)
            self.network.settle()
            assert self.opened.get(one.announcement.id.key, {}) == before

    def _check_receipts(self) -> None:
        """A hospital's receipt says what the aggregators' sets say."""
        for one in self.rounds:
            for name, client in self.world.clients.items():
                if client._state.submitted(one.announcement.id) is None:
                    continue
                try:
                    receipt = client.receipt(one.announcement, Deadline.after(60))
                except (TrustError, RoundAbortedError, ProtocolError):
                    counted = one.result is not None and name in one.result.included
                    assert not counted, f"{name} was counted and has no receipt of it"
                else:
                    assert one.result is None or name in one.result.included
                    assert receipt.included >= self.world.cohort

    def _check_erased(self) -> None:
        """No share is left on a disk."""
        folder = self.world.folder / "parties"
        kept = [path.name for path in folder.glob("*/rounds/*")]
        assert not kept, f"parts are left after the outcome: {kept}"
        files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        sums = [body for shares in self.opened.values() for given in shares.values() for _, body in given]
        for secret in [*self.parts, *sums]:
            left = any(secret[32:48] in content for content in files if len(secret) >= 48)
            assert not left, "a share is left in a file"
        for aggregator in self.network.aggregators.values():
            rows = aggregator._store._db.execute("SELECT checksum FROM uploads WHERE checksum NOTNULL")
            assert rows.fetchall() == [], "a share of a checksum is left in a database"
            assert aggregator._store._db.execute("SELECT seed FROM seeds").fetchall() == [], "a seed is left"


def integer_sum(announcement: Announcement, contributions: list[Contribution]) -> list[int]:
    """The sum in plain Python integers, by the formula in docs/reference/wire-format.md."""
    encoding = announcement.encoding
    largest_word = (2 ** (encoding.ring_bits - 1) - 1) // encoding.hospitals
    total: list[int] | None = None
    for one in contributions:
        words = []
        for spec, array in zip(announcement.arrays, one.update, strict=True):
            factor = one.num_examples * (largest_word / (encoding.largest_weight * spec.clip))
            words += [round(float(value) * factor) for value in array.ravel()]
        words.append(one.num_examples)
        for metric in announcement.metrics:
            factor = one.num_examples * (largest_word / (encoding.largest_weight * metric.clip))
            words.append(round(one.metrics[metric.name] * factor))
        total = words if total is None else [a + b for a, b in zip(total, words, strict=True)]
    assert total is not None
    return total


def run_seed(seed: int, folder: Path, say: Callable[[str], None] = lambda _: None) -> Schedule:
    """Run one schedule; a failure names the seed."""
    schedule = Schedule(seed, folder / f"seed-{seed}", say)
    try:
        schedule.run()
    except Exception as error:
        text = f"seed {seed}: {type(error).__name__}: {error}"
        raise AssertionError(
            f"{text}\nsteps: python tests/helpers/fault_schedules.py {seed}\nfaults: {schedule.fired}"
        ) from error
    return schedule


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        run_seed(int(sys.argv[1]), Path(made), print)
