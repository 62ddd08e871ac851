from collections.abc import Sequence

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from fedsec.aggregation.collector import RoundResult
from fedsec.aggregation.planner import plan_encoding
from fedsec.errors import RoundAbortedError
from fedsec.federation.observer import ObservedUpdate, SimulationObserver
from fedsec.federation.strategy import SecureRound
from fedsec.lab.participants import examples_of, strategy_of
from fedsec.lab.plan import round_plan
from fedsec.lab.result import RoundReport
from fedsec.lab.rounds import Rounds
from fedsec.learning.data import Mnist
from fedsec.scenario import Scenario


@pytest.fixture
def mnist() -> Mnist:
    images = np.arange(100 * 784, dtype=np.uint32).astype(np.uint8).reshape(100, 28, 28)
    labels = (np.arange(100) % 10).astype(np.uint8)
    return Mnist(images, labels, images, labels)


@pytest.mark.parametrize("partition", ["equal", "dirichlet"])
def test_each_hospital_has_its_own_part_of_the_first_examples(partition: str, mnist: Mnist) -> None:
    scenario = Scenario().override("training.examples=60", f"hospitals.partition={partition}")

    examples = [examples_of(scenario, mnist)(hospital) for hospital in range(10)]

    images = np.concatenate([images for images, _ in examples])
    expected = mnist.train_images[:60, ..., np.newaxis] / np.float32(255)
    assert images.shape == (60, 28, 28, 1)
    order = lambda array: np.sort(array.reshape(60, -1).astype(np.float64) @ np.arange(784))  # noqa: E731
    np.testing.assert_allclose(order(images), order(expected), rtol=1e-6)
    assert all(len(images) == len(labels) >= 1 for images, labels in examples)
    again = examples_of(scenario, mnist)(3)
    np.testing.assert_array_equal(again[0], examples[3][0])


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["hospitals.count=1000"],
        ["hospitals.count=30", "hospitals.partition=dirichlet"],
        ["hospitals.count=2", "aggregation.minimum_cohort=2", "training.examples=2"],
        ["hospitals.count=1000", "hospitals.partition=dirichlet", "aggregation.ring_bits=64"],
    ],
)
def test_the_constants_of_a_round_fit_the_ring(overrides: Sequence[str]) -> None:
    scenario = Scenario().override(*overrides)
    plan = round_plan(scenario)

    encoding = plan_encoding(
        scenario.hospitals.count, plan.clip, plan.largest_weight, plan.smallest_mean_weight, plan.ring_bits
    )

    assert encoding.error_bound < 2 * plan.clip * 2**-20
    assert plan.largest_weight >= scenario.training.examples / scenario.hospitals.count
    assert plan.largest_weight <= scenario.training.examples


def test_strategies_are_flowers_own_and_ask_hospitals_for_no_evaluation() -> None:
    for name, kind in (("fedavg", FedAvg), ("fedavgm", FedAvgM), ("fedadam", FedAdam)):
        strategy = strategy_of(Scenario().override(f"strategy.name={name}").strategy)
        assert type(strategy) is kind
        assert strategy.fraction_evaluate == 0.0


def test_the_momentum_of_a_scenario_is_its_strategys() -> None:
    settings = Scenario().override("strategy.name=fedavgm", "strategy.server_momentum=0.75").strategy
    strategy = strategy_of(settings)
    assert isinstance(strategy, FedAvgM)
    assert (strategy.server_momentum, strategy.server_learning_rate) == (0.75, 1.0)


def test_a_training_without_any_average_is_an_error_that_says_what_hospitals_answered() -> None:
    reports: list[RoundReport] = []
    plan = round_plan(Scenario())
    rounds = Rounds(["hospital-00", "hospital-01"], reports.append, plan, SimulationObserver())
    secure = SecureRound(
        server_round=1,
        phase="train",
        statuses={"trust": 2},
        result=None,
        aborted="nobody uploaded",
        seconds=0.1,
    )

    rounds.evaluated(0, 2.3, 0.1)
    rounds.secured(secure)
    rounds.evaluated(1, 2.3, 0.1)

    assert [(report.included, report.difference, report.aborted) for report in reports] == [
        (0, None, "nobody uploaded")
    ]
    with pytest.raises(RoundAbortedError, match=r"none of 1 rounds.*'trust': 2"):
        rounds.check()


class SawTwo(SimulationObserver):
    """Saw an update of 1 with 300 examples, and one of 5 with 100."""

    def take(self) -> dict[int, ObservedUpdate]:
        return {
            number: ObservedUpdate(number, (np.full(2, value),), examples, {}, 0.0)
            for number, (value, examples) in enumerate([(1.0, 300), (5.0, 100)])
        }


@pytest.mark.parametrize(
    ("overrides", "opened", "difference"),
    [
        ([], 2.0, 0.0),
        ([], 3.0, 1.0),
        # Under differential privacy numbers of examples are no weights, and noise of aggregators is no error.
        (["privacy.target_epsilon=8"], 3.0, 0.0),
        (["privacy.target_epsilon=8"], 2.0, 1.0),
        (["privacy.target_epsilon=8", "privacy.level=hospital"], 3.0, None),
    ],
)
def test_an_average_is_compared_with_the_mean_that_it_should_be(
    overrides: Sequence[str], opened: float, difference: float | None
) -> None:
    reports: list[RoundReport] = []
    plan = round_plan(Scenario().override(*overrides))
    rounds = Rounds(["hospital-00", "hospital-01"], reports.append, plan, SawTwo())
    result = RoundResult(
        arrays=(np.full(2, opened),),
        total_weight=2,
        metrics={},
        included=("hospital-00", "hospital-01"),
        excluded={},
        error_bound=1e-9,
        words=np.empty(0, np.uint32),
    )

    rounds.secured(SecureRound(server_round=1, phase="train", result=result))
    rounds.evaluated(1, 2.3, 0.1)

    assert [report.difference for report in reports] == [difference]
