"""The aggregation over mutual TLS: services behind sockets, programs that misbehave, processes that die."""

import os
import secrets
import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from fedsec.aggregation import (
    AggregatorService,
    Announcement,
    ArraySpec,
    Collector,
    HospitalClient,
    Member,
    MetricSpec,
    TrustFile,
    TrustLimits,
    encode_config,
    plan_encoding,
)
from fedsec.aggregation.announcement import array_digest, members
from fedsec.aggregation.links import TlsLinks
from fedsec.aggregation.messages import (
    CollectSum,
    FinishRound,
    Received,
    SetSignature,
    Signed,
    Stored,
    SumShare,
    Upload,
    UploadHeader,
    seal,
)
from fedsec.cluster.cluster import Cluster
from fedsec.cluster.keys import make_local_keys, write_trust_files
from fedsec.errors import FedsecError, PeerLostError, ProtocolError, TrustError
from fedsec.transport import ClusterFile, Deadline, Identity
from fedsec.transport.server import Server
from fedsec.transport.tls import connect

SIZE = 50_000
MODEL = [np.zeros(SIZE, np.float32)]
LIMITS = TrustLimits(minimum_cohort=2, metrics={"loss": (0.0, 10.0)})
CONFIG = {"lr": 0.01}


class Site:
    """Three aggregators on sockets of this process, with real keys, certificates and trust files."""

    def __init__(self, folder, stack, hospitals=5, agreement_s=30.0):
        self.keys = make_local_keys(folder / "keys", parties=3, hospitals=hospitals)
        sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in self.keys.parties}
        self.cluster = self.keys.cluster_file({n: s.getsockname()[:2] for n, s in sockets.items()})
        write_trust_files(self.keys, self.cluster, LIMITS)
        self.services, self.servers = {}, {}
        for name, sock in sockets.items():
            identity = Identity.load(self.keys.identity(name))
            service = AggregatorService(
                identity, self.cluster, folder / name, minimum_cohort=2, agreement_s=agreement_s
            )
            server = Server(sock, identity, service.routes(), admit=self.cluster.admit)
            service.start()
            server.start()
            stack.callback(service.stop)
            stack.callback(server.stop)
            self.services[name], self.servers[name] = service, server
        self.server = Identity.load(self.keys.identity("server"))
        self.collector = stack.enter_context(Collector(self.cluster.parties, self.server))
        self.clients = [
            stack.enter_context(HospitalClient(TrustFile.load(self.keys.trust_file(name))))
            for name in self.keys.hospitals
        ]
        self.session = secrets.token_bytes(16)

    def links(self, name):
        return TlsLinks(self.cluster.parties, Identity.load(self.keys.identity(name)))


@contextmanager
def site(folder, **options):
    with ExitStack() as stack:
        yield Site(folder, stack, **options)


def announce(cluster: ClusterFile, server: Identity, session: bytes, number=1, **fields):
    values = {
        "version": 1, "session": session, "round": number, "phase": "train",
        "roster": members(cluster.hospitals),
        "aggregators": members({one.name: one.public_key for one in cluster.parties}),
        "vector_rule": "rotate", "reveal_to": "server", "recipient": Member("server", server.public_key),
        "arrays": (ArraySpec("a", "float32", (SIZE,), 1.0),), "array_digests": (array_digest(MODEL[0]),),
        "config": encode_config(CONFIG), "metrics": (MetricSpec("loss", 0.0, 10.0),),
        "encoding": plan_encoding(len(cluster.hospitals), 1.0, 1000, 10.0),
        "minimum_cohort": 2, "upload_seconds": 30.0,
    }  # fmt: skip
    return Announcement(**{**values, **fields})


def update_of(number, seed):
    return np.random.default_rng([number, seed]).uniform(-1, 1, SIZE).astype(np.float32)


def submit(client, announcement, signed, seed):
    accepted = client.accept(signed.payload, signed.signature, MODEL, CONFIG)
    return client.submit(accepted, [update_of(announcement.round, seed)], 100 + seed, {"loss": 1.0})


def plain_mean(number, seeds):
    updates = [update_of(number, seed).astype(float) for seed in seeds]
    return np.average(updates, axis=0, weights=[100 + seed for seed in seeds])


