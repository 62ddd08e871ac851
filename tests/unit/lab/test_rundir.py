from pathlib import Path

import pytest

from fedsec.errors import StateError, UsageError
from fedsec.lab.rundir import RunFolder
from fedsec.lab.share import plan_of


def test_a_new_run_is_for_its_owner_only(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", "study")

    assert run.name.endswith("-study")
    assert run.path.stat().st_mode & 0o777 == 0o700
    assert run.logs.is_dir()
    run.scenario.write_text("")
    assert RunFolder.open(run.path) == run


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    runs = [RunFolder.create(tmp_path, "study") for _ in range(3)]
    runs[-1].plan.write_text("{}")

    assert len({run.path for run in runs}) == 3
    assert RunFolder.open(tmp_path / "latest") == runs[-1]


def test_metrics_are_lines_of_json_by_event(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "study")

    run.append("round", {"round": 1, "accuracy": 0.5})
    run.append("phase", {"name": "keys"})
    run.append("round", {"round": 2, "accuracy": 0.75})

    assert [entry["accuracy"] for entry in run.read_metrics("round")] == [0.5, 0.75]
    assert len(run.metrics.read_text().splitlines()) == 3


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        RunFolder.open(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"neither scenario\.toml nor plan\.json"):
        RunFolder.open(tmp_path)


def test_a_study_is_not_served_as_a_run(tmp_path: Path) -> None:
    study = RunFolder.create(tmp_path, "study")
    study.scenario.write_text("")
    with pytest.raises(UsageError, match="its training did not finish"):
        plan_of(study.path)
    RunFolder.create(study.path / "runs", "one")
    with pytest.raises(UsageError, match=f"folder of a study: take one of its runs, in {study.path}/runs"):
        plan_of(study.path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="choose another --runs"):
        RunFolder.create(tmp_path / "file", "study")


def test_a_real_folder_named_latest_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    RunFolder.create(tmp_path, "study")
    assert not (tmp_path / "latest").is_symlink()


def test_a_runs_model_keeps_its_id(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "one")
    assert folder.model_id() == folder.model_id()
    assert len(folder.model_id()) == 16
    assert RunFolder.create(tmp_path, "two").model_id() != folder.model_id()
    for damage in ("no hexadecimal", "abcd"):
        (folder.path / "model-id").write_text(damage)
        with pytest.raises(StateError, match="model-id"):
            folder.model_id()


def test_credentials_are_those_of_a_run_that_was_served(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "one")
    with pytest.raises(UsageError, match=r"cluster\.toml is missing: serve the run first"):
        folder.credentials("owner")
    folder.cluster.write_text("")
    with pytest.raises(UsageError, match=r"owner\.pem is missing"):
        folder.credentials("owner")
    (folder.path / "keys").mkdir()
    (folder.path / "keys" / "owner.pem").write_text("")
    assert folder.credentials("owner") == (folder.cluster, folder.path / "keys" / "owner.pem")
