"""What a hospital refuses before one byte of a share leaves."""

import numpy as np
import pytest
from aggregation_world import FakeIdentity, contribution, replaced

from fedsec.aggregation import HospitalClient, Member, RoundId, TrustFile, TrustLimits, encode_config
from fedsec.aggregation.announcement import decode_announcement, members
from fedsec.aggregation.messages import Signed
from fedsec.aggregation.signing import sign
from fedsec.errors import FedsecError, ProtocolError, RangeError, TrustError, UsageError
from fedsec.transport import Role

ARRAYS = (np.zeros((2, 3), np.float32), np.zeros(4, np.float32))
CONFIG = {"lr": 0.01, "epochs": 1}


def signed_by(identity, announcement):
    payload = announcement.encode()
    return Signed(payload, sign(identity, "announcement", payload))


def accept(world, announcement, arrays=ARRAYS, config=None, signer=None):
    signed = signed_by(signer or world.server, announcement)
    client = world.client(world.hospitals[0])
    return client.accept(signed.payload, signed.signature, arrays, CONFIG if config is None else config)


def test_a_trust_file_survives_saving(world, tmp_path):
    trust = world.trust(world.hospitals[0], largest_clip=2.5, reveal_to=("server", "hospitals"))
    trust.save(tmp_path / "trust.toml")
    assert TrustFile.load(tmp_path / "trust.toml") == trust


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("sever = 'aa'", "server"),
        ("[limits]\nminimum_cohrt = 3", "minimum_cohort"),
        ("[limits]\nminimum_cohort = 'three'", "must be a number"),
        ("version = 2", "version 2"),
        ("identity = 5", "wrong type"),
        ("[limits]\nreveal_to = 'server'", "must be a list"),
        ("[limits]\nhospital_noise_multiplier = nan", "hospital_noise_multiplier is 0 or more and finite"),
        ("[limits]\nhospital_epsilon = inf", "hospital_epsilon is 0 or more and finite"),
        ("[limits]\nlargest_clip = nan", r"trust.toml: limits.largest_clip is 0 or more"),
        ("[limits]\nhospital_colluding = -1", "hospital_colluding is 0 or more"),
        ("[limits]\nhospital_delta = 1.0", "hospital_delta is above 0 and below 1"),
    ],
)
def test_a_wrong_trust_file_is_refused_with_the_nearest_key(world, tmp_path, line, text):
    path = tmp_path / "trust.toml"
    world.trust(world.hospitals[0]).save(path)
    key = line.split(" ")[0].removeprefix("[limits]\n").split("=")[0].strip()
    lines = [one for one in path.read_text().splitlines() if not one.startswith(f"{key} =")]
    body = "\n".join(lines)
    body = body.replace("[limits]", line) if line.startswith("[limits]") else f"{line}\n{body}"
    path.write_text(body)
    with pytest.raises(UsageError, match=text):
        TrustFile.load(path)


def test_threat_19_one_key_for_two_hospitals_is_refused(world):
    key = world.hospitals[0].public_key
    with pytest.raises(UsageError, match="share one public key"):
        replaced_trust(world, roster={**world.roster, "sybil": key})
    with pytest.raises(ProtocolError, match="share one key"):
        world.announcement(roster=members({**world.roster, "sybil": key})).check()


def replaced_trust(world, **fields):
    trust = world.trust(world.hospitals[0])
    values = {name: getattr(trust, name) for name in trust.__dataclass_fields__}
    return TrustFile(**{**values, **fields})


def test_a_good_announcement_is_accepted(world):
    announcement = world.announcement()
    assert accept(world, announcement) == announcement


