"""The launcher, with small stand-ins for parties: it never loses one and never leaves one behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import fedsec
from fedsec.cluster import cluster as cluster_module
from fedsec.cluster.cluster import Cluster
from fedsec.errors import DeadlineError, PeerLostError, UsageError
from fedsec.transport import ClusterFile, PartyConfig

PARTY = """
import argparse, json, os, signal, socket, threading
from pathlib import Path
from fedsec.transport import ClusterFile, Identity, Meter, PartyConfig, Server, meter_route

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path)
parser.add_argument("--listen-fd", type=int)
parser.add_argument("--watch-stdin", action="store_true")
options = parser.parse_args()
config = PartyConfig.load(options.config)
cluster = ClusterFile.load(config.cluster)
meter, done = Meter(), threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())

def watch():
    while os.read(0, 100):
        pass
    done.set()

threading.Thread(target=watch, daemon=True).start()
listener = socket.socket(fileno=options.listen_fd)
routes = [meter_route(meter)]
with Server(listener, Identity.load(config.identity), routes, meter=meter, admit=cluster.admit) as server:
    print("starting", config.name)
    print(json.dumps({"ready": server.port}), flush=True)
    done.wait()
"""

FAILING = "import sys; print('no luck today', file=sys.stderr); sys.exit(9)"
SILENT = "import time; time.sleep(60)"
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('{\"ready\": 1}', flush=True)\n"
    + SILENT
)

LAUNCHER = """
import signal, sys, time
from fedsec.cluster.cluster import Cluster
# A test run in the background of a shell passes on that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with Cluster.local(sys.argv[1], command=[sys.executable, sys.argv[2]]) as cluster:
        print(*cluster.pids().values(), flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.fixture(autouse=True)
def _package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scripts outside of the checkout find the package where the tests found it."""
    monkeypatch.setenv("PYTHONPATH", str(Path(fedsec.__file__).parents[1]))


def _script(tmp_path: Path, text: str) -> Sequence[str]:
    path = tmp_path / "party.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, str(path)]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that has ended may wait for a parent of its own to notice.
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _gone(pids: Sequence[int], within_s: float = 30.0) -> bool:
    end = time.monotonic() + within_s
    while any(_alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_parties_start_answer_and_end_cleanly(tmp_path: Path) -> None:
    with Cluster.local(tmp_path / "run", hospitals=2, command=_script(tmp_path, PARTY)) as cluster:
        assert [endpoint.name for endpoint in cluster.endpoints] == ["party-0", "party-1", "party-2"]
        pids = list(cluster.pids().values())
        cluster.watch()
        meters = cluster.meters()
        assert set(meters) == {"party-0", "party-1", "party-2"}
        assert meters["party-0"].by_peer["owner"][3] > 0
        assert cluster.file == (tmp_path / "run" / "cluster.toml").resolve()
        assert sorted(ClusterFile.load(cluster.file).hospitals) == ["hospital-00", "hospital-01"]
        assert cluster.trust_file("hospital-01").is_file()
        config = PartyConfig.load(cluster.folder / "parties" / "party-1" / "party.toml")
        assert config.port == cluster.endpoints[1].port
        assert config.identity.resolve() == cluster.identity("party-1")
        assert cluster.stop() == {"party-0": 0, "party-1": 0, "party-2": 0}
        assert cluster.stop() == {}
    assert not any(_alive(pid) for pid in pids)
    assert "starting party-2" in (tmp_path / "run" / "logs" / "party-2.log").read_text()


def test_a_cluster_can_be_started_again_with_the_same_keys(tmp_path: Path) -> None:
    cluster = Cluster.local(tmp_path / "run", command=_script(tmp_path, PARTY))
    keys = []
    for _ in range(2):
        with cluster:
            keys.append([endpoint.public_key for endpoint in cluster.endpoints])
    assert keys[0] == keys[1]
    with cluster, pytest.raises(UsageError, match="started already"):
        cluster.start()


def test_parties_that_run_are_not_started_twice_and_stay_where_users_find_them(tmp_path: Path) -> None:
    state = tmp_path / "run" / "parties" / "party-1" / "state"
    state.mkdir(parents=True)
    cluster_file = tmp_path / "run" / "cluster.toml"
    cluster_file.write_text("as the running parties have it")

    with (state / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=r"run already: `fedsec status .*stop them"):
            Cluster.local(tmp_path / "run", command=_script(tmp_path, PARTY)).start()

    assert cluster_file.read_text() == "as the running parties have it"


def test_a_temporary_folder_is_removed_with_its_keys(tmp_path: Path) -> None:
    cluster = Cluster.local(command=_script(tmp_path, PARTY))
    with pytest.raises(UsageError, match="expected a started cluster"):
        _ = cluster.folder
    with cluster:
        folder = cluster.folder
        assert cluster.identity("user").is_file()
    assert not folder.exists()


def test_a_party_that_ends_at_once_is_named_with_its_log(tmp_path: Path) -> None:
    cluster = Cluster.local(tmp_path / "run", command=_script(tmp_path, FAILING))
    with pytest.raises(PeerLostError, match=r"(?s)party-\d to run; it ended with exit code 9.*no luck today"):
        cluster.start()
    assert cluster.pids() == {}


def test_a_party_that_does_not_get_ready_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "READY_S", 0.5)
    cluster = Cluster.local(tmp_path / "run", command=_script(tmp_path, SILENT))
    with pytest.raises(DeadlineError, match="party-0"):
        cluster.start()
    assert cluster.pids() == {}


def test_a_party_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "STOP_S", 0.3)
    cluster = Cluster.local(tmp_path / "run", parties=2, command=_script(tmp_path, STUBBORN)).start()
    pids = list(cluster.pids().values())
    assert cluster.stop() == {"party-0": -signal.SIGKILL, "party-1": -signal.SIGKILL}
    assert not any(_alive(pid) for pid in pids)


def test_threat_42_a_killed_party_is_noticed_and_named(tmp_path: Path) -> None:
    with Cluster.local(tmp_path / "run", command=_script(tmp_path, PARTY)) as cluster:
        os.kill(cluster.pids()["party-1"], signal.SIGKILL)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                cluster.watch()
            except PeerLostError as error:
                assert "party-1" in str(error)  # noqa: PT017 - it is polled for
                assert "signal SIGKILL" in str(error)  # noqa: PT017 - it is polled for
                break
        else:
            pytest.fail("nobody noticed")
        assert cluster.stop() == {"party-0": 0, "party-1": -signal.SIGKILL, "party-2": 0}


def test_an_exception_leaves_no_process_behind(tmp_path: Path) -> None:
    pids: list[int] = []

    def experiment() -> None:
        with Cluster.local(tmp_path / "run", command=_script(tmp_path, PARTY)) as cluster:
            pids.extend(cluster.pids().values())
            raise RuntimeError("the experiment failed")

    with pytest.raises(RuntimeError, match="the experiment failed"):
        experiment()
    assert len(pids) == 3
    assert not any(_alive(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_parties_end_when_their_launcher_does(tmp_path: Path, number: signal.Signals) -> None:
    command = _script(tmp_path, PARTY)
    launcher = tmp_path / "launcher.py"
    launcher.write_text(LAUNCHER)
    with subprocess.Popen(
        [sys.executable, str(launcher), str(tmp_path / "run"), command[1]],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 3
        process.send_signal(number)
        rest = process.stdout.read()
        code = process.wait(60)
    assert _gone(pids)
    if number is signal.SIGINT:
        assert (code, rest) == (0, "interrupted\n")
    else:
        assert code == -number


def test_ports_can_be_given_and_a_taken_one_is_named(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        # Bound, so that nobody else is given them; they are in nobody's way as long as they do not listen.
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
        taken = stack.enter_context(socket.create_server(("127.0.0.1", ports[2])))
        cluster = Cluster.local(tmp_path / "run", ports=ports, command=_script(tmp_path, PARTY))
        with pytest.raises(UsageError, match=f"port {ports[2]} of 127.0.0.1 to be free for party-2"):
            cluster.start()
        assert cluster.pids() == {}
        taken.close()
        with cluster:
            assert [endpoint.port for endpoint in cluster.endpoints] == ports
    with pytest.raises(UsageError, match="expected 3 ports"):
        Cluster.local(ports=[1, 2])


def test_parties_elsewhere_are_waited_for_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster.local(tmp_path / "run", command=_script(tmp_path, PARTY)) as here:
        same = Cluster.from_file(here.file)
        with same:
            assert same.endpoints == here.endpoints
            assert same.pids() == {}
            assert same.identity("user") == here.identity("user")
            assert set(same.meters()) == {"party-0", "party-1", "party-2"}
        here.watch()
    monkeypatch.setattr(cluster_module, "READY_S", 0.3)
    with pytest.raises(PeerLostError, match=r"party-0 to accept connections .* `fedsec party`"):
        same.start()


def test_only_loopback_parties_are_started_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "READY_S", 20.0)
    waited: list[str] = []
    monkeypatch.setattr(
        cluster_module, "wait_for_port", lambda endpoint, _deadline: waited.append(endpoint.name)
    )
    parties = [("alice", "127.0.0.1", 0), ("bob", "bob.example", 4001), ("carol", "localhost", 0)]
    with Cluster(parties, tmp_path / "run", command=_script(tmp_path, PARTY)) as cluster:
        assert sorted(cluster.pids()) == ["alice", "carol"]
        assert waited == ["bob"]
        assert cluster.endpoints[1].address == "bob.example:4001"
        assert (cluster.folder / "parties" / "bob" / "party.toml").is_file()


def test_stop_may_come_from_another_thread(tmp_path: Path) -> None:
    cluster = Cluster.local(tmp_path / "run", command=_script(tmp_path, PARTY)).start()
    codes: list[dict[str, int]] = []
    threads = [threading.Thread(target=lambda: codes.append(cluster.stop())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, codes)) == [0, 3]
