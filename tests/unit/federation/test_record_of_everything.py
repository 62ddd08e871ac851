"""All that the ServerApp and each aggregator receive and store in a run, searched for one hospital's values.

Positive controls: the same search finds everybody's values in what plain Flower's ServerApp receives, and in
what an aggregator receives and stores when uploads are not masked.
"""

from __future__ import annotations

import itertools
import ssl
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_site import HOSPITALS, START, Run, Site, numpy_app, open_site, run, secured
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.serde import message_to_proto
from flwr.serverapp.strategy import FedAvg
from single_values import Found, Secrets, scan

from fedsec.aggregation.encoding import encode_update
from fedsec.aggregation.messages import NONCE_BYTES
from fedsec.aggregation.planner import ArraySpec, Layout, MetricSpec, plan_encoding
from fedsec.federation import strategy as strategy_module
from fedsec.federation.mod import SecureAggregationMod
from fedsec.federation.plan import RoundPlan
from fedsec.sharing.compressed import Masks
from fedsec.transport import Meter, Peer
from fedsec.transport.sockets import SocketChannel

ROUNDS = 2
LARGEST = {32: 2**28, 64: 2**40}
METRICS = {"train": {"loss": (0.0, 10.0)}, "evaluate": {"accuracy": (0.0, 1.0)}}
RINGS = [32, pytest.param(64, marks=pytest.mark.slow)]
_seeds = itertools.count(20_001)


def plan_of(bits: int) -> RoundPlan:
    return RoundPlan(
        largest_weight=LARGEST[bits],
        smallest_mean_weight=LARGEST[bits] / 4,
        ring_bits=bits,
        train_metrics=METRICS["train"],
        evaluate_metrics=METRICS["evaluate"],
        upload_seconds=30,
        collect_seconds=30,
    )


def change(bits: int, hospital: int, arrays: dict[str, np.ndarray], metrics: dict[str, Any]) -> None:
    """Give each hospital a weight and a loss that cannot turn up by chance."""
    metrics["num-examples"] = LARGEST[bits] // 2 + 987_654_321 // (hospital + 7)
    metrics["loss"] = float(np.sqrt(2.1 + hospital))


@dataclass
class Keeper:
    """A mod inside the hospitals: everything that nobody else may have."""

    everyone: list[Secrets] = field(default_factory=list)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        before = {name: array.numpy() for name, array in message.content.array_records["arrays"].items()}
        reply = call_next(message, context)
        phase = message.metadata.message_type
        numbers = dict(reply.content.metric_records["metrics"])
        one = Secrets(f"{phase} of hospital-{int(context.node_config['partition-id']):02}")
        one.numbers = {key: value for key, value in numbers.items() if not isinstance(value, list)}
        if phase == "train":
            after = reply.content.array_records["arrays"]
            one.arrays["parameters"] = np.concatenate([after[name].numpy().ravel() for name in before])
            update = [after[name].numpy().astype(float) - array for name, array in before.items()]
            one.arrays["update"] = np.concatenate([array.ravel() for array in update])
        else:
            update = []
        for bits in (32, 64):
            one.arrays |= ring_words(bits, phase, update, numbers)
        self.everyone.append(one)
        return reply


