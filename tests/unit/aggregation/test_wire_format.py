"""The bytes of docs/reference/wire-format.md, made again from hashlib, AES and MessagePack's rules."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from fedsec.aggregation import Announcement, ArraySpec, Encoding, Member, MetricSpec, encode_config, merkle
from fedsec.aggregation.checksum import Checksum
from fedsec.aggregation.context import commitment
from fedsec.aggregation.messages import part_digest

VECTORS = Path(__file__).parents[2] / "vectors" / "aggregation.json"
ANNOUNCEMENT = Announcement(
    version=1, session=bytes(range(16)), round=3, phase="train",
    roster=(Member("a", bytes([1]) * 32), Member("b", bytes([2]) * 32), Member("c", bytes([3]) * 32)),
    aggregators=(Member("x", bytes([4]) * 32), Member("y", bytes([5]) * 32)),
    vector_rule="rotate", reveal_to="server", recipient=Member("server", bytes([6]) * 32),
    arrays=(ArraySpec("kernel", "float32", (2, 3), 1.5),), array_digests=(bytes([7]) * 32,),
    config=encode_config({"lr": 0.005, "epochs": 1, "tag": "x", "flags": [True, False]}),
    metrics=(MetricSpec("loss", 0.0, 20.0),),
    encoding=Encoding(2, 32, "examples", 3, 1.5, 1000, 10.0), minimum_cohort=2, upload_seconds=60.0,
)  # fmt: skip


def pack(value):  # noqa: PLR0911 - one line a type
    """MessagePack for what announcements hold, from the specification."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        for limit, form in ((0x80, ">B"), (0x100, ">BB"), (0x10000, ">BH"), (2**32, ">BI")):
            if 0 <= value < limit:
                first = {">BB": 0xCC, ">BH": 0xCD, ">BI": 0xCE}.get(form)
                return struct.pack(form, value) if first is None else struct.pack(form, first, value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode()
        return bytes([0xA0 | len(raw)]) + raw if len(raw) < 32 else b"\xd9" + bytes([len(raw)]) + raw
    if isinstance(value, bytes):
        return b"\xc4" + bytes([len(value)]) + value
    items = [pack(item) for item in value]
    return (
        bytes([0x90 | len(items)]) if len(items) < 16 else struct.pack(">BH", 0xDC, len(items))
    ) + b"".join(items)


def h(label, *fields):
    framed = [b"fedsec/aggregation/1/" + label.encode(), *fields]
    return hashlib.sha256(b"".join(len(one).to_bytes(8, "big") + one for one in framed)).digest()


def canonical():
    member = [["a", bytes([1]) * 32], ["b", bytes([2]) * 32], ["c", bytes([3]) * 32]]
    config = [["epochs", pack(1)], ["flags", pack([True, False])], ["lr", pack(0.005)], ["tag", pack("x")]]
    return pack([
        1, bytes(range(16)), 3, "train", member, [["x", bytes([4]) * 32], ["y", bytes([5]) * 32]],
        "rotate", "server", ["server", bytes([6]) * 32], [["kernel", "float32", [2, 3], 1.5]],
        [bytes([7]) * 32], config, [["loss", 0.0, 20.0]], [2, 32, "examples", 3, 1.5, 1000, 10.0, None],
        2, 60.0, None,
    ])  # fmt: skip


def test_the_announcement_is_the_documented_array():
    assert ANNOUNCEMENT.encode() == canonical()
    assert ANNOUNCEMENT.digest == h("announcement", canonical())
    assert ANNOUNCEMENT.id.key == bytes(range(16)) + b"\0\0\0\x03t"


def test_the_bytes_are_those_of_version_1():
    stored = json.loads(VECTORS.read_text())
    assert ANNOUNCEMENT.encode().hex() == stored["announcement"]
    assert ANNOUNCEMENT.digest.hex() == stored["announcement_digest"]
    assert [ANNOUNCEMENT.vector_holder(name) for name in "abc"] == stored["vector_holders"]
    words = np.arange(8, dtype=np.uint32)
    assert (
        int(Checksum(ANNOUNCEMENT.layout, ANNOUNCEMENT.digest).append(words)[-1])
        == stored["checksum_of_0_to_7"]
    )


def test_the_checksum_is_the_documented_one():
    key = HKDF(SHA256(), 32, None, b"fedsec/v1/aggregation/checksum\0").derive(ANNOUNCEMENT.digest)
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * 8))
    rho = [word | 1 for word in struct.unpack("<8I", stream)]
    words = [3, 1, 4, 1, 5, 9, 2**32 - 1, 6]
    expected = sum(a * b for a, b in zip(rho, words, strict=True)) % 2**32
    checksum = Checksum(ANNOUNCEMENT.layout, ANNOUNCEMENT.digest)
    vector = checksum.append(np.array(words, np.uint32))
    assert int(vector[-1]) == expected
    assert checksum.difference(vector) == 0
    vector[2] += 1
    assert checksum.difference(vector) == rho[2]


def test_part_digest_and_commitment():
    upload, part = bytes(range(16)), bytes(32) + b"body"
    assert part_digest(upload, "x", [part[:10], part[10:]], len(part)) == h("part", upload, b"x", part)
    key = ANNOUNCEMENT.id.key
    assert commitment(key, "x", bytes(32), b"share") == h("sum share", key, b"x", bytes(32), b"share")


def reference_root(leaves):
    level = list(leaves)
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [h("node", *pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return h("root", len(leaves).to_bytes(8, "big"), level[0])


@given(st.integers(1, 40), st.data())
def test_merkle_root_and_every_path(count, data):
    leaves = [merkle.leaf(b"key", f"h{i}", bytes(16), bytes(32)) for i in range(count)]
    assert leaves[0] == h("leaf", b"key", b"h0", bytes(16), bytes(32))
    root = merkle.root(leaves)
    assert root == reference_root(leaves)
    index = data.draw(st.integers(0, count - 1))
    path = merkle.path(leaves, index)
    assert merkle.root_from_path(leaves[index], index, count, path) == root
    other = data.draw(st.integers(0, count - 1))
    if other != index:
        assert merkle.root_from_path(leaves[index], other, count, path) != root
        assert merkle.root_from_path(leaves[other], index, count, path) != root
    assert merkle.root_from_path(leaves[index], index, count, (*path, bytes(32))) is None
    assert merkle.root_from_path(leaves[index], count, count, path) is None


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_an_inner_node_does_not_pass_for_a_leaf(count):
    leaves = [merkle.leaf(b"key", f"h{i}", bytes(16), bytes(32)) for i in range(count)]
    nodes = [h("node", leaves[0], leaves[1])]
    assert merkle.root([*nodes, *leaves[2:]]) != merkle.root(leaves)
