import hashlib
import hmac
import json
import secrets
from pathlib import Path

import numpy as np
import pytest

from fedsec import errors
from fedsec.errors import InputError, UsageError
from fedsec.ring import KEY_BYTES, RING32, RING64, KeyedStream, Ring, derive_key, fresh_key, fresh_stream

VECTORS = Path(__file__).parents[2] / "vectors"
KEY = bytes(range(32))


def _vectors(file):
    return [pytest.param(v, id=v["name"]) for v in json.loads((VECTORS / file).read_text())["vectors"]]


def _hkdf(secret, salt, info, length):
    """HKDF-SHA256 from RFC 5869, section 2, in the standard library."""
    extracted = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
    block, out = b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([number]), hashlib.sha256)
        out += block
    return out[:length]


@pytest.mark.parametrize("vector", _vectors("keyed_stream.json"))
def test_threat_01_stream_known_answers(vector):
    key = bytes.fromhex(vector["key"])
    if "error" in vector:
        with pytest.raises(getattr(errors, vector["error"])):
            KeyedStream(key)
        return
    expected = bytes.fromhex(vector["stream"])
    assert KeyedStream(key).take(len(expected)) == expected


@pytest.mark.parametrize("vector", _vectors("hkdf.json"))
def test_threat_01_hkdf_known_answers(vector):
    secret = bytes.fromhex(vector["secret"])
    if "error" in vector:
        with pytest.raises(getattr(errors, vector["error"])):
            derive_key(secret, purpose=vector["purpose"])
        return
    salt, info = bytes.fromhex(vector["salt"]), bytes.fromhex(vector["info"])
    assert _hkdf(secret, salt, info, vector["length"]) == bytes.fromhex(vector["key"])


@pytest.mark.parametrize("context", [b"", b"round 3", bytes(40)])
def test_a_derived_key_is_hkdf_under_a_versioned_label(context):
    expected = _hkdf(KEY, b"", b"fedsec/v1/mpc/zero\0" + context, 32)

    assert derive_key(KEY, purpose="mpc/zero", context=context) == expected


def test_threat_03_purpose_and_context_never_run_into_each_other():
    parts = ["a", "ab", "abc", "b", "bc", "c"]
    keys = [
        derive_key(KEY, purpose=p, context=c) for p in parts for c in (b"", b"a", b"b", b"bc", b"c", b"\0")
    ]

    assert len(set(keys)) == len(keys)


def test_threat_02_every_bit_of_a_long_secret_counts():
    secret = bytes(100)
    keys = {derive_key(secret, purpose="test")}
    for bit in range(800):
        flipped = bytearray(secret)
        flipped[bit // 8] ^= 1 << bit % 8
        keys.add(derive_key(bytes(flipped), purpose="test"))

    assert len(keys) == 801


def test_threat_01_keys_come_from_the_operating_system(monkeypatch):
    asked = []

    def token_bytes(size):
        asked.append(size)
        return bytes([7]) * size

    monkeypatch.setattr(secrets, "token_bytes", token_bytes)

    assert fresh_key() == bytes([7]) * KEY_BYTES
    assert fresh_stream().take(8) == KeyedStream(bytes([7]) * KEY_BYTES).take(8)
    assert asked == [32, 32]


def test_threat_03_fresh_streams_never_repeat():
    assert len({fresh_stream().take(16) for _ in range(1000)}) == 1000


@pytest.mark.parametrize("ring", [Ring(8), Ring(16), RING32, RING64], ids=str)
def test_words_are_the_bytes_of_the_stream_in_little_endian(ring):
    words = KeyedStream(KEY).words((2, 3), ring)

    expected = KeyedStream(KEY).take(6 * ring.element_bytes)
    assert words.dtype == ring.dtype
    assert words.shape == (2, 3)
    assert words.tobytes() == expected


def test_a_stream_is_one_sequence_however_it_is_asked():
    whole = KeyedStream(KEY).take(300_000)
    stream = KeyedStream(KEY)
    sizes = [1, 15, 16, 17, 0, 65_535, 65_536, 65_537]
    pieces = [stream.take(size) for size in sizes]

    assert b"".join(pieces) == whole[: sum(sizes)]
    assert stream.position == sum(sizes)

    buffer = np.empty((100, 100), dtype=np.uint64)
    stream.fill(buffer)
    assert buffer.tobytes() == whole[sum(sizes) : sum(sizes) + 80_000]


@pytest.mark.parametrize("shape", [0, (0,), (3, 0), ()])
def test_empty_and_scalar_shapes(shape):
    words = KeyedStream(KEY).words(shape)

    assert words.shape == ((shape,) if isinstance(shape, int) else shape)


def test_refusals_leave_the_stream_where_it_was():
    stream = KeyedStream(KEY)
    with pytest.raises(UsageError):
        stream.take(-1)
    with pytest.raises(UsageError):
        stream.words(-1)
    with pytest.raises(UsageError):
        stream.words((2, -3))
    with pytest.raises(UsageError, match="contiguous"):
        stream.fill(np.zeros((4, 4), dtype=np.uint64)[:, ::2])
    with pytest.raises(InputError):
        stream.fill(np.zeros(4))

    assert stream.position == 0
    assert stream.take(4) == KeyedStream(KEY).take(4)


def test_threat_45_a_stream_prints_no_key():
    stream = KeyedStream(KEY)
    stream.take(5)

    assert repr(stream) == "KeyedStream(position=5)"
    assert not hasattr(stream, "__dict__")