def test_rounds_over_tls_with_connections_that_stay_open(tmp_path):
    with site(tmp_path) as here:
        channels = []
        for number in (1, 2):
            announcement = announce(here.cluster, here.server, here.session, number)
            signed = here.collector.announce(announcement, Deadline.after(60))
            for seed, client in enumerate(here.clients):
                submit(client, announcement, signed, seed)
            result = here.collector.collect(announcement, Deadline.after(60))
            assert np.abs(result.arrays[0] - plain_mean(number, range(5))).max() <= result.error_bound * 1.01
            assert here.clients[0].receipt(announcement).included == 5
            channels.append([dict(client._links._channels) for client in here.clients])
        assert channels[0] == channels[1]
        sent = here.clients[0].meter.sent_bytes / 2
        assert 4 * SIZE < sent < 4 * SIZE + 8_000, "one vector of 4 bytes a parameter, seeds and headers"


def test_threat_40_every_role_but_the_right_one_is_refused(tmp_path):
    with site(tmp_path) as here:
        announcement = announce(here.cluster, here.server, here.session)
        here.collector.announce(announcement, Deadline.after(60))
        for who in ("hospital-00", "party-1", "owner", "user"):
            links = here.links(who)
            for message, reply in (
                (CollectSum(announcement.id), SumShare),
                (FinishRound(announcement.id), Received),
                (SetSignature(Signed(b"", b"")), Received),
                (Upload(Signed(b"", b"")), Stored),
            ):
                if (who, type(message)) in {("hospital-00", Upload), ("party-1", SetSignature)}:
                    continue
                with pytest.raises(TrustError):
                    links.call("party-0", message, reply, deadline=Deadline.after(60))
            links.close()


def test_threat_17_a_raw_client_that_sends_garbage_costs_only_itself(tmp_path):
    with site(tmp_path) as here:
        announcement = announce(here.cluster, here.server, here.session)
        signed = here.collector.announce(announcement, Deadline.after(60))
        liar = Identity.load(here.keys.identity("hospital-04"))
        links = here.links("hospital-04")
        for header in (b"", b"garbage", b"\xc1" * 100, secrets.token_bytes(70_000)):
            for size in (0, 100, 4 * SIZE + 36):
                with pytest.raises(FedsecError):
                    links.call(
                        "party-0", Upload(Signed(header, liar.sign(header))), Stored,
                        body=secrets.token_bytes(size), deadline=Deadline.after(30),
                    )  # fmt: skip
        links.close()
        for endpoint in here.cluster.parties:
            channel = connect(endpoint, liar, deadline=Deadline.after(60))
            channel._sock.setblocking(True)
            channel._sock.sendall(secrets.token_bytes(5000))
            channel.close()
        for seed, client in enumerate(here.clients[:4]):
            submit(client, announcement, signed, seed)
        result = here.collector.collect(announcement, Deadline.after(60))
        assert result.excluded == {"hospital-04": "missing"}
        assert np.abs(result.arrays[0] - plain_mean(1, range(4))).max() <= result.error_bound * 1.01


def test_threat_37_a_part_of_another_size_is_refused_before_its_bytes(tmp_path):
    with site(tmp_path) as here:
        announcement = announce(here.cluster, here.server, here.session)
        signed = here.collector.announce(announcement, Deadline.after(60))
        submit(here.clients[0], announcement, signed, 0)
        links = here.links("hospital-01")
        header = Signed(*here_header(here, announcement))
        with pytest.raises(ProtocolError, match="at most"):
            links.call("party-0", Upload(header), Stored, body=bytes(8 * SIZE), deadline=Deadline.after(60))
        links.close()


def here_header(here, announcement):
    names = tuple(member.name for member in announcement.aggregators)
    header = UploadHeader(
        1, announcement.id, announcement.digest, bytes(16), "hospital-01", names, (bytes(32),) * 3, 1
    )
    sealed = seal(Identity.load(here.keys.identity("hospital-01")), header)
    return sealed.payload, sealed.signature


def test_a_slow_hospital_delays_nobody(tmp_path):
    with site(tmp_path) as here:
        announcement = announce(here.cluster, here.server, here.session)
        signed = here.collector.announce(announcement, Deadline.after(60))
        channel = connect(
            here.cluster.parties[0],
            Identity.load(here.keys.identity("hospital-04")),
            deadline=Deadline.after(30),
        )
        channel._sock.setblocking(True)
        begun = time.monotonic()
        for seed, client in enumerate(here.clients[:4]):
            channel._sock.sendall(b"\0")
            submit(client, announcement, signed, seed)
        result = here.collector.collect(announcement, Deadline.after(60))
        assert result.included_count == 4
        assert time.monotonic() - begun < 55
        channel.close()


