"""All keys of an experiment on one machine in one folder.

::

    keys/
        authority/authority.pem, authority.key
        party-0.pem ...  hospital-00.pem ...  server.pem  owner.pem  user.pem      mode 0600
        trust/hospital-00.toml ...         what each hospital trusts
        state/hospital-00/ ...             what each hospital must not forget

One folder with everyone's keys protects nobody from its reader. It is right for one machine and for
nothing else: in a deployment each organisation makes its own with ``fedsec keys``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsec.aggregation.trust import SECRET_BYTES, TrustFile, TrustLimits
from fedsec.cluster.certificates import Authority
from fedsec.errors import UsageError
from fedsec.transport.cluster_file import ClusterFile, Endpoint
from fedsec.transport.identity import Identity, Role

SERVER, OWNER, USER = "server", "owner", "user"


@dataclass(frozen=True, slots=True)
class LocalKeys:
    """Where the keys of one machine are.

    Attributes:
        folder: The folder with all of them.
        parties: Names of the parties, in order.
        hospitals: Names of the hospitals, in order.
        users: Names of the users.
    """

    folder: Path
    parties: tuple[str, ...]
    hospitals: tuple[str, ...]
    users: tuple[str, ...]

    def identity(self, name: str) -> Path:
        """Return the identity file of that name.

        Raises:
            UsageError: There is none in the folder.
        """
        return identity_path(self.folder, name)

    def trust_file(self, hospital: str) -> Path:
        """Return where the trust file of a hospital is, once :func:`write_trust_files` has written it."""
        return self.folder / "trust" / f"{hospital}.toml"

    def cluster_file(
        self, addresses: Mapping[str, tuple[str, int]], *, insecure_plaintext: bool = False
    ) -> ClusterFile:
        """Return the cluster file of everyone in the folder.

        Args:
            addresses: Host and port of each party by name.
            insecure_plaintext: For measuring only; see ``ClusterFile``.
        """
        public = {name: Identity.load(self.identity(name)) for name in (*self.parties, *self.hospitals)}
        server = Identity.load(self.identity(SERVER))
        return ClusterFile(
            authority=server.authority,
            parties=tuple(Endpoint(name, *addresses[name], public[name].public_key) for name in self.parties),
            server=server.public_key,
            owner=Identity.load(self.identity(OWNER)).public_key,
            hospitals={name: public[name].public_key for name in self.hospitals},
            insecure_plaintext=insecure_plaintext,
        )


def identity_path(folder: Path, name: str) -> Path:
    """Return ``<folder>/<name>.pem``.

    Raises:
        UsageError: There is no such file; the text names those that are there.
    """
    path = folder / f"{name}.pem"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in folder.glob("*.pem"))) or "none"
        raise UsageError(f"expected the identity {name!r} in {folder}; there: {there}")
    return path


def numbered(kind: str, count: int) -> tuple[str, ...]:
    """Return names such as ``hospital-00`` to ``hospital-29``, which sort in their order."""
    width = len(str(max(count - 1, 0))) if kind == "party" else max(2, len(str(max(count - 1, 0))))
    return tuple(f"{kind}-{number:0{width}d}" for number in range(count))


def make_local_keys(
    folder: Path,
    parties: int | Sequence[str] = 3,
    hospitals: int = 10,
    users: Sequence[str] = (USER,),
) -> LocalKeys:
    """Make what is missing of an authority and one identity for everyone; what is there stays.

    Args:
        folder: Made when missing, readable by its owner only.
        parties: Their number, or their names.
        hospitals: Their number; they are called ``hospital-00`` and so on.
        users: Names of those who may ask for predictions.

    Raises:
        UsageError: A name does not fit, or a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    home = folder / "authority"
    authority = Authority.load(home) if home.is_dir() else Authority.create(home)
    names = numbered("party", parties) if isinstance(parties, int) else tuple(parties)
    keys = LocalKeys(folder, names, numbered("hospital", hospitals), tuple(users))
    roles = {
        **dict.fromkeys(keys.parties, Role.PARTY),
        **dict.fromkeys(keys.hospitals, Role.HOSPITAL),
        **dict.fromkeys(keys.users, Role.USER),
        SERVER: Role.SERVER,
        OWNER: Role.OWNER,
    }
    for name, role in roles.items():
        if not (folder / f"{name}.pem").exists():
            authority.issue(folder, name, role)
    return keys


def write_trust_files(
    keys: LocalKeys, cluster: ClusterFile, limits: TrustLimits | None = None
) -> dict[str, Path]:
    """Write the trust file of every hospital in the folder.

    Args:
        keys: The folder.
        cluster: Addresses and public keys; the server's must be among them.
        limits: What the hospitals admit; by default never fewer aggregators than there are.

    The hospitals' common secret, which sealed rounds need, is drawn once and stays.

    Returns:
        The trust file of each hospital by name.

    Raises:
        UsageError: The cluster file names no server.
    """
    if cluster.server is None:
        raise UsageError("expected the public key of the server in the cluster file: hospitals pin it")
    paths = {name: keys.trust_file(name) for name in keys.hospitals}
    secret = _common_secret(paths.values())
    for name in keys.hospitals:
        paths[name].parent.mkdir(mode=0o700, exist_ok=True)
        state = keys.folder / "state" / name
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        TrustFile(
            identity=keys.identity(name).resolve(),
            state=state.resolve(),
            server=cluster.server,
            aggregators=cluster.parties,
            roster=cluster.hospitals,
            limits=limits or TrustLimits(),
            secret=secret,
        ).save(paths[name])
    return paths


def _common_secret(paths: Iterable[Path]) -> bytes:
    """Return the secret that an earlier start wrote, or a new one."""
    for path in paths:
        if path.is_file() and (known := TrustFile.load(path).secret):
            return known
    return os.urandom(SECRET_BYTES)
