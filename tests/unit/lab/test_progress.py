import io

import pytest
from rich.console import Console

from fedsec.lab.progress import BarReporter, PlainReporter, Reporter, reporter_for_terminal


def use(reporter: Reporter) -> None:
    with reporter:
        reporter.begin("training", 2)
        reporter.step("91 %")
        reporter.step("95 %")
        reporter.begin("serving")
        reporter.say("listening")
        reporter.step()


def test_plain_lines_count_steps() -> None:
    stream = io.StringIO()
    use(PlainReporter(stream))
    lines = [line.partition("] ")[2] for line in stream.getvalue().splitlines()]
    assert lines == ["training", "training 1/2: 91 %", "training 2/2: 95 %", "serving", "listening"]


def test_bars_fill_and_show_the_last_note() -> None:
    stream = io.StringIO()
    use(BarReporter(Console(file=stream, force_terminal=True, width=120)))
    shown = stream.getvalue()
    assert "training" in shown
    assert "2/2" in shown
    assert "95 %" in shown
    assert "listening" in shown


def test_an_error_leaves_the_bar_unfinished() -> None:
    stream = io.StringIO()

    def fail() -> None:
        with BarReporter(Console(file=stream, force_terminal=True, width=120)) as reporter:
            reporter.begin("training", 5)
            reporter.step()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "5/5" not in stream.getvalue()


def test_the_silent_reporter_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    use(Reporter())
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_plain_lines() -> None:
    assert isinstance(reporter_for_terminal(), PlainReporter)
