"""What the commands refuse before anything starts, in the words of their users."""

from pathlib import Path

import pytest

from fedsec.cli.main import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("fedsec: ")
    assert shown.err.count("\n") == 1
    return shown.err


def test_predict_wants_to_know_whom_to_ask(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "who to ask, and who is asking" in refused(capsys, "predict")
    assert "who to ask, and who is asking" in refused(capsys, "predict", "--cluster", "cluster.toml")
    assert "not both" in refused(capsys, "predict", tmp_path, "--identity", "user.pem")
    assert "is no folder" in refused(capsys, "predict", tmp_path / "missing")
    (tmp_path / "plan.json").write_text("{}")
    assert "serve the run first" in refused(capsys, "predict", tmp_path)


def test_predict_wants_files_that_are_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    credentials = ("predict", "--cluster", tmp_path / "c.toml", "--identity", tmp_path / "u.pem")
    assert "cannot be read as a picture" in refused(capsys, *credentials, "--image", tmp_path / "no.png")
    assert "test images 0 to 9999, got 10000" in refused(capsys, *credentials, "--test-index", 10_000)
    assert "what to ask about" in refused(capsys, *credentials)
    assert "c.toml" in refused(capsys, *credentials, "--test-index", 0)


def test_serve_refuses_what_does_not_go_together(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "at least 1 image" in refused(capsys, "serve", tmp_path, "--num-requests", 0)
    assert "belong together" in refused(capsys, "serve", tmp_path, "--cluster", "cluster.toml")
    together = ("serve", tmp_path, "--cluster", "c.toml", "--identity", "o.pem", "--ports", 1, 2, 3)
    assert "--ports is for parties started here" in refused(capsys, *together)
    assert "not the folder of a run" in refused(capsys, "serve", tmp_path)
    assert "no run folder and no model file" in refused(capsys, "serve", tmp_path / "missing")
    (tmp_path / "model.txt").write_text("nothing of the kind")
    assert "expected a model saved as .keras or .h5" in refused(capsys, "serve", tmp_path / "model.txt")


def test_serve_refuses_noise_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    serve = ("serve", tmp_path)
    assert "up to 10, got 0" in refused(capsys, *serve, "--label-epsilon", 0)
    assert "up to 10, got nan" in refused(capsys, *serve, "--label-epsilon", "nan")
    assert "give label_epsilon too" in refused(capsys, *serve, "--total-epsilon", 3)
    assert "identity_epsilon: expected above 0" in refused(
        capsys, *serve, "--label-epsilon", 1, "--identity-epsilon", -1
    )
    told = refused(capsys, *serve, "--label-epsilon", 1, "--reveal", "logits", "--reveal", "label")
    assert "logits cannot be revealed where labels are noisy" in told


def test_serve_wants_one_port_a_party(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    assert "expected 3 ports" in refused(capsys, "serve", tmp_path, "--ports", 4000)


def test_demo_refuses_impossible_sizes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "training.rounds: expected `int` >= 1" in refused(
        capsys, "demo", "--rounds", 0, "--runs", tmp_path
    )
    assert "each needs at least one" in refused(capsys, "demo", "--examples", 9, "--runs", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_party_names_the_file_it_cannot_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "party.toml" in refused(capsys, "party", "--config", tmp_path / "party.toml")


@pytest.mark.parametrize("command", ["demo", "run", "serve", "predict", "party", "keys"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: fedsec {command}" in capsys.readouterr().out
