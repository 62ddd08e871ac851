"""Everything that reads bytes from outside, as functions that may raise errors of ours and nothing else.

Where a signature or digest stands before what is read, it is made anew: whoever attacks has a key.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aggregation_world import World
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificates
from fuzz_seeds import example, messages
from PIL import Image
from small_plan import LOGITS

from fedsec.aggregation.aggregator import Aggregator
from fedsec.aggregation.encoding import ArraySpec, encode_update
from fedsec.aggregation.messages import (
    LABELS,
    Announce,
    ChainHead,
    CloseUploads,
    GetReceipt,
    Hello,
    ListStatement,
    Receipt,
    SetSignature,
    SetStatement,
    Signed,
    Upload,
    UploadHeader,
    UploadList,
    header_digest,
)
from fedsec.aggregation.parts import make_parts
from fedsec.aggregation.receipts import check_receipt
from fedsec.aggregation.sealed_state import SealedState, SealedStates
from fedsec.aggregation.signing import sign
from fedsec.aggregation.trust import TrustFile, TrustLimits
from fedsec.cluster.certificates import Authority
from fedsec.cluster.keys import LocalKeys, make_local_keys, write_trust_files
from fedsec.errors import FedsecError, PeerLostError, ProtocolError, RangeError, TrustError
from fedsec.lab.images import read_pictures
from fedsec.nn.plan import Plan
from fedsec.nn.weights import load_weights, save_weights
from fedsec.party.main import routes_of, services_of
from fedsec.ring import RING64
from fedsec.scenario import Scenario
from fedsec.serving import parts
from fedsec.serving.weights import plan_from_wire
from fedsec.sharing.replicated import RepShare
from fedsec.transport import Channel, ClusterFile, Deadline, Identity, Meter, PartyConfig, Peer, Role
from fedsec.transport.bodies import decode, pack, unpack
from fedsec.transport.frames import Direction
from fedsec.transport.service import Refused, read_request

_KEPT = ExitStack()
"""Folders and services of targets; they live as long as the process."""
_SOMEBODY = Peer("user", Role.USER, bytes(32), "00" * 32)
_MODEL = [np.zeros((2, 3), np.float32), np.zeros(4, np.float32)]


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: What it reads.
        read: Reads bytes; every error but a ``FedsecError`` is a defect.
        seeds: Valid bytes.
        trees: What seeds decode to, if they encode plain values.
        encode: Encodes such values.
        lines: Whether seeds are lines of ``key = value``.
        needs: More than valid bytes, such as a round that is not there; the seeds are refused for its want.
    """

    name: str
    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    trees: tuple[Any, ...] = ()
    encode: Callable[[Any], bytes] = msgspec.msgpack.encode
    lines: bool = False
    needs: bool = False

    def __str__(self) -> str:
        return self.name


def every_target() -> list[Target]:
    """Return all readers."""
    return [*message_targets(), *request_targets(), *aggregation_targets(), *byte_targets(), *file_targets()]


def close() -> None:
    """End what targets have started, and remove their files."""
    _KEPT.close()


@cache
def folder() -> Path:
    return Path(_KEPT.enter_context(tempfile.TemporaryDirectory(prefix="fedsec-fuzz-")))


@cache
def local_keys() -> LocalKeys:
    return make_local_keys(folder() / "keys", 3, 2)


def cluster_file() -> ClusterFile:
    return local_keys().cluster_file(
        {name: ("127.0.0.1", 1 + number) for number, name in enumerate(local_keys().parties)}
    )


# Messages by their type, and requests as a party takes them: frame, message, its own limits, its handler.


def message_targets() -> list[Target]:
    return [
        Target(
            f"message {kind.__module__}.{kind.__name__}",
            partial(decode, kind=kind, peer=_SOMEBODY),
            (msgspec.msgpack.encode(example(kind)),),
            (example(kind),),
        )
        for kind in messages()
    ]


class OneFrame(Channel):
    """A connection on which one request has come, and nothing follows."""

    def __init__(self, peer: Peer, label: str, frame: bytes) -> None:
        super().__init__("party-0", peer)
        self._came: tuple[str, bytes] | None = (label, frame)

    def receive_any(
        self, labels: Sequence[str], *, max_bytes: int, deadline: Deadline
    ) -> tuple[str, bytearray]:
        came, self._came = self._came, None
        if came is None:
            raise PeerLostError("nothing follows")
        if len(came[1]) > max_bytes:
            raise ProtocolError("too long")
        return came[0], bytearray(came[1])

    def send(self, label: str, payload: Any, deadline: Deadline) -> None: ...

    def wait(self, deadline: Deadline) -> None: ...

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


