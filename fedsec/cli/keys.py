"""``fedsec keys``: authorities, identities, cluster files and trust files.

For three hosts: ``authority`` once; ``issue`` an identity for each party and hospital, the server, the
owner and each user; ``cluster`` joins their public keys and addresses; ``party`` and ``trust`` write what
each party and each hospital starts from. For one machine, ``fedsec demo`` and ``fedsec run`` do all of it.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from fedsec.aggregation.planner import WeightRule
from fedsec.aggregation.sealed.terms import REVEAL_TO
from fedsec.aggregation.trust import SECRET_BYTES, TRUST_VARIABLE, TrustFile, TrustLimits
from fedsec.cluster.certificates import Authority
from fedsec.errors import UsageError
from fedsec.transport import ClusterFile, Endpoint, Identity, PartyConfig, Role

_KEY = "64 hex digits, or the identity file they are read from"
_COHORT = f"fewest hospitals in a sum; {PartyConfig.minimum_cohort} by default"
_WHOLE_HOSPITAL = (
    (
        "hospital_epsilon",
        float,
        "all that rounds may tell about the whole hospital from now on, 0 for no limit",
    ),
    ("hospital_delta", float, "at which that epsilon holds"),
    (
        "hospital_noise_multiplier",
        float,
        "the weakest noise of a round; rounds without noise are refused then, 0 for any",
    ),
    (
        "hospital_colluding",
        int,
        "fewest aggregators that noise must allow to collude; 0: all but one where one of these is pinned",
    ),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands and their options."""
    commands = parser.add_subparsers(title="what to make", metavar="WHAT", required=True)
    for name, summary, options, make in (
        ("authority", "an authority of your own", _authority_options, _authority),
        ("issue", "one identity: key and certificate, role inside", _issue_options, _issue),
        ("show", "name, role and public key of an identity", _show_options, _show),
        ("cluster", "the cluster file: addresses and public keys", _cluster_options, _cluster),
        ("party", "the file that `fedsec party --config` reads", _party_options, _party),
        ("trust", "a hospital's trust file", _trust_options, _trust),
    ):
        command = commands.add_parser(
            name, help=summary, description=f"{'Show' if name == 'show' else 'Make'} {summary}."
        )
        options(command)
        command.set_defaults(make=make)


def run(options: argparse.Namespace) -> int:
    """Make what was asked for and print where it is."""
    make: Callable[[argparse.Namespace], str] = options.make
    print(make(options), flush=True)
    return 0


def _authority_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where the authority lives; keep it offline"
    )
    parser.add_argument("--name", default="fedsec authority", help="its name in certificates")


def _authority(options: argparse.Namespace) -> str:
    authority = Authority.create(options.folder, options.name)
    return f"made the authority {options.name!r} in {authority.folder}; its key must not leave this folder"


def _issue_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="FILE", help="the identity file to write, mode 600")
    parser.add_argument("--authority", type=Path, required=True, metavar="FOLDER", help="who certifies")
    parser.add_argument(
        "--role", choices=[role.value for role in Role], required=True, help="what its holder is"
    )
    parser.add_argument("--name", required=True, help="lower-case letters, digits, '.', '_' and '-'")
    parser.add_argument(
        "--host", action="append", default=[], help="host name or address of a party; may be repeated"
    )


def _issue(options: argparse.Namespace) -> str:
    path = Authority.load(options.authority).issue(
        options.output, options.name, Role(options.role), hosts=options.host
    )
    return f"made {path}: {_described(Identity.load(path))}"


def _show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("identity", type=Path, metavar="FILE", help="an identity file")


def _show(options: argparse.Namespace) -> str:
    return _described(Identity.load(options.identity))


def _cluster_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="FILE", help="the cluster file to write")
    parser.add_argument(
        "--authority", type=Path, required=True, metavar="FOLDER", help="who certified everyone"
    )
    parser.add_argument(
        "--party",
        action="append",
        required=True,
        metavar="NAME@HOST:PORT=KEY",
        help=f"one party; repeat it for 2 to 7, of which the first three compute. KEY is {_KEY}",
    )
    parser.add_argument(
        "--hospital", action="append", default=[], metavar="NAME=KEY", help="one hospital; repeat it"
    )
    parser.add_argument("--server", metavar="KEY", help="key of the Flower server")
    parser.add_argument("--owner", metavar="KEY", help="key of the model's owner")


