"""After a run for nobody, is the model anywhere? Memory and files of every process, in every encoding.

Server, hospitals and parties are processes of their own. What is looked for is the last state, which only
this test puts together, and the state before it, which hospitals alone have had.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsec.aggregation.sealed.state import SealedStates
from fedsec.aggregation.sealed.terms import SEALED_FRACTION_BITS
from fedsec.aggregation.trust import TrustLimits
from fedsec.cluster.cluster import Cluster
from fedsec.nn import plaintext
from fedsec.nn.network import DenseLayer, Network, ReluLayer
from fedsec.nn.planner import plan_network
from fedsec.nn.sealed import serving_digest
from fedsec.ring import decode
from fedsec.serving.client import Client
from fedsec.serving.owner import Owner
from fedsec.serving.sealed import SealedModel
from fedsec.sharing import replicated
from fedsec.transport import ClusterFile, Identity

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import flower_roles
from scanner import Scanner
from sealed_model import public_model

ROLES = Path(flower_roles.__file__)
PARTIES = ("party-0", "party-1", "party-2")
HOSPITALS = ("hospital-00", "hospital-01", "hospital-02")


def network(arrays: list[np.ndarray]) -> Network:
    layers = (DenseLayer("in", *arrays[:2]), ReluLayer("relu"), DenseLayer("out", *arrays[2:]))
    return Network("scanned", arrays[0].shape[:1], layers)


def planned() -> SealedModel:
    """The public plan: from the initial parameters and what rounds can add to them."""
    arrays = [array.astype(np.float64) for array in flower_roles.initial().values()]
    size = (
        max(float(np.abs(array).max()) for array in arrays) + flower_roles.ROUNDS * flower_roles.CLIP * 1.01
    )
    return public_model(network(arrays), size)


@dataclass
class Run:
    """A finished training whose processes still live."""

    cluster: Cluster
    folder: Path
    server: subprocess.Popen[str]
    hospitals: list[subprocess.Popen[str]]
    trained: dict[str, Any]

    def state(self, number: int) -> np.ndarray:
        """Put a state together from the parties' files, as nobody but a test would: float64."""
        session = bytes.fromhex(self.trained["trained"])
        shares = [SealedStates(self._of(name)).read(session, number).share for name in PARTIES]
        return decode(replicated.reconstruct(shares), SEALED_FRACTION_BITS)

    @property
    def result(self) -> Path:
        """What the server's strategy returned."""
        return self.folder.with_suffix(".npz")

    def numbers(self) -> tuple[int, ...]:
        return SealedStates(self._of("party-0")).numbers(bytes.fromhex(self.trained["trained"]))

    def _of(self, name: str) -> Path:
        return self.folder / "parties" / name / "state"

    def processes(self) -> dict[str, int]:
        """The pids of all but the hospitals."""
        return {"server": self.server.pid, **self.cluster.pids()}


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(ROLES), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def hear(role: subprocess.Popen[str], word: str) -> dict[str, Any]:
    assert role.stdout is not None
    for line in role.stdout:
        said: dict[str, Any] = json.loads(line)
        assert not said.get("aborted"), said
        if word in said:
            return said
    raise AssertionError(f"the process ended with exit code {role.wait()}")