def strangers(world):
    stranger = FakeIdentity("agg-9", Role.PARTY)
    other = FakeIdentity("agg-1", Role.PARTY)
    keys = {one.name: one.public_key for one in world.parties}
    encoding = world.announcement().encoding
    sybil = FakeIdentity("h99", Role.HOSPITAL)
    return {
        "another aggregator": {"aggregators": members({**keys, "agg-9": stranger.public_key})},
        "another key": {"aggregators": members({**keys, "agg-1": other.public_key})},
        "n=2": {"aggregators": members({name: keys[name] for name in ("agg-0", "agg-1")})},
        "cohort 1": {"minimum_cohort": 1},
        "another recipient": {"recipient": Member("server", other.public_key)},
        "reveal to nobody": {"reveal_to": "nobody"},
        "unknown hospital": {
            "roster": members(
                {**{h: k for h, k in world.roster.items() if h != "h03"}, "h99": sybil.public_key}
            )
        },
        "heavy weights": {"encoding": replaced(encoding, largest_weight=200_000, smallest_mean_weight=1e5)},
        "wide clip": {"encoding": replaced(encoding, clip=99.0)},
        "64 bits": {"encoding": replaced(encoding, ring_bits=64)},
        "version": {"version": 2},
        "not in the roster": {
            "roster": members({name: key for name, key in world.roster.items() if name != "h00"})
        },
    }


@pytest.mark.parametrize(
    "what",
    [
        "another aggregator", "another key", "n=2", "cohort 1", "another recipient", "reveal to nobody",
        "unknown hospital", "heavy weights", "wide clip", "64 bits", "version", "not in the roster",
    ],
)  # fmt: skip
def test_threat_49_a_server_that_names_other_trust_gets_no_byte(world, what):
    announcement = world.announcement(**strangers(world)[what])
    sent = []
    world.network.ask = lambda *arguments: sent.append(arguments)

    with pytest.raises(FedsecError) as caught:
        accept(world, announcement)
    assert isinstance(caught.value, TrustError | ProtocolError | RangeError)
    with pytest.raises(UsageError, match="accept"):
        world.client(world.hospitals[0]).submit(
            announcement, contribution(0).update, 10, contribution(0).metrics
        )
    assert sent == []


def test_threat_49_the_same_deviations_are_refused_by_the_aggregators(world):
    for what, fields in strangers(world).items():
        if what in {"heavy weights", "wide clip", "64 bits", "n=2", "not in the roster"}:
            continue  # limits of the hospitals alone
        with pytest.raises((TrustError, ProtocolError)):
            world.open(world.announcement(**fields))


def test_threat_28_an_announcement_under_another_key_is_refused(world):
    with pytest.raises(TrustError):
        accept(world, world.announcement(), signer=FakeIdentity("server", Role.SERVER))
    signed = signed_by(world.server, world.announcement())
    for position in (0, 20, len(signed.payload) - 1):
        flipped = bytearray(signed.payload)
        flipped[position] ^= 1
        with pytest.raises(TrustError):
            world.client(world.hospitals[0]).accept(bytes(flipped), signed.signature, ARRAYS, CONFIG)


def test_threat_26_another_model_is_refused(world):
    announcement = world.announcement()
    other = (ARRAYS[0], np.full(4, 1e-30, np.float32))
    with pytest.raises(TrustError, match="another model"):
        accept(world, announcement, other)
    with pytest.raises(TrustError, match="array-1"):
        accept(world, announcement, (ARRAYS[0], np.zeros(4, np.float64)))
    with pytest.raises(TrustError, match="array-0"):
        accept(world, announcement, (np.zeros((3, 2), np.float32), ARRAYS[1]))
    with pytest.raises(TrustError, match="2 arrays"):
        accept(world, announcement, ARRAYS[:1])


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"lr": 0.0, "epochs": 1}, "lr"),
        ({"lr": 0.01, "epochs": 1.0}, "epochs"),
        ({"lr": 0.01, "epochs": True}, "epochs"),
        ({"lr": 0.01}, "epochs"),
        ({"lr": 0.01, "epochs": 1, "noise": 0}, "noise"),
        ({"lr": "0.01", "epochs": 1}, "lr"),
    ],
)
def test_threat_26_another_learning_rate_or_key_is_refused(world, config, key):
    with pytest.raises(TrustError, match=f"config key '{key}'"):
        accept(world, world.announcement(), config=config)


