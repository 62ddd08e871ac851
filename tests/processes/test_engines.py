"""The same Flower apps on three engines: the opened words are the integer sum over the same hospitals.

The apps are NumPy's, with updates that are known in advance, so that the expected integers are numpy's own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fedsec.aggregation.trust import TrustLimits
from fedsec.cluster.cluster import Cluster
from fedsec.cluster.guard import descendants
from fedsec.federation.bundle import write_app
from fedsec.federation.flower import Flower
from fedsec.federation.grid import InProcessGrid, node_configs, run_server_app
from fedsec.federation.mod import secure_aggregation

# Test modules are no package here, so what several of them share is found by path.
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import numpy_apps as apps

ROOT = Path(__file__).resolve().parents[2]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Flower's simulation engine needs the extra fedsec[ray]"
)
IN_THE_SUM = ["hospital-00", "hospital-02"]


@contextmanager
def site(folder: Path) -> Iterator[Cluster]:
    limits = TrustLimits(
        minimum_cohort=2,
        largest_weight=apps.LARGEST_WEIGHT,
        metrics={"loss": (0.0, apps.LARGEST_LOSS)},
    )
    with Cluster.local(folder, 3, apps.HOSPITALS, minimum_cohort=2, limits=limits) as cluster:
        yield cluster


def environment(folder: Path, rounds: int) -> dict[str, str]:
    return {
        apps.RUN_VARIABLE: str(folder),
        apps.ROUNDS_VARIABLE: str(rounds),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")]),
    }


def wait_for(path: Path, flower: Flower, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        flower.check()
        assert not flower.ended(), flower.last_words()
        assert time.monotonic() < deadline, flower.last_words()
        time.sleep(0.05)


def in_process(cluster: Cluster, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(cluster.folder, rounds).items():
        monkeypatch.setenv(name, value)
    trust = [cluster.trust_file(name) for name in cluster.keys.hospitals]
    run_server_app(apps.server, InProcessGrid(apps.client, node_configs(len(trust), trust)))
    secure_aggregation.close()


def on_ray(cluster: Cluster, rounds: int) -> None:
    folder = cluster.folder
    trust = {"FEDSEC_TRUST": str(folder / "keys" / "trust")}
    app = write_app(folder / "app", "numpy-apps", client="numpy_apps:client", server="numpy_apps:server")
    with Flower(folder / "flower", folder / "logs", environment(folder, rounds) | trust) as flower:
        flower.start_superlink(simulation=True)
        flower.submit(app, {"num-supernodes": apps.HOSPITALS, "client-resources-num-cpus": 1})
        wait_for(folder / "done", flower)


def deployed(cluster: Cluster, rounds: int) -> None:
    folder = cluster.folder
    app = write_app(folder / "app", "numpy-apps", client="numpy_apps:client", server="numpy_apps:server")
    nodes: Mapping[str, Mapping[str, str | int]] = {
        name: {"partition-id": number, "fedsec-trust": str(cluster.trust_file(name))}
        for number, name in enumerate(cluster.keys.hospitals)
    }
    with Flower(folder / "flower", folder / "logs", environment(folder, rounds)) as flower:
        flower.start_superlink()
        flower.start_supernodes(nodes)
        flower.submit(app)
        wait_for(folder / "done", flower)
        started = descendants(os.getpid())
    left = set(started) & set(descendants(os.getpid()))
    assert left == set(cluster.pids().values())


def words(partition: int, server_round: int, before: Mapping[str, np.ndarray]) -> np.ndarray:
    """Encode an update as the page on the wire format says, in signed integers."""
    added = apps.change(partition, server_round)
    update = [(before[name] + added[name]).astype(np.float64) - before[name] for name in apps.SHAPES]
    examples, loss = apps.examples_of(partition), apps.loss_of(partition)
    largest = (2**31 - 1) // apps.HOSPITALS
    flat = np.concatenate([array.reshape(-1) for array in update])
    values = np.rint(flat * (examples * (largest / (apps.LARGEST_WEIGHT * apps.CLIP))))
    metric = np.rint(loss * (examples * (largest / (apps.LARGEST_WEIGHT * apps.LARGEST_LOSS))))
    return np.concatenate([values, [examples, metric]]).astype(np.int64)


def check(folder: Path, rounds: int) -> None:
    for number in range(1, rounds + 1):
        record = json.loads((folder / f"round-{number}.json").read_text())
        before = np.load(folder / f"after-{number - 1}.npz", allow_pickle=False)
        present = [p for p in range(apps.HOSPITALS) if p != apps.FAILS]
        assert record["included"] == IN_THE_SUM
        assert record["sent"] == [apps.HOSPITALS] * number, "one exchange a round"
        assert record["statuses"] == {"stored": 2, "failed": 1}
        opened = np.load(folder / f"words-{number}.npy", allow_pickle=False)
        np.testing.assert_array_equal(opened.view(np.int32), sum(words(p, number, before) for p in present))


def test_in_process_the_opened_words_are_the_integer_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site(tmp_path) as cluster:
        in_process(cluster, 2, monkeypatch)
    check(tmp_path, 2)


def test_deployed_the_opened_words_are_the_integer_sum_and_no_process_is_left(tmp_path: Path) -> None:
    with site(tmp_path) as cluster:
        deployed(cluster, 1)
    check(tmp_path, 1)


@needs_ray
def test_on_ray_the_opened_words_are_the_integer_sum(tmp_path: Path) -> None:
    with site(tmp_path) as cluster:
        on_ray(cluster, 1)
    check(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param(on_ray, marks=needs_ray), deployed])
def test_several_rounds(engine: Callable[[Cluster, int], None], tmp_path: Path) -> None:
    with site(tmp_path) as cluster:
        engine(cluster, 3)
    check(tmp_path, 3)
