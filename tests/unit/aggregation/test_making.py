"""One pass from what training made to parts: against plain numpy, whatever the pieces."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from functools import partial

import numpy as np
import pytest

from fedsec.aggregation import ArraySpec, MetricSpec
from fedsec.aggregation.checksum import PIECE_WORDS, Checksum
from fedsec.aggregation.encoding import UpdateWords, encode_update
from fedsec.aggregation.making import make_parts
from fedsec.aggregation.messages import UploadHeader, part_digest, unseal
from fedsec.aggregation.planner import Layout, plan_encoding
from fedsec.aggregation.running import RunningSum
from fedsec.aggregation.summing import PartChecksum
from fedsec.aggregation.tags import UpdateTag
from fedsec.errors import RangeError
from fedsec.ring import KeyedStream, derive_key
from fedsec.sharing import additive, compressed

CLIP, LARGEST = 0.75, 200
SIZES = (3, PIECE_WORDS - 1, 1, 2 * PIECE_WORDS + 5, 0)
NAMES = tuple(f"layer-{number}" for number in range(len(SIZES)))
METRIC = MetricSpec("loss", 0.0, 10.0)


def specs():
    return tuple(ArraySpec(name, "float32", (size,), CLIP) for name, size in zip(NAMES, SIZES, strict=True))


def layout(bits=32, arrays=None):
    return Layout(
        plan_encoding(5, CLIP, LARGEST, 50.0, bits), specs() if arrays is None else arrays, (METRIC,)
    )


def trained(seed=3, spread=1.0):
    """What training began and ended with; some values leave the clip when ``spread`` is more than 0.5."""
    generator = np.random.default_rng(seed)
    base = [generator.normal(size=size).astype(np.float32) for size in SIZES]
    new = [one + generator.uniform(-spread, spread, one.shape).astype(np.float32) for one in base]
    return new, base


def plain_words(plan, new, base, examples, loss):
    """Encode as the page on the wire format says, in integers of Python's and numpy's own."""
    largest = min((2 ** (plan.encoding.ring_bits - 1) - 1) // 5, 2**48)
    updates = [np.clip(n.astype(np.float64) - b, -CLIP, CLIP) for n, b in zip(new, base, strict=True)]
    flat = np.concatenate([np.rint(one * (examples * (largest / (LARGEST * CLIP)))) for one in updates])
    metric = np.rint(loss * (examples * (largest / (LARGEST * METRIC.high))))
    whole = np.concatenate([flat.astype(np.int64), [examples, int(metric)]])
    return whole.astype(np.uint64).astype(f"<u{plan.encoding.ring_bits // 8}")


@pytest.mark.parametrize("bits", [32, 64])
def test_words_made_in_pieces_are_those_of_plain_numpy(bits):
    (new, base), plan = trained(), layout(bits)
    source = UpdateWords(plan, new, 120, {"loss": 2.5}, base=base, saturate=True)
    words = np.empty(plan.payload_words, dtype=f"<u{bits // 8}")
    places = list(source.fill(words))
    np.testing.assert_array_equal(words, plain_words(plan, new, base, 120, 2.5))
    assert places == sorted(places)
    assert places[-1] == plan.payload_words
    outside = sum(
        int(np.sum(np.abs(n.astype(np.float64) - b) > CLIP)) for n, b in zip(new, base, strict=True)
    )
    assert outside > 1000
    assert (source.report.clipped, source.report.total) == (outside, sum(SIZES) + 2)


def test_without_a_base_the_update_is_what_was_given():
    (new, base), plan = trained(spread=0.4), layout()
    update = [n.astype(np.float64) - b for n, b in zip(new, base, strict=True)]
    expected = plain_words(plan, new, base, 7, 0.0)
    np.testing.assert_array_equal(encode_update(plan, update, 7, {"loss": 0.0}), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("place", [0, PIECE_WORDS, 2 * PIECE_WORDS + 4])
def test_what_is_not_finite_is_refused_wherever_it_stands(bad, saturate, place):
    (new, base), plan = trained(spread=0.4), layout()
    new[3][place] = bad
    source = UpdateWords(plan, new, 7, {"loss": 0.0}, base=base, saturate=saturate)
    with pytest.raises(RangeError, match="'layer-3' holds NaN or infinity"):
        list(source.fill(np.empty(plan.payload_words, dtype="<u4")))


def test_a_value_out_of_range_in_the_last_piece_is_refused_with_the_count_of_the_whole_array():
    (new, base), plan = trained(spread=0.4), layout()
    new[3][5] = base[3][5] + 1
    new[3][-1] = base[3][-1] + 1
    source = UpdateWords(plan, new, 7, {"loss": 0.0}, base=base)
    with pytest.raises(RangeError, match=f"'layer-3' has 2 of {SIZES[3]} values outside"):
        list(source.fill(np.empty(plan.payload_words, dtype="<u4")))


@pytest.fixture
def announcement(world):
    new, base = trained()
    encoding = plan_encoding(5, CLIP, LARGEST, 50.0)
    made = world.announcement(base, clips=[CLIP] * len(base), metrics=(METRIC,), encoding=encoding)
    return made, new, base


def test_the_parts_join_to_the_words_with_their_checksum(announcement, world):
    announcement, new, base = announcement
    plan, hospital = announcement.layout, world.hospitals[1]
    source = UpdateWords(plan, new, 5, {"loss": 1.5}, base=base, saturate=True)
    words = np.empty(plan.payload_words, dtype="<u4")
    list(UpdateWords(plan, new, 5, {"loss": 1.5}, base=base, saturate=True).fill(words))

    parts = make_parts(announcement, hospital, source)

    shares = []
    for name, part in parts.parts.items():
        body = bytes(part[32:])
        holder = name == announcement.vector_holder(hospital.name)
        shares.append(
            np.frombuffer(body, "<u4") if holder else compressed.expand(body, plan.words, plan.encoding.ring)
        )
    vector = additive.reconstruct(shares)
    np.testing.assert_array_equal(vector[:-1], words)
    rho = KeyedStream(derive_key(announcement.digest, purpose="aggregation/checksum"))
    odd = rho.words(words.size, plan.encoding.ring) | 1
    # In integers of Python's own, a few words at a time.
    expected = sum(int(a) * int(b) for a, b in zip(words, odd, strict=True)) % 2**32
    assert int(vector[-1]) == expected

    header = unseal(parts.header, UploadHeader, hospital.public_key)
    assert header.digests == tuple(
        part_digest(parts.upload_id, name, [part], len(part)) for name, part in parts.parts.items()
    )


def test_words_at_once_and_words_in_pieces_make_the_same_parts(announcement, world, monkeypatch):
    announcement, new, base = announcement
    plan = announcement.layout
    words = np.empty(plan.payload_words, dtype="<u4")
    made = []
    for at_once in (False, True):
        counter = iter(range(1000))
        monkeypatch.setattr(
            secrets, "token_bytes", lambda size, n=counter: hashlib.shake_128(bytes([next(n)])).digest(size)
        )
        source = UpdateWords(plan, new, 5, {"loss": 1.5}, base=base, saturate=True)
        if at_once:
            list(source.fill(words))
        made.append(make_parts(announcement, world.hospitals[0], words if at_once else source))
    assert made[0].parts == made[1].parts
    assert made[0].header == made[1].header


# Tags.


def tag_of(arrays, key=bytes(range(32)), step=PIECE_WORDS):
    tag = UpdateTag(key)
    for array in arrays:
        values = np.asarray(array, dtype=np.float64) + 0.0
        for start in range(0, values.size, step):
            piece = values[start : start + step]
            tag.add(piece, bool(piece.any()))
        tag.add(None, False)
    return tag.digest()


def test_a_tag_knows_an_update_again_whatever_the_server_may_choose():
    one, two = np.linspace(-1, 1, 1000), np.arange(7.0)
    expected = tag_of([one, two])
    assert tag_of([two, one]) == expected
    assert tag_of([one, np.zeros(50), two]) == expected, "an array that did not change is no part of it"
    assert tag_of([one, two], step=13) == expected
    assert tag_of([one, two], key=bytes(32)) != expected
    changed = two.copy()
    changed[3] = np.nextafter(changed[3], 9)
    assert tag_of([one, changed]) != expected
    assert tag_of([one, two, two]) != expected
    assert tag_of([np.concatenate([one, two])]) != expected


def test_a_tag_is_made_of_what_training_made_before_it_was_clipped():
    (new, base), plan = trained(), layout()
    tag = UpdateTag(bytes(range(32)))
    source = UpdateWords(plan, new, 5, {"loss": 0.0}, base=base, saturate=True, hear=tag.add)
    list(source.fill(np.empty(plan.payload_words, dtype="<u4")))
    update = [n.astype(np.float64) - b.astype(np.float64) for n, b in zip(new, base, strict=True)]
    assert tag.digest() == tag_of(update)
    assert len(tag.digest()) == hmac.new(b"", b"", "sha256").digest_size


# Checksums of parts that arrive.


@pytest.mark.parametrize("chunk", [1, 7, 31, 33, 4096, 65536, 10**9])
@pytest.mark.parametrize("bits", [32, 64])
def test_a_checksum_share_is_formed_from_chunks_of_any_size(chunk, bits):
    plan = layout(bits, (ArraySpec("layer", "float32", (5000,), CLIP),))
    ring = plan.encoding.ring
    digest = secrets.token_bytes(32)
    vector = KeyedStream(secrets.token_bytes(32)).words(plan.words, ring)
    seed = secrets.token_bytes(32)
    for checksum in (Checksum(plan, digest), Checksum(plan, digest, keep=True)):
        for body, whole in ((vector.tobytes(), vector), (seed, compressed.expand(seed, plan.words, ring))):
            expand = partial(RunningSum(plan, 1).expand, digest) if body == seed else None
            part, share = bytes(32) + body, PartChecksum(checksum, plan, expand)
            for start in range(0, len(part), chunk):
                share.add(part[start : start + chunk])
            rho = KeyedStream(derive_key(digest, purpose="aggregation/checksum"))
            odd = rho.words(plan.payload_words, ring) | ring.dtype.type(1)
            expected = sum(int(a) * int(b) for a, b in zip(whole, odd, strict=False)) - int(whole[-1])
            assert share.difference() == expected % ring.modulus
