"""Many users at once over TLS, dealt material, and parts that are spliced, with real party processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

from fedsec.cluster.certificates import Authority
from fedsec.cluster.cluster import Cluster
from fedsec.nn import Network, Plan, Reveal, Weights, encode_input, plaintext, plan_network
from fedsec.nn.network import ConvLayer, DenseLayer, FlattenLayer, ReluLayer
from fedsec.serving import messages, parts
from fedsec.serving.answers import AnswerForm
from fedsec.serving.asking import Ask, ask_each
from fedsec.serving.client import Client
from fedsec.serving.owner import Owner
from fedsec.transport import ClusterFile, Deadline, Identity, Role, connect
from fedsec.transport.calling import Calling

REVEALS: tuple[Reveal, ...] = ("logits", "label")


def small_network() -> tuple[Plan, Weights]:
    rng = np.random.default_rng(7)
    layers = (
        ConvLayer("conv", rng.normal(size=(3, 3, 1, 4)) / 3, rng.normal(size=4) / 4),
        ReluLayer("relu"),
        FlattenLayer("flat"),
        DenseLayer("dense", rng.normal(size=(144, 5)) / 12, rng.normal(size=5)),
    )
    return plan_network(Network("small", (8, 8, 1), layers))


PLAN, WEIGHTS = small_network()


def images(count: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(count, 8, 8, 1))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster.local(hospitals=1) as started:
        file, identity = ClusterFile.load(started.file), Identity.load(started.identity("owner"))
        with Owner(file.computing, identity) as owner:
            owner.share(PLAN, WEIGHTS)
            owner.serve(reveals=REVEALS)
            yield started
            assert owner.stop().state == "stopped"


def test_many_clients_at_once_get_their_own_answers(cluster: Cluster) -> None:
    def ask(number: int) -> None:
        asked = images(1 + number % 4, seed=number)
        logits = plaintext.predict(PLAN, WEIGHTS, asked)
        with Client.connect(cluster) as user:
            for turn in range(6):
                if (number + turn) % 2:
                    np.testing.assert_allclose(user.predict(asked), logits, atol=5e-3)
                else:
                    np.testing.assert_array_equal(user.predict(asked, "label"), logits.argmax(axis=1))

    with ThreadPoolExecutor(10) as pool:
        for done in [pool.submit(ask, number) for number in range(10)]:
            done.result(120)


def test_more_images_than_are_in_stock_are_answered(cluster: Cluster) -> None:
    with Client.connect(cluster) as user:
        np.testing.assert_allclose(
            user.predict(images(300)), plaintext.predict(PLAN, WEIGHTS, images(300)), atol=5e-3
        )


def test_one_thread_asks_three_parties_and_leaves_no_thread_behind(cluster: Cluster) -> None:
    before = set(threading.enumerate())
    with Client.connect(cluster) as user:
        for _ in range(5):
            user.predict(images(1))
            # Others' threads may end meanwhile.
            assert not set(threading.enumerate()) - before


@pytest.fixture(scope="module")
def eve(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """Another user of the same authority."""
    authority = Authority.load(cluster.folder / "keys" / "authority")
    return Identity.load(authority.issue(tmp_path_factory.mktemp("eve") / "eve.pem", "eve", Role.USER))


@pytest.mark.parametrize("stolen", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_threat_51_parts_under_anothers_id_join_nothing(
    cluster: Cluster, eve: Identity, stolen: tuple[int, ...]
) -> None:
    """Eve sends parts under a user's request id, before the user: each certificate's parts stay apart."""
    file = ClusterFile.load(cluster.file)
    mine, hers = images(1), images(1, seed=9)
    with Client.connect(cluster) as user, ExitStack() as stack:
        query = messages.Query(service=user._service, request=os.urandom(messages.ID_BYTES), images=1)
        bodies = parts.split(encode_input(PLAN, hers).reshape(-1))
        soon = Deadline.after(30)
        calls = []
        for party in stolen:
            channel = stack.enter_context(connect(file.computing[party], eve, deadline=soon))
            body, size = bodies[party], 8 * 5
            calls.append(
                Calling(channel, query, messages.Answer, body=body, deadline=soon, max_body_bytes=size)
            )
        asks = [Ask(query, body, 8 * 5) for body in parts.split(encode_input(PLAN, mine).reshape(-1))]
        replies = ask_each(user._served.channels, asks, messages.Answer, soon)
        form = AnswerForm.of(PLAN, "logits")
        joined = form.join([body for _, body in replies], 1)
        np.testing.assert_allclose(joined, plaintext.predict(PLAN, WEIGHTS, mine), atol=5e-3)
        if len(stolen) == 3:
            # All three parts under one certificate are a request of its own, whatever its id.
            answers = [calling.hear() for calling in calls]
            theirs = form.join([body for _, body in filter(None, answers)], 1)
            np.testing.assert_allclose(theirs, plaintext.predict(PLAN, WEIGHTS, hers), atol=5e-3)


@pytest.mark.slow
def test_threat_37_users_that_hang_up_leave_no_request_behind(cluster: Cluster, eve: Identity) -> None:
    """Parts for one party alone, over connections that have had an answer, and nobody there for the next."""
    bodies = parts.split(encode_input(PLAN, images(1)).reshape(-1))
    file = ClusterFile.load(cluster.file)
    with Owner(file.computing, Identity.load(cluster.identity("owner"))) as owner:
        for number in range(12):
            with Client.connect(cluster, eve) as user:
                user.predict(images(1))
                party = number % 3
                query = messages.Query(service=user._service, request=os.urandom(messages.ID_BYTES), images=1)
                Calling(
                    user._served.channels[party],
                    query,
                    messages.Answer,
                    body=bodies[party],
                    deadline=Deadline.after(30),
                )
        with Client.connect(cluster) as honest:
            honest.predict(images(1))
            gone = Deadline.after(30)
            while any(status.waiting for status in owner.statuses()):
                gone.remaining("the end of what was left behind")
                time.sleep(0.1)
            honest.predict(images(1))