def request_targets() -> list[Target]:
    config = PartyConfig("party-0", local_keys().identity("party-0"), folder() / "none", folder() / "state")
    config.state.mkdir()
    services = services_of(config, Identity.load(config.identity), cluster_file(), Meter())
    for service in services:
        _KEPT.callback(service.stop)
    table = {f"{route.tag}/request": route for route in routes_of(services, Meter())}
    # Handlers of the aggregation wait for peers; they are below. A service that begins would connect.
    answered = {route.tag for route in services[-1].routes()} - {"serve", "open_link"}

    def read(frame: bytes, label: str) -> None:
        peer = Peer("user", min(table[label].roles), bytes(32), "00" * 32)
        soon = Deadline.after(10.0)
        try:
            route, call = read_request(OneFrame(peer, label, frame), table, lambda _route: soon, soon)
        except Refused as refused:
            raise refused.error from None
        if route.tag in answered:
            route.handler(call)

    found = []
    for label, route in table.items():
        tree = example(route.message)
        if "plan" in tree:
            tree |= {"plan": LOGITS.to_json(), "digest": hashlib.sha256(LOGITS.to_json()).digest()}
        bare = request_of(tree)
        inside = (1 << 63 | 2000).to_bytes(8, "big") + bare[8:] + bytes(2000)
        found.append(
            Target(
                f"request {route.tag}",
                partial(read, label=label),
                (bare, inside),
                (tree,),
                request_of,
                needs=True,
            )
        )
    return found


def request_of(tree: Any) -> bytes:
    return bytes(8) + msgspec.msgpack.encode(tree)


# What the aggregation signs: made anew for each payload, by whoever may sign it.


class Stage:
    """A round in memory, and how far the first aggregator had come in it: to that it goes back after a play.

    Args:
        name: Of its folder.
        played: Whether the round was played to its end, so that there is something to hear of it.
    """

    def __init__(self, name: str, *, played: bool) -> None:
        self.world = world = _KEPT.enter_context(World(folder() / name))
        self._name, self._played = name, played
        self._heard: list[tuple[Peer, msgspec.Struct]] = []
        self._kept: dict[str, Path] = {}
        self._at = ""
        self.announcement = world.announcement()
        world.open(self.announcement)
        self._keep("open")
        if not played:
            return
        self.parts = [self._parts_of(hospital) for hospital in world.hospitals]
        for hospital, made in zip(world.hospitals, self.parts, strict=True):
            for one in world.network.aggregators:
                world.network.ask(hospital.peer, one, Upload(made.header), made.parts[one])
        self._keep("uploaded")
        self._listen()
        world.close_uploads(self.announcement)
        question = GetReceipt(self.announcement.id, self.parts[0].upload_id)
        self.receipt = world.network.ask(world.hospitals[0].peer, "agg-0", question)[0]

    def _parts_of(self, hospital: Any) -> Any:
        words = encode_update(self.announcement.layout, _MODEL, 10, {"accuracy": 0.5, "loss": 1.0})
        return make_parts(self.announcement, hospital, words)

    def _keep(self, when: str) -> None:
        self._kept[when] = folder() / f"{self._name}-{when}"
        shutil.copytree(self.world.state_of("agg-0"), self._kept[when])

    def _listen(self) -> None:
        ask = self.world.network.ask

        def hear(peer: Peer, name: str, message: msgspec.Struct, body: Any = b"") -> Any:
            if name == "agg-0":
                self._heard.append((peer, message))
            return ask(peer, name, message, body)

        self.world.network.ask = hear  # type: ignore[method-assign]

    def said(self, kind: type[Any]) -> bytes:
        """Return the payload of the second aggregator's statement."""
        return next(
            one.statement.payload
            for peer, one in self._heard
            if isinstance(one, kind) and peer.name == "agg-1"
        )

    def first(self, when: str) -> Aggregator:
        """Return the first aggregator as it was then."""
        if self._at != when:
            self.world.network.aggregators["agg-0"].close()
            state = self.world.state_of("agg-0")
            shutil.rmtree(state)
            shutil.copytree(self._kept[when], state)
            self.world.network.aggregators["agg-0"] = self.world.start(self.world.parties[0])
            if not self._played:
                # Peers that have heard nothing but greetings may hear one again.
                self.world.network.pump()
            self._at = when
        return self.world.network.aggregators["agg-0"]

    def play(self, payload: bytes, part: Callable[[Stage, bytes], object]) -> None:
        try:
            part(self, payload)
        except (ProtocolError, TrustError, RangeError):
            raise
        except BaseException:
            self._at = ""
            raise
        self._at = ""

    def until_lists(self) -> Aggregator:
        """Bring the first aggregator to where it waits for the others' sets."""
        aggregator = self.first("uploaded")
        aggregator.handle(self.world.server.peer, CloseUploads(self.announcement.id))
        aggregator.advance()
        for peer, message in self._heard:
            if isinstance(message, UploadList):
                aggregator.handle(peer, message)
        aggregator.advance()
        return aggregator


