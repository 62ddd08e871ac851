"""Three parties that were started one by one, as on three hosts, from keys made by ``fedsec keys``."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import fedsec
from fedsec.cli.main import main
from fedsec.learning.export import export
from fedsec.learning.models import by_name
from fedsec.nn import save_weights

ROOT = Path(fedsec.__file__).parent.parent
NAMES = ("alice", "bob", "carol")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fedsec", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def ports() -> Iterator[list[int]]:
    """Ports of the parties, kept by sockets that are bound and do not listen: nobody else is given them."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in NAMES]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        yield [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory, ports: list[int]) -> Path:
    """A folder with everybody's identities, the cluster file and the parties' files."""
    folder = tmp_path_factory.mktemp("keys")

    def make(*arguments: object) -> None:
        assert main(["keys", *map(str, arguments)]) == 0

    make("authority", folder / "authority")
    for name, role in [
        *((name, "party") for name in NAMES),
        ("owner", "owner"),
        ("ann", "user"),
        ("eve", "hospital"),
    ]:
        make(
            "issue",
            folder / f"{name}.pem",
            "--authority",
            folder / "authority",
            "--role",
            role,
            "--name",
            name,
        )
    parties = [
        text
        for name, port in zip(NAMES, ports, strict=True)
        for text in ("--party", f"{name}@127.0.0.1:{port}={folder / f'{name}.pem'}")
    ]
    cluster = folder / "cluster.toml"
    make("cluster", cluster, "--authority", folder / "authority", *parties, "--owner", folder / "owner.pem")
    for name in NAMES:
        identity, state = folder / f"{name}.pem", folder / f"{name}-state"
        options = ("--cluster", cluster, "--identity", identity, "--state", state, "--listen", "127.0.0.1")
        make("party", folder / f"{name}.toml", *options)
    return folder


def start(keys: Path, name: str) -> subprocess.Popen[str]:
    """Start a standing party and wait until it answers."""
    process = subprocess.Popen(
        command("party", "--config", keys / f"{name}.toml"),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert '"ready"' in process.stdout.readline()
    return process


@pytest.fixture(scope="module")
def parties(keys: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    processes = {name: start(keys, name) for name in NAMES}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What serving needs of a run: plan and parameters."""
    folder = tmp_path_factory.mktemp("run")
    plan, weights = export(by_name("short-conv", seed=5))
    plan.save(folder / "plan.json")
    save_weights(folder / "weights.npz", weights)
    return folder


def ask(keys: Path, user: str) -> subprocess.CompletedProcess[str]:
    return run(
        "predict",
        "--cluster",
        keys / "cluster.toml",
        "--identity",
        keys / f"{user}.pem",
        "--test-index",
        7,
        8,
    )


def test_an_owner_serves_with_standing_parties_and_they_stay(
    keys: Path, parties: dict[str, subprocess.Popen[str]], model: Path
) -> None:
    serve = command(
        "serve",
        model,
        "--cluster",
        keys / "cluster.toml",
        "--identity",
        keys / "owner.pem",
        "--num-requests",
        2,
    )
    for _ in range(2):
        with subprocess.Popen(
            serve, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as owner:
            assert owner.stdout is not None
            assert any(line.startswith("  fedsec predict --cluster") for line in owner.stdout)

            refused = ask(keys, "eve")
            assert (refused.returncode, refused.stdout) == (4, "")

            answered = ask(keys, "ann")
            assert (answered.returncode, answered.stderr) == (0, "")
            assert len(answered.stdout.split()) == 2

            out, err = owner.communicate(timeout=120)
            assert (owner.returncode, out) == (0, "answered 2 image(s); the service has ended\n"), err
    assert [process.poll() for process in parties.values()] == [None] * 3


def test_ctrl_c_ends_the_service_and_the_parties_stay(
    keys: Path, parties: dict[str, subprocess.Popen[str]], model: Path
) -> None:
    serve = command("serve", model, "--cluster", keys / "cluster.toml", "--identity", keys / "owner.pem")
    with subprocess.Popen(
        serve, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert any(line.startswith("  fedsec predict --cluster") for line in owner.stdout)
        owner.send_signal(signal.SIGINT)
        owner.communicate(timeout=120)
    assert owner.returncode == 130
    assert [process.poll() for process in parties.values()] == [None] * 3
    assert ask(keys, "ann").returncode == 8


def test_a_party_that_dies_is_waited_for_and_the_service_goes_on(
    keys: Path, parties: dict[str, subprocess.Popen[str]], model: Path
) -> None:
    serve = command("serve", model, "--cluster", keys / "cluster.toml", "--identity", keys / "owner.pem")
    with subprocess.Popen(
        serve, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as owner:
        try:
            assert owner.stdout is not None
            assert any(line.startswith("  fedsec predict --cluster") for line in owner.stdout)
            parties["bob"].kill()
            parties["bob"].communicate()
            said = [next(owner.stdout) for _ in range(2)]
            assert "the service was interrupted" in said[0]
            assert "bob" in said[0]
            assert "waiting" in said[1]

            parties["bob"] = start(keys, "bob")
            assert "the service goes on" in next(owner.stdout)
            assert ask(keys, "ann").returncode == 0
            owner.send_signal(signal.SIGINT)
            owner.communicate(timeout=120)
        finally:
            owner.kill()
    assert owner.returncode == 130
