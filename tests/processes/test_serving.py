"""Three real party processes over TLS, an owner here, users here and in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fedsec.cluster.certificates import Authority
from fedsec.cluster.cluster import Cluster
from fedsec.errors import FedsecError, PeerLostError, ServiceEndedError, TrustError
from fedsec.mpc.randomised_response import ResponseLaw
from fedsec.nn import Network, Plan, Weights, encode_weights, plaintext, plan_network
from fedsec.nn.network import AveragePoolLayer, ConvLayer, DenseLayer, FlattenLayer, ReluLayer
from fedsec.serving import messages
from fedsec.serving.client import Client
from fedsec.serving.messages import LabelNoise
from fedsec.serving.owner import Owner
from fedsec.transport import ClusterFile, Deadline, Identity, Role, call, connect

ROOT = Path(__file__).resolve().parents[2]
PARTIES = ("party-0", "party-1", "party-2")


def small_network(seed: int = 7) -> tuple[Plan, Weights]:
    rng = np.random.default_rng(seed)
    layers = (
        ConvLayer("conv", rng.normal(size=(3, 3, 1, 4)) / 3, rng.normal(size=4) / 4),
        AveragePoolLayer("pool", (2, 2), (2, 2)),
        ReluLayer("relu"),
        FlattenLayer("flat"),
        DenseLayer("dense", rng.normal(size=(36, 5)) / 6, rng.normal(size=5)),
    )
    return plan_network(Network("small", (8, 8, 1), layers))


PLAN, WEIGHTS = small_network()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(3).uniform(size=(count, 8, 8, 1))


def expected(count: int) -> np.ndarray:
    return plaintext.predict(PLAN, WEIGHTS, images(count))


def owner_of(cluster: Cluster) -> Owner:
    return Owner(ClusterFile.load(cluster.file).computing, Identity.load(cluster.identity("owner")))


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Cluster, Owner]]:
    """A cluster that serves without a limit, for tests that must not hurt it."""
    with Cluster.local(hospitals=1) as cluster, owner_of(cluster) as owner:
        owner.share(PLAN, WEIGHTS)
        owner.serve()
        yield cluster, owner
        # Whatever the tests did to it, it still answers.
        with Client.connect(cluster) as user:
            np.testing.assert_allclose(user.predict(images(2)), expected(2), atol=1e-2)
        assert owner.stop().state == "stopped"
        assert cluster.stop() == dict.fromkeys(PARTIES, 0)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster.local(tmp_path / "cluster") as started:
        yield started


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


CLIENT = """
    import json, sys
    import numpy as np
    from fedsec.serving.client import Client
    with Client.connect(sys.argv[1], sys.argv[2]) as client:
        images = np.random.default_rng(3).uniform(size=(int(sys.argv[3]), 8, 8, 1))
        print(json.dumps([client.predict(image).tolist() for image in images]))
