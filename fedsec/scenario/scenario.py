"""A scenario: everything that decides an experiment, with defaults, units and reasons.

A file has one section for each dataclass here::

    name = "ten-equal-hospitals"

    [hospitals]
    count = 10

    [training]
    rounds = 8

Every key may be left out, every key may be overridden (``--set training.rounds=3``), and an unknown
key is an error that names the nearest known one. The resolved scenario is stored beside its results.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from fedsec.errors import ScenarioError
from fedsec.scenario.keys import apply_override, check_key, check_keys, readable
from fedsec.scenario.study import StudySettings
from fedsec.transport import toml

FILE_NAME = "scenario.toml"

ModelName = Literal[
    "gabor",
    "lenet-5",
    "mlp",
    "short-conv",
    "short-conv-16",
    "short-conv-16-logits",
    "short-conv-logits",
    "small-resnet",
    "tf-privacy",
]
"""The networks of ``fedsec.learning.models``, which needs TensorFlow and so cannot be asked from here."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0, le=1e6)]


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalSettings:
    """Who holds the data, how unequal they are, and how often they vanish."""

    count: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 10
    """Hospitals in the population; all are asked in every round."""

    partition: Literal["equal", "dirichlet"] = "equal"
    """``equal``: the same number of random images each. ``dirichlet``: skewed label by label."""

    alpha: PositiveFloat = 0.3
    """Concentration of the Dirichlet split: small is skewed. Not used by ``equal``."""

    dropped_each_round: Count = 0
    """Hospitals, drawn anew in every round, that vanish before they upload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """What one hospital does in one round, and how many rounds there are."""

    model: ModelName = "short-conv"
    """The network's name in ``fedsec.learning.models``; a wrong one is answered with all there are."""

    rounds: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 6
    """Federated rounds; six reach 96 % with ten equal hospitals."""

    local_epochs: Positive = 1
    """Passes over its own data that a hospital makes in one round."""

    batch_size: Positive = 32
    """Images in one step of gradient descent."""

    optimizer: Literal["adam", "sgd"] = "adam"
    """Of a hospital, whose state starts anew in every round. ``sgd`` has none: with one step a round all
    hospitals together take the steps of central training."""

    learning_rate: PositiveFloat = 5e-3
    """Of the hospital's optimizer."""

    examples: Annotated[int, msgspec.Meta(ge=2, le=60_000)] = 60_000
    """Training images shared out over all hospitals: the first so many of MNIST."""

    test_examples: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 10_000
    """Test images on which the averaged model is measured after each round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategySettings:
    """Flower's strategy, which sees averages only."""

    name: Literal["fedavg", "fedavgm", "fedadam"] = "fedavg"
    """Flower's class around which the secure aggregation is wrapped."""

    server_learning_rate: PositiveFloat = 1.0
    """Step along the averaged update; ``fedavg`` always takes the whole step."""

    server_momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Of ``fedavgm``: how much of a round's step the next one takes once more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationSettings:
    """How updates are summed in shares, and the limits that each hospital pins."""

    aggregators: Annotated[int, msgspec.Meta(ge=3, le=7)] = 3
    """Parties that sum; the first three also compute predictions, so at least three run."""

    minimum_cohort: Annotated[int, msgspec.Meta(ge=2)] = 3
    """Fewest updates in a sum; with fewer the round ends without an average."""

    clip: PositiveFloat = 2.0
    """Largest change of one parameter in one round; a public constant, never taken from data."""

    reveal_to: Literal["server", "hospitals", "nobody"] = "server"
    """Who has the model. ``hospitals``: it stays in shares at three parties, only hospitals put it together,
    and they evaluate it. ``nobody``: the same, but the last average is never opened, only served."""

    ring_bits: Literal[32, 64] = 32
    """Bits of one ring element in an upload: 32 bits cost what plain float32 costs."""

    upload_seconds: PositiveFloat = 600.0
    """Longest time from the announcement until uploads close; they close sooner once all have answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySettings:
    """Differential privacy, of each hospital's records or of each hospital as a whole."""

    level: Literal["record", "hospital"] = "record"
    """``record``: DP-SGD in each hospital's own training. ``hospital``: the aggregators add noise that nobody
    holds to every sum; only with many hospitals, and few parameters, is a model left."""

    target_epsilon: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    """What all rounds together may tell about one record, or one hospital; 0 trains without noise."""

    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-5
    """At which epsilon holds; at most one over a hospital's number of images, or over that of hospitals,
    makes sense."""

    l2_norm_clip: PositiveFloat = 1.0
    """Bound on the norm of one image's gradient, or of one hospital's update in a round, over all parameters
    together."""

    colluding_aggregators: Annotated[int, msgspec.Meta(ge=0, le=6)] = 0
    """Of level ``hospital``: how many aggregators may put their noise together with the server; 0 means all
    but one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSettings:
    """How the final model is held and asked in shares."""

    fraction_bits: Annotated[int, msgspec.Meta(ge=8, le=16)] = 16
    """Of weights and images in the 64-bit ring."""

    largest_activation: PositiveFloat = 256.0
    """Only of a model for ``nobody``, planned from bounds: what a relu gives above this counts as this.
    Trained values stay far below; without it bounds grow until labels cannot be compared."""

    test_index: tuple[Annotated[int, msgspec.Meta(ge=0, lt=10_000)], ...] = (0, 1, 2)
    """Test images of which the demo asks a private prediction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One experiment, complete: with the same scenario and seed the same data go to the same hospitals."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")] = "scenario"
    """Lower-case letters, digits and hyphens; part of the run folder's name."""

    seed: Count = 1
    """Of the public choices: partition, batches, who drops. Never of anything secret."""

    hospitals: HospitalSettings = field(default_factory=HospitalSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    strategy: StrategySettings = field(default_factory=StrategySettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    aggregation: AggregationSettings = field(default_factory=AggregationSettings)
    serving: ServingSettings = field(default_factory=ServingSettings)
    study: StudySettings = field(default_factory=StudySettings)

    def __post_init__(self) -> None:
        """Refuse settings that are fine alone and impossible together."""
        hospitals, aggregation = self.hospitals, self.aggregation
        left = hospitals.count - hospitals.dropped_each_round
        if left < aggregation.minimum_cohort:
            raise ScenarioError(
                f"of hospitals.count = {hospitals.count} hospitals {hospitals.dropped_each_round} drop each"
                f" round and {max(left, 0)} are left, fewer than aggregation.minimum_cohort ="
                f" {aggregation.minimum_cohort}: no round could end with an average"
            )
        sealed = aggregation.reveal_to != "server"
        if sealed and self.strategy.name != "fedavg":
            raise ScenarioError(
                f"strategy.name = '{self.strategy.name}' needs the average in the clear, which with"
                f" aggregation.reveal_to = '{aggregation.reveal_to}' no server has: take 'fedavg'"
            )
        if sealed and self.training.test_examples < hospitals.count:
            raise ScenarioError(
                f"with aggregation.reveal_to = '{aggregation.reveal_to}' hospitals evaluate:"
                f" training.test_examples = {self.training.test_examples} images are not one for each of"
                f" hospitals.count = {hospitals.count}"
            )
        if self.training.examples < hospitals.count:
            raise ScenarioError(
                f"training.examples = {self.training.examples} images cannot be shared out over"
                f" hospitals.count = {hospitals.count} hospitals: each needs at least one"
            )
        self._check_hospital_level()
        # Wrong values of a study are found before its first run, not hours later.
        self.runs()

    def _check_hospital_level(self) -> None:
        privacy, aggregation = self.privacy, self.aggregation
        if not self.hospital_level:
            return
        if aggregation.reveal_to != "server":
            raise ScenarioError(
                "privacy.level = 'hospital' puts noise on an average that is opened; with"
                f" aggregation.reveal_to = '{aggregation.reveal_to}' it stays in shares: take 'server', or"
                " privacy.level = 'record'"
            )
        if privacy.colluding_aggregators >= aggregation.aggregators:
            raise ScenarioError(
                f"privacy.colluding_aggregators = {privacy.colluding_aggregators} of"
                f" aggregation.aggregators = {aggregation.aggregators}: one at least must be honest"
            )

    @property
    def hospital_level(self) -> bool:
        """Whether the aggregators add noise, so that sums tell little about any whole hospital."""
        return self.privacy.level == "hospital" and self.privacy.target_epsilon > 0

    @property
    def record_level(self) -> bool:
        """Whether hospitals train with DP-SGD."""
        return self.privacy.level == "record" and self.privacy.target_epsilon > 0

    @classmethod
    def load(cls, path: Path | str, overrides: Iterable[str] = ()) -> Scenario:
        """Read a scenario from a TOML file, or from ``scenario.toml`` in a folder.

        Args:
            path: The file or its folder.
            overrides: Texts ``section.key=value``, later ones win.

        Raises:
            UsageError: If the file is missing or is not TOML.
            ScenarioError: If it does not fit; the text names the key, what was expected and, for an
                unknown key, the nearest known one.
        """
        file = Path(path)
        if file.is_dir():
            file /= FILE_NAME
        values = toml.read(file)
        if "name" not in values:
            values["name"] = file.resolve().parent.name
        return cls.from_values(values, overrides, origin=str(file))

    @classmethod
    def from_values(
        cls, values: Mapping[str, Any], overrides: Iterable[str] = (), *, origin: str = "scenario"
    ) -> Scenario:
        """Build a scenario from nested mappings as TOML gives them.

        Args:
            values: Sections by name; not changed.
            overrides: Texts ``section.key=value``.
            origin: What error texts call the source.

        Raises:
            ScenarioError: As in ``load``.
        """
        check_keys(cls, values, origin)
        merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
        for override in overrides:
            apply_override(cls, override, merged)
        try:
            return msgspec.convert(merged, cls)
        except msgspec.ValidationError as error:
            raise ScenarioError(f"{origin}: {readable(cls, str(error))}") from error

    def override(self, *overrides: str) -> Scenario:
        """Return a copy with ``section.key=value`` texts applied.

        Raises:
            ScenarioError: If a key is unknown or a value does not fit.
        """
        return self.from_values(self.values(), overrides, origin=self.name)

    def runs(self) -> tuple[Scenario, ...]:
        """Return the runs of the study in order, each without one; only this run where nothing differs.

        Raises:
            ScenarioError: A key is unknown or a value does not fit.
        """
        if not self.study.wanted:
            return (self,)
        once = dataclasses.replace(self, study=StudySettings())
        if not self.study.values:
            return (once,)
        key = self.study.key
        check_key(type(self), key.split("."), self.study.values[0], "study.key")
        texts = [f"{key}={json.dumps(value)}" for value in self.study.values]
        return tuple(self.from_values(once.values(), [text], origin=f"study: {text}") for text in texts)

    def values(self) -> dict[str, Any]:
        """Return every key and value, nested as in a file."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """Return the resolved scenario as TOML text; ``load`` reads the same scenario back."""
        return toml.dumps(self.values())