def _cluster(options: argparse.Namespace) -> str:
    file = ClusterFile(
        authority=Authority.load(options.authority).certificate_pem,
        parties=tuple(_endpoint(text) for text in options.party),
        server=_public_key(options.server, Role.SERVER) if options.server else None,
        owner=_public_key(options.owner, Role.OWNER) if options.owner else None,
        hospitals=dict(_hospital(text) for text in options.hospital),
    )
    _refuse_existing(options.output)
    file.save(options.output)
    counted = f"{len(file.parties)} parties, {len(file.hospitals)} hospitals"
    return f"made {options.output}: {counted}; it holds no secret"


def _party_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="FILE", help="the party's file to write")
    parser.add_argument("--cluster", type=Path, required=True, metavar="FILE", help="the cluster file")
    parser.add_argument("--identity", type=Path, required=True, metavar="FILE", help="the party's identity")
    parser.add_argument("--state", type=Path, required=True, metavar="FOLDER", help="its durable state")
    parser.add_argument(
        "--listen",
        default="0.0.0.0",  # noqa: S104 - a party on a host of its own is there to be reached; TLS and pinned keys guard it
        metavar="ADDRESS",
        help="address to listen on; all by default",
    )
    parser.add_argument(
        "--minimum-cohort", type=int, default=PartyConfig.minimum_cohort, metavar="N", help=_COHORT
    )
    parser.add_argument(
        "--reveal-to",
        nargs="+",
        default=list(PartyConfig.reveal_to),
        choices=REVEAL_TO,
        help="who may have the average of a round for this party to take part; anyone by default",
    )


def _party(options: argparse.Namespace) -> str:
    identity = Identity.load(options.identity)
    endpoint = ClusterFile.load(options.cluster).party(identity.name)
    if endpoint.public_key != identity.public_key:
        raise UsageError(f"{options.cluster} has another key for {identity.name} than {options.identity}")
    _refuse_existing(options.output)
    PartyConfig(
        name=identity.name,
        identity=options.identity,
        cluster=options.cluster,
        state=options.state,
        host=options.listen,
        port=endpoint.port,
        minimum_cohort=options.minimum_cohort,
        reveal_to=tuple(options.reveal_to),
    ).save(options.output)
    return f"made {options.output}; start the party with: fedsec party --config {options.output}"


def _trust_options(parser: argparse.ArgumentParser) -> None:
    limits = TrustLimits()
    parser.add_argument("output", type=Path, metavar="FILE", help="the trust file to write")
    parser.add_argument(
        "--cluster", type=Path, required=True, metavar="FILE", help="the cluster file, once compared"
    )
    parser.add_argument(
        "--identity", type=Path, required=True, metavar="FILE", help="the hospital's identity"
    )
    parser.add_argument("--state", type=Path, required=True, metavar="FOLDER", help="its durable state")
    parser.add_argument(
        "--minimum-cohort", type=int, default=limits.minimum_cohort, metavar="N", help=_COHORT
    )
    parser.add_argument(
        "--fewest-aggregators",
        type=int,
        metavar="N",
        help="over how many an update is split; all parties of the cluster file by default",
    )
    parser.add_argument(
        "--largest-weight",
        type=int,
        default=limits.largest_weight,
        metavar="N",
        help="largest weight of a hospital, in examples; %(default)s by default",
    )
    parser.add_argument(
        "--smallest-largest-weight",
        type=int,
        default=limits.smallest_largest_weight,
        metavar="N",
        help="smallest such bound that a server may announce; %(default)s by default",
    )
    parser.add_argument(
        "--largest-clip",
        type=float,
        default=limits.largest_clip,
        metavar="C",
        help="widest range of an update's values; %(default)s by default",
    )
    parser.add_argument(
        "--smallest-clip",
        type=float,
        default=limits.smallest_clip,
        metavar="C",
        help="narrowest; %(default)s by default",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=list(limits.weights),
        choices=get_args(WeightRule),
        help="how examples may become weights; examples by default",
    )
    parser.add_argument(
        "--metric",
        action="append",
        metavar="NAME=LOW:HIGH",
        help="a metric that may be summed, with its range; repeat it; accuracy=0:1 and loss=0:100 by default",
    )
    parser.add_argument(
        "--ring-bits",
        type=int,
        nargs="+",
        default=list(limits.ring_bits),
        choices=(32, 64),
        help="word sizes that are accepted; 32 by default",
    )
    parser.add_argument(
        "--reveal-to",
        nargs="+",
        default=list(limits.reveal_to),
        choices=REVEAL_TO,
        help="who may have the average: server by default; with hospitals or nobody it stays in shares",
    )
    parser.add_argument(
        "--hospitals-secret",
        type=Path,
        metavar="FILE",
        help="64 hex digits that all hospitals share and nobody else, made when missing; for sealed rounds",
    )
    for option, kind, text in _WHOLE_HOSPITAL:
        default = getattr(limits, option)
        parser.add_argument(
            f"--{option.replace('_', '-')}",
            type=kind,
            default=default,
            metavar="X",
            help=f"{text}; {default:g} by default",
        )
    parser.add_argument(
        "--serves",
        nargs="+",
        default=[],
        metavar="DIGEST",
        help="the only plans under which a model for nobody may be served; any that is announced by default",
    )


