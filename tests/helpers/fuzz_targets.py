"""Everything that reads bytes from outside, as functions that may raise errors of ours and nothing else.

A digest that stands beside what is read is made anew; what is signed is in fuzz_rounds.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificates
from fuzz_rounds import aggregation_targets
from fuzz_seeds import example, messages
from fuzzing import KEPT, SOMEBODY, Target, folder
from PIL import Image
from small_plan import LOGITS

from fedsec.aggregation.planner import ArraySpec
from fedsec.aggregation.sealed.state import SealedState, SealedStates
from fedsec.aggregation.trust import TrustFile, TrustLimits
from fedsec.cluster.certificates import Authority
from fedsec.cluster.keys import LocalKeys, make_local_keys, write_trust_files
from fedsec.errors import FedsecError, PeerLostError, ProtocolError
from fedsec.lab.images import read_pictures
from fedsec.nn.plan import Plan
from fedsec.nn.weights import load_weights, save_weights
from fedsec.party.main import routes_of, services_of
from fedsec.ring import RING64
from fedsec.scenario import Scenario
from fedsec.serving import parts
from fedsec.serving.weights import plan_from_wire
from fedsec.sharing.replicated import RepShare
from fedsec.transport import Channel, ClusterFile, Deadline, Identity, Meter, PartyConfig, Peer
from fedsec.transport.bodies import decode, pack, unpack
from fedsec.transport.frames import Direction
from fedsec.transport.service import Refused, read_request


def every_target() -> list[Target]:
    """Return all readers."""
    return [target for made in GROUPS.values() for target in made()]


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
            partial(decode, kind=kind, peer=SOMEBODY),
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
        KEPT.callback(service.stop)
    table = {f"{route.tag}/request": route for route in routes_of(services, Meter())}
    # Handlers of the aggregation wait for peers; they are below. A service that begins would connect.
    answered = {route.tag for route in services[-1].routes()} - {"serve", "open_link"}
    answered |= {"fetch_state", "sealed_status"}

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
        Target("request in a frame", partial(unpack, peer=SOMEBODY), tuple(frames)),
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


GROUPS: dict[str, Callable[[], list[Target]]] = {
    "messages": message_targets,
    "requests": request_targets,
    "rounds": aggregation_targets,
    "bytes": byte_targets,
    "files": file_targets,
}
