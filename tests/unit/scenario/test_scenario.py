import tomllib
from pathlib import Path

import pytest

from fedsec.errors import ScenarioError, UsageError
from fedsec.scenario import Scenario


def write(folder: Path, text: str) -> Path:
    path = folder / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_file_is_the_defaults_named_after_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-study"
    folder.mkdir()
    write(folder, "")

    scenario = Scenario.load(folder)

    assert scenario == Scenario(name="my-study")
    assert scenario.hospitals.count == 10
    assert scenario.training.learning_rate == 5e-3


def test_file_values_and_overrides_later_ones_win(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "a"\n[training]\nrounds = 8\nlearning_rate = 1e-3\n')

    scenario = Scenario.load(
        path,
        ["training.rounds=3", " hospitals.count = 100", "hospitals.partition=dirichlet", "training.rounds=4"],
    )

    assert (scenario.training.rounds, scenario.training.learning_rate) == (4, 1e-3)
    assert (scenario.hospitals.count, scenario.hospitals.partition) == (100, "dirichlet")


def test_the_resolved_scenario_reads_back_the_same() -> None:
    scenario = Scenario().override("hospitals.alpha=0.1", "serving.test_index=[5, 7]", "aggregation.clip=1")

    assert Scenario.from_values(tomllib.loads(scenario.to_toml())) == scenario
    assert scenario.serving.test_index == (5, 7)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("training.round=3", "unknown key 'training.round'; did you mean 'training.rounds'?"),
        ("hospitals.rounds=3", "did you mean 'training.rounds'?"),
        ("rounds=3", "did you mean 'training.rounds'?"),
        ("nothing.like=3", "known sections: hospitals, training, strategy, privacy, aggregation, serving"),
        ("training=3", "[training] is a section"),
        ("training.rounds.deep=3", "training.rounds is one value, got a section"),
        ("training.rounds", "expected section.key=value"),
        (".rounds=3", "expected section.key=value"),
        ("hospitals.count=1", "hospitals.count: expected `int` >= 2"),
        ("hospitals.count=ten", "hospitals.count: expected `int`, got `str`"),
        ("hospitals.count=true", "hospitals.count: expected `int`, got `bool`"),
        ("hospitals.alpha=-1", "hospitals.alpha: expected `float` > 0.0"),
        ("hospitals.partition=sorted", "hospitals.partition: expected 'equal' or 'dirichlet'"),
        ("aggregation.ring_bits=31", "aggregation.ring_bits: expected 32 or 64"),
        ("aggregation.aggregators=2", "aggregation.aggregators: expected `int` >= 3"),
        ("name=A B", "name: expected `str` matching regex"),
        ("hospitals.dropped_each_round=8", "fewer than aggregation.minimum_cohort"),
        ("training.examples=9", "cannot be shared out"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(override: str, text: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        Scenario().override(override)
    assert text in str(caught.value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", ["hospitals.alpha", "aggregation.clip", "training.learning_rate"])
def test_no_setting_is_nan_or_infinite(key: str, value: str) -> None:
    with pytest.raises(ScenarioError, match=key):
        Scenario().override(f"{key}={value}")


def test_a_section_in_the_file_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"\[hospitals\] is a section"):
        Scenario.load(write(tmp_path, "hospitals = 3\n"))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.toml.*No such file"):
        Scenario.load(tmp_path / "missing.toml")
    with pytest.raises(UsageError, match=r"expected TOML.*line 1"):
        Scenario.load(write(tmp_path, "[training\n"))
    (tmp_path / "scenario.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="expected TOML"):
        Scenario.load(tmp_path)


@pytest.mark.parametrize("text", ['"fedadam"', "fedadam", " fedadam "])
def test_override_values_are_toml_or_bare_words(text: str) -> None:
    assert Scenario().override(f"strategy.name={text}").strategy.name == "fedadam"


def test_an_override_is_one_value_only() -> None:
    with pytest.raises(ScenarioError, match=r"strategy\.name: expected 'fedavg' or"):
        Scenario().override("strategy.name=1\nseed = 2")


def test_a_study_is_several_runs_that_differ_in_one_key() -> None:
    scenario = Scenario.from_values(
        {"name": "curve", "study": {"key": "privacy.target_epsilon", "values": [0, 2.5], "audits": ["lira"]}}
    )
    plain, private = scenario.runs()
    assert [run.privacy.target_epsilon for run in (plain, private)] == [0, 2.5]
    assert private == Scenario(name="curve").override("privacy.target_epsilon=2.5")
    assert Scenario.from_values(tomllib.loads(scenario.to_toml())) == scenario


def test_a_study_may_vary_texts_and_may_be_one_run() -> None:
    varied = Scenario().override("study.key=strategy.name", 'study.values=["fedavg", "fedadam"]')
    assert [run.strategy.name for run in varied.runs()] == ["fedavg", "fedadam"]
    assert Scenario().override('study.audits=["inversion"]').runs() == (Scenario(),)
    assert Scenario().runs() == (Scenario(),)


@pytest.mark.parametrize(
    ("study", "text"),
    [
        ({"key": "privacy.epsilon", "values": [1]}, "study.key: unknown key 'privacy.epsilon'; did you mean"),
        ({"key": "privacy", "values": [1]}, "[privacy] is a section"),
        ({"key": "training.rounds", "values": [1, 0]}, "study: training.rounds=0: training.rounds: expected"),
        ({"key": "training.rounds"}, "a study needs both"),
        ({"values": [1]}, "a study needs both"),
        ({"key": "study.audits", "values": ["lira"]}, "a study cannot vary itself"),
        ({"key": "seed", "values": [1, 1]}, "a value stands there twice"),
        ({"audits": ["lirra"]}, "study.audits[0]: expected 'membership' or 'lira'"),
    ],
)
def test_a_study_that_cannot_run_to_its_end_is_refused(study: dict[str, object], text: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        Scenario.from_values({"study": study})
    assert text in str(caught.value)


def test_levels_of_privacy() -> None:
    record, hospital = (
        Scenario().override("privacy.target_epsilon=8", f"privacy.level={level}")
        for level in ("record", "hospital")
    )
    assert (record.record_level, record.hospital_level) == (True, False)
    assert (hospital.record_level, hospital.hospital_level) == (False, True)
    without = Scenario().override("privacy.level=hospital")
    assert not without.record_level
    assert not without.hospital_level


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("aggregation.reveal_to=hospitals", "it stays in shares: take 'server'"),
        ("privacy.colluding_aggregators=3", "one at least must be honest"),
        ("privacy.colluding_aggregators=7", "privacy.colluding_aggregators"),
        ("privacy.level=patient", "expected 'record' or 'hospital'"),
    ],
)
def test_noise_that_nobody_holds_needs_an_average_that_is_opened_and_somebody_honest(
    override: str, text: str
) -> None:
    with pytest.raises(ScenarioError, match=text):
        Scenario().override("privacy.level=hospital", "privacy.target_epsilon=8", override)
