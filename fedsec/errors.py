"""The exceptions of fedsec, in one tree, with the exit code each ends a command with.

::

    FedsecError                     1   anything of ours that has no narrower class
    +-- UsageError                  2   a wrong option, file, key or argument; nothing was started
    |   +-- ScenarioError           2   a scenario file or an override does not fit
    |   +-- UnsupportedModelError   2   a Keras model has a layer or a range that cannot be served
    |   +-- InputError              2   images or arrays with a wrong shape, dtype or range
    |   +-- RangeError              2   a value does not fit the ring, or a sum could wrap
    +-- DataError                   3   the data set could not be had or is not the one expected
    +-- TrustError                  4   a certificate, signature, role, key or limit is not the pinned one
    +-- ProtocolError               5   a peer sent something that the protocol does not allow
    +-- PeerLostError               6   a named peer closed, broke or never opened its connection
    |   +-- DeadlineError           6   a named peer did not answer in time
    +-- RoundAbortedError           7   an aggregation round ended without a result
    +-- ServiceEndedError           8   the prediction service has answered its quota or was stopped
    +-- StateError                  9   durable state is damaged, behind or cannot be written

Texts say what was expected, what came, and what follows or what to do. They name shapes, sizes and
ids; they never hold a share, a key or a data value.
"""

from __future__ import annotations

from typing import ClassVar


class FedsecError(Exception):
    """The root of every exception that fedsec raises on purpose."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "failed"
    """The short name that travels in an error reply; texts stay with their process unless they are public."""


class UsageError(FedsecError):
    """A wrong option, file, key or argument; nothing was started."""

    exit_code = 2
    code = "usage"


class ScenarioError(UsageError):
    """A scenario file or an override does not fit; the text names the nearest known key."""

    code = "scenario"


class UnsupportedModelError(UsageError):
    """A Keras model has a layer, or a range, that cannot be served; the text names the layer."""

    code = "unsupported_model"


class InputError(UsageError):
    """Images or arrays with a wrong shape, dtype or range; nothing was sent."""

    code = "input"


class RangeError(UsageError):
    """A value does not fit the ring, or a sum could wrap; nothing was sent."""

    code = "range"


class DataError(FedsecError):
    """The data set could not be had, or is not the one expected."""

    exit_code = 3
    code = "data"


class TrustError(FedsecError):
    """A certificate, signature, role, key or limit is not the pinned one."""

    exit_code = 4
    code = "trust"


class ProtocolError(FedsecError):
    """A peer sent something that the protocol does not allow."""

    exit_code = 5
    code = "protocol"


class PeerLostError(FedsecError):
    """A named peer closed, broke or never opened its connection."""

    exit_code = 6
    code = "peer_lost"


class DeadlineError(PeerLostError):
    """A named peer did not answer in time."""

    code = "deadline"


class RoundAbortedError(FedsecError):
    """An aggregation round ended without a result; the model stays what it was."""

    exit_code = 7
    code = "round_aborted"


class ServiceEndedError(FedsecError):
    """The prediction service has answered its quota or was stopped."""

    exit_code = 8
    code = "service_ended"


class StateError(FedsecError):
    """Durable state is damaged, behind what a peer saw, or cannot be written."""

    exit_code = 9
    code = "state"


def by_code(code: str) -> type[FedsecError]:
    """Return the exception class whose ``code`` is given, or the root for an unknown one."""
    pending: list[type[FedsecError]] = [FedsecError]
    while pending:
        cls = pending.pop()
        if cls.code == code:
            return cls
        pending.extend(cls.__subclasses__())
    return FedsecError
