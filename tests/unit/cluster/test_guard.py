"""Nothing outlives a guard: not what its program started, nor what that started in a session of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsec.cluster.guard import descendants

ROOT = Path(__file__).resolve().parents[3]

# Starts a process that starts another, both deaf to SIGTERM and in sessions of their own, and says its id.
FAMILY = """
import subprocess, sys, time, signal
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
grandchild = deaf + "print('deep', flush=True); time.sleep(60)"
child = deaf + (
    "import subprocess, sys; "
    f"p = subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True); "
    "print(p.pid, flush=True); time.sleep(60)"
)
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
"""


def guard(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedsec.cluster.guard", sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("end", ["the program ends", "SIGTERM", "SIGINT", "the starter is gone"])
def test_no_descendant_is_left(end: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    wait = f"import pathlib\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.02)"
    with guard(FAMILY + wait) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        (deep,) = (int(line) for line in lines if line.strip().isdigit())
        before = descendants(process.pid)
        assert deep in before
        if end == "the program ends":
            go.touch()
        elif end == "the starter is gone":
            assert process.stdin is not None
            process.stdin.close()
        else:
            process.send_signal(signal.Signals[end])
        code = process.wait(90)
    assert code == (0 if end == "the program ends" else 128 + signal.SIGTERM)
    assert not [pid for pid in before if lives(pid)]


def test_the_exit_code_is_the_programs() -> None:
    with guard("raise SystemExit(7)") as process:
        assert process.wait(90) == 7
    with guard("import os, signal; os.kill(os.getpid(), signal.SIGKILL)") as process:
        assert process.wait(90) == 128 + signal.SIGKILL


def test_descendants_are_found_and_others_are_not() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"]) as child:
        assert child.pid in descendants(os.getpid())
        assert os.getpid() not in descendants(os.getpid())
        assert descendants(child.pid) == []
        child.kill()
        child.wait()
    time.sleep(0.01)
    assert child.pid not in descendants(os.getpid())
