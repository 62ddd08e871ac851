"""Aggregators that are killed while they add their noise: what they send afterwards is always the same.

Over TLS, with SIGKILL at numbered steps around the sum share, and once more after it was sent.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest

from fedsec.aggregation.client import HospitalClient
from fedsec.aggregation.links import TlsLinks
from fedsec.aggregation.messages import CloseUploads, CollectSum, Received, SumShare
from fedsec.aggregation.noise.terms import Noise
from fedsec.aggregation.planner import ArraySpec, plan_encoding
from fedsec.aggregation.trust import TrustFile, TrustLimits
from fedsec.cluster.keys import write_trust_files
from fedsec.errors import PeerLostError
from fedsec.transport import Deadline

# Test modules are no package here, so what several of them share is found by path.
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from aggregation_site import CONFIG, Round, Site, until
from crashing_aggregator import STEPS

PROGRAM = Path(__file__).parents[1] / "helpers" / "patient_aggregator.py"
WORDS, VICTIM = 2000, "party-1"
NOISE = Noise(l2_clip=1.0, clip_words=8192, variance=8192.0**2, aggregators=3, colluding=2)
QUICK = "Store.set_included before"
"""The share is stored and not yet signed for: it is made again, with the same noise."""
AROUND_THE_SHARE = [
    one
    for one in STEPS
    if one.partition(" ")[0]
    in {
        "PartFolder.write_sum", "PartFolder.erase_parts", "Store.set_included", "Store.add_statement",
        "Store.set_state", "SetSignature", "UploadList", "CollectSum",
    }
]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        command = (sys.executable, str(PROGRAM))
        one = Site(tmp_path_factory.mktemp("noise"), stack, hospitals=3, command=command)
        limits = TrustLimits(minimum_cohort=2, weights=("equal",), largest_clip=1.0, hospital_epsilon=1000.0)
        write_trust_files(one.cluster.keys, one.file, limits)
        yield one


def opened(site: Site) -> Round:
    return site.open(
        WORDS,
        arrays=(ArraySpec("layer", "float32", (WORDS,), 1.0),),
        metrics=(),
        encoding=plan_encoding(3, 1.0, 1, 1.0, weights="equal", noise=NOISE),
    )


def upload(site: Site, round_: Round) -> np.ndarray:
    """Let every hospital contribute; returns the integer sum of what they send, by plain numpy."""
    model = np.load(round_.folder / "model.npy")
    total = np.zeros(WORDS)
    for number, name in enumerate(site.names):
        update = np.random.default_rng([number, *round_.announcement.session]).normal(size=WORDS)
        update *= 0.9 / np.linalg.norm(update)
        with HospitalClient(TrustFile.load(site.cluster.trust_file(name))) as client:
            payload, signature = round_.signed.payload, round_.signed.signature
            accepted = client.accept(payload, signature, [model], CONFIG)
            client.submit(accepted, [update], 1, {})
        total += np.rint(update * NOISE.clip_words)
    return total


def kept_alive(site: Site) -> None:
    """Start again whoever is dead."""
    processes = site.cluster._processes.values()
    if any(process.exit_code() is not None for process in processes):
        site.cluster.revive()


def share_of(site: Site, round_: Round, party: str) -> tuple[SumShare, bytes]:
    """Ask one party for its share as the server does, and again until it is ready or back."""
    (endpoint,) = (one for one in site.file.parties if one.name == party)
    message, deadline = CollectSum(round_.announcement.id), Deadline.after(60)
    while True:
        kept_alive(site)
        with contextlib.suppress(PeerLostError), closing(TlsLinks([endpoint], site.server)) as links:
            reply, body = links.call(
                party, message, SumShare, deadline=Deadline.after(10), max_body_bytes=10**6
            )
            if reply.ready:
                return reply, bytes(body)
        deadline.remaining(party)
        time.sleep(0.05)


def close(site: Site, round_: Round) -> None:
    for endpoint in site.file.parties:
        message, deadline = CloseUploads(round_.announcement.id), Deadline.after(60)
        while True:
            kept_alive(site)
            with contextlib.suppress(PeerLostError), closing(TlsLinks([endpoint], site.server)) as links:
                links.call(endpoint.name, message, Received, deadline=Deadline.after(10))
                break
            deadline.remaining(endpoint.name)
            time.sleep(0.05)


def run(site: Site, step: str) -> None:
    round_ = opened(site)
    expected = upload(site, round_)
    crash = site.cluster.folder / "parties" / VICTIM / "crash"
    crash.write_text(step)
    close(site, round_)
    # The victim first: its death ends what is asked of it at once, and it is started again.
    parties = sorted((one.name for one in site.file.parties), key=lambda name: name != VICTIM)
    first = {name: share_of(site, round_, name) for name in parties}
    assert not crash.exists(), "the step was not reached"
    # Killed once more, with the share sent: nothing that is drawn at a start may be in it.
    site.signal(VICTIM, signal.SIGKILL)
    assert until(lambda: site.cluster._processes[VICTIM].exit_code() is not None, 30)
    assert {name: share_of(site, round_, name) for name in parties} == first
    result = site.collect(round_)
    noise = result.words.view(np.int32)[:WORDS] - expected
    # One draw of each aggregator, of the full variance; a second one of one of them would make it 4/3.
    # 2,000 squares are within 0.28 of their mean but with a probability below 1e-13 (Chernoff).
    assert abs(float(np.mean(noise**2)) / (3 * NOISE.variance) - 1) < 0.28
    assert result.total_weight == 3


def test_threat_53_a_killed_aggregator_resends_the_noise_it_drew(site: Site) -> None:
    run(site, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("step", AROUND_THE_SHARE)
def test_threat_53_killed_at_any_step_around_the_share(site: Site, step: str) -> None:
    run(site, step)
