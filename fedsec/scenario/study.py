"""Several runs beside each other, as data: what differs between them, and what is asked in the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsec.errors import ScenarioError

AuditPart = Literal["membership", "lira", "fairness", "model_inversion", "inversion", "canaries", "mechanism"]
"""The parts of an audit, which needs TensorFlow and so cannot be asked from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """Several runs of one scenario that differ in one key, and attacks on what came out.

    ``fedsec run`` does it and ends in a figure; everything else takes the scenario as one run.
    """

    key: str = ""
    """What differs between the runs, such as ``privacy.target_epsilon``; nothing by default."""

    values: tuple[str | int | float | bool, ...] = ()
    """Of that key, one run each; attacks compare the others with the first."""

    audits: tuple[AuditPart, ...] = ()
    """Parts of ``fedsec audit``, in which all runs stand side by side."""

    def __post_init__(self) -> None:
        """Refuse half a study."""
        if bool(self.key) != bool(self.values):
            raise ScenarioError(
                f"study.key = {self.key!r} and study.values = {list(self.values)}: a study needs both, a key"
                " and its values, or neither"
            )
        if self.key.startswith("study."):
            raise ScenarioError(f"study.key = {self.key!r}: a study cannot vary itself")
        if len(set(map(repr, self.values))) < len(self.values):
            raise ScenarioError(f"study.values = {list(self.values)}: a value stands there twice")

    @property
    def wanted(self) -> bool:
        """Whether there is anything beyond one plain run."""
        return bool(self.values or self.audits)
