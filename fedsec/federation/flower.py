"""Flower's own programs for one run on this machine: SuperLink, SuperNodes, and an app handed to them.

::

    with Flower(folder, logs) as flower:
        flower.start_superlink()
        flower.start_supernodes({"hospital-00": {"partition-id": 0, "fedsec-trust": "..."}})
        flower.submit(app)

Nothing of it outlives the ``with``, and nothing asks a host other than this machine: telemetry, update checks
and the installation of an app's dependencies are off, and Flower's home is a folder of the run. HTTPS with a
certificate of an authority made here; SuperNodes prove who they are with a key each.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fedsec.cluster.certificates import Authority
from fedsec.cluster.process import ChildProcess
from fedsec.errors import PeerLostError
from fedsec.transport import Deadline

HOST = "127.0.0.1"
START_S = 120.0
"""Seconds until the SuperLink must answer; on an idle machine it takes about 2 s."""
REGISTER_S = 120.0
END_S = 8.0
"""Seconds to end in order; more than the guard's own patience, since it must not be killed itself."""
CONNECTION = "run"
_LOOK_S = 0.1
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]

NodeConfig = Mapping[str, str | int]
"""What a SuperNode gives its ClientApp: trust file, partition id and the like."""

OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Keeps Flower and Ray from calling anyone."""


class Flower:
    """Flower's programs of one run; all guarded, see ``fedsec.cluster.guard``.

    Args:
        folder: Gets Flower's home, certificates and node keys; made when missing, readable by its owner only.
        logs: Gets one log a program.
        environment: Further environment variables of every program.
    """

    def __init__(self, folder: Path, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._logs = logs
        self._environment = dict(environment or {})
        self._processes: list[ChildProcess] = []
        self._submission: ChildProcess | None = None
        self._address = ""
        self._scratch = ""
        # Ray listens on the network, and whoever may talk to it may run code here.
        self._ray_token = secrets.token_hex(32)

    def __enter__(self) -> Self:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not in the run's folder: paths of Ray's sockets may not be longer than 107 bytes.
        self._scratch = tempfile.mkdtemp(prefix="fedsec-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_superlink(self, *, simulation: bool = False) -> None:
        """Start a SuperLink and wait until it answers.

        Args:
            simulation: Whether it runs ClientApps itself, with Ray, instead of waiting for SuperNodes.

        Raises:
            PeerLostError: It ended; the text has the end of its log.
            DeadlineError: It did not answer in time.
        """
        (port,) = _free_ports(1)
        self._address = f"{HOST}:{port}"
        tls = Authority.create(self._folder / "authority", "Flower authority").issue_https(
            self._folder / "tls", [HOST, "localhost"]
        )
        home = self._home
        home.mkdir(mode=0o700, exist_ok=True)
        (home / "config.toml").write_text(_connection(self._address, self._root_certificate))
        command = ["flower-superlink", "--host", HOST, "--port", str(port), "--isolation", "subprocess"]
        command += ["--ssl-certfile", f"{tls / 'certificate.pem'}", "--ssl-keyfile", f"{tls / 'key.pem'}"]
        command += ["--ssl-ca-certfile", f"{self._root_certificate}"]
        command += ["--simulation"] if simulation else ["--enable-supernode-auth"]
        self._wait_healthy(self._start("superlink", command), port)

    def start_supernodes(self, nodes: Mapping[str, NodeConfig]) -> None:
        """Register a key for each hospital's SuperNode and start them all; they connect in a while.

        Args:
            nodes: Node config by the hospital's name.

        Raises:
            PeerLostError: The SuperLink refused a key.
            DeadlineError: Registering took too long.
        """
        keys = {name: self._make_key(name) for name in nodes}
        self._command("register", *(["supernode", "register", f"{key}.pub"] for key in keys.values()))
        ports = _free_ports(len(nodes))
        for (name, config), port in zip(nodes.items(), ports, strict=True):
            command = ["flower-supernode", "--superlink", self._address, "--isolation", "subprocess"]
            command += ["--root-certificates", f"{self._root_certificate}", "--host", HOST]
            command += ["--port", str(port), "--auth-supernode-private-key", f"{keys[name]}"]
            values = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
            self._start(f"supernode-{name}", [*command, "--node-config", values])

    def submit(self, app: Path, federation: NodeConfig | None = None) -> None:
        """Hand an app to the SuperLink, which starts it; returns at once.

        Args:
            app: The app's folder, as :func:`fedsec.federation.bundle.write_app` makes it.
            federation: Sizes of a simulated federation.
        """
        command = ["run", f"{app}", CONNECTION, "--stream"]
        for key, value in (federation or {}).items():
            command += ["--federation-config", f"{key}={json.dumps(value)}"]
        self._submission = self._start("flower-run", self._cli("flower-run", [command]))

    def check(self) -> None:
        """Look whether everything still runs.

        Raises:
            PeerLostError: A program ended; the text names it, with the end of its log.
        """
        for process in self._processes:
            if process is not self._submission:
                process.check()

    def ended(self) -> bool:
        """Say whether the app that was submitted has ended, however."""
        return self._submission is not None and self._submission.exit_code() is not None

    def last_words(self) -> str:
        """Return the end of what the app's server printed, and where all of it is."""
        if self._submission is None:
            return ""
        return f"End of {self._submission.log}:\n{self._submission.tail()}"

    def stop(self) -> None:
        """End everything that was started; may be called again."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.ask_to_end()
        patience = time.monotonic() + END_S
        for process in processes:
            process.end(patience - time.monotonic())
        if self._scratch:
            self._keep_ray_logs()
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = ""

    @property
    def _home(self) -> Path:
        return self._folder / "home"

    @property
    def _root_certificate(self) -> Path:
        return self._folder / "tls" / "authority.pem"

    def _start(self, name: str, command: list[str]) -> ChildProcess:
        process = ChildProcess(name, self._logs / f"{name}.log")
        guarded = [sys.executable, "-m", "fedsec.cluster.guard", *command]
        process.run(guarded, environment=self._full_environment())
        self._processes.append(process)
        return process

    def _full_environment(self) -> dict[str, str]:
        inherited = os.environ.get("PYTHONPATH")
        # Flower starts its own programs by name: those beside our interpreter come first.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        return {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **os.environ,
            **OFFLINE,
            "FLWR_HOME": str(self._home),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "RAY_TMPDIR": self._scratch,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._ray_token,
            "PATH": path,
            "PYTHONPATH": os.pathsep.join([str(_PACKAGE_ROOT), *([inherited] if inherited else [])]),
            **self._environment,
        }

    def _cli(self, name: str, commands: list[list[str]]) -> list[str]:
        """Return the command line that runs commands of Flower's CLI one after the other."""
        path = self._folder / f"{name}.json"
        path.write_text(json.dumps(commands))
        return [sys.executable, "-m", "fedsec.federation.flower_cli", str(path)]

    def _command(self, name: str, *commands: list[str]) -> None:
        process = self._start(f"flower-{name}", self._cli(name, [[*one, CONNECTION] for one in commands]))
        self._processes.remove(process)
        deadline = Deadline.after(REGISTER_S)
        try:
            while (code := process.exit_code()) is None:
                self.check()
                deadline.remaining(f"`flwr {commands[0][0]}` (its log is {process.log})")
                time.sleep(_LOOK_S)
        finally:
            process.ask_to_end()
            process.end(END_S)
        if code != 0:
            raise PeerLostError(f"the SuperLink refused `flwr {commands[0][0]}`:\n{process.tail()}")

    def _make_key(self, name: str) -> Path:
        """Make a SuperNode's key pair, as Flower wants it: an elliptic curve of NIST in OpenSSH's format."""
        folder = self._folder / "node-keys"
        folder.mkdir(mode=0o700, exist_ok=True)
        key = ec.generate_private_key(ec.SECP384R1())
        path = folder / name
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(secret)
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        path.with_name(f"{name}.pub").write_bytes(public + b"\n")
        return path

    def _wait_healthy(self, process: ChildProcess, port: int) -> None:
        deadline = Deadline.after(START_S)
        context = ssl.create_default_context(cafile=str(self._root_certificate))
        while True:
            process.check()
            left = deadline.remaining(f"Flower's SuperLink (its log is {process.log})")
            with contextlib.suppress(OSError, http.client.HTTPException):
                asking = http.client.HTTPSConnection(HOST, port, timeout=left, context=context)
                with contextlib.closing(asking):
                    asking.request("GET", "/health")
                    if asking.getresponse().status == http.client.OK:
                        return
            time.sleep(_LOOK_S)

    def _keep_ray_logs(self) -> None:
        """Copy Ray's own logs, if it ran, to those of the run: what its workers printed is only there."""
        for session in Path(self._scratch).glob("ray/session_*/logs"):
            if not session.parent.is_symlink():
                with contextlib.suppress(OSError, shutil.Error):
                    shutil.copytree(session, self._logs / "ray", dirs_exist_ok=True)


def _free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago: Flower's programs cannot be handed a socket."""
    with contextlib.ExitStack() as sockets:
        made = [sockets.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in made]


def _connection(address: str, root_certificate: Path) -> str:
    """Return the text of Flower's config file with this one SuperLink."""
    return (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f"address = {json.dumps(address)}\nroot-certificates = {json.dumps(str(root_certificate))}\n"
    )
