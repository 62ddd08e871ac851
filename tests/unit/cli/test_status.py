"""What ``fedsec status`` shows, and the exit code that goes with it."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from fedsec.cli import status as command
from fedsec.cli.main import main
from fedsec.lab.status import PartyHealth, ServiceHealth
from fedsec.serving.messages import LabelNoise, QueryRecord, Status
from fedsec.transport import MeterReading

READING = MeterReading(2_000, 3_000, 4, {"query": (1, 100, 2, 200)}, {})
QUERY = QueryRecord(7, 1_700_000_000.0, "anna", b"f" * 32, b"m" * 16, 3, "label", True)


def party(name: str, state: str = "serving", **changes: object) -> PartyHealth:
    if state == "lost":
        return PartyHealth(name=name, address="127.0.0.1:1", error=f"{name} does not answer")
    fields: dict[str, object] = {
        "service": b"s" * 16,
        "model": b"m" * 16,
        "num_requests": 10,
        "quota": 5,
        "mode": "dealt",
        "reveals": ("label", "top3"),
        "answered": 4,
        "waiting": 1,
        "prepared": 64,
        "since": time.time() - 600,
    }
    told = Status(state=state, **(fields | changes))  # type: ignore[arg-type]
    return PartyHealth(name=name, address="127.0.0.1:1", status=told, reading=READING, queries=(QUERY,))


def health(*states: str) -> ServiceHealth:
    return ServiceHealth(tuple(party(f"party-{number}", state) for number, state in enumerate(states)))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    def show(told: ServiceHealth, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(command, "service_health", lambda *_: told)
        code = main(["status", "--cluster", "c.toml", "--identity", "o.pem", *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return show


def test_a_service_that_is_well(shown: Callable[..., tuple]) -> None:
    code, out, err = shown(health("serving", "serving", "serving"), "--ledger")
    assert (code, err) == (0, "")
    assert "state: serving; model 6d6d6d6d, dealt mode, reveals label, top3" in out
    assert "answered: 4 image(s), 6 left, quota 5 images a certificate" in out
    row = next(line for line in out.splitlines() if "party-1" in line)
    assert row.split() == ["party-1", "serving", "4", "1", "64", "2.0", "kB", "3.0", "kB", "10", "min"]
    assert "anna" in out
    assert max(map(len, out.splitlines())) <= 80


def test_noisy_labels_show_what_was_spent_where_most_was(shown: Callable[..., tuple]) -> None:
    noise = {"noise": LabelNoise(1.0, 3.0, None), "answer_epsilon": 0.994, "reveals": ("label",)}
    parties = [party(f"p{i}", spent_epsilon=spent, **noise) for i, spent in enumerate((2.982, 3.976, 2.982))]
    query = msgspec.structs.replace(QUERY, epsilon=1.988)
    told = ServiceHealth(tuple(replace(one, queries=(query,)) for one in parties))

    _, out, _ = shown(told, "--ledger")

    line = "noisy labels: epsilon 0.994 each, 3.976 spent in all (no limit), a certificate of 3"
    assert line in out.splitlines()
    assert "1.988" in next(line for line in out.splitlines() if "anna" in line)
    _, out, _ = shown(told, "--json", "--ledger")
    values = json.loads(out)
    assert values["label_noise"] == {
        "label_epsilon": 1.0,
        "answer_epsilon": 0.994,
        "identity_epsilon": 3.0,
        "total_epsilon": None,
        "spent_epsilon": 3.976,
    }
    assert values["ledger"][0]["epsilon"] == 1.988
    assert json.loads(shown(health("serving"), "--json")[1])["label_noise"] is None


@pytest.mark.parametrize(
    ("states", "code", "state"),
    [
        (("serving", "lost", "serving"), 6, "lost"),
        (("failed", "failed", "idle"), 6, "failed"),
        (("serving", "serving", "idle"), 6, "interrupted"),
        (("ended", "ended", "ended"), 8, "ended"),
        (("stopped", "stopped", "stopped"), 8, "stopped"),
        (("starting", "starting", "starting"), 0, "starting"),
    ],
)
def test_the_exit_code_says_whether_users_can_ask(
    shown: Callable[..., tuple], states: tuple[str, ...], code: int, state: str
) -> None:
    got, out, err = shown(health(*states), "--json")
    assert (got, json.loads(out)["state"]) == (code, state)
    assert bool(err) == bool(code)


def test_one_that_was_never_served_and_two_services_at_once(shown: Callable[..., tuple]) -> None:
    idle = [party(f"party-{number}", "idle", service=None, model=None) for number in range(3)]
    code, out, _ = shown(ServiceHealth(tuple(idle)))
    assert code == 8
    assert out.startswith("state: idle\n")
    other = party("party-2", service=b"t" * 16)
    assert ServiceHealth((party("party-0"), party("party-1"), other)).state == "interrupted"


def test_json_holds_counters_bytes_by_kind_and_the_ledger(shown: Callable[..., tuple]) -> None:
    _, out, _ = shown(health("serving", "serving", "serving"), "--json", "--ledger", "5")
    told = json.loads(out)
    assert (told["answered"], told["left"], told["reveals"]) == (4, 6, ["label", "top3"])
    counted = {"sent": 1, "sent_bytes": 100, "received": 2, "received_bytes": 200}
    assert told["parties"][2]["by_kind"] == {"query": counted}
    assert told["ledger"] == [
        {
            "number": 7,
            "at": 1_700_000_000.0,
            "name": "anna",
            "fingerprint": "66" * 32,
            "model": "6d" * 16,
            "images": 3,
            "reveal": "label",
            "answered": True,
            "epsilon": 0.0,
        }
    ]


def test_what_it_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["status"]) == 2
    assert "who the parties and the owner are" in capsys.readouterr().err
    assert main(["status", str(tmp_path), "--identity", "o.pem"]) == 2
    assert main(["status", "--cluster", "c", "--identity", "o", "--ledger", "1001"]) == 2
    assert "expected 1 to 1000 queries" in capsys.readouterr().err
    (tmp_path / "plan.json").write_text("{}")
    assert main(["status", str(tmp_path)]) == 2
    assert "serve the run first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (125, "2 min"), (7_300, "2 h"), (200_000, "2 d"), (None, "-")]
)
def test_ages_are_said_as_people_do(seconds: float | None, text: str) -> None:
    assert command._age(None if seconds is None else time.time() - seconds) == text
