"""Scenarios whose model stays in shares, at smoke size: one for hospitals, one for nobody."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fedsec
from fedsec.aggregation.sealed.state import SealedStates
from fedsec.errors import ScenarioError
from fedsec.lab.clear import keras_logits
from fedsec.lab.experiment import local_cluster
from fedsec.lab.images import read_test_images
from fedsec.lab.progress import Reporter
from fedsec.lab.result import RunResult
from fedsec.lab.share import share
from fedsec.learning import models
from fedsec.learning.backend import keras
from fedsec.scenario import Scenario
from fedsec.serving.client import Client
from fedsec.sharing import replicated

ROOT = Path(fedsec.__file__).parent.parent
SMOKE = (
    "training.rounds=2", "training.examples=600", "training.test_examples=90",
    "hospitals.count=3", "aggregation.minimum_cohort=2",
)  # fmt: skip


class Listener(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def scenario_of(reveal_to: str, *more: str) -> Scenario:
    overrides = [*SMOKE, f"aggregation.reveal_to={reveal_to}", *more]
    return Scenario.load(ROOT / "scenarios" / "ten-equal-hospitals", overrides)


def held(run: Path, number: int) -> np.ndarray:
    """What the three parties of a run hold together, as parameters one after the other."""
    states = []
    for party in ("party-0", "party-1", "party-2"):
        kept = SealedStates(run / "parties" / party / "state")
        (session,) = kept.sessions()
        states.append(kept.read(session, number))
    words = replicated.reconstruct([state.share for state in states])
    assert {state.closed for state in states} in ({True}, {False})
    return words.astype(np.int64) * 2.0 ** -states[0].fraction_bits


def parameters(model: Path) -> np.ndarray:
    return np.concatenate([one.ravel() for one in keras.models.load_model(model).get_weights()])


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_hospitals_train_evaluate_and_store_a_model_that_the_server_never_has(tmp_path: Path) -> None:
    listener = Listener()
    result = fedsec.run_scenario(scenario_of("hospitals"), runs=tmp_path, reporter=listener)

    assert [report.included for report in result.rounds] == [3, 3]
    assert any("share one process" in one for one in listener.said)
    stored = parameters(result.folder.model)
    np.testing.assert_array_equal(stored, held(result.folder.path, 2).astype(np.float32))
    assert 0.0 <= result.accuracy <= 1.0
    for party in ("party-0", "party-1", "party-2"):
        kept = SealedStates(result.folder.path / "parties" / party / "state")
        assert kept.numbers(kept.sessions()[0]) == (1, 2), "the evaluation erased what is behind"


@pytest.mark.slow
def test_a_sealed_model_is_the_one_of_a_run_in_which_the_server_has_it(tmp_path: Path) -> None:
    sealed = fedsec.run_scenario(scenario_of("hospitals"), runs=tmp_path / "sealed")
    opened = fedsec.run_scenario(scenario_of("server"), runs=tmp_path / "opened")

    # The same training from the same seed: rounding to 24 bits is all that differs, and what it grows to.
    assert np.abs(parameters(sealed.folder.model) - parameters(opened.folder.model)).max() < 1e-4
    assert sealed.accuracy == pytest.approx(opened.accuracy, abs=0.03)


def test_a_model_for_nobody_ends_closed_with_its_plan_and_no_parameters(tmp_path: Path) -> None:
    result = fedsec.run_scenario(scenario_of("nobody"), runs=tmp_path)

    folder = result.folder
    assert [report.included for report in result.rounds] == [3, 3]
    assert [report.accuracy is None for report in result.rounds] == [False, True]
    assert not folder.model.exists()
    assert not folder.weights.exists()
    assert folder.plan.is_file()
    kept = json.loads((folder.path / "sealed.json").read_text())
    assert kept["number"] == 2
    for party in ("party-0", "party-1", "party-2"):
        states = SealedStates(folder.path / "parties" / party / "state")
        state = states.read(bytes.fromhex(kept["session"]), 2)
        assert state.closed
        assert len(state.serves) == 32
    assert np.isfinite(held(folder.path, 2)).all()
    _answers_as_keras_does(result, held(folder.path, 2))


def _answers_as_keras_does(result: RunResult, last: np.ndarray) -> None:
    """Serve a finished run from its parties' states; only this test puts the last one together."""
    folder, images = result.folder, read_test_images(range(10))
    with local_cluster(folder, result.scenario) as cluster, share(folder.path, cluster) as shared:
        shared.serve(num_requests=20, reveals=("logits", "label"))
        with Client.connect(cluster) as user:
            logits, labels = user.predict(images), user.predict(images, "label")
        assert shared.wait(90) == 20
    model = models.by_name(result.scenario.training.model)
    shapes = [array.shape for array in model.get_weights()]
    parts = np.split(last, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
    model.set_weights([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])
    expected = keras_logits(model, images)
    np.testing.assert_allclose(logits, expected, atol=0.02)
    chosen = np.take_along_axis(expected, labels.astype(int).reshape(-1, 1), axis=1)[:, 0]
    np.testing.assert_allclose(chosen, expected.max(axis=1), atol=0.04)


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        (("strategy.name=fedadam",), ScenarioError, "needs the average in the clear"),
        (("training.test_examples=2",), ScenarioError, "not one for each"),
    ],
)
def test_what_cannot_go_together_is_refused(more: tuple[str, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        scenario_of("hospitals", *more)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("reveal_to", ["hospitals", "nobody"])
def test_server_and_hospitals_in_processes_of_their_own(tmp_path: Path, reveal_to: str) -> None:
    scenario = scenario_of(reveal_to, "training.model=mlp")

    result = fedsec.run_scenario(scenario, runs=tmp_path, engine="deployment")

    assert [report.included for report in result.rounds] == [3, 3]
    if reveal_to == "hospitals":
        stored = parameters(result.folder.model)
        np.testing.assert_array_equal(stored, held(result.folder.path, 2).astype(np.float32))
    else:
        assert not result.folder.model.exists()
        assert np.isfinite(held(result.folder.path, 2)).all()
