"""The trust file of a hospital: the only place its trust comes from.

It pins the aggregators, the Flower server and the roster of hospitals by public key, and sets limits. What
arrives from a ServerApp can only select among these; :meth:`TrustFile.check` refuses anything else before
training begins and before one byte of a share leaves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fedsec.aggregation.announcement import (
    SIGNATURE_LABEL,
    Announcement,
    ConfigValue,
    array_digest,
    decode_announcement,
    encode_config,
)
from fedsec.aggregation.signing import PUBLIC_KEY_BYTES, check_signature
from fedsec.errors import TrustError, UsageError
from fedsec.transport import Endpoint, toml
from fedsec.transport.access import require_private

TRUST_VERSION = 1
SECRET_BYTES = 32

TRUST_VARIABLE = "FEDSEC_TRUST"
"""Environment variable in which a hospital names its trust file."""
TRUST_NODE_KEY = "fedsec-trust"
"""The same in the node config of its Flower SuperNode."""


@dataclass(frozen=True, slots=True)
class TrustLimits:
    """What a hospital admits, whatever the server asks for.

    Each is compared before training and has nothing to do with the hospital's data, so a refusal says
    nothing about them. What training then makes is brought into the announced ranges; the floors keep a
    server from announcing ranges so narrow that the ends would tell more than a mean.

    Attributes:
        fewest_aggregators: Fewest aggregators an update is split over; 0 for all that are pinned.
        minimum_cohort: Fewest hospitals in a sum; also what the announcement must promise.
        reveal_to: Who may receive the average.
        largest_weight: Largest aggregation weight, in examples.
        smallest_largest_weight: Smallest bound on weights that may be announced; for "equal" none is.
        largest_clip: Largest clip range of any array, in units of the update.
        smallest_clip: Smallest clip range of any array, in units of the update.
        ring_bits: Word sizes accepted.
        weights: Rules accepted by which examples become weights.
        metrics: Metrics that may be summed, each with exactly the range to be announced.
        serves: Digests, in hexadecimal, of the plans under which a model for nobody may be served
            (``fedsec.nn.sealed.serving_digest``); empty for any that is announced.
        hospital_epsilon: What all rounds since it was pinned, and those with noise before, may tell about
            this hospital as a whole; rounds that would exceed it are refused. 0 for no such limit.
        hospital_delta: At which that epsilon holds.
        hospital_noise_multiplier: Weakest noise of a round, in units of what this hospital can change; 0 for
            any. With this, ``hospital_epsilon`` or ``hospital_colluding`` rounds without noise are refused.
        hospital_colluding: How many aggregators may put what they know together; 0 for all but one, where
            one of the other two is pinned.

    Raises:
        UsageError: A number is negative or not finite, or the delta is not between 0 and 1.
    """

    fewest_aggregators: int = 0
    minimum_cohort: int = 3
    reveal_to: tuple[str, ...] = ("server",)
    largest_weight: int = 100_000
    smallest_largest_weight: int = 100
    largest_clip: float = 16.0
    smallest_clip: float = 0.01
    ring_bits: tuple[int, ...] = (32,)
    weights: tuple[str, ...] = ("examples",)
    metrics: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {"accuracy": (0.0, 1.0), "loss": (0.0, 100.0)}
    )
    serves: tuple[str, ...] = ()
    hospital_epsilon: float = 0.0
    hospital_delta: float = 1e-5
    hospital_noise_multiplier: float = 0.0
    hospital_colluding: int = 0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            # NaN is below nothing: a limit of it would admit everything.
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise UsageError(f"limits.{one.name} is 0 or more and finite, got {value}")
        if not 0 < self.hospital_delta < 1:
            raise UsageError(f"limits.hospital_delta is above 0 and below 1, got {self.hospital_delta}")


@dataclass(frozen=True, slots=True)
class TrustFile:
    """One hospital's pinned keys and limits.

    Attributes:
        identity: The hospital's own key and certificate (PEM).
        state: Folder of its durable state.
        server: The Flower server's raw public key.
        aggregators: Name, address and public key of each aggregator it may send shares to.
        roster: Public key of each hospital by name, its own among them.
        limits: What it admits.
        secret: 32 bytes that all hospitals have and nobody else: they key the tags by which uploads over
            different sealed models are told apart. Empty when the hospital takes part in no sealed rounds.
    """

    identity: Path
    state: Path
    server: bytes
    aggregators: tuple[Endpoint, ...]
    roster: Mapping[str, bytes]
    limits: TrustLimits = field(default_factory=TrustLimits)
    secret: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) not in {0, SECRET_BYTES}:
            raise UsageError(
                f"the hospitals' secret has {len(self.secret)} bytes, expected {SECRET_BYTES} or none"
            )
        keys = [endpoint.public_key for endpoint in self.aggregators] + [self.server, *self.roster.values()]
        if any(len(key) != PUBLIC_KEY_BYTES for key in keys):
            raise UsageError("a public key in the trust file has no 32 bytes")
        if len(set(keys)) != len(keys):
            raise UsageError("two participants in the trust file share one public key: each needs its own")
        if len({endpoint.name for endpoint in self.aggregators}) != len(self.aggregators):
            raise UsageError("two aggregators in the trust file have one name")

    @classmethod
    def load(cls, path: Path) -> TrustFile:
        """Read a trust file; relative paths in it are relative to its folder.

        Raises:
            UsageError: The file cannot be read, a key is unknown, missing or has a wrong type.
            TrustError: Others can write it, or read the hospitals' secret in it.
        """
        path = Path(path)
        table = toml.read_own(path)
        if "secret" in table:
            require_private(path, "the hospitals' secret")
        keys = ("version", "identity", "state", "server", "limits", "aggregators", "roster")
        toml.refuse_unknown(table, (*keys, "secret"), str(path), required=keys)
        if table["version"] != TRUST_VERSION:
            raise UsageError(
                f"{path}: version {table['version']!r}, this fedsec reads version {TRUST_VERSION}"
            )
        try:
            return cls(
                identity=path.parent / table["identity"],
                state=path.parent / table["state"],
                server=bytes.fromhex(table["server"]),
                aggregators=tuple(
                    Endpoint.from_table(entry, f"{path} [[aggregators]]") for entry in table["aggregators"]
                ),
                roster={str(name): bytes.fromhex(key) for name, key in table["roster"].items()},
                limits=_limits(table["limits"], path),
                secret=bytes.fromhex(table.get("secret", "")),
            )
        except (TypeError, ValueError, AttributeError, OverflowError):
            raise UsageError(f"{path}: a value has a wrong type; keys are hexadecimal strings") from None

    def save(self, path: Path) -> None:
        """Write the trust file, mode 0600 with a secret; paths in its folder become relative to it."""
        path = Path(path)
        limits = {one.name: getattr(self.limits, one.name) for one in fields(TrustLimits)}
        aggregators = [
            {"name": one.name, "host": one.host, "port": one.port, "public_key": one.public_key.hex()}
            for one in self.aggregators
        ]
        table = {
            "version": TRUST_VERSION,
            "identity": _relative(self.identity, path.parent),
            "state": _relative(self.state, path.parent),
            "server": self.server.hex(),
            **({"secret": self.secret.hex()} if self.secret else {}),
            "limits": limits,
            "roster": {name: key.hex() for name, key in sorted(self.roster.items())},
            "aggregators": aggregators,
        }
        toml.write(path, table, mode=0o600 if self.secret else 0o644)

    def check(
        self,
        payload: bytes,
        signature: bytes,
        arrays: Sequence[npt.NDArray[Any]],
        config: Mapping[str, ConfigValue],
    ) -> Announcement:
        """Check a signed announcement, and that it describes what arrived, against this file.

        Args:
            payload: The announcement's canonical bytes.
            signature: The server's signature of them.
            arrays: The model's arrays as they arrived, in order.
            config: Every config key that the training code will see.

        Returns:
            The announcement, which now may be trusted as far as this file goes.

        Raises:
            TrustError: Names the first thing that differs. Nothing was sent.
            ProtocolError: The bytes are no valid announcement.
        """
        check_signature(self.server, SIGNATURE_LABEL, payload, signature)
        announcement = decode_announcement(payload)
        self.check_announced(announcement)
        if announcement.sealed is not None and not self.secret:
            raise TrustError(
                "the announced round is sealed and this trust file has no secret of the hospitals; nothing "
                "was sent. Put the same 64 hex digits as `secret` into the trust file of every hospital"
            )
        check_contents(announcement, arrays, config)
        return announcement

    def check_announced(self, announcement: Announcement) -> None:
        """Check who takes part in an announced round, and what it asks for.

        Raises:
            TrustError: Names the first thing that differs from this file.
        """
        self._check_participants(announcement)
        self._check_limits(announcement)

    def _check_participants(self, announcement: Announcement) -> None:
        pinned = {endpoint.name: endpoint.public_key for endpoint in self.aggregators}
        for what, group, known in (
            ("aggregator", announcement.aggregators, pinned),
            ("hospital", announcement.roster, self.roster),
        ):
            for member in group:
                if known.get(member.name) != member.public_key:
                    how = "has another key than" if member.name in known else "is not in"
                    raise TrustError(
                        f"the announced {what} '{member.name}' {how} the trust file; nothing was sent"
                    )
        if announcement.recipient.public_key != self.server:
            raise TrustError(
                "the announced recipient of the average is not the pinned server; nothing was sent"
            )

    def _check_limits(self, announcement: Announcement) -> None:
        limits, encoding = self.limits, announcement.encoding
        clips = [encoding.clip, *(spec.clip for spec in announcement.arrays)]
        heaviest = encoding.largest_weight
        plan = "" if announcement.sealed is None else announcement.sealed.serves.hex()
        checks = (
            (
                len(announcement.aggregators) >= (limits.fewest_aggregators or len(self.aggregators)),
                "aggregators",
                len(announcement.aggregators),
            ),
            (
                announcement.minimum_cohort >= limits.minimum_cohort,
                "minimum_cohort",
                announcement.minimum_cohort,
            ),
            (announcement.reveal_to in limits.reveal_to, "reveal_to", announcement.reveal_to),
            (encoding.weights in limits.weights, "weights", encoding.weights),
            (heaviest <= limits.largest_weight, "largest_weight", heaviest),
            (
                heaviest >= limits.smallest_largest_weight or encoding.weights == "equal",
                "largest_weight",
                heaviest,
            ),
            (max(clips) <= limits.largest_clip, "clip", max(clips)),
            (min(clips) >= limits.smallest_clip, "clip", min(clips)),
            (encoding.ring_bits in limits.ring_bits, "ring_bits", encoding.ring_bits),
            (not plan or not limits.serves or plan in limits.serves, "serves", plan),
            *(
                (limits.metrics.get(one.name) == (one.low, one.high), f"metric '{one.name}'", one.high)
                for one in announcement.metrics
            ),
        )
        for fits, name, value in checks:
            if not fits:
                text = f"the announcement asks for {name} = {value}, outside the limits of the trust file"
                raise TrustError(f"{text}; nothing was sent")


def check_contents(
    announcement: Announcement, arrays: Sequence[npt.NDArray[Any]], config: Mapping[str, ConfigValue]
) -> None:
    """Check that arrays and config are those of the announcement.

    Raises:
        TrustError: Names the first array or config key that differs.
    """
    if len(arrays) != len(announcement.arrays):
        raise TrustError(f"the announcement names {len(announcement.arrays)} arrays, {len(arrays)} arrived")
    for spec, expected, array in zip(announcement.arrays, announcement.array_digests, arrays, strict=True):
        if (array.dtype.name, array.shape) != (spec.dtype, spec.shape):
            text = f"{array.dtype.name} {array.shape}, announced {spec.dtype} {spec.shape}"
            raise TrustError(f"array '{spec.name}' arrived as {text}: the model is not the announced one")
        if array_digest(array) != expected:
            raise TrustError(
                f"array '{spec.name}' differs from the announced one: the server sent another model"
            )
    try:
        arrived = dict(encode_config(config))
    except UsageError as error:
        raise TrustError(f"the config cannot be the announced one: {error}") from None
    announced = dict(announcement.config)
    for key in sorted(announced.keys() | arrived.keys()):
        if announced.get(key) != arrived.get(key):
            raise TrustError(f"config key '{key}' differs from the announced one; nothing was sent")


def _limits(table: Mapping[str, Any], path: Path) -> TrustLimits:
    known = {one.name: type(getattr(TrustLimits(), one.name)) for one in fields(TrustLimits)}
    toml.refuse_unknown(table, known, f"{path}: limits")
    values: dict[str, Any] = {}
    for name, value in table.items():
        kind = known[name]
        if kind is dict:
            values[name] = _ranges(value, f"{path}: limits.{name}")
        elif kind is tuple:
            if not isinstance(value, list):
                raise UsageError(f"{path}: limits.{name} must be a list, not {value!r}")
            values[name] = tuple(value)
        elif (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or (kind is int and not isinstance(value, int))
        ):
            raise UsageError(f"{path}: limits.{name} must be a number, not {value!r}")
        else:
            values[name] = kind(value)
    try:
        return TrustLimits(**values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _ranges(table: Any, where: str) -> dict[str, tuple[float, float]]:
    try:
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in table.items()}
    except (AttributeError, TypeError, ValueError):
        raise UsageError(f"{where} must be a table of names, each with [low, high]") from None
    for name, (low, high) in ranges.items():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(f"{where}: the range of {name!r} is empty or not finite")
    return ranges


def _relative(path: Path, folder: Path) -> str:
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return path.resolve().as_posix()