def _announce(stage: Stage, payload: bytes) -> None:
    world = stage.world
    signed = Signed(payload, sign(world.server, "announcement", payload))
    with suppress(FedsecError):
        config = {"lr": 0.01, "epochs": 1}
        world.trust(world.hospitals[0]).check(payload, signed.signature, _MODEL, config)
    stage.first("open").handle(world.server.peer, Announce(signed))


def _upload(stage: Stage, payload: bytes) -> None:
    own, aggregator = stage.world.hospitals[0], stage.first("open")
    message = Upload(Signed(payload, sign(own, LABELS[UploadHeader], payload)))
    aggregator.most_upload_bytes(message)
    aggregator.handle(own.peer, message, [stage.parts[0].parts["agg-0"]])


def _statement(stage: Stage, payload: bytes, kind: type[msgspec.Struct]) -> None:
    peer = stage.world.parties[1]
    signed = Signed(payload, sign(peer, LABELS[kind], payload))
    if kind is SetStatement:
        stage.until_lists().handle(peer.peer, SetSignature(signed))
    elif kind is ListStatement:
        stage.first("uploaded").handle(peer.peer, UploadList(signed))
    else:
        stage.first("uploaded").handle(peer.peer, Hello(peer.name, signed))


def _receipt(stage: Stage, payload: bytes) -> None:
    receipt, mine = decode(payload, Receipt, _SOMEBODY), stage.parts[0]
    header = header_digest(mine.header.payload)
    check_receipt(stage.announcement, stage.world.hospitals[0].name, mine.upload_id, header, receipt)


def aggregation_targets() -> list[Target]:
    fresh, stage = Stage("fresh", played=False), Stage("played", played=True)
    announcement = fresh.announcement.encode()
    cases: tuple[tuple[str, Callable[[Stage, bytes], object], bytes], ...] = (
        ("upload header", _upload, stage.parts[0].header.payload),
        ("list of uploads", partial(_statement, kind=ListStatement), stage.said(UploadList)),
        ("included set", partial(_statement, kind=SetStatement), stage.said(SetSignature)),
        ("chain head", partial(_statement, kind=ChainHead), msgspec.msgpack.encode(ChainHead(1, bytes(32)))),
        ("receipt", _receipt, stage.receipt),
    )
    trees = (msgspec.msgpack.decode(announcement),)
    return [
        Target("announcement", partial(fresh.play, part=_announce), (announcement,), trees),
        *(
            Target(name, partial(stage.play, part=part), (payload,), (msgspec.msgpack.decode(payload),))
            for name, part, payload in cases
        ),
    ]


# Other bytes of peers.


class Plain(msgspec.Struct, tag="plain"):
    """A message that is none of ours."""

    text: str


def byte_targets() -> list[Target]:
    header = Direction("user", "party-0").seal("describe/request", b"12345")
    frames = [pack(Plain("x"), memoryview(body)) for body in (b"", b"body")]
    plan = LOGITS.to_json()
    return [
        Target("header of a frame", _frame_header, (header,)),
        Target("request in a frame", partial(unpack, peer=_SOMEBODY), tuple(frames)),
        Target("part of a query", _part, parts.split(np.zeros(5, RING64.dtype))),
        Target("certificate", Peer.from_certificate, (_certificate(),)),
        Target("plan on the wire", _plan, (plan,), (json.loads(plan),), msgspec.json.encode),
    ]


