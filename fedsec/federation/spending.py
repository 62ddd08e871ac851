"""Where a hospital keeps account of what its training has cost in privacy."""

from __future__ import annotations

from typing import cast

from flwr.app import ConfigRecord, Context

from fedsec.aggregation.trust import TrustFile
from fedsec.federation.mod import find_trust
from fedsec.privacy.accounting import SampledGaussian
from fedsec.privacy.ledger import DurableLedger, Ledger, Plan

_RECORD = "fedsec-privacy-spent"


def ledger_of(context: Context, records: str = "") -> Ledger:
    """Return the account of the hospital that a context is of.

    With a trust file it is in the state folder that this names, over all runs: a server could begin a new
    run at any time. Without one it is in the node's state, which Flower keeps for one run.

    Args:
        context: Of the ClientApp.
        records: Which ones, when they are not those of the training: other records have another account.

    Raises:
        UsageError: The trust file cannot be used.
    """
    path = find_trust(context)
    if path is None:
        return ContextLedger(context, records)
    state = TrustFile.load(path).state
    return DurableLedger(state / records if records else state)


class ContextLedger:
    """An account in a node's state, for one run of an app that is not secured."""

    def __init__(self, context: Context, records: str = "") -> None:
        self._state = context.state
        self._name = f"{_RECORD}-{records}" if records else _RECORD

    def charge(self, plan: Plan) -> tuple[SampledGaussian, ...]:
        """Record steps before they are taken; see :meth:`fedsec.privacy.ledger.Ledger.charge`."""
        before = self.spent()
        spent = (*before, plan(before))
        self._state[self._name] = ConfigRecord(
            {
                "noise-multipliers": [one.noise_multiplier for one in spent],
                "sampling-rates": [one.sampling_rate for one in spent],
                "steps": [one.steps for one in spent],
            }
        )
        return spent

    def spent(self) -> tuple[SampledGaussian, ...]:
        """Return everything that was recorded, in order."""
        record = self._state.config_records.get(self._name)
        if record is None:
            return ()
        noises = cast("list[float]", record["noise-multipliers"])
        rates, steps = cast("list[float]", record["sampling-rates"]), cast("list[int]", record["steps"])
        return tuple(SampledGaussian(*one) for one in zip(noises, rates, steps, strict=True))
