"""Noisy labels from end to end, over TLS: what is offered and refused, what is charged, what is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedsec.errors import ProtocolError, ServiceEndedError, TrustError, UsageError
from fedsec.mpc.randomised_response import ResponseLaw
from fedsec.nn import Plan, Weights, plaintext
from fedsec.serving import messages
from fedsec.serving.client import Client
from fedsec.serving.messages import LabelNoise
from fedsec.serving.owner import Owner
from fedsec.serving.running import Terms
from fedsec.transport import Deadline, call, connect

Model = tuple[Plan, Weights]

EPSILON = 0.5
LAW = ResponseLaw.of(4, EPSILON)
"""Of four classes the label itself is told with a chance of 0.35, each other with 0.22."""


@pytest.fixture
def trio(start_trio: Callable[..., Any]) -> Any:
    return start_trio()


def serve(trio: Any, model: Model, noise: LabelNoise, **limits: Any) -> Owner:
    owner = trio.owner()
    owner.share(*model, model_id=b"m" * 16)
    owner.serve(reveals=("label",), noise=noise, **limits)
    return owner


def client(trio: Any, name: str = "user") -> Client:
    return Client.connect(trio.cluster, trio.identity(name))


def test_labels_are_noisy_and_anew_each_time(trio: Any, model: Model) -> None:
    plan, weights = model
    image = np.random.default_rng(1).uniform(size=(1, 6, 6, 1))
    label = int(plaintext.predict(plan.with_head("label"), weights, image)[0, 0])
    with serve(trio, model, LabelNoise(EPSILON)), client(trio) as user:
        assert (user.noise, user.reveals) == (LabelNoise(EPSILON), ("label",))
        answers = user.predict(np.repeat(image, 384, axis=0), "label")

        # Less than 60 or more than 220 of 384 right ones, where 0.35 are expected, is a binomial tail below
        # 1e-17; without noise all are right. And of 128 answers, each 0.21 or more likely to be one of four,
        # none is missing but with a chance below 4e-13 in three batches; one shift for a batch gives one.
        assert 60 <= int(np.sum(answers == label)) <= 220
        for batch in answers.reshape(3, 128):
            assert set(batch) == {0, 1, 2, 3}
        for reveal in ("logits", "probabilities", "top3"):
            with pytest.raises(UsageError, match="not offered"):
                user.predict(image, reveal)


def test_each_image_is_charged_at_all_parties_and_told_to_the_owner(trio: Any, model: Model) -> None:
    with serve(trio, model, LabelNoise(EPSILON, 5.0, 9.0)) as owner, client(trio) as user:
        user.predict(np.zeros((3, 6, 6, 1)), "label")

        cost = LAW.epsilon_millionths
        for status in owner.statuses():
            assert status.noise == LabelNoise(EPSILON, 5.0, 9.0)
            assert (status.answer_epsilon, status.spent_epsilon) == (cost / 1e6, 3 * cost / 1e6)
        for party in trio.cluster.computing:
            with connect(party, trio.identity("owner"), deadline=Deadline.after(30)) as channel:
                page = call(channel, messages.ReadLedger(), messages.LedgerPage, deadline=Deadline.after(30))[
                    0
                ]
            assert [(one.images, one.reveal, one.epsilon) for one in page.queries] == [
                (3, "label", 3 * cost / 1e6)
            ]


def test_each_certificate_and_all_together_have_a_stop_that_says_what_is_spent(
    trio: Any, model: Model
) -> None:
    spent = LAW.epsilon
    noise = LabelNoise(EPSILON, 2 * spent, 3 * spent)
    with serve(trio, model, noise) as owner, client(trio) as user, client(trio, "eve") as eve:
        user.predict(np.zeros((2, 6, 6, 1)), "label")
        with pytest.raises(TrustError, match=f"certificate may spend epsilon .* {2 * spent:g}.* is spent"):
            user.predict(np.zeros((1, 6, 6, 1)), "label")
        with pytest.raises(ServiceEndedError, match=r"all users together may spend .* 2 image"):
            eve.predict(np.zeros((2, 6, 6, 1)), "label")
        eve.predict(np.zeros((1, 6, 6, 1)), "label")
        with pytest.raises(ServiceEndedError, match="all users together may spend"):
            eve.predict(np.zeros((1, 6, 6, 1)), "label")

        # It goes on to say so, and another service of the model goes on to count.
        assert owner.status().state == "serving"
        owner.stop()
        owner.serve(reveals=("label",), noise=noise)
        with client(trio) as again, pytest.raises((TrustError, ServiceEndedError), match="may spend"):
            again.predict(np.zeros((1, 6, 6, 1)), "label")


def test_nothing_but_labels_is_offered_beside_noise(trio: Any, model: Model) -> None:
    with trio.owner() as owner:
        owner.share(*model)
        with pytest.raises(UsageError, match="logits cannot be revealed"):
            owner.serve(noise=LabelNoise(1.0))
        with pytest.raises(UsageError, match="allows none"):
            owner.serve(reveals=("label",), noise=LabelNoise(1.0, 0.1))
        # A party does not take it from a modified owner either.
        told = messages.Serve(service=b"s" * 16, model=owner._model, noise=LabelNoise(1.0))
        with (
            connect(
                trio.cluster.computing[1], trio.identity("owner"), deadline=Deadline.after(30)
            ) as channel,
            pytest.raises(UsageError, match="logits cannot be revealed"),
        ):
            call(channel, told, messages.Status, deadline=Deadline.after(30))
        assert owner.status().state == "idle"


@pytest.mark.parametrize("other", [None, LabelNoise(2.0), LabelNoise(1.0, 3.0), LabelNoise(1.0, None, 3.0)])
def test_noise_and_limits_are_among_the_terms(other: LabelNoise | None) -> None:
    """Parties that were told different terms do not link up: these name the session of their links."""

    def digest(noise: LabelNoise | None) -> bytes:
        ids = (b"s" * 16, b"m" * 16, b"d" * 32, b"h" * 16)
        return Terms(*ids, None, None, 0, "dealt", ("label",), (), noise).digest()

    assert digest(other) != digest(LabelNoise(1.0))
    assert digest(LabelNoise(1.0, 2.0, None)) != digest(LabelNoise(1.0, None, 2.0))


def test_a_client_that_comes_back_to_other_noise_asks_nothing(trio: Any, model: Model) -> None:
    with serve(trio, model, LabelNoise(EPSILON)) as owner, client(trio) as user:
        user.predict(np.zeros((1, 6, 6, 1)), "label")
        owner.stop()
        with pytest.raises(ServiceEndedError):
            user.predict(np.zeros((1, 6, 6, 1)), "label")
        owner.serve(reveals=("label",), noise=LabelNoise(5.0))
        with pytest.raises(ProtocolError, match="other noise"):
            user.predict(np.zeros((1, 6, 6, 1)), "label")
