"""Known answers: shares are what Python integers and single AES blocks give for the same key."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from fedsec import errors
from fedsec.ring import KeyedStream, Ring
from fedsec.sharing import additive, boolean, compressed, replicated
from fedsec.sharing.boolean import BitShare
from fedsec.sharing.replicated import RepShare

FOLDER = Path(__file__).parents[2] / "vectors"
VECTORS = json.loads((FOLDER / "sharing.json").read_text())["vectors"]


def _words(values, vector):
    return np.array(values, dtype=Ring(vector["bits"]).dtype)


def _stream(vector):
    return KeyedStream(bytes.fromhex(vector["key"]))


def _check_additive(vector):
    expected = [_words(share, vector) for share in vector["shares"]]
    if "error" in vector:
        additive.reconstruct(expected)
        additive.share(_words(vector["secret"], vector), vector["parties"], _stream(vector))
    made = additive.share(_words(vector["secret"], vector), vector["parties"], _stream(vector))
    np.testing.assert_array_equal(made, expected)
    np.testing.assert_array_equal(additive.reconstruct(expected), vector["secret"])


def _check_compressed(vector):
    seeds = [bytes.fromhex(seed) for seed in vector["seeds"]]
    made = compressed.share_compressed(_words(vector["secret"], vector), seeds)
    np.testing.assert_array_equal(made, _words(vector["vector"], vector))
    expanded = [compressed.expand(seed, made.size, Ring(vector["bits"])) for seed in seeds]
    np.testing.assert_array_equal(expanded, [_words(mask, vector) for mask in vector["expanded"]])


def _check_replicated(vector):
    expected = [
        RepShare(_words(own, vector), _words(following, vector)) for own, following in vector["shares"]
    ]
    np.testing.assert_array_equal(replicated.reconstruct(expected), vector["secret"])
    for made, known in zip(
        replicated.share(_words(vector["secret"], vector), _stream(vector)), expected, strict=True
    ):
        np.testing.assert_array_equal(made.own, known.own)
        np.testing.assert_array_equal(made.next, known.next)


def _check_boolean(vector):
    def planes(values):
        return np.array(values, dtype=np.uint64).reshape(vector["planes"], -1)

    count = len(vector["secret"])
    packed = boolean.pack_bits(_words(vector["secret"], vector), vector["planes"])
    np.testing.assert_array_equal(packed, planes(vector["packed"]))
    expected = [BitShare(planes(own), planes(following), count) for own, following in vector["shares"]]
    np.testing.assert_array_equal(boolean.reconstruct(expected), packed)
    for made, known in zip(boolean.share(packed, count, _stream(vector)), expected, strict=True):
        np.testing.assert_array_equal(made.own, known.own)
        np.testing.assert_array_equal(made.next, known.next)


CHECKS = {
    "additive": _check_additive,
    "compressed": _check_compressed,
    "replicated": _check_replicated,
    "boolean": _check_boolean,
}


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in VECTORS])
def test_threat_01_sharing_known_answers(vector):
    check = CHECKS[vector["scheme"]]
    if "error" in vector:
        with pytest.raises(getattr(errors, vector["error"])):
            check(vector)
    else:
        check(vector)


def test_the_vectors_are_what_their_generator_writes():
    spec = importlib.util.spec_from_file_location("generate_sharing", FOLDER / "generate_sharing.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)

    assert generator.FILE.read_text() == generator.text()


def test_bad_vectors_are_named_so():
    files = [json.loads(file.read_text()) for file in FOLDER.glob("*.json")]
    for vector in (v for file in files for v in file.get("vectors", []) if "scheme" in v or "purpose" in v):
        assert ("_bad_" in vector["name"]) == ("error" in vector)
