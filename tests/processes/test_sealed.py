"""Sealed rounds over mutual TLS: three parties keep the model in shares, hospitals alone put it together."""

from __future__ import annotations

import secrets
import sys
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fedsec.aggregation.announcement import array_digest, members, sign_announcement
from fedsec.aggregation.encoding import encode_update
from fedsec.aggregation.links import TlsLinks
from fedsec.aggregation.messages import Announce, Announced, Received, Signed
from fedsec.aggregation.sealed.messages import (
    FetchState,
    OpenSealedLink,
    SealedLinkOpened,
    SealedStart,
    StateShare,
)
from fedsec.aggregation.sealed.state import SealedStates
from fedsec.aggregation.sealed.terms import Sealed, decode_model
from fedsec.aggregation.trust import TrustFile
from fedsec.errors import PeerLostError, ProtocolError, RoundAbortedError, StateError, TrustError
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare
from fedsec.transport import Deadline, Identity, connect
from fedsec.transport.calling import call

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from sealed_site import CONFIG, FRACTION_BITS, SealedSite, initial_model, weight_of

WORD = 2.0**-FRACTION_BITS


@contextmanager
def site(folder, **options):
    with ExitStack() as stack:
        yield SealedSite(folder, stack, **options)


def held(here, number):
    """The state that the three parties hold together, as float64 arrays."""
    states = [
        SealedStates(here.state(one.name)).read(here.session, number) for one in here.cluster.parties[:3]
    ]
    words = replicated.reconstruct([state.share for state in states])
    return decode_model(words, states[0].arrays, FRACTION_BITS)


