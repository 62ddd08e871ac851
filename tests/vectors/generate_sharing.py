"""Write sharing.json: sharing computed with Python integers and single AES blocks, without fedsec.

Run as ``python tests/vectors/generate_sharing.py``; a test checks that the file is what this script writes.
"""

import hashlib
import hmac
import json
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

FILE = Path(__file__).with_name("sharing.json")


def keystream(key: bytes, size: int) -> bytes:
    """AES-256 of the block numbers 0, 1, 2, ..., one block at a time."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - single blocks build the counter mode
    blocks = [aes.update(number.to_bytes(16, "big")) for number in range(-(-size // 16))]
    return b"".join(blocks)[:size]


def hkdf(secret: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 with an empty salt and one output block, from RFC 5869's two lines."""
    extracted = hmac.digest(bytes(32), secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)


def words(stream: bytes, bits: int) -> list[int]:
    size = bits // 8
    return [int.from_bytes(stream[i : i + size], "little") for i in range(0, len(stream), size)]


def expand(seed: bytes, count: int, bits: int) -> list[int]:
    key = hkdf(seed, b"fedsec/v1/sharing/compressed\0" + bytes([bits]))
    return words(keystream(key, count * bits // 8), bits)


def minus(secret: list[int], masks: list[list[int]], bits: int) -> list[int]:
    return [(value - sum(column)) % 2**bits for value, *column in zip(secret, *masks, strict=True)]


def additive(name: str, secret: list[int], parties: int, bits: int, key: bytes) -> dict[str, object]:
    count = len(secret)
    stream = words(keystream(key, (parties - 1) * count * bits // 8), bits)
    masks = [stream[i * count : (i + 1) * count] for i in range(parties - 1)]
    shares = [*masks, minus(secret, masks, bits)]
    return {"name": name, "scheme": "additive", "bits": bits, "parties": parties, "key": key.hex(),
            "secret": secret, "shares": shares}  # fmt: skip


def pairs_of(parts: list[list[int]]) -> list[list[list[int]]]:
    """Party i's pair is copies of parts i and i+1."""
    return [[list(parts[i]), list(parts[(i + 1) % 3])] for i in range(3)]


def replicated(name: str, secret: list[int], bits: int, key: bytes) -> dict[str, object]:
    pairs = pairs_of(additive(name, secret, 3, bits, key)["shares"])
    return {
        "name": name,
        "scheme": "replicated",
        "bits": bits,
        "key": key.hex(),
        "secret": secret,
        "shares": pairs,
    }


def boolean(name: str, secret: list[int], planes: int, bits: int, key: bytes) -> dict[str, object]:
    lanes = -(-len(secret) // 64)
    sliced = [sum((value >> p & 1) << e for e, value in enumerate(secret)) for p in range(planes)]
    packed = [plane >> 64 * i & (2**64 - 1) for plane in sliced for i in range(lanes)]
    stream = words(keystream(key, 2 * len(packed) * 8), 64)
    b_0, b_1 = stream[: len(packed)], stream[len(packed) :]
    pairs = pairs_of([b_0, b_1, [s ^ a ^ b for s, a, b in zip(packed, b_0, b_1, strict=True)]])
    return {"name": name, "scheme": "boolean", "bits": bits, "planes": planes, "key": key.hex(),
            "secret": secret, "packed": packed, "shares": pairs}  # fmt: skip


def compressed(name: str, secret: list[int], seeds: list[bytes], bits: int) -> dict[str, object]:
    masks = [expand(seed, len(secret), bits) for seed in seeds]
    return {
        "name": name,
        "scheme": "compressed",
        "bits": bits,
        "secret": secret,
        "seeds": [seed.hex() for seed in seeds],
        "expanded": masks,
        "vector": minus(secret, masks, bits),
    }


def bad_copies(name: str, key: bytes) -> dict[str, object]:
    vector = replicated(name, [1, 2, 3], 64, key)
    vector["shares"][1][1][2] ^= 1
    return {**vector, "error": "ProtocolError"}


def bad_plane(name: str, key: bytes) -> dict[str, object]:
    vector = boolean(name, [1, 2, 3], 4, 64, key)
    vector["shares"][2][0][0] ^= 1
    return {**vector, "error": "ProtocolError"}


def bad_length(name: str, key: bytes) -> dict[str, object]:
    vector = additive(name, [1, 2, 3], 3, 64, key)
    vector["shares"][2].pop()
    return {**vector, "error": "ProtocolError"}


def make() -> dict[str, object]:
    """All vectors, with their origin."""
    key = bytes(range(32))
    other = bytes(range(32, 64))
    edges = [0, 1, 2**63 - 1, 2**63, 2**64 - 1]
    small = [value % 2**32 for value in edges]
    vectors = [
        additive("additive_77777_in_three", [77777], 3, 64, key),
        *(additive(f"additive_edges_{n}_parties", edges, n, 64, key) for n in range(2, 8)),
        additive("additive_32_bits", small, 3, 32, other),
        additive("additive_8_bits", [0, 1, 127, 128, 255], 3, 8, other),
        bad_length("additive_bad_share_of_other_length", key),
        {**additive("additive_bad_one_party", [1], 1, 64, key), "error": "UsageError"},
        {**additive("additive_bad_eight_parties", [1], 8, 64, key), "error": "UsageError"},
        compressed("compressed_two_parties", edges, [key], 64),
        compressed("compressed_three_parties", edges, [key, other], 64),
        compressed("compressed_32_bits", small, [key, other], 32),
        {**compressed("compressed_bad_equal_seeds", edges, [key, key], 64), "error": "UsageError"},
        {**compressed("compressed_bad_seed_of_31_bytes", edges, [key[:31]], 64), "error": "UsageError"},
        replicated("replicated_77777_in_three", [77777], 64, key),
        replicated("replicated_edges", edges, 64, other),
        replicated("replicated_32_bits", small, 32, key),
        bad_copies("replicated_bad_copies_disagree", key),
        boolean("boolean_21_planes", [(37 * i * i + 5) % 2**21 for i in range(70)], 21, 64, key),
        boolean("boolean_8_bits", list(range(0, 256, 5)), 8, 8, other),
        bad_plane("boolean_bad_copies_disagree", key),
    ]
    return {"origin": "definitions in fedsec/sharing, computed with Python integers and single AES blocks",
            "generator": "tests/vectors/generate_sharing.py", "vectors": vectors}  # fmt: skip


def text() -> str:
    """The file: readable as JSON, one vector a line."""
    made = make()
    lines = ",\n".join(json.dumps(vector) for vector in made["vectors"])
    head = f'{{"origin": {json.dumps(made["origin"])},\n"generator": {json.dumps(made["generator"])},\n'
    return f'{head}"vectors": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