def _trust(options: argparse.Namespace) -> str:
    identity, cluster = Identity.load(options.identity), ClusterFile.load(options.cluster)
    if cluster.hospitals.get(identity.name) != identity.public_key:
        raise UsageError(f"{options.cluster} does not name the hospital {identity.name} with the key it has")
    if cluster.server is None:
        raise UsageError(f"{options.cluster} names no Flower server: a hospital would trust nobody's rounds")
    _refuse_existing(options.output)
    TrustFile(
        identity=options.identity,
        state=options.state,
        server=cluster.server,
        aggregators=cluster.parties,
        roster=cluster.hospitals,
        limits=TrustLimits(
            fewest_aggregators=options.fewest_aggregators or len(cluster.parties),
            minimum_cohort=options.minimum_cohort,
            largest_weight=options.largest_weight,
            smallest_largest_weight=options.smallest_largest_weight,
            largest_clip=options.largest_clip,
            smallest_clip=options.smallest_clip,
            ring_bits=tuple(options.ring_bits),
            weights=tuple(options.weights),
            metrics=dict(map(_metric, options.metric)) if options.metric else TrustLimits().metrics,
            reveal_to=tuple(options.reveal_to),
            serves=tuple(options.serves),
            **{option: getattr(options, option) for option, _, _ in _WHOLE_HOSPITAL},
        ),
        secret=_secret(options.hospitals_secret, options.reveal_to),
    ).save(options.output)
    return f"made {options.output}; the hospital finds it through {TRUST_VARIABLE}={options.output}"


def _secret(path: Path | None, reveal_to: list[str]) -> bytes:
    """Read the hospitals' secret, or draw it into a new file that the others are to be given."""
    if path is None:
        if reveal_to != ["server"]:
            raise UsageError(
                "--reveal-to hospitals or nobody needs --hospitals-secret FILE, the same at every hospital"
            )
        return b""
    try:
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(os.urandom(SECRET_BYTES).hex() + "\n")
        return bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: expected 64 hex digits that can be read ({type(error).__name__})"
        ) from None


def _described(identity: Identity) -> str:
    return f"{identity.role} {identity.name}, public key {identity.public_key.hex()}"


def _endpoint(text: str) -> Endpoint:
    """Read ``NAME@HOST:PORT=KEY``."""
    name, at, rest = text.partition("@")
    address, equals, key = rest.partition("=")
    host, colon, port = address.rpartition(":")
    if not (at and equals and colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"--party: expected NAME@HOST:PORT=KEY, got {text!r}")
    return Endpoint(name, host, int(port), _public_key(key, Role.PARTY, name))


def _hospital(text: str) -> tuple[str, bytes]:
    name, equals, key = text.partition("=")
    if not (name and equals):
        raise UsageError(f"--hospital: expected NAME=KEY, got {text!r}")
    return name, _public_key(key, Role.HOSPITAL, name)


def _metric(text: str) -> tuple[str, tuple[float, float]]:
    """Read ``NAME=LOW:HIGH``."""
    name, equals, bounds = text.partition("=")
    low, colon, high = bounds.partition(":")
    try:
        limits = float(low), float(high)
    except ValueError:
        limits = math.nan, math.nan
    if not (name and equals and colon and -math.inf < limits[0] < limits[1] < math.inf):
        raise UsageError(f"--metric: expected NAME=LOW:HIGH with LOW below HIGH, got {text!r}")
    return name, limits


def _public_key(text: str, role: Role, name: str | None = None) -> bytes:
    """Return a public key given in hex, or read from an identity file of the right role and name."""
    if len(text) == 64 and not set(text.lower()) - set("0123456789abcdef"):
        return bytes.fromhex(text)
    identity = Identity.load(Path(text))
    if identity.role is not role or (name is not None and identity.name != name):
        wanted = f"{role} {name}" if name else f"a {role}"
        raise UsageError(
            f"expected the identity of {wanted}, {text} is that of {identity.role} {identity.name}"
        )
    return identity.public_key


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} exists; what others have compared is never overwritten: take another name")