def test_threat_26_two_signed_announcements_prove_the_server(world):
    accept(world, world.announcement())
    other = world.announcement(config={"lr": 0.0, "epochs": 1})
    with pytest.raises(TrustError, match="two announcements"):
        accept(world, other, config={"lr": 0.0, "epochs": 1})
    rows = world.client(world.hospitals[0])._state._db.execute("SELECT payload, signature FROM announcements")
    kept = [Signed(*row) for row in rows.fetchall()]
    assert len(kept) == 2
    for one in kept:
        world.trust(world.hospitals[0]).check(
            one.payload,
            one.signature,
            ARRAYS,
            {"lr": 0.0 if one.payload == other.encode() else 0.01, "epochs": 1},
        )


def test_threat_26_aggregators_take_one_announcement_a_round(world):
    world.open(world.announcement())
    world.open(world.announcement())
    with pytest.raises(TrustError, match="two announcements"):
        world.open(world.announcement(config={"lr": 0.0, "epochs": 1}))


def test_threat_26_an_upload_over_another_announcement_is_refused(world):
    world.open(world.announcement())
    other = world.announcement(config={"lr": 0.0, "epochs": 1})
    signed = world.sign(other)
    with pytest.raises(ProtocolError, match="another announcement"):
        world.submit(world.hospitals[1], other, signed, contribution(1), config={"lr": 0.0, "epochs": 1})


def test_only_the_canonical_encoding_is_an_announcement(world):
    payload = world.announcement().encode()
    assert decode_announcement(payload) == world.announcement()
    for bad in (b"", payload + b"\0", payload[:-1], b"\xc0" + payload):
        with pytest.raises(ProtocolError):
            decode_announcement(bad)


def test_config_values_keep_their_types():
    assert encode_config({"a": 1}) != encode_config({"a": 1.0}) != encode_config({"a": True})
    assert encode_config({"a": "x"}) != encode_config({"a": b"x"})
    assert encode_config({"b": 1, "a": 2}) == encode_config({"a": 2, "b": 1})
    with pytest.raises(UsageError):
        encode_config({"a": {"b": 1}})


@pytest.mark.parametrize(
    "fields",
    [
        {"session": b"short"}, {"round": -1}, {"round": 2**32}, {"phase": "train", "minimum_cohort": 9},
        {"array_digests": ()}, {"upload_seconds": 0.0}, {"upload_seconds": float("inf")},
    ],
)  # fmt: skip
def test_announcements_that_contradict_themselves_are_refused(world, fields):
    with pytest.raises(ProtocolError, match="not valid"):
        world.announcement(**fields).check()


def test_unsorted_config_is_refused(world):
    announcement = replaced(world.announcement(), config=(("b", b""), ("a", b"")))
    with pytest.raises(ProtocolError, match="not sorted"):
        announcement.check()


def test_hospital_rounds_only_go_up(world):
    for number in (5, 7):
        announcement = world.announcement(round=number)
        signed = world.open(announcement)
        world.submit(world.hospitals[0], announcement, signed, contribution(number))
    with pytest.raises(TrustError, match="not above"):
        accept(world, world.announcement(round=6))
    assert RoundId(bytes(16), 3, "train").position < RoundId(bytes(16), 3, "evaluate").position


def test_an_identity_outside_its_own_roster_cannot_start(world):
    stranger = FakeIdentity("h00", Role.HOSPITAL)
    with pytest.raises(TrustError, match="own key"):
        HospitalClient(
            world.trust(world.hospitals[0]), identity=stranger, links=world.network.links(stranger.peer)
        )
    assert TrustLimits().fewest_aggregators == 0, "all that are pinned"