@contextmanager
def training(folder: Path, reveal_to: str) -> Iterator[Run]:
    """Run all rounds; the processes live on until the end of the block."""
    limits = TrustLimits(reveal_to=(reveal_to,), ring_bits=(32, 64), metrics={"loss": (0.0, 10.0)})
    with ExitStack() as stack:
        cluster = stack.enter_context(
            Cluster.local(folder, hospitals=len(HOSPITALS), limits=limits, minimum_cohort=len(HOSPITALS))
        )
        sockets = [str(folder / f"{number}.sock") for number in range(len(HOSPITALS))]
        hospitals = [
            stack.enter_context(
                process("hospital", str(cluster.trust_file(name)), str(number), sockets[number])
            )
            for number, name in enumerate(HOSPITALS)
        ]
        for hospital in hospitals:
            hear(hospital, "ready")
        model = planned()
        settings = {
            "sockets": sockets,
            "cluster": str(cluster.file),
            "identity": str(cluster.identity("server")),
            "reveal_to": reveal_to,
            # Not among what is scanned.
            "result": str(folder.with_suffix(".npz")),
            "serves": serving_digest(model.plan, model.sources).hex() if reveal_to == "nobody" else "",
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        server = stack.enter_context(process("server", str(folder / "settings.json")))
        yield Run(cluster, folder, server, hospitals, hear(server, "trained"))


def plain_rounds() -> list[np.ndarray]:
    """Each round's model as plain averaging gives it: the same app, without anything of ours around it."""
    arrays = [array.astype(np.float64) for array in flower_roles.initial().values()]
    models = []
    for number in range(1, flower_roles.ROUNDS + 1):
        updates = []
        for hospital in range(len(HOSPITALS)):
            generator = np.random.default_rng([hospital, number])
            updates.append(
                [
                    (0.9 * a + generator.uniform(-flower_roles.STEP, flower_roles.STEP, a.shape)) - a
                    for a in arrays
                ]
            )
        arrays = [a + np.mean([update[i] for update in updates], axis=0) for i, a in enumerate(arrays)]
        models.append(np.concatenate([a.reshape(-1) for a in arrays]))
    return models


@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nobody_holds_the_last_model_in_memory_or_files_and_it_is_served(
    tmp_path: Path, thorough: bool
) -> None:
    with training(tmp_path / "run", "nobody") as run:
        last = run.state(flower_roles.ROUNDS)
        before = {number: run.state(number) for number in run.numbers() if number < flower_roles.ROUNDS}
        # It is what plain averaging gives; the server is left with the public beginning.
        np.testing.assert_allclose(last, plain_rounds()[-1], atol=1e-5)
        with np.load(run.result) as arrays:
            for given, found in zip(flower_roles.initial().values(), arrays.values(), strict=True):
                np.testing.assert_array_equal(given, found)
        assert before
        scanner = Scanner(
            {"last": last, **{f"state {number}": state for number, state in before.items()}},
            {SEALED_FRACTION_BITS, *(spec.fraction_bits for spec in planned().plan.weight_specs)},
        )
        for name, pid in run.processes().items():
            assert scanner.in_process(pid) == set(), name
        # The positive control: hospitals have had the state before the last, and never the last.
        asked = run.hospitals if thorough else run.hospitals[:1]
        held = [scanner.in_process(hospital.pid) for hospital in asked]
        assert all(
            any(f"state {flower_roles.ROUNDS - 1}: floats" in name for name in names) for names in held
        )
        assert not any(name.startswith("last") for names in held for name in names)
        _serve(run, last)
        if thorough:
            for name, pid in run.processes().items():
                assert scanner.in_process(pid) == set(), f"{name}, while it is served"
        assert scanner.in_files(run.folder) == {}


def _serve(run: Run, last: np.ndarray) -> None:
    """Serve the last state from where it lies, and compare the answers with the network's."""
    public = planned()
    model = SealedModel(
        plan=public.plan, sources=public.sources, session=bytes.fromhex(run.trained["trained"]),
        number=run.trained["number"], words=public.words, fraction_bits=public.fraction_bits,
    )  # fmt: skip
    ends = np.cumsum([int(np.prod(shape)) for shape in flower_roles.ARRAYS.values()])[:-1]
    arrays = [
        part.reshape(shape)
        for part, shape in zip(np.split(last, ends), flower_roles.ARRAYS.values(), strict=True)
    ]
    asked = np.random.default_rng(4).uniform(size=(4, arrays[0].shape[0]))
    file = ClusterFile.load(run.cluster.file)
    with Owner(file.computing, Identity.load(run.cluster.identity("owner"))) as owner:
        owner.share_sealed(model)
        owner.serve()
        with Client.connect(run.cluster) as user:
            expected = plaintext.predict(*plan_network(network(arrays)), asked)
            np.testing.assert_allclose(user.predict(asked), expected, atol=1e-2)


@pytest.mark.slow
def test_hospitals_alone_hold_a_model_for_hospitals(tmp_path: Path) -> None:
    with training(tmp_path / "run", "hospitals") as run:
        last = run.state(flower_roles.ROUNDS)
        np.testing.assert_allclose(last, plain_rounds()[-1], atol=1e-5)
        scanner = Scanner(
            {"last": last, "before": run.state(flower_roles.ROUNDS - 1)}, {SEALED_FRACTION_BITS}
        )
        for name, pid in run.processes().items():
            assert scanner.in_process(pid) == set(), name
        assert all(scanner.in_process(hospital.pid) for hospital in run.hospitals)
        assert scanner.in_files(run.folder) == {}


@pytest.mark.slow
def test_the_server_of_a_plain_run_is_found_with_the_model(tmp_path: Path) -> None:
    """The positive control: the same processes with ``reveal_to = "server"``, the same scan."""
    with training(tmp_path / "run", "server") as run:
        assert run.trained["trained"] is None
        with np.load(run.result) as arrays:
            last = np.concatenate([array.reshape(-1) for array in arrays.values()]).astype(np.float64)
        np.testing.assert_allclose(last, plain_rounds()[-1], atol=1e-5)
        scanner = Scanner({"last": last}, {SEALED_FRACTION_BITS})
        found = {name: scanner.in_process(pid) for name, pid in run.processes().items()}
        assert any("floats" in name for name in found["server"])
        assert not any(found[name] for name in PARTIES)