@pytest.mark.parametrize(("parties", "ring_bits"), [(3, 32), (5, 32), (3, 64)])
def test_three_sealed_rounds_are_federated_averaging(tmp_path, parties, ring_bits):
    with site(tmp_path, parties=parties) as here:
        plain = [one.astype(np.float64) for one in initial_model()]
        bound = 0.5 * WORD
        for number in (1, 2, 3):
            announcement = here.announcement(number, number - 1, ring_bits=ring_bits)
            models = here.take_part(announcement, here.open(announcement))
            for model in models.values():
                for got, first in zip(model, models[0], strict=True):
                    np.testing.assert_array_equal(got, first)
            result = here.collect(announcement)
            assert (result.state, result.not_sealed) == (number, "")
            assert result.arrays == ()
            assert result.total_weight == sum(weight_of(seed) for seed in range(3))
            bound += result.error_bound
            plain = [old + new for old, new in zip(plain, here.mean_update(number), strict=True)]
            for got, expected in zip(held(here, number), plain, strict=True):
                assert np.abs(got - expected).max() <= bound
        assert bound < 2**-16 if ring_bits == 32 else bound < 2**-20
        last, model = here.clients[1].last_model(announcement, here.model)
        assert last == 3
        for got, expected in zip(model, held(here, 3), strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    with site(tmp_path_factory.mktemp("sealed")) as found:
        yield found


@pytest.fixture
def fresh(here):
    """The site with a new session: states of one test are none of another's."""
    here.session = secrets.token_bytes(16)
    return here


def numbers(here):
    return {
        one.name: SealedStates(here.state(one.name)).numbers(here.session) for one in here.cluster.parties
    }


def everywhere(here, *wanted):
    return dict.fromkeys((one.name for one in here.cluster.parties), wanted)


def test_the_server_receives_nothing_of_the_average(fresh, monkeypatch):
    heard = []
    real = TlsLinks.call

    def record(self, aggregator, message, reply, **options):
        answer, body = real(self, aggregator, message, reply, **options)
        if self is fresh.collector._links:
            heard.append(msgspec.msgpack.encode(answer) + bytes(body))
        return answer, body

    monkeypatch.setattr(TlsLinks, "call", record)
    plain = fresh.announcement(1, reveal_to="server", sealed=None)
    signed_plain = fresh.open(plain)
    for seed, client in enumerate(fresh.clients):
        accepted = client.accept(signed_plain.payload, signed_plain.signature, fresh.model, CONFIG)
        client.submit(accepted, fresh.update(1, seed), weight_of(seed), {"loss": 1.0})
    opened = fresh.collect(plain)
    total = opened.words[: sum(spec.size for spec in plain.arrays)]
    shares = [part[-4 * (total.size + 3) :] for part in heard if len(part) > 4 * total.size]
    assert sum_is_in(shares, total), "the control: of a plain round the server gets the sum"

    heard.clear()
    fresh.session = secrets.token_bytes(16)
    result = fresh.round(2, 0)

    assert result.state == 2
    words = opened_updates(fresh, 2)
    model = [array.astype(np.float32) for array in held(fresh, 2)]
    everything = b"".join(heard)
    for secret in (words.tobytes(), *(array.tobytes() for array in model)):
        for at in range(0, len(secret) - 16, 16):
            assert secret[at : at + 16] not in everything
    assert max(map(len, heard)) < 4 * 1000, "no reply is as long as the updates"
    assert result.words.size == 2, "the weight and one metric"


def sum_is_in(bodies, total):
    """Whether three bodies of sum shares add up to a total."""
    words = [np.frombuffer(body, np.uint32)[: total.size] for body in bodies]
    return len(words) == 3 and np.array_equal(sum(words[1:], words[0]), total)


def opened_updates(here, number):
    """The sum of the encoded updates as every hospital encodes its own, by the page on the wire format."""
    announcement = here.announcement(number, 0)
    total = 0
    for seed in range(len(here.clients)):
        encoded = encode_update(
            announcement.layout, here.update(number, seed), weight_of(seed), {"loss": 1.0}
        )
        total = total + encoded[: announcement.layout.update_words].astype(np.uint32)
    return total


def test_the_next_round_erases_what_is_behind_and_each_party_keeps_three_states(fresh):
    assert fresh.round(1, 0).state == 1
    assert numbers(fresh) == everywhere(fresh, 0, 1)
    assert fresh.round(2, 1).state == 2
    # A round has agreed on uploads over state 1: with the next one the state before that is erased.
    assert numbers(fresh) == everywhere(fresh, 0, 1, 2)
    assert fresh.round(3, 2).state == 3
    assert numbers(fresh) == everywhere(fresh, 1, 2, 3)
    for one in fresh.cluster.parties:
        assert not list((fresh.state(one.name) / "rounds").glob("*")), "no sum share outlives its round"
        assert not fresh.services[one.name]._sealed.maker.inboxes


def test_an_update_whose_state_is_not_at_all_three_is_thrown_away(fresh):
    assert fresh.round(1, 0).state == 1
    before = held(fresh, 1)
    announcement = fresh.announcement(2, 1)
    fresh.take_part(announcement, fresh.open(announcement))
    victim = fresh.cluster.parties[2].name
    states = fresh.services[victim]._sealed.states
    states.write, write = lambda state: (_ for _ in ()).throw(StateError("the disk is full")), states.write

    result = fresh.collect(announcement)

    states.write = write
    assert result.state is None
    assert victim in result.not_sealed
    assert "the disk is full" in result.not_sealed
    # The others hold the new state; the next round begins from the old one at all three, and erases it.
    assert fresh.round(3, 1).state == 3
    assert numbers(fresh) == everywhere(fresh, 0, 1, 3)
    expected = [old + new for old, new in zip(before, fresh.mean_update(3), strict=True)]
    for got, wanted in zip(held(fresh, 3), expected, strict=True):
        assert np.abs(got - wanted).max() < 2**-15


def test_a_hospital_that_trained_another_model_is_left_out_by_name(fresh, monkeypatch):
    announcement = fresh.announcement(1, 0)
    signed = fresh.open(announcement)
    fresh.take_part(announcement, signed, seeds=[0, 1])
    with monkeypatch.context() as patch:
        patch.setattr("fedsec.aggregation.client.model_tag", lambda *_: bytes(32))
        fresh.take_part(announcement, signed, seeds=[2])

    result = fresh.collect(announcement)

    assert result.included == ("hospital-00", "hospital-01")
    assert result.excluded == {"hospital-02": "other_model"}
    assert result.total_weight == weight_of(0) + weight_of(1)


def test_a_closed_state_is_opened_to_nobody_and_no_round_begins_from_it(fresh):
    assert fresh.round(1, 0, reveal_to="nobody").state == 1
    result = fresh.round(2, 1, reveal_to="nobody", keep_closed=True, ring_bits=64)
    assert result.state == 2

    with pytest.raises(TrustError, match="closed"):
        fresh.clients[0].last_model(fresh.announcement(2, 1), fresh.model)
    with pytest.raises(TrustError, match="closed for ever"):
        fresh.open(fresh.announcement(3, 2, reveal_to="nobody"))
    # It is the right one all the same: three parties together could say so.
    expected = [
        old + one + two
        for old, one, two in zip(fresh.model, fresh.mean_update(1), fresh.mean_update(2), strict=True)
    ]
    for got, wanted in zip(held(fresh, 2), expected, strict=True):
        assert np.abs(got - wanted).max() < 2**-15


def test_a_state_goes_to_hospitals_of_its_roster_only(fresh):
    roster = members({name: fresh.cluster.hospitals[name] for name in ("hospital-00", "hospital-01")})
    announcement = fresh.announcement(1, 0, roster=roster)
    fresh.take_part(announcement, fresh.open(announcement), seeds=[0, 1])
    assert fresh.collect(announcement).state == 1
    for name, error in (("hospital-00", None), ("hospital-02", "roster"), ("server", "is for hospital")):
        with closing(TlsLinks(fresh.cluster.parties, Identity.load(fresh.keys.identity(name)))) as links:
            message = FetchState(fresh.session, 1)
            options = {"deadline": Deadline.after(30), "max_body_bytes": 1 << 20}
            if error is None:
                assert len(links.call("party-0", message, StateShare, **options)[1]) == 8 * 1016
            else:
                with pytest.raises(TrustError, match=error):
                    links.call("party-0", message, StateShare, **options)


def test_rounds_that_do_not_fit_what_a_party_holds_or_knows_are_refused(fresh):
    with pytest.raises(ProtocolError, match="no sealed state 4"):
        fresh.open(fresh.announcement(5, 4))
    wrong = Sealed(("party-1", "party-0", "party-2"), FRACTION_BITS, 0, False)
    with pytest.raises(TrustError, match="first three"):
        fresh.open(fresh.announcement(1, sealed=wrong))
    other = [one + 1 for one in fresh.model]
    with pytest.raises(ProtocolError, match="initial array 'a0'"):
        fresh.collector.announce(fresh.announcement(1), Deadline.after(30), other)


def other_model(here):
    """An announcement's fields for initial parameters that differ in one element."""
    other = [one.copy() for one in here.model]
    other[1][3] += 0.125
    return {"array_digests": tuple(array_digest(one) for one in other)}, other


def test_parties_refuse_rounds_of_a_session_with_other_initial_parameters(fresh):
    digests, other = other_model(fresh)
    assert fresh.round(1, 0).state == 1
    specs = fresh.announcement().arrays
    for fields in (digests, {"arrays": (msgspec.structs.replace(specs[0], clip=0.5), specs[1])}):
        with pytest.raises(TrustError, match="describes other initial parameters"):
            fresh.open(fresh.announcement(2, 1, **fields))
    # Nor does it begin anew from others while a state of it is there.
    with pytest.raises(TrustError, match="describes other initial parameters"):
        fresh.collector.announce(fresh.announcement(3, **digests), Deadline.after(30), other)
    assert numbers(fresh) == everywhere(fresh, 0, 1)
    assert fresh.round(4, 1).state == 4


def test_of_two_rounds_side_by_side_with_different_initial_parameters_one_begins(fresh):
    digests, other = other_model(fresh)
    first, second = fresh.announcement(1), fresh.announcement(2, **digests)
    # Announced before either has given the parties its initial parameters.
    signed = Signed(first.encode(), sign_announcement(first, fresh.server))
    for party in fresh.cluster.parties:
        fresh.collector._links.call(party.name, Announce(signed), Announced, deadline=Deadline.after(30))
    fresh.collector.announce(second, Deadline.after(30), other)

    with pytest.raises(TrustError, match="describes other initial parameters"):
        fresh.open(first)
    # A state that was exchanged after a round had been announced is no base of it.
    fresh.take_part(first, signed)
    assert "another model by now" in fresh.collect(first).not_sealed
    assert numbers(fresh) == everywhere(fresh, 0)


def test_initial_parameters_are_taken_for_an_open_first_round_only(fresh):
    def start(announcement):
        body = b"".join(one.astype("<f4").tobytes() for one in fresh.model)
        options = {"body": body, "deadline": Deadline.after(30)}
        fresh.collector._links.call("party-0", SealedStart(announcement.id), Received, **options)

    first = fresh.announcement(1)
    signed = fresh.open(first)
    path = fresh.state("party-0") / "sealed" / fresh.session.hex() / "0.state"
    before = path.stat().st_ino
    start(first)
    assert path.stat().st_ino == before, "a computation may read it: the same is not written again"
    fresh.take_part(first, signed)
    assert fresh.collect(first).state == 1
    with pytest.raises(ProtocolError, match="takes no initial parameters"):
        start(first)
    second = fresh.announcement(2, 1)
    fresh.open(second)
    with pytest.raises(ProtocolError, match="takes no initial parameters"):
        start(second)
    assert numbers(fresh) == everywhere(fresh, 0, 1)


def test_a_hospital_that_comes_late_hears_from_the_parties_what_a_session_began_from(fresh):
    roster = members({name: fresh.cluster.hospitals[name] for name in sorted(fresh.cluster.hospitals)})
    announcement = fresh.announcement(1, 0, roster=roster)
    fresh.take_part(announcement, fresh.open(announcement), seeds=[0, 1])
    assert fresh.collect(announcement).state == 1
    # The parties refuse such an announcement; the server sends it to a hospital all the same.
    digests, other = other_model(fresh)
    forged = fresh.announcement(2, 1, **digests)
    late = fresh.clients[2]
    accepted = late.accept(forged.encode(), sign_announcement(forged, fresh.server), other, CONFIG)
    with pytest.raises(TrustError, match="began from other initial parameters than the announced ones"):
        late.sealed_model(accepted, other)


def test_a_hospital_refuses_what_its_trust_file_does_not_allow(fresh):
    announcement = fresh.announcement(1, 0)
    signed = fresh.open(announcement)
    file = TrustFile.load(fresh.keys.trust_file("hospital-00"))
    check = (signed.payload, signed.signature, fresh.model, CONFIG)
    assert file.check(*check) == announcement
    with pytest.raises(TrustError, match="reveal_to = hospitals"):
        replace(file, limits=replace(file.limits, reveal_to=("server",))).check(*check)
    with pytest.raises(TrustError, match="secret of the hospitals"):
        replace(file, secret=b"").check(*check)


def test_a_share_that_is_wrong_makes_a_model_that_no_hospital_trains(fresh):
    assert fresh.round(1, 0).state == 1
    victim = fresh.cluster.parties[1].name
    states = SealedStates(fresh.state(victim))
    state = states.read(fresh.session, 1)
    wrong = state.share.own.copy()
    wrong[5] += np.uint64(2**40)
    states.write(replace(state, share=RepShare(wrong, state.share.next, FRACTION_BITS)))

    announcement = fresh.announcement(2, 1)
    signed = fresh.open(announcement)
    with pytest.raises(ProtocolError, match="farther from the initial one in 'a0'"):
        fresh.take_part(announcement, signed, seeds=[0])
    # The state before is still there: what the wrong one costs is one update.
    with pytest.raises(RoundAbortedError):
        fresh.collect(announcement)
    assert fresh.round(3, 0).state == 3
    for got, start, change in zip(held(fresh, 3), fresh.model, fresh.mean_update(3), strict=True):
        assert np.abs(got - start - change).max() < 2**-15


def test_a_link_that_no_computation_takes_is_closed_when_its_round_has_ended(fresh):
    announcement = fresh.announcement(1)
    fresh.open(announcement)
    first, second = fresh.cluster.parties[:2]
    with connect(
        second, Identity.load(fresh.keys.identity(first.name)), deadline=Deadline.after(30)
    ) as channel:
        call(channel, OpenSealedLink(announcement.id), SealedLinkOpened, deadline=Deadline.after(30))
        with pytest.raises(RoundAbortedError):
            fresh.collect(announcement)

        with pytest.raises(PeerLostError, match="closed"):
            channel.receive("anything", max_bytes=10, deadline=Deadline.after(30))
    stranger = Identity.load(fresh.keys.identity("party-2"))
    other = fresh.announcement(2)
    fresh.open(other)
    with (
        connect(second, stranger, deadline=Deadline.after(30)) as channel,
        pytest.raises(TrustError, match="expected a link from 'party-0'"),
    ):
        call(channel, OpenSealedLink(other.id), SealedLinkOpened, deadline=Deadline.after(30))
