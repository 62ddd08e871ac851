import contextlib
import os
import signal
import subprocess
import sys
import time
import tomllib
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import fedsec
from fedsec import errors
from fedsec.cli import main as cli

ROOT = Path(fedsec.__file__).parent.parent


def fake_command(monkeypatch: pytest.MonkeyPatch, run: Callable[[object], int]) -> None:
    module = types.ModuleType("fedsec.cli.fake")
    module.configure = lambda parser: None  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fedsec.cli.fake", module)
    monkeypatch.setitem(cli.COMMANDS, "fake", "a command of this test")


def test_version_is_that_of_the_package() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedsec", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert done.stdout == f"fedsec {project['version']}\n"


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("demo", "run", "serve", "predict", "party", "keys"))


@pytest.mark.parametrize("arguments", [["unknown"], ["party"], ["--unknown"]])
def test_wrong_options_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: fedsec" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kind",
    [
        errors.UsageError,
        errors.TrustError,
        errors.PeerLostError,
        errors.RoundAbortedError,
        errors.FedsecError,
    ],
)
def test_our_errors_are_one_line_and_their_exit_code(
    kind: type[errors.FedsecError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: object) -> int:
        raise kind("party-1 sent\n  nothing")

    fake_command(monkeypatch, run)

    assert cli.main(["fake"]) == kind.exit_code
    assert capsys.readouterr().err == "fedsec: party-1 sent nothing\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_unwinds_and_sets_the_exit_code(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned: list[str] = []

    def run(options: object) -> int:
        try:
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            except Exception:  # what libraries write around their callbacks must not swallow a signal
                cleaned.append("swallowed")
        finally:
            with contextlib.suppress(KeyError):
                os.kill(os.getpid(), number)  # the impatient second Ctrl-C, here and deeper
                time.sleep(0.01)
                try:
                    raise KeyError
                finally:
                    os.kill(os.getpid(), number)
                    time.sleep(0.01)
            cleaned.append("stopped")
        return 0

    fake_command(monkeypatch, run)
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]

    assert cli.main(["fake"]) == code
    assert cleaned == ["stopped"]
    assert capsys.readouterr().err == "fedsec: stopped by a signal; whatever it had started is stopped too\n"
    assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_swallows_comes_again(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Finalised:
        def __del__(self) -> None:
            # Python throws away what is raised in here.
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    passed: list[str] = []

    def run(options: object) -> int:
        Finalised()
        passed.append("the first was lost")
        time.sleep(30)
        return 0

    fake_command(monkeypatch, run)

    assert cli.main(["fake"]) == 128 + number
    assert passed == ["the first was lost"]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fedsec"],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": ""},
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