"""


def run_client(cluster: Cluster, count: int) -> subprocess.CompletedProcess[str]:
    arguments = [str(cluster.file), str(cluster.identity("user")), str(count)]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CLIENT), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_client_process_gets_the_answers_and_the_service_ends_by_itself(cluster: Cluster) -> None:
    with owner_of(cluster) as owner:
        owner.share(PLAN, WEIGHTS)
        owner.serve(num_requests=3)
        done = run_client(cluster, 3)
        assert (done.returncode, done.stderr) == (0, "")
        np.testing.assert_allclose(np.array(json.loads(done.stdout))[:, 0], expected(3), atol=1e-2)
        assert owner.wait(60).state == "ended"
        late = run_client(cluster, 1)
        assert late.returncode != 0
        assert "has answered its 3 images" in late.stderr
    pids = cluster.pids()
    assert cluster.stop() == dict.fromkeys(PARTIES, 0)
    assert not any(alive(pid) for pid in pids.values())
    for party in PARTIES:
        log = (cluster.folder / "logs" / f"{party}.log").read_text()
        assert "Traceback" not in log
        assert "ERROR" not in log


def test_threat_33_processes_in_parallel_get_exactly_the_number(cluster: Cluster) -> None:
    with owner_of(cluster) as owner:
        owner.share(PLAN, WEIGHTS)
        owner.serve(num_requests=7)
        counts: list[int] = []

        def ask() -> None:
            answered = 0
            with contextlib.suppress(ServiceEndedError), Client.connect(cluster) as user:
                for _ in range(4):
                    user.predict(images(1))
                    answered += 1
            counts.append(answered)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert sum(counts) == 7
        assert owner.wait(60).answered == 7


def test_threat_33_the_quota_survives_a_killed_and_restarted_cluster(tmp_path: Path) -> None:
    with Cluster.local(tmp_path / "cluster") as first, owner_of(first) as owner:
        model = owner.share(PLAN, WEIGHTS)
        owner.serve(quota=3)
        with Client.connect(first) as user:
            user.predict(images(2))
        for pid in first.pids().values():
            os.kill(pid, signal.SIGKILL)
    with Cluster.local(tmp_path / "cluster") as again, owner_of(again) as owner:
        owner.share(PLAN, WEIGHTS, model_id=model)
        owner.serve(quota=3)
        with Client.connect(again) as user:
            with pytest.raises(TrustError, match="1 more images"):
                user.predict(images(2))
            np.testing.assert_allclose(user.predict(images(1)), expected(1), atol=1e-2)


def test_noisy_labels_spend_until_each_certificate_and_all_together_have_a_stop(
    shared: tuple[Cluster, Owner],
) -> None:
    cluster, owner = shared
    each = ResponseLaw.of(5, 0.5).epsilon
    label = int(np.argmax(expected(1)[0]))
    owner.stop()
    try:
        owner.serve(reveals=("label",), noise=LabelNoise(0.5, identity_epsilon=256 * each))
        with Client.connect(cluster) as user:
            answers = user.predict(np.repeat(images(1), 256, axis=0), "label")
            # The label is told with a chance of 0.29: fewer than 30 or more than 130 of 256 have a
            # probability below 1e-11.
            assert 30 <= int(np.sum(answers == label)) <= 130
            assert set(answers) <= set(range(5))
            with pytest.raises(TrustError, match=r"this certificate may spend epsilon .* is spent"):
                user.predict(images(1), "label")
        owner.stop()
        owner.serve(reveals=("label",), noise=LabelNoise(0.5, total_epsilon=258 * each))
        with Client.connect(cluster) as user:
            user.predict(images(2), "label")
            with pytest.raises(ServiceEndedError, match=r"all users together may spend .* is spent"):
                user.predict(images(1), "label")
        assert owner.stop().spent_epsilon == pytest.approx(258 * each)
    finally:
        owner.stop()
        owner.serve()


@pytest.mark.slow  # starts a cluster twice; the ledger by itself is in test_spending.py
def test_what_noisy_labels_have_spent_survives_a_killed_and_restarted_cluster(tmp_path: Path) -> None:
    each = ResponseLaw.of(5, 0.5).epsilon
    noise = LabelNoise(0.5, identity_epsilon=3 * each, total_epsilon=9 * each)
    with Cluster.local(tmp_path / "cluster") as first, owner_of(first) as owner:
        model = owner.share(PLAN, WEIGHTS)
        owner.serve(reveals=("label",), noise=noise)
        with Client.connect(first) as user:
            user.predict(images(2), "label")
        for pid in first.pids().values():
            os.kill(pid, signal.SIGKILL)
    with Cluster.local(tmp_path / "cluster") as again, owner_of(again) as owner:
        owner.share(PLAN, WEIGHTS, model_id=model)
        owner.serve(reveals=("label",), noise=noise)
        assert owner.status().spent_epsilon == pytest.approx(2 * each)
        with Client.connect(again) as user:
            with pytest.raises(TrustError, match="this certificate may spend"):
                user.predict(images(2), "label")
            user.predict(images(1), "label")
            with pytest.raises(TrustError, match="this certificate may spend"):
                user.predict(images(1), "label")


@pytest.mark.parametrize("victim", PARTIES)
def test_threat_42_43_a_killed_party_ends_every_wait_by_name(cluster: Cluster, victim: str) -> None:
    with owner_of(cluster) as owner:
        owner.share(PLAN, WEIGHTS)
        owner.serve()
        errors: list[FedsecError] = []

        def ask() -> None:
            try:
                with Client.connect(cluster) as user:
                    while True:
                        user.predict(images(2))
            except FedsecError as error:
                errors.append(error)

        askers = [threading.Thread(target=ask) for _ in range(2)]
        for asker in askers:
            asker.start()
        time.sleep(0.5)
        os.kill(cluster.pids()[victim], signal.SIGKILL)
        for asker in askers:
            asker.join(90)
        with pytest.raises(PeerLostError, match=victim):
            owner.wait(60)
        assert not any(asker.is_alive() for asker in askers)
        assert [type(error) for error in errors] == [PeerLostError] * 2
        assert all(victim in str(error) for error in errors)
    codes = cluster.stop()
    assert codes.pop(victim) == -signal.SIGKILL
    assert set(codes.values()) == {0}


def test_threat_43_a_stopped_party_is_noticed_within_the_deadline(cluster: Cluster) -> None:
    """SIGSTOP: the connections stay open, only silence tells."""
    with owner_of(cluster) as owner:
        owner.share(PLAN, WEIGHTS)
        owner.serve()
        with Client.connect(cluster) as user:
            user.predict(images(1))
            pid = cluster.pids()["party-1"]
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            try:
                with pytest.raises(FedsecError, match="party-1"):
                    user.predict(images(1))
                assert time.monotonic() - began < 30
            finally:
                os.kill(pid, signal.SIGCONT)
    # SIGTERM right behind SIGCONT can land on any thread: the party ends all the same.
    assert cluster.stop() == dict.fromkeys(PARTIES, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_party_cleanly_and_the_service_with_it(
    cluster: Cluster, number: signal.Signals
) -> None:
    with owner_of(cluster) as owner:
        owner.share(PLAN, WEIGHTS)
        owner.serve()
        os.kill(cluster.pids()["party-2"], number)
        deadline = time.monotonic() + 60
        while owner.status().state == "serving" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert owner.status().text == "the service was stopped by party-2"
    pids = cluster.pids()
    assert cluster.stop() == dict.fromkeys(PARTIES, 0)
    assert not any(alive(pid) for pid in pids.values())


def test_parties_end_when_their_launcher_dies(tmp_path: Path) -> None:
    script = """
        import json, sys, time
        from fedsec.cluster.cluster import Cluster
        cluster = Cluster.local(sys.argv[1]).start()
        print(json.dumps(cluster.pids()), flush=True)
        time.sleep(60)
    """
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "cluster")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    with launcher.stdout:
        pids = json.loads(launcher.stdout.readline())
        launcher.kill()
        launcher.wait(60)
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids.values())


def test_threat_39_a_foreign_authority_a_wrong_role_and_a_wrong_key_are_refused(
    shared: tuple[Cluster, Owner], tmp_path: Path
) -> None:
    cluster, _ = shared
    foreign = Authority.create(tmp_path / "authority").issue(tmp_path / "eve.pem", "user", Role.USER)
    with pytest.raises(TrustError):
        Client.connect(cluster, foreign)
    with pytest.raises(TrustError, match="is for user, not for"):
        Client.connect(cluster, cluster.identity("hospital-00"))
    with (
        pytest.raises(TrustError, match="is for owner, not for"),
        Owner(ClusterFile.load(cluster.file).computing, Identity.load(cluster.identity("user"))) as owner,
    ):
        owner.share(PLAN, WEIGHTS)
    file = ClusterFile.load(cluster.file)
    swapped = replace(file.parties[1], public_key=secrets.token_bytes(32))
    moved = replace(file, parties=(file.parties[0], swapped, file.parties[2]))
    with pytest.raises(TrustError, match="party-1"):
        Client.connect(moved, cluster.identity("user"))


def test_threat_34_38_garbage_costs_its_own_connection_only(shared: tuple[Cluster, Owner]) -> None:
    """Bytes before TLS, bytes after TLS, and a message that is none, from a raw client."""
    cluster, owner = shared
    endpoint = ClusterFile.load(cluster.file).parties[0]
    identity = Identity.load(cluster.identity("user"))
    with socket.create_connection((endpoint.host, endpoint.port), timeout=30) as raw:
        raw.sendall(secrets.token_bytes(4096))
    with socket.create_connection((endpoint.host, endpoint.port), timeout=30) as plain:
        secured = identity.client_context.wrap_socket(plain)
        secured.recv(1)
        with contextlib.suppress(OSError):
            secured.sendall(secrets.token_bytes(4096))
        with contextlib.suppress(OSError, ssl.SSLError):
            secured.close()
    for payload in (b"", b"\xc1", secrets.token_bytes(100), b"\x00" * 9 + b"\x81" * 500):
        with connect(endpoint, identity, deadline=Deadline.after(30)) as channel:
            channel.send("query/request", payload, Deadline.after(30))
            with contextlib.suppress(FedsecError):
                channel.receive("query/reply", max_bytes=4096, deadline=Deadline.after(30))
    with Client.connect(cluster) as user:
        np.testing.assert_allclose(user.predict(images(1)), expected(1), atol=1e-2)
    assert owner.status().state == "serving"


def test_threat_37_a_request_that_announces_ten_gigabytes_is_refused_at_once(
    shared: tuple[Cluster, Owner],
) -> None:
    cluster, _ = shared
    endpoint = ClusterFile.load(cluster.file).parties[1]
    before = resident_bytes(cluster.pids()["party-1"])
    with (
        Client.connect(cluster) as user,
        connect(endpoint, Identity.load(cluster.identity("user")), deadline=Deadline.after(30)) as channel,
    ):
        query = messages.Query(service=user._service, request=b"r" * 16, images=1)
        announced = (10 << 30).to_bytes(8, "big") + msgspec.msgpack.encode(query)
        channel.send("query/request", announced, Deadline.after(30))
        reply = channel.receive("query/reply", max_bytes=4096, deadline=Deadline.after(30))
        assert b"expected at most" in reply
    assert resident_bytes(cluster.pids()["party-1"]) - before < 32 << 20


def test_a_users_request_needs_no_other_connection_than_its_own(shared: tuple[Cluster, Owner]) -> None:
    """A part sent on one connection is answered there, and nowhere else."""
    cluster, _ = shared
    endpoint = ClusterFile.load(cluster.file).parties[0]
    identity = Identity.load(cluster.identity("user"))
    with connect(endpoint, identity, deadline=Deadline.after(30)) as idle, Client.connect(cluster) as user:
        user.predict(images(1))
        with pytest.raises(PeerLostError):
            idle.receive("query/reply", max_bytes=4096, deadline=Deadline.after(0.3))
        call(idle, messages.Describe(), messages.Description, deadline=Deadline.after(30))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def patterns() -> dict[str, list[bytes]]:
    """16-byte windows of each weight tensor in every encoding in use, both byte orders."""
    found: dict[str, list[bytes]] = {}
    words = encode_weights(PLAN, WEIGHTS)
    for name, arrays in {
        "float32": [array.astype(np.float32) for array in WEIGHTS],
        "float64": WEIGHTS,
        "ring": words,
        "ring32": [array.astype(np.uint32) for array in words],
    }.items():
        for order in "<>":
            flat = [array.astype(array.dtype.newbyteorder(order)).tobytes() for array in arrays]
            # Kernels only: 16 bytes of them are like nothing else; a bias may be all zeros.
            found[name + order] = [text[start : start + 16] for text in flat[::2] for start in (0, 32, 64)]
    return found


def table_of(wanted: list[bytes]) -> np.ndarray:
    """Which hashes the patterns' first 8 bytes have: one look-up a word, not a search a pattern."""
    table = np.zeros(1 << 16, bool)
    table[hashes(np.frombuffer(b"".join(pattern[:8] for pattern in wanted), np.uint64))] = True
    return table


