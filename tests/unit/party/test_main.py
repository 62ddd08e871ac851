"""The party process' own checks: its place in the cluster, its state, its modules."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from fedsec.cluster.keys import LocalKeys, make_local_keys
from fedsec.errors import StateError, TrustError, UsageError
from fedsec.party.main import _listener, check_place
from fedsec.party.state import claim_state
from fedsec.transport import Identity, PartyConfig

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> LocalKeys:
    return make_local_keys(tmp_path_factory.mktemp("keys"), 3, 0)


def addresses(keys: LocalKeys) -> dict[str, tuple[str, int]]:
    return {name: ("127.0.0.1", 4000 + index) for index, name in enumerate(keys.parties)}


def test_a_party_in_its_place_is_accepted(keys: LocalKeys) -> None:
    check_place("party-1", Identity.load(keys.identity("party-1")), keys.cluster_file(addresses(keys)))


@pytest.mark.parametrize("holder", ["party-2", "user", "server"])
def test_threat_39_another_identity_is_not_the_party(keys: LocalKeys, holder: str) -> None:
    with pytest.raises(TrustError, match="expected the identity of party party-1"):
        check_place("party-1", Identity.load(keys.identity(holder)), keys.cluster_file(addresses(keys)))


def test_a_party_that_the_cluster_file_does_not_name_is_refused(keys: LocalKeys) -> None:
    with pytest.raises(UsageError, match="zed"):
        check_place("zed", Identity.load(keys.identity("party-1")), keys.cluster_file(addresses(keys)))


def test_another_pinned_key_is_told_at_the_start(keys: LocalKeys) -> None:
    file = keys.cluster_file(addresses(keys))
    other = replace(file, parties=(replace(file.parties[0], public_key=bytes(32)), *file.parties[1:]))
    with pytest.raises(TrustError, match="pins another key"):
        check_place("party-0", Identity.load(keys.identity("party-0")), other)


def test_the_state_folder_is_made_private_and_held_by_one(tmp_path: Path) -> None:
    with ExitStack() as first:
        claim_state(tmp_path / "a" / "state", first)
        assert (tmp_path / "a" / "state").stat().st_mode & 0o777 == 0o700
        with ExitStack() as second, pytest.raises(StateError, match="in use"):
            claim_state(tmp_path / "a" / "state", second)
    with ExitStack() as again:
        claim_state(tmp_path / "a" / "state", again)


def test_a_state_folder_that_others_can_read_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with ExitStack() as stack, pytest.raises(StateError, match="chmod 700"):
        claim_state(folder, stack)


def test_threat_44_a_state_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with ExitStack() as stack, pytest.raises(StateError, match="cannot be used"):
        claim_state(tmp_path / "file" / "state", stack)


def test_a_party_process_loads_neither_tensorflow_nor_flower() -> None:
    """The import alone; tests/processes looks at a whole life."""
    code = "import sys, fedsec.party.main; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    for name in ("tensorflow", "keras", "flwr", "numba"):
        assert f"'{name}'" not in done.stdout


def test_threat_31_core_dumps_are_off_before_a_key_is_read(tmp_path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from fedsec.errors import UsageError
from fedsec.party.main import run
from fedsec.transport import PartyConfig
asked = []
resource.setrlimit = lambda which, limits: asked.append((which == resource.RLIMIT_CORE, limits[0]))
missing = Path({str(tmp_path / "missing")!r})
try:
    run(PartyConfig("party-0", missing, missing, missing))
except UsageError:
    print(asked)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[0].startswith("[(True, 0)")


def test_threat_37_a_shells_low_limit_of_open_files_is_raised(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    code = f"""
import resource
from pathlib import Path
from fedsec.errors import UsageError
from fedsec.party.main import run
from fedsec.transport import PartyConfig
missing = Path({missing!r})
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
try:
    run(PartyConfig("party-0", missing, missing, missing))
except UsageError:
    print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "(4096, 4096)"


def test_where_a_party_cannot_listen_is_told(tmp_path: Path) -> None:
    config = PartyConfig("party-0", tmp_path, tmp_path, tmp_path)
    with (tmp_path / "plain").open("w") as plain, pytest.raises(UsageError, match="cannot listen at desc"):
        _listener(config, plain.fileno())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = _listener(config, listener.fileno())
        assert taken.getsockname() == listener.getsockname()
        taken.detach()
        busy = replace(config, port=listener.getsockname()[1])
        with pytest.raises(UsageError, match=r"cannot listen at 127\.0\.0\.1"):
            _listener(busy, None)
    with _listener(config, None) as free:
        assert free.getsockname()[1] > 0


def test_kernels_of_a_party_do_without_scipy() -> None:
    """Numba would import it for its linear algebra; the kernels are the same without."""
    code = """
import sys
import numpy as np
from fedsec.party.main import _do_without_scipy
from fedsec.ring import kernels
_do_without_scipy()
a = np.arange(12, dtype=np.uint64).reshape(3, 4) << np.uint64(60)
assert (kernels.matmul(a, a.T.copy()) == kernels.matmul_plain(a, a.T.copy())).all()
print("numba" in sys.modules, sys.modules["scipy"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "True None"
