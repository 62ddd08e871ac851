"""Readers of what is signed in a round: announcements, upload headers, statements, receipts.

Whoever attacks has a key: each payload is signed anew by whoever may sign it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aggregation_world import World
from fuzzing import KEPT, SOMEBODY, Target, folder

from fedsec.aggregation.aggregator import Aggregator
from fedsec.aggregation.collector import Collector
from fedsec.aggregation.encoding import encode_update
from fedsec.aggregation.making import make_parts
from fedsec.aggregation.messages import (
    LABELS,
    Announce,
    ChainHead,
    CloseUploads,
    CollectSum,
    GetReceipt,
    Hello,
    ListStatement,
    Receipt,
    Received,
    SetSignature,
    SetStatement,
    Signed,
    Stored,
    Upload,
    UploadHeader,
    UploadList,
    header_digest,
)
from fedsec.aggregation.receipt_file import ReceiptFile, Receipts, verify_receipt
from fedsec.aggregation.receipts import check_receipt
from fedsec.aggregation.signing import sign
from fedsec.errors import FedsecError, ProtocolError, RangeError, TrustError
from fedsec.transport import Deadline, Peer
from fedsec.transport.bodies import decode

_MODEL = [np.zeros((2, 3), np.float32), np.zeros(4, np.float32)]


class Stage:
    """A round in memory, and how far the first aggregator had come in it: to that it goes back after a play.

    Args:
        name: Of its folder.
        played: Whether the round was played to its end, so that there is something to hear of it.
    """

    def __init__(self, name: str, *, played: bool) -> None:
        self.world = world = KEPT.enter_context(World(folder() / name))
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
        stored = [
            world.network.ask(hospital.peer, one, Upload(made.header), made.parts[one])[0]
            for hospital, made in zip(world.hospitals, self.parts, strict=True)
            for one in world.network.aggregators
        ]
        self.stored = [msgspec.msgpack.decode(reply, type=Stored) for reply in stored]
        self._keep("uploaded")
        self._listen()
        world.close_uploads(self.announcement)
        question = GetReceipt(self.announcement.id, self.parts[0].upload_id)
        self.receipt = world.network.ask(world.hospitals[0].peer, "agg-0", question)[0]
        self.sums = {
            name: world.network.ask(world.server.peer, name, CollectSum(self.announcement.id))
            for name in world.network.aggregators
        }

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
    receipt, mine = decode(payload, Receipt, SOMEBODY), stage.parts[0]
    header = header_digest(mine.header.payload)
    check_receipt(stage.announcement, stage.world.hospitals[0].name, mine.upload_id, header, receipt)


class Replies:
    """What a collector hears of a round that is over, the first aggregator's words made up."""

    def __init__(self, stage: Stage, first: bytes) -> None:
        self._sums = {**stage.sums, "agg-0": (first, stage.sums["agg-0"][1])}

    def call(
        self, aggregator: str, message: msgspec.Struct, reply: type[Any], *, deadline: Deadline, **_: Any
    ) -> tuple[Any, bytearray]:
        if not isinstance(message, CollectSum):
            return Received(), bytearray()
        encoded, body = self._sums[aggregator]
        return decode(encoded, reply, SOMEBODY), bytearray(body)

    def close(self) -> None: ...


def _collect(stage: Stage, payload: bytes) -> None:
    collector = Collector([], stage.world.server, links=Replies(stage, payload))  # type: ignore[arg-type]
    collector.collect(stage.announcement, Deadline.after(0.02))


def aggregation_targets() -> list[Target]:
    fresh, stage = Stage("fresh", played=False), Stage("played", played=True)
    announcement = fresh.announcement.encode()
    cases: tuple[tuple[str, Callable[[Stage, bytes], object], bytes], ...] = (
        ("upload header", _upload, stage.parts[0].header.payload),
        ("list of uploads", partial(_statement, kind=ListStatement), stage.said(UploadList)),
        ("included set", partial(_statement, kind=SetStatement), stage.said(SetSignature)),
        ("chain head", partial(_statement, kind=ChainHead), msgspec.msgpack.encode(ChainHead(1, bytes(32)))),
        ("receipt", _receipt, stage.receipt),
        ("sum share", _collect, stage.sums["agg-0"][0]),
    )
    trees = (msgspec.msgpack.decode(announcement),)
    receipt = _receipt_file(stage)
    return [
        Target("announcement", partial(fresh.play, part=_announce), (announcement,), trees),
        *(
            Target(name, partial(stage.play, part=part), (payload,), (msgspec.msgpack.decode(payload),))
            for name, part, payload in cases
        ),
        Target(
            "receipt file",
            _verify,
            (receipt,),
            ([json.loads(line) for line in receipt.splitlines()],),
            _lines,
        ),
    ]


def _receipt_file(stage: Stage) -> bytes:
    receipts, round_id = Receipts(folder()), stage.announcement.id
    header, name = stage.parts[0].header, stage.world.hospitals[0].name
    receipts.begin(round_id, ReceiptFile(name, stage.world.sign(stage.announcement), header, {}))
    receipts.acknowledge(round_id, {one.aggregator: one.signature for one in stage.stored[:3]})
    receipts.prove(round_id, msgspec.msgpack.decode(stage.receipt, type=Receipt))
    return receipts.path(round_id).read_bytes()


def _lines(tree: Any) -> bytes:
    lines = tree if isinstance(tree, list) else [tree]
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def _verify(data: bytes) -> None:
    path = folder() / "read.receipt"
    path.write_bytes(data)
    verify_receipt(ReceiptFile.load(path), None)