def hashes(words: np.ndarray) -> np.ndarray:
    return (words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48)


def found_in(content: bytes, wanted: list[bytes], table: np.ndarray) -> bool:
    """Search at every byte; pages of zeros are left out first, since most memory is that."""
    if len(content) % 4096 == 0:
        pages = np.frombuffer(content, np.uint64).reshape(-1, 512)
        content = pages[pages.any(axis=1)].tobytes()
    for shift in range(8):
        whole = (len(content) - shift) // 8
        if whole < 2:
            break
        words = np.frombuffer(content, np.uint64, whole, shift)
        for place in np.flatnonzero(table[hashes(words)]):
            start = shift + 8 * int(place)
            if content[start : start + 16] in wanted:
                return True
    return False


def found_in_memory(pid: int, wanted: list[bytes]) -> bool:
    table = table_of(wanted)
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, access = line.split()[:2]
            if not access.startswith("rw"):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            try:
                memory.seek(start)
                content = memory.read(end - start)
            except (OSError, OverflowError, ValueError):
                continue
            if found_in(content, wanted, table):
                return True
    return False


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="reads another process' memory through /proc")
def test_threat_31_no_party_holds_a_weight_in_memory_or_in_a_file(shared: tuple[Cluster, Owner]) -> None:
    cluster, _ = shared
    wanted = [pattern for group in patterns().values() for pattern in group]
    for pid in cluster.pids().values():
        assert not found_in_memory(pid, wanted)
    for path in cluster.folder.rglob("*"):
        if path.is_file():
            assert not found_in(path.read_bytes(), wanted, table_of(wanted)), path


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="reads another process' memory through /proc")
@pytest.mark.parametrize("encoding", ["float32", "float64"])
def test_threat_31_the_scan_finds_weights_where_they_are(tmp_path: Path, encoding: str) -> None:
    """The positive control: a process that does hold them."""
    np.savez(tmp_path / "weights.npz", *[array.astype(encoding) for array in WEIGHTS])
    holder = (
        "import sys, numpy as np; held = dict(np.load(sys.argv[1])); print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "weights.npz")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert found_in_memory(process.pid, patterns()[encoding + "<"])
        process.communicate()


AUDITED = """
    import os, sys
    log = open(os.environ["AUDIT_LOG"] + str(os.getpid()), "a", buffering=1)
    def hook(event, args):
        if event == "open" and isinstance(args[0], (str, bytes)):
            wanted = args[1] if isinstance(args[1], str) else ""
            write = any(c in wanted for c in "wax+") or bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR))
            log.write(("W " if write else "R ") + os.fsdecode(args[0]) + chr(10))
        elif event == "sqlite3.connect":
            log.write("W " + os.fsdecode(args[0]) + chr(10))
    sys.addaudithook(hook)
    sys.argv = ["fedsec", "party", *sys.argv[1:]]
    from fedsec.cli.main import main
    code = main()
    log.write("M " + " ".join(sorted(sys.modules)) + chr(10))
    sys.exit(code)
"""


def test_threat_31_a_party_opens_no_model_file_and_writes_only_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An audit hook inside each party's process; it also says which modules a whole life has loaded."""
    monkeypatch.setenv("AUDIT_LOG", str(tmp_path / "audit-"))
    script = tmp_path / "audited.py"
    script.write_text(textwrap.dedent(AUDITED))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Cluster.local(tmp_path / "cluster", command=[sys.executable, str(script)]) as cluster:
        with owner_of(cluster) as owner:
            owner.share(PLAN, WEIGHTS)
            owner.serve(num_requests=1)
            with Client.connect(cluster) as user:
                user.predict(images(1))
            owner.wait(60)
        assert cluster.stop() == dict.fromkeys(PARTIES, 0)
    logs = sorted(tmp_path.glob("audit-*"))
    assert len(logs) == 3
    for log in logs:
        lines = log.read_text().splitlines()
        modules = next(line for line in lines if line.startswith("M ")).split()[1:]
        assert not {"tensorflow", "keras", "flwr", "pickle5", "h5py"} & {
            name.split(".")[0] for name in modules
        }
        opened = [line[2:] for line in lines if line[0] in "RW"]
        assert not [path for path in opened if re.search(r"\.(keras|h5|npz|npy|ckpt|safetensors)$", path)]
        written = [line[2:] for line in lines if line.startswith("W ")]
        elsewhere = [path for path in written if not allowed_to_write(path)]
        assert not elsewhere
        assert any("serving.sqlite" in path for path in written)


def allowed_to_write(path: str) -> bool:
    """State, the code caches of Python and numba, and no file."""
    caches = ("__pycache__", "numba", "/dev/")
    return "/state/" in path or any(part in path for part in caches)


def test_a_party_with_anothers_identity_does_not_start(shared: tuple[Cluster, Owner]) -> None:
    cluster, _ = shared
    config = cluster.folder / "parties" / "party-0" / "party.toml"
    text = config.read_text()
    assert "party-0.pem" in text
    wrong = config.with_name("wrong.toml")
    wrong.write_text(text.replace("party-0.pem", "party-1.pem"))
    done = subprocess.run(
        [sys.executable, "-m", "fedsec", "party", "--config", str(wrong)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == TrustError.exit_code
    assert "expected the identity of party party-0" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_processes_never_share_one_state(shared: tuple[Cluster, Owner]) -> None:
    cluster, _ = shared
    config = cluster.folder / "parties" / "party-0" / "party.toml"
    done = subprocess.run(
        [sys.executable, "-m", "fedsec", "party", "--config", str(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 9
    assert "in use by another process" in done.stderr