def ring_words(
    bits: int, phase: str, update: list[np.ndarray], numbers: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The vector that is shared, as words of the ring, with the weight in it and without."""
    encoding = plan_encoding(HOSPITALS, 2.0, LARGEST[bits], LARGEST[bits] / 4, bits)
    metrics = tuple(MetricSpec(name, *limits) for name, limits in METRICS[phase].items())
    names = START if phase == "train" else {}
    specs = tuple(ArraySpec(name, "float32", array.shape, 2.0) for name, array in names.items())
    layout = Layout(encoding, specs, metrics)
    weight = min(int(numbers["num-examples"]), LARGEST[bits])
    values = {spec.name: float(numbers[spec.name]) for spec in metrics}
    return {
        f"{bits}-bit words": encode_update(layout, update, weight, values),
        f"{bits}-bit words without weight": encode_update(layout, update, 1, values),
    }


@dataclass
class Record:
    """What arrived where: decrypted bytes of every channel, Flower messages, and files."""

    places: dict[str, bytearray] = field(default_factory=lambda: defaultdict(bytearray))

    def flower(self, done: Run) -> None:
        for reply in done.grid.replies:
            self.places["ServerApp, over Flower"] += message_to_proto(reply).SerializeToString()

    def files(self, site: Site) -> None:
        for path in sorted(site.folder.glob("party-*/**/*")):
            if path.is_file():
                name = path.relative_to(site.folder).parts[0]
                self.places[f"{name}, on disk"] += path.read_bytes()

    def found(self, everyone: list[Secrets]) -> list[Found]:
        return scan({place: bytes(data) for place, data in self.places.items()}, everyone)


@pytest.fixture
def own_site(tmp_path: Path) -> Iterator[Site]:
    """A site of its own: nobody else's runs are in its files."""
    site = open_site(tmp_path)
    yield site
    for index in range(3):
        site.stop(index)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    """Everything that any TLS connection of this process takes in, decrypted, by who receives it."""
    kept = Record()
    ends: dict[ssl.SSLSocket, str] = {}
    open_channel, read = SocketChannel.__init__, ssl.SSLSocket.read

    def opening(self: SocketChannel, sock: Any, me: str, peer: Peer, *rest: Any, **named: Any) -> None:
        if me == "server" or me.startswith("party"):
            ends[sock] = f"{me}, from {peer.name}, connection {len(ends)}"
        open_channel(self, sock, me, peer, *rest, **named)

    def reading(self: ssl.SSLSocket, size: int = 1024, buffer: Any = None) -> Any:
        came = read(self, size, buffer)
        if self in ends:
            kept.places[ends[self]] += came if buffer is None else memoryview(buffer)[:came]
        return came

    monkeypatch.setattr(SocketChannel, "__init__", opening)
    monkeypatch.setattr(ssl.SSLSocket, "read", reading)
    return kept


def with_files(site: Site, record: Record, then: Callable[..., None]) -> Callable[..., None]:
    """Look into the aggregators' files when the last hospital trains: the parts of the others lie there."""

    def look(hospital: int, arrays: dict[str, np.ndarray], metrics: dict[str, Any]) -> None:
        if hospital == HOSPITALS - 1:
            record.files(site)
        then(hospital, arrays, metrics)

    return look


@pytest.mark.parametrize("bits", RINGS)
def test_threat_45_and_54_nobody_received_or_stored_a_single_hospitals_value(
    own_site: Site, mod: SecureAggregationMod, record: Record, bits: int
) -> None:
    keeper = Keeper()
    look = with_files(own_site, record, partial(change, bits))

    done = secured(
        own_site, mod, FedAvg(), keeper, seed=next(_seeds), rounds=ROUNDS, change=look, plan=plan_of(bits)
    )
    mod.close()
    record.flower(done)
    record.files(own_site)

    assert all(one.result and len(one.result.included) == HOSPITALS for one in done.rounds)
    assert len(keeper.everyone) == 2 * ROUNDS * HOSPITALS
    assert sum(len(data) for data in record.places.values()) > 100_000
    assert {place.partition(",")[0] for place in record.places} == {
        "ServerApp",
        "server",
        *(f"party-{i}" for i in range(3)),
    }
    assert record.found(keeper.everyone) == []


def test_control_in_plain_flower_the_same_search_finds_everybody(record: Record) -> None:
    keeper = Keeper()
    app = numpy_app(keeper, change=partial(change, 32))

    record.flower(run(app, FedAvg(), seed=next(_seeds), rounds=1))

    found = {one.what for one in record.found(keeper.everyone)}
    for i in range(HOSPITALS):
        name = f"train of hospital-{i:02}"
        assert {
            f"{name}: parameters <f4",
            f"{name}: num-examples zigzag varint",
            f"{name}: loss <f8",
        } <= found
        assert f"evaluate of hospital-{i:02}: accuracy <f8" in found


@pytest.mark.parametrize("bits", RINGS)
def test_control_uploads_without_masks_are_found_on_the_wire_and_on_disk(
    own_site: Site,
    mod: SecureAggregationMod,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
) -> None:
    monkeypatch.setattr(Masks, "take_off", lambda _masks, _words: None)
    keeper = Keeper()
    look = with_files(own_site, record, partial(change, bits))

    secured(
        own_site,
        mod,
        FedAvg(fraction_evaluate=0.0),
        keeper,
        seed=next(_seeds),
        rounds=1,
        change=look,
        plan=plan_of(bits),
    )

    found = record.found(keeper.everyone)
    wire = {one.what for one in found if "from hospital" in one.place}
    disk = {one.what for one in found if "on disk" in one.place}
    words = [f"train of hospital-{i:02}: {bits}-bit words <u{bits // 8}" for i in range(HOSPITALS)]
    assert set(words) <= wire
    # The last hospital's part was not there yet when the files were looked at.
    assert set(words[:-1]) <= disk


def test_one_opening_a_round_and_phase(
    site: Site, mod: SecureAggregationMod, monkeypatch: pytest.MonkeyPatch
) -> None:
    meters: list[Meter] = []

    def logging_meter() -> Meter:
        meters.append(Meter(logging=True))
        return meters[-1]

    monkeypatch.setattr(strategy_module, "Meter", logging_meter)

    done = secured(site, mod, FedAvg(), seed=next(_seeds), rounds=ROUNDS)

    sizes = {
        one.phase: NONCE_BYTES + 4 * (2 + len(METRICS[one.phase]) + sum(a.size for a in one.result.arrays))
        for one in done.rounds
        if one.result
    }
    opened = Counter(
        entry.sender
        for entry in meters[0].log
        if entry.event == "receive" and entry.label.startswith("collect") and entry.size > min(sizes.values())
    )
    assert [one.phase for one in done.rounds] == ["train", "evaluate"] * ROUNDS
    # And one exchange over Flower with each hospital.
    assert len(done.grid.sent) == len(done.grid.replies) == 2 * ROUNDS * HOSPITALS
    assert opened == dict.fromkeys(("party-0", "party-1", "party-2"), 2 * ROUNDS)
