"""What one party process is told at its start: its own small TOML file."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fedsec.errors import UsageError
from fedsec.transport import toml
from fedsec.transport.identity import check_name

REVEAL_TO = ("server", "hospitals", "nobody")
LOG_LEVELS = ("debug", "info", "warning", "error")
STATE_LOCK = "lock"
"""In the folder of the durable state; a party holds it locked while it runs."""


@dataclass(frozen=True)
class PartyConfig:
    """The settings of one party.

    Relative paths in the file are relative to the file.

    Attributes:
        name: The party's name in its certificate and in the cluster file.
        identity: PEM file of its key and certificate.
        cluster: The cluster file.
        state: Folder of its durable state; made when missing, readable by its owner only.
        host: Address to listen on.
        port: TCP port to listen on; 0 takes a free one.
        minimum_cohort: Fewest hospitals in a sum this party helps to open; fewer are refused.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
        reveal_to: Who may have the average of a round that it takes part in: any of ``server``, ``hospitals``
            and ``nobody``.
    """

    name: str
    identity: Path
    cluster: Path
    state: Path
    host: str = "127.0.0.1"
    port: int = 0
    minimum_cohort: int = 3
    log_level: str = "info"
    reveal_to: tuple[str, ...] = REVEAL_TO

    def __post_init__(self) -> None:
        check_name(self.name)
        if not 0 <= self.port < 65536:
            raise UsageError(f"expected a port of 0 to 65535 for {self.name}, got {self.port}")
        if self.minimum_cohort < 2:
            raise UsageError(
                f"expected minimum_cohort to be at least 2 for {self.name}, got {self.minimum_cohort}: "
                "a sum over one hospital is its update"
            )
        if self.log_level not in LOG_LEVELS:
            raise UsageError(f"expected log_level in {', '.join(LOG_LEVELS)}, got {self.log_level!r}")
        if not self.reveal_to or not set(map(str, self.reveal_to)) <= set(REVEAL_TO):
            raise UsageError(
                f"expected reveal_to to list some of {', '.join(REVEAL_TO)}, got {list(self.reveal_to)}"
            )

    @classmethod
    def load(cls, path: Path) -> PartyConfig:
        """Read a party's file.

        Raises:
            UsageError: It cannot be read, or a key or value is none that it can have; an unknown key
                names the nearest known one.
            TrustError: Others can write it.
        """
        path = Path(path)
        where, table = str(path), toml.read_own(path)
        known = [each.name for each in fields(cls)]
        toml.refuse_unknown(table, known, where, required=("name", "identity", "cluster", "state"))
        folder = path.resolve().parent
        return cls(
            name=toml.expect(table, "name", str, where),
            identity=folder / toml.expect(table, "identity", str, where),
            cluster=folder / toml.expect(table, "cluster", str, where),
            state=folder / toml.expect(table, "state", str, where),
            host=toml.expect(table, "host", str, where, cls.host),
            port=toml.expect(table, "port", int, where, cls.port),
            minimum_cohort=toml.expect(table, "minimum_cohort", int, where, cls.minimum_cohort),
            log_level=toml.expect(table, "log_level", str, where, cls.log_level),
            reveal_to=tuple(toml.expect(table, "reveal_to", list, where, list(cls.reveal_to))),
        )

    def save(self, path: Path) -> None:
        """Write the file in one step; paths become relative to it, so that its folder can be moved."""
        folder = Path(path).resolve().parent
        values = {
            key: os.path.relpath(value.resolve(), folder) if isinstance(value, Path) else value
            for key, value in asdict(self).items()
        }
        toml.write(Path(path), values)