def test_hospitals_in_parallel_give_the_exact_sum(tmp_path):
    with site(tmp_path) as here:
        announcement = announce(here.cluster, here.server, here.session)
        signed = here.collector.announce(announcement, Deadline.after(60))
        threads = [
            threading.Thread(target=submit, args=(client, announcement, signed, seed))
            for seed, client in enumerate(here.clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        result = here.collector.collect(announcement, Deadline.after(60))
        assert result.total_weight == sum(100 + seed for seed in range(5))


def test_threat_43_an_aggregator_that_falls_silent_is_named_within_the_deadline(tmp_path):
    with site(tmp_path, agreement_s=3.0) as here:
        announcement = announce(here.cluster, here.server, here.session)
        signed = here.collector.announce(announcement, Deadline.after(60))
        for seed, client in enumerate(here.clients[:4]):
            submit(client, announcement, signed, seed)
        # It still answers requests but says nothing to its peers, as if they were cut off from it.
        here.services["party-2"].aggregator.outgoing = lambda _peer: []
        begun = time.monotonic()
        with pytest.raises(FedsecError, match="party-2"):
            here.collector.collect(announcement, Deadline.after(60))
        assert time.monotonic() - begun < 55


@pytest.mark.parametrize("error", [MemoryError(), ConnectionResetError(104, "reset"), ValueError("x")])
def test_threat_42_no_error_ends_the_clock_or_a_sender_for_good(tmp_path, error):
    with site(tmp_path) as here:
        service = here.services["party-1"]
        aggregator, links, failed = service.aggregator, service._links["party-0"], set()

        def fails_once(name, function):
            def call(*arguments, **keywords):
                if name not in failed:
                    failed.add(name)
                    raise error
                return function(*arguments, **keywords)

            return call

        announcement = announce(here.cluster, here.server, here.session)
        signed = here.collector.announce(announcement, Deadline.after(60))
        for seed, client in enumerate(here.clients):
            submit(client, announcement, signed, seed)
        aggregator.advance = fails_once("clock", aggregator.advance)
        links.call = fails_once("sender", links.call)
        assert here.collector.collect(announcement, Deadline.after(60)).total_weight == 510
        assert failed == {"clock", "sender"}


@pytest.mark.parametrize("when", ["before uploads", "after uploads"])
def test_threat_42_a_killed_aggregator_is_named_and_the_next_round_works_after_its_restart(tmp_path, when):
    with Cluster.local(tmp_path / "run", hospitals=4, limits=LIMITS, minimum_cohort=2) as cluster:
        file = ClusterFile.load(cluster.file)
        server = Identity.load(cluster.identity("server"))
        with ExitStack() as stack:
            collector = stack.enter_context(Collector(file.parties, server))
            clients = [
                stack.enter_context(HospitalClient(TrustFile.load(cluster.trust_file(name))))
                for name in sorted(file.hospitals)
            ]
            announcement = announce(file, server, secrets.token_bytes(16))
            signed = collector.announce(announcement, Deadline.after(60))
            victim = file.parties[1].name
            pid = cluster.pids()[victim]
            if when == "before uploads":
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(PeerLostError, match=victim):
                    submit(clients[0], announcement, signed, 0)
            else:
                for seed, client in enumerate(clients[:3]):
                    submit(client, announcement, signed, seed)
                os.kill(pid, signal.SIGKILL)
            begun = time.monotonic()
            with pytest.raises(FedsecError, match=victim):
                collector.collect(announcement, Deadline.after(60))
            assert time.monotonic() - begun < 60
    with (
        Cluster.local(tmp_path / "run", hospitals=4, limits=LIMITS, minimum_cohort=2) as cluster,
        ExitStack() as stack,
    ):
        file = ClusterFile.load(cluster.file)
        collector = stack.enter_context(Collector(file.parties, server))
        announcement = announce(file, server, secrets.token_bytes(16), number=2)
        signed = collector.announce(announcement, Deadline.after(60))
        for seed, name in enumerate(sorted(file.hospitals)):
            client = stack.enter_context(HospitalClient(TrustFile.load(cluster.trust_file(name))))
            submit(client, announcement, signed, seed)
        assert collector.collect(announcement, Deadline.after(60)).included_count == 4