def _frame_header(data: bytes) -> None:
    # A channel reads exactly so many bytes.
    Direction("user", "party-0").check(
        data[:24].ljust(24, b"\0"), ("describe/request", "query/request"), 4096
    )


def _part(data: bytes) -> None:
    for party in range(parts.PARTIES):
        with suppress(FedsecError):
            parts.join(party, data, 5, RING64).unpack()


def _certificate() -> bytes:
    pem = local_keys().identity("user").read_bytes()
    return load_pem_x509_certificates(pem)[0].public_bytes(Encoding.DER)


def _plan(data: bytes) -> Plan:
    return plan_from_wire(data, hashlib.sha256(data).digest())


# Files that others may have written.


def file_targets() -> list[Target]:
    cluster_file().save(folder() / "cluster.toml")
    write_trust_files(local_keys(), cluster_file(), TrustLimits())
    config = PartyConfig("party-0", folder() / "a.pem", folder() / "cluster.toml", folder() / "state")
    config.save(folder() / "party.toml")
    save_weights(folder() / "weights.npz", [np.zeros(spec.shape) for spec in LOGITS.weight_specs])
    Image.new("L", (28, 28)).save(folder() / "picture.png")
    keys, plan = local_keys().folder, LOGITS.to_json()
    trust = local_keys().trust_file(local_keys().hospitals[0])
    return [
        *(
            Target(name, through_file(read, path.name), (path.read_bytes(),), lines=True)
            for name, read, path in (
                ("cluster file", ClusterFile.load, folder() / "cluster.toml"),
                ("trust file", TrustFile.load, trust),
                ("party's file", PartyConfig.load, folder() / "party.toml"),
            )
        ),
        Target(
            "scenario", through_file(Scenario.load, "s.toml"), (Scenario().to_toml().encode(),), lines=True
        ),
        Target("override", _override, (b"training.rounds=3", b"hospitals.count = 5"), lines=True),
        Target("identity", through_file(Identity.load, "i.pem"), ((keys / "user.pem").read_bytes(),)),
        Target("authority", _authority, ((keys / "authority" / "authority.pem").read_bytes(),)),
        Target(
            "plan file", through_file(Plan.load, "p.json"), (plan,), (json.loads(plan),), msgspec.json.encode
        ),
        Target("weights", through_file(_weights, "w.npz"), ((folder() / "weights.npz").read_bytes(),)),
        Target("picture", through_file(_picture, "p.png"), ((folder() / "picture.png").read_bytes(),)),
        Target("sealed state", _sealed_state, (_state_bytes(),)),
    ]


def through_file(read: Callable[[Path], object], name: str) -> Callable[[bytes], object]:
    """Return a reader of bytes that puts them into a file first."""
    path = folder() / f"read-{name}"

    def reader(data: bytes) -> object:
        path.write_bytes(data)
        path.chmod(0o600)
        return read(path)

    return reader


def _override(data: bytes) -> Scenario:
    return Scenario().override(data.decode("utf-8", "replace"))


def _authority(data: bytes) -> Authority:
    place = folder() / "authority"
    place.mkdir(exist_ok=True)
    (place / "authority.pem").write_bytes(data)
    (place / "authority.key").write_bytes((local_keys().folder / "authority" / "authority.key").read_bytes())
    (place / "authority.key").chmod(0o600)
    return Authority.load(place)


def _weights(path: Path) -> object:
    return load_weights(path, LOGITS)


def _picture(path: Path) -> object:
    return read_pictures([path])


_SESSION = bytes(16)


def _state_bytes() -> bytes:
    words = np.arange(10, dtype=RING64.dtype)
    share = RepShare(words, words, 24)
    states = SealedStates(folder())
    states.write(SealedState(_SESSION, 1, (ArraySpec("a", "float32", (2, 5), 1.0),), 24, share))
    return (folder() / "sealed" / _SESSION.hex() / "1.state").read_bytes()[:-32]


def _sealed_state(data: bytes) -> SealedState:
    path = folder() / "sealed" / _SESSION.hex() / "1.state"
    path.write_bytes(data + hashlib.sha256(data).digest())
    return SealedStates(folder()).read(_SESSION, 1)
