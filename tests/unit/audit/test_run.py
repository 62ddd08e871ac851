"""``fedsec audit`` as its user sees it."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fedsec.audit import parts, run
from fedsec.audit.canaries import Exposure
from fedsec.audit.curve import Attack, Rate, Spread
from fedsec.audit.mechanism import MechanismAudit
from fedsec.audit.model_inversion import ClassInverted, Inverted
from fedsec.audit.one_run import LowerBound
from fedsec.audit.report import print_audit
from fedsec.cli.main import main
from fedsec.errors import StateError, UnsupportedModelError, UsageError
from fedsec.lab.rundir import RunFolder
from fedsec.learning.data import Mnist
from fedsec.privacy.accounting import SampledGaussian, epsilon_of


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, mnist: Mnist) -> None:
    monkeypatch.setattr(run, "load_mnist", lambda: mnist)


def test_one_run(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = Attack.of(np.arange(10.0), np.zeros(1000))
    monkeypatch.setattr(parts, "lira", lambda subject: attack)
    assert main(["audit", str(folder.path), "--only", "membership", "lira", "fairness", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert found == json.loads(folder.audit.read_text())
    (audited,) = found["runs"]
    assert audited["run"] == str(folder.path)
    assert 0.5 < audited["membership"]["area"]["value"] <= 1
    assert audited["lira"]["at_one_percent"]["value"] == 0.9
    assert len(audited["fairness"]["classes"]) == 10
    assert folder.audit_figure.read_bytes().startswith(b"\x89PNG")


def test_updates_canaries_and_the_mechanism(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, guessed = (Exposure.of(np.full(6, loss), np.arange(63.0)) for loss in (-1.0, 31.0))
    planted = []
    monkeypatch.setattr(
        parts, "exposures", lambda model, records, planting: planted.append(planting) or (learned, guessed)
    )
    monkeypatch.setattr(
        parts, "audit_mechanism", functools.partial(parts.audit_mechanism, canaries=60, steps=5)
    )
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["audit", str(folder.path), "--only", "inversion", "canaries", "mechanism"]) == 0
    shown = capsys.readouterr().out

    found = json.loads(folder.audit.read_text())
    plain, share, private = found["inversion"]["views"]
    assert found["inversion"]["images"] == 6
    assert plain["correlation"]["low"] > 0.999
    # 784 independent pixels: 0.2 is more than five standard deviations.
    assert all(
        -0.2 < hidden["correlation"][end] < 0.2 for hidden in (share, private) for end in ("low", "high")
    )
    # The scenario has no differential privacy of its own: epsilon 8 over its two rounds is shown.
    noise = found["inversion"]["noise"]
    assert epsilon_of([SampledGaussian(noise["multiplier"], 10 / 50, 10)], 1e-5).value <= 8
    assert found["canaries"]["planting"]["epsilon"] == 8
    # As the first hospital trains: 50 images, two rounds of one epoch.
    assert (planted[0].records, planted[0].epochs, planted[0].batch_size) == (50, 2, 10)
    assert folder.audit_figure.read_bytes().startswith(b"\x89PNG")
    assert (found["canaries"]["plain"]["median"], found["canaries"]["private"]["median"]) == (
        6,
        6 - np.log2(33),
    )
    assert found["mechanism"]["broken"] is False
    assert folder.inversion_figure.read_bytes().startswith(b"\x89PNG")
    for text in ("an aggregator's share", "exposure, median", "not refuted"):
        assert text in shown


def private_copy(folder: RunFolder, tmp_path: Path) -> Path:
    private = Path(shutil.copytree(folder.path, tmp_path / "private"))
    (private / "summary.json").write_text(json.dumps({"privacy": [{"epsilon": 2.0}]}))
    return private


def inverted(labels: Iterable[int]) -> tuple[Inverted, npt.NDArray[np.float64]]:
    spread = Spread(0.9, 0.8, 0.95)
    rows = tuple(ClassInverted(label, spread, spread, spread) for label in labels)
    found = Inverted(spread, spread, spread, spread, spread, Rate(0.5, 0.4, 0.6), 1234.5, 6, rows)
    return found, np.zeros((len(rows), 28, 28, 1))


def test_model_inversion_of_two_runs(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    private = private_copy(folder, tmp_path)
    asked = []

    def invert_classes(ask, attack, members, others):
        asked.append((attack, ask(members.images[:2], "label").shape))
        return inverted(range(10))

    monkeypatch.setattr(parts, "invert_classes", invert_classes)
    into = tmp_path / "study"
    into.mkdir()
    found = run.audit_run(folder.path, [private], parts=["model_inversion"], into=into)
    assert asked == 2 * [("probabilities", (2,)), ("labels", (2,))]
    assert json.loads(json.dumps(found)) == json.loads((into / "audit.json").read_text())
    for audited in found["runs"]:
        assert audited["model_inversion"]["labels"]["mean"] == {"value": 0.9, "low": 0.8, "high": 0.95}
    for picture in ("audit.png", "model-inversion.png"):
        assert (into / picture).read_bytes().startswith(b"\x89PNG")
    print_audit(found)
    shown = capsys.readouterr().out
    assert "by labels: like the class's mean" in shown
    assert "0.90 (0.80 to 0.95)" in shown
    assert "1,234" in shown


def answering(*answers: Iterable[int] | str) -> Callable[..., object]:
    """Stand for an attack on runs one after the other: with such classes, or refused with such a text."""
    asked = itertools.chain.from_iterable(([one] if isinstance(one, str) else [one] * 2) for one in answers)

    def invert_classes(*_: object) -> object:
        answer = next(asked)
        if isinstance(answer, str):
            raise UsageError(answer)
        return inverted(answer)

    return invert_classes


def test_a_run_that_is_refused_leaves_the_others_in_the_table(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(parts, "invert_classes", answering("too few images [of 3]", range(10)))
    found = run.audit_run(
        folder.path, private_copy(folder, tmp_path), parts=["model_inversion"], into=tmp_path
    )
    print_audit(found)
    shown = " ".join(capsys.readouterr().out.split())
    assert "0.90 (0.80 to 0.95)" in shown
    assert "Not attacked: by-heart, no noise: too few images [of 3]" in shown
    assert (tmp_path / "audit.png").is_file()


def test_runs_with_other_classes_than_the_first_are_not_drawn(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "invert_classes", answering(range(10), range(9)))
    drawn = []
    monkeypatch.setattr(parts, "draw_model_inversion", lambda *arguments: drawn.append(arguments[1:3]))
    found = run.audit_run(
        folder.path, private_copy(folder, tmp_path), parts=["model_inversion"], into=tmp_path
    )
    ((labels, pictures),) = drawn
    assert labels == list(range(10))
    assert [title for title, _ in pictures] == ["probabilities, no noise", "labels, no noise"]
    assert [len(one["model_inversion"]["labels"]["classes"]) for one in found["runs"]] == [10, 9]


def test_a_picture_that_cannot_be_written_is_no_traceback(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "invert_classes", answering(range(10)))
    (tmp_path / "model-inversion.png").mkdir()
    with pytest.raises(StateError, match="cannot write into"):
        run.audit_run(folder.path, parts=["model_inversion"], into=tmp_path)


def test_a_model_of_few_classes_or_layers_that_cannot_be_served_is_no_reason_to_stop(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def refuse(model, bits):
        raise UnsupportedModelError("a layer that nobody knows")

    monkeypatch.setattr(parts, "stand_in", refuse)
    folder.audit_figure.unlink(missing_ok=True)
    assert main(["audit", str(folder.path), "--only", "model_inversion"]) == 0
    # There is nothing to draw, and an empty panel would look like a result.
    assert not folder.audit_figure.exists()
    assert "no answers were turned into pictures: a layer that nobody knows" in capsys.readouterr().out


def test_a_broken_mechanism_is_called_broken(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = MechanismAudit(1.0, LowerBound(1.5, 0.999, 100, 50, 50), LowerBound(4.0, 0.999, 100, 50, 50))
    monkeypatch.setattr(parts, "audit_mechanism", lambda private: found)
    assert main(["audit", str(folder.path), "--only", "mechanism"]) == 0
    assert "BROKEN" in capsys.readouterr().out


def test_a_network_that_cannot_be_private_is_no_reason_to_stop(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = RunFolder(Path(shutil.copytree(folder.path, tmp_path / "copy")))
    copy.scenario.write_text(copy.scenario.read_text().replace('"mlp"', '"small-resnet"'))
    assert main(["audit", str(copy.path), "--only", "canaries"]) == 0
    assert "no canaries were planted" in capsys.readouterr().out


def test_two_runs_side_by_side(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    private = Path(shutil.copytree(folder.path, tmp_path / "private"))
    (private / "summary.json").write_text(json.dumps({"privacy": [{"epsilon": 2.0}]}))
    arguments = ["audit", str(folder.path), "--against", str(private), "--only", "membership", "fairness"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "by-heart, no noise" in shown.out
    assert "by-heart, epsilon 2.00" in shown.out
    assert "worst hospital" in shown.out
    assert "+0.0 (-" in shown.out
    # Progress does not get into what is piped on.
    assert "accuracy by class" in shown.err
    assert "losses of members" not in shown.out


def test_an_unknown_part_and_a_run_without_a_model_are_refused(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(folder.path), "--only", "membrship"]) == 2
    assert "membership, lira, fairness" in capsys.readouterr().err
    shutil.copy(folder.scenario, tmp_path)
    assert main(["audit", str(tmp_path)]) == 2
    assert "an audit needs the model" in capsys.readouterr().err
