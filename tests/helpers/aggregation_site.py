"""Aggregators and hospitals as processes of their own, over TLS; the collector is in the test."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsec
from fedsec.aggregation.announcement import Announcement, Member, array_digest, encode_config, members
from fedsec.aggregation.collector import Collector, RoundResult
from fedsec.aggregation.links import TlsLinks
from fedsec.aggregation.messages import GetReceipt, Receipt, Signed
from fedsec.aggregation.planner import ArraySpec, MetricSpec, plan_encoding
from fedsec.aggregation.trust import TrustLimits
from fedsec.cluster.cluster import PARTY_COMMAND, Cluster
from fedsec.cluster.process import PartyProcess
from fedsec.transport import ClusterFile, Deadline, Identity, MeterReading

ROOT = Path(fedsec.__file__).parents[1]
PROGRAM = Path(__file__).with_name("hospital_process.py")
SMALL = 1_000
CONFIG = {"epochs": 1, "lr": 0.01}
CLIP, LARGEST_WEIGHT, LARGEST_LOSS = 1.0, 1000, 10.0


class Hospital:
    """A hospital's process: steps go in, what it says comes out, and it always ends."""

    def __init__(self, trust: Path, errors: Path) -> None:
        self._errors = errors
        with errors.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(PROGRAM), str(trust)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        assert self._process.stdin
        assert self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        self._heard, self._ready = b"", False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def done(self) -> bool:
        """Whether a test has taken notice of its end."""
        return self._output.closed

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def do(self, step: str, **details: Any) -> None:
        self._input.write(json.dumps({"do": step, **details}).encode() + b"\n")
        self._input.flush()

    def ready(self) -> None:
        """Wait until it takes steps."""
        if not self._ready:
            assert self._line(90.0) == {"did": "start"}
            self._ready = True

    def hear(self, within_s: float = 90.0) -> dict[str, Any]:
        """Return the answer to the next step; fails when it ends or takes too long."""
        self.ready()
        return self._line(within_s)

    def _line(self, within_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + within_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while b"\n" not in self._heard:
                assert selector.select(deadline - time.monotonic()), f"nothing heard: {self.errors()}"
                more = os.read(self._output.fileno(), 65536)
                assert more, f"it ended with {self._process.wait(60)}: {self.errors()}"
                self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return dict(json.loads(line))

    def kill(self) -> int:
        self._process.kill()
        return self.ended()[0]

    def ended(self, within_s: float = 90.0) -> tuple[int, str]:
        """Wait for its end and return exit code and standard error."""
        try:
            code = self._process.wait(within_s)
        finally:
            self._process.kill()
            self._process.wait()
            with contextlib.suppress(BrokenPipeError):
                self._input.close()
            self._output.close()
        return code, self.errors()

    def finished(self) -> tuple[int, str]:
        """Tell it that there are no more steps."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        return self.ended()

    def errors(self) -> str:
        return self._errors.read_text()


@dataclass
class Round:
    """An announced round, its files for hospitals, and what each hospital contributes."""

    announcement: Announcement
    signed: Signed
    folder: Path
    contributions: dict[str, tuple[np.ndarray, int, float]] = field(default_factory=dict)
    ids: dict[str, bytes] = field(default_factory=dict)

    def contribution(self, name: str) -> dict[str, Any]:
        """Draw what a hospital submits, and return it as the details of its step."""
        generator = np.random.default_rng([*self.announcement.session, *name.encode()])
        size = self.announcement.arrays[0].size
        update = generator.uniform(-CLIP, CLIP, size).astype(np.float32)
        examples, loss = int(generator.integers(50, LARGEST_WEIGHT)), float(generator.uniform(0, 10))
        self.contributions[name] = update, examples, loss
        path = self.folder / f"{name}.npy"
        np.save(path, update)
        return {"update": str(path), "examples": examples, "loss": loss}

    def words(self, name: str) -> np.ndarray:
        """Encode a contribution as the page on the wire format says, in signed integers."""
        update, examples, loss = self.contributions[name]
        largest = (2**31 - 1) // self.announcement.encoding.hospitals
        values = np.rint(update.astype(np.float64) * (examples * (largest / (LARGEST_WEIGHT * CLIP))))
        metric = np.rint(loss * (examples * (largest / (LARGEST_WEIGHT * LARGEST_LOSS))))
        return np.concatenate([values, [examples, metric]]).astype(np.int64)

    def check(self, result: RoundResult, names: Iterable[str], excluded: dict[str, str]) -> None:
        """Check the opened sum against the integer sum, and the mean against plain numpy."""
        names = sorted(names)
        assert (list(result.included), result.excluded) == (names, excluded)
        total = sum(self.words(name) for name in names)
        np.testing.assert_array_equal(result.words.view(np.int32), total)
        updates, weights, losses = zip(*(self.contributions[name] for name in names), strict=True)
        assert result.total_weight == sum(weights)
        plain = np.average([one.astype(np.float64) for one in updates], axis=0, weights=weights)
        hospitals, mean_weight = self.announcement.encoding.hospitals, np.mean(weights)
        bound = hospitals * LARGEST_WEIGHT / (2**32 * mean_weight) * CLIP
        assert result.error_bound == pytest.approx(bound, rel=1e-6)
        assert np.abs(result.arrays[0] - plain).max() <= result.error_bound
        bound *= LARGEST_LOSS / CLIP
        assert result.metrics["loss"] == pytest.approx(np.average(losses, weights=weights), abs=1.01 * bound)


class Site:
    """A cluster of aggregator processes, a collector, and one process a hospital that is kept for rounds."""

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        parties: int = 3,
        hospitals: int = 5,
        *,
        command: Sequence[str] = PARTY_COMMAND,
    ) -> None:
        self.folder = folder
        limits = TrustLimits(minimum_cohort=2, metrics={"loss": (0.0, LARGEST_LOSS)})
        self.cluster = Cluster.local(
            folder / "cluster", parties, hospitals, minimum_cohort=2, limits=limits, command=command
        ).start()
        stack.callback(self._check_end)
        self.pids = list(self.cluster.pids().values())
        self.file = ClusterFile.load(self.cluster.file)
        self.server = Identity.load(self.cluster.identity("server"))
        self.collector = stack.enter_context(Collector(self.file.parties, self.server))
        self.names = sorted(self.file.hospitals)
        self._restarted: dict[str, PartyProcess] = {}
        self._kept: dict[str, Hospital] = {}
        self._all: list[Hospital] = []

    def start(self, trust: Path) -> Hospital:
        """Start a hospital's process; the end of the site ends it at the latest."""
        hospital = Hospital(trust, self.folder / f"hospital-process-{len(self._all)}.stderr")
        self._all.append(hospital)
        self.pids.append(hospital.pid)
        return hospital

    def hospital(self, name: str) -> Hospital:
        """Return the process that plays this hospital, a new one if the last has ended."""
        if name not in self._kept or not self._kept[name].runs:
            self._kept[name] = self.start(self.cluster.trust_file(name))
        return self._kept[name]

    def announcement(self, size: int = SMALL, **fields: Any) -> tuple[Announcement, np.ndarray]:
        model = np.random.default_rng(1).normal(size=size).astype(np.float32)
        values = {
            "version": 1, "session": secrets.token_bytes(16), "round": 1, "phase": "train",
            "roster": members(self.file.hospitals),
            "aggregators": members({one.name: one.public_key for one in self.file.parties}),
            "vector_rule": "rotate", "reveal_to": "server",
            "recipient": Member("server", self.server.public_key),
            "arrays": (ArraySpec("layer", "float32", (size,), CLIP),),
            "array_digests": (array_digest(model),),
            "config": encode_config(CONFIG), "metrics": (MetricSpec("loss", 0.0, LARGEST_LOSS),),
            "encoding": plan_encoding(len(self.names), CLIP, LARGEST_WEIGHT, 50.0),
            "minimum_cohort": 2, "upload_seconds": 60.0,
        }  # fmt: skip
        return Announcement(**{**values, **fields}), model

    def open(self, size: int = SMALL, **fields: Any) -> Round:
        """Announce a round to the aggregators and lay it out for hospitals."""
        announcement, model = self.announcement(size, **fields)
        signed = self.collector.announce(announcement, Deadline.after(30))
        return self.lay_out(announcement, signed, model)

    def lay_out(
        self, announcement: Announcement, signed: Signed, model: np.ndarray, config: Any = None
    ) -> Round:
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir()
        np.save(folder / "model.npy", model)
        (folder / "config.json").write_text(json.dumps(config or CONFIG))
        (folder / "announcement").write_bytes(signed.payload)
        (folder / "signature").write_bytes(signed.signature)
        return Round(announcement, signed, folder)

    def submit(self, round_: Round, names: Iterable[str]) -> None:
        """Let hospitals take part at the same time, each in its process."""
        names = list(names)
        for name in names:
            self.hospital(name).do("accept", round=str(round_.folder))
            self.hospital(name).do("submit", **round_.contribution(name))
        for name in names:
            assert self.hospital(name).hear() == {"did": "accept"}
            round_.ids[name] = bytes.fromhex(self.hospital(name).hear()["id"])

    def collect(self, round_: Round, seconds: float = 30.0) -> RoundResult:
        return self.collector.collect(round_.announcement, Deadline.after(seconds))

    def receipts(self, names: Iterable[str], of: int) -> None:
        """Let hospitals check that they are in the sum."""
        for name in names:
            self.hospital(name).do("receipt")
            assert self.hospital(name).hear() == {"did": "receipt", "of": of}

    def verdicts(self, round_: Round) -> dict[str, str]:
        """Ask every aggregator about every hospital, as that hospital; they must agree."""
        found = []
        for party in self.file.parties:
            found.append({})
            for name in self.names:
                with closing(TlsLinks([party], Identity.load(self.cluster.identity(name)))) as links:
                    message = GetReceipt(round_.announcement.id, round_.ids.get(name, bytes(16)))
                    reply, _ = links.call(party.name, message, Receipt, deadline=Deadline.after(30))
                found[-1][name] = reply.reason or reply.status
        assert all(one == found[0] for one in found), found
        return found[0]

    def meters(self) -> dict[str, MeterReading]:
        return self.cluster.meters()

    def pid(self, party: str) -> int:
        process = self._restarted.get(party)
        found = process.pid if process else self.cluster.pids()[party]
        assert found
        return found

    def signal(self, party: str, number: signal.Signals) -> None:
        os.kill(self.pid(party), number)
        if number is signal.SIGKILL:
            os.waitid(os.P_PID, self.pid(party), os.WEXITED | os.WNOWAIT)

    def restart(self, party: str) -> None:
        """Start a killed aggregator again, with its state and at its port."""
        endpoint = self.file.party(party)
        if party in self._restarted:
            self._restarted[party].end(0)
        listener = socket.create_server((endpoint.host, endpoint.port))
        process = PartyProcess(party, self.folder / f"{party}.log")
        config = self.cluster.folder / "parties" / party / "party.toml"
        process.start([sys.executable, "-m", "fedsec", "party", "--config", str(config)], listener)
        self._restarted[party] = process
        self.pids.append(self.pid(party))
        process.wait_ready(Deadline.after(60))

    def stored(self, party: str, round_: Round) -> list[Path]:
        """Return the files of parts and sums that an aggregator keeps of a round."""
        folder = self.cluster.folder / "parties" / party / "state" / "rounds"
        return list((folder / round_.announcement.id.key.hex()).glob("*"))

    def keeps_nothing(self, round_: Round, within_s: float = 30.0) -> bool:
        """Wait until no aggregator keeps a part or a sum of a round."""
        return until(lambda: not any(self.stored(one.name, round_) for one in self.file.parties), within_s)

    def _check_end(self) -> None:
        """End everything: hospitals and aggregators end cleanly, but for those that were killed."""
        ends = [hospital.finished() for hospital in self._all if not hospital.done]
        for process in self._restarted.values():
            process.ask_to_end()
        codes = {name: process.end(30) for name, process in self._restarted.items()}
        stopped = self.cluster.stop()
        assert ends == [(0, "")] * len(ends)
        assert set(codes.values()) <= {0}
        killed = {name: -signal.SIGKILL if name in codes else 0 for name in stopped}
        assert stopped == killed
        assert [pid for pid in self.pids if Path(f"/proc/{pid}").exists()] == []


def until(condition: Callable[[], bool], within_s: float) -> bool:
    """Wait until a condition holds; returns whether it does in time."""
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def everyone_takes_part(site: Site, size: int = SMALL) -> None:
    """Run a round with every hospital and check all that comes out of it."""
    round_ = site.open(size)
    site.submit(round_, site.names)
    round_.check(site.collect(round_), site.names, {})
    assert site.verdicts(round_) == dict.fromkeys(site.names, "included")
    site.receipts(site.names, of=len(site.names))
    assert site.keeps_nothing(round_)


def counts_of(counts: dict[str, Any], name: str) -> Any:
    """Return one row of a meter, zeros when it has none."""
    return counts.get(name, (0, 0, 0, 0))


def uploaded_bytes(meters: dict[str, MeterReading], hospital: str) -> list[int]:
    """Return the bytes each aggregator has got from a hospital."""
    return [counts_of(reading.by_peer, hospital)[3] for reading in meters.values()]


def upload_answers(meters: dict[str, MeterReading]) -> int:
    """Return how many requests to upload the aggregators have answered."""
    return sum(counts_of(reading.by_label, "upload")[0] for reading in meters.values())
