"""What an experiment measured, as values and as the summary that is printed and stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fedsec.errors import StateError
from fedsec.lab.rundir import RunFolder
from fedsec.privacy.budget import PrivacyReport
from fedsec.scenario import Scenario

Traffic = Mapping[str, Mapping[str, int]]
"""``sent_bytes`` and ``received_bytes`` by process or role, as their channel meters counted."""

Seen = Mapping[str, Mapping[str, tuple[int, int]]]
"""By party and kind of message: how many messages it received and how many bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One federated round.

    Attributes:
        round: From 1.
        accuracy: Share of right answers of the averaged model on the test images; None when nobody could
            evaluate it.
        loss: Its mean cross-entropy there, or None.
        included: Hospitals in the sum; 0 when the round ended without an average.
        hospitals: Hospitals asked.
        difference: Largest absolute difference of one parameter between the opened average and the plain
            mean of the same updates, from the simulation's observer; None without an average, and where
            hospitals do not share one process.
        error_bound: What the encoding states for that difference; None without an average.
        seconds: Wall time of the round, evaluation included.
        statuses: How many hospitals answered with each status code.
        aborted: Why there was no average; empty otherwise.
        names: The hospitals in the sum, sorted.
    """

    round: int
    accuracy: float | None
    loss: float | None
    included: int
    hospitals: int
    difference: float | None
    error_bound: float | None
    seconds: float
    statuses: Mapping[str, int] = field(default_factory=dict)
    aborted: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionReport:
    """Private predictions by the run's parties, asked by a client process of its own.

    Attributes:
        test_index: Which test images.
        labels: The answers: the index of the largest reconstructed logit.
        truth: The right ones.
        logits: As the client reconstructed them, one row an image.
        keras_logits: What Keras computes from the same model in the clear.
        differences: Largest absolute difference of the two, an image.
        seconds: From the client's first byte to its last answer.
    """

    test_index: tuple[int, ...]
    labels: tuple[int, ...]
    truth: tuple[int, ...]
    logits: tuple[tuple[float, ...], ...]
    keras_logits: tuple[tuple[float, ...], ...]
    differences: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalEpsilon:
    """What one hospital's training tells about one of its records; each computes its own.

    Attributes:
        hospital: Its name.
        epsilon: Over all its rounds, by privacy loss distributions.
        rdp_epsilon: The same by Renyi divergences, as a check.
        delta: At which both hold.
        noise_multiplier: Of its noise, in units of the clip.
        sampling_rate: With which each record is in a step.
        steps: How many it took.
        assumptions: What the numbers rest on.
    """

    hospital: str
    epsilon: float
    rdp_epsilon: float
    delta: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    assumptions: str

    @classmethod
    def of(cls, hospital: str, report: PrivacyReport) -> HospitalEpsilon:
        """Return a hospital's row; all its steps are of one kind."""
        (steps,) = report.mechanisms
        return cls(
            hospital=hospital,
            epsilon=report.epsilon.value,
            rdp_epsilon=report.epsilon.rdp,
            delta=report.epsilon.delta,
            noise_multiplier=steps.noise_multiplier,
            sampling_rate=steps.sampling_rate,
            steps=steps.steps,
            assumptions=report.assumptions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeHospital:
    """What the opened averages tell about any hospital as a whole.

    Attributes:
        epsilon: The largest of all hospitals, over all rounds.
        delta: At which it holds.
        hospitals: The same from each hospital's own account, by name. Only a simulation has them all.
        rounds: Rounds that the most active hospital paid for.
        noise_multiplier: Standard deviation of the noise that a coalition leaves, in units of what one
            hospital can change.
        noise_of_mean: Standard deviation of the noise in one parameter of an average over all hospitals, in
            units of the clip of a whole update.
        noise_length: How long that noise is over all parameters, in the same units: what this level costs.
        aggregators: How many added noise.
        colluding: How many of them may be in the coalition.
        adjacency: What two inputs that are hard to tell apart differ in.
        assumptions: What the numbers rest on.
    """

    epsilon: float
    delta: float
    hospitals: Mapping[str, float]
    rounds: int
    noise_multiplier: float
    noise_of_mean: float
    noise_length: float
    aggregators: int
    colluding: int
    adjacency: str
    assumptions: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A finished experiment.

    Attributes:
        folder: Where its files are.
        scenario: What was run.
        rounds: One report a round.
        traffic: Bytes by role.
        seen: What each party received, sizes only.
        seconds: Wall time of the whole.
        prediction: Private predictions, if any were asked.
        privacy: One row a hospital, with differential privacy of records. Only a simulation has them all.
        whole_hospital: With ``privacy.level = "hospital"``, what the averages tell about any of them.
    """

    folder: RunFolder
    scenario: Scenario
    rounds: tuple[RoundReport, ...]
    traffic: Traffic
    seen: Seen
    seconds: float
    prediction: PredictionReport | None = None
    privacy: tuple[HospitalEpsilon, ...] = ()
    whole_hospital: WholeHospital | None = None

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last round in which it was measured, 0 to 1.

        Raises:
            StateError: It was never measured.
        """
        known = [one.accuracy for one in self.rounds if one.accuracy is not None]
        if not known:
            raise StateError("no round of this run was evaluated, so there is no accuracy")
        return known[-1]

    def summary(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold; the same as ``summary.json``."""
        values = asdict(self)
        values["run"] = str(self.folder.path)
        values["scenario"] = self.scenario.name
        del values["folder"]
        if self.prediction is None:
            del values["prediction"]
        if not self.privacy:
            del values["privacy"]
        if self.whole_hospital is None:
            del values["whole_hospital"]
        return values
