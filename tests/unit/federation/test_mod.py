"""The client mod: what it refuses, what it lets the app see, and that nothing but a status goes back."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from fedsec.errors import PeerLostError, ProtocolError, RangeError, TrustError, UsageError
from fedsec.federation.mod import find_trust
from fedsec.federation.plan import RoundPlan
from fedsec.transport import ClusterFile, Role

App = Callable[[Message, Context], Message]


def app(seen: list[Message], **changes: Any) -> App:
    """Adds 0.25 to every parameter; ``changes`` replaces records of its reply."""

    def run(message: Message, context: Context) -> Message:
        seen.append(message)
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        new = ArrayRecord({name: Array(a.numpy() + np.float32(0.25)) for name, a in arrays.items()})
        metrics = MetricRecord({"num-examples": 70, "loss": 1.5, "patients": 4711})
        records: dict[str, Any] = {"arrays": new, "metrics": metrics, **changes}
        kept = {name: record for name, record in records.items() if record is not None}
        return Message(RecordDict(kept), reply_to=message)

    return run


def answer(reply: Message) -> tuple[str, bytes]:
    """The status and the upload id, after checking that there is nothing else."""
    assert not reply.has_error()
    assert sorted(reply.content) == ["arrays", "fedsec"]
    assert reply.content["arrays"] == ArrayRecord()
    record = reply.content["fedsec"]
    assert isinstance(record, ConfigRecord)
    assert sorted(record) == ["status", "upload-id"]
    status, upload_id = record["status"], record["upload-id"]
    assert isinstance(status, str)
    assert isinstance(upload_id, bytes)
    return status, upload_id


def refused(paper: Any, message: Message, context: Context | None = None) -> str:
    """The status of a message that must be refused before training, with nothing shared."""
    seen: list[Message] = []
    status, upload_id = answer(paper.mod(message, context or paper.context(), app(seen)))
    assert upload_id == b""
    assert seen == [], "refused only after training"
    assert not any(client.submitted for client in paper.clients), "refused, and shared all the same"
    return status


def test_it_shares_the_update_and_the_app_sees_nothing_of_it(paper: Any) -> None:
    seen: list[Message] = []
    content = paper.content()
    announcement = paper.announce(content)
    message = paper.message(content, announcement)

    reply = paper.mod(message, paper.context(), app(seen))

    assert answer(reply) == ("stored", b"upload-id-16byte")
    assert reply.metadata.dst_node_id == message.metadata.src_node_id
    assert sorted(seen[0].content) == ["arrays", "config"]
    ((shared, update, num_examples, metrics),) = paper.clients[0].submitted
    assert shared == announcement
    assert [array.dtype for array in update] == [np.float64, np.float64]
    np.testing.assert_array_equal(update[0], np.full((2, 3), 0.25))
    np.testing.assert_array_equal(update[1], np.full(3, 0.25))
    assert num_examples == 70
    assert metrics == {"loss": 1.5}, "only the announced metrics"


def test_evaluation_shares_metrics_only(paper: Any) -> None:
    paper.plan = dataclasses.replace(paper.plan, evaluate_metrics={"loss": (0.0, 10.0)})
    content = paper.content()
    message = paper.message(content, paper.announce(content, phase="evaluate"), kind="evaluate")
    status, _ = answer(paper.mod(message, paper.context(), app([], arrays=None)))
    assert status == "stored"
    ((_, update, num_examples, metrics),) = paper.clients[0].submitted
    assert (update, num_examples, metrics) == ([], 70, {"loss": 1.5})


def test_one_client_serves_all_rounds_and_is_closed(paper: Any) -> None:
    for server_round in (1, 2):
        content = paper.content(**{"server-round": server_round})
        answer(paper.mod(paper.message(content, paper.announce(content)), paper.context(), app([])))
    assert len(paper.clients) == 1
    assert list(paper.mod.meters()) == [paper.trust.resolve()]
    paper.mod.close()
    assert paper.clients[0].closed


def test_threat_25_each_round_asks_for_the_receipt_of_the_one_before(
    paper: Any, caplog: pytest.LogCaptureFixture
) -> None:
    announcements = []
    for server_round in (1, 2):
        content = paper.content(**{"server-round": server_round})
        announcements.append(paper.announce(content))
        for _ in range(2):
            answer(paper.mod(paper.message(content, announcements[-1]), paper.context(), app([])))
    (client,) = paper.clients
    assert client.receipts == announcements[:1]
    client.refusal = TrustError("left out")
    paper.mod.close()
    assert client.receipts == announcements
    assert client.closed
    assert f"no receipt that the upload to {announcements[1].id} was counted: left out" in caplog.text


def test_at_the_end_a_thousand_hospitals_have_time_for_their_last_receipts(paper: Any) -> None:
    waits: list[float] = []
    asked = paper.announce(paper.content())
    client = SimpleNamespace(
        name="hospital-00",
        unconfirmed=lambda: [asked],
        receipt=lambda _announcement, deadline: waits.append(deadline.seconds),
        close=lambda: None,
    )
    paper.mod._clients.update({Path(f"trust-{number}.toml"): client for number in range(1000)})
    paper.mod.close()
    # All have one deadline: a millisecond or two each would not do on a busy machine.
    assert len(waits) == 1000
    assert min(waits) >= 20


def test_trust_from_the_environment(paper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context = paper.context()
    del context.node_config["fedsec-trust"]
    content = paper.content()
    announcement = paper.announce(content)
    assert refused(paper, paper.message(content, announcement), context) == "usage"
    monkeypatch.setenv("FEDSEC_TRUST", str(paper.trust))
    status, _ = answer(paper.mod(paper.message(content, announcement), context, app([])))
    assert status == "stored"


def test_in_a_simulation_the_environment_names_a_folder_with_everyones_trust_files(
    tmp_path: Path, paper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "trust"
    folder.mkdir()
    for name in ("hospital-10", "hospital-02", "hospital-00"):
        (folder / f"{name}.toml").write_bytes(paper.trust.read_bytes())
    monkeypatch.setenv("FEDSEC_TRUST", str(folder))
    context = paper.context()
    del context.node_config["fedsec-trust"]

    for partition, name in enumerate(("hospital-00", "hospital-02", "hospital-10")):
        context.node_config["partition-id"] = partition
        assert find_trust(context) == folder / f"{name}.toml"
    for partition in (3, -1, None):
        context.node_config["partition-id"] = partition
        with pytest.raises(UsageError, match="has 3 trust files"):
            find_trust(context)


def test_threat_49_the_run_config_and_the_message_cannot_name_the_trust_file(paper: Any) -> None:
    run_config = {"fedsec-trust": str(paper.trust), "FEDSEC_TRUST": str(paper.trust)}
    context = paper.context(run_config)
    del context.node_config["fedsec-trust"]
    content = paper.content(**run_config)
    announcement = paper.announce(content, run_config=run_config)
    assert refused(paper, paper.message(content, announcement), context) == "usage"


# What a misbehaving ServerApp may try. All of it is refused before training.


def test_threat_49_without_an_announcement_no_update_leaves(paper: Any) -> None:
    assert refused(paper, paper.message(paper.content(), None)) == "trust"
    unsigned = paper.message(paper.content(), None)
    unsigned.content["fedsec"] = ConfigRecord({"announcement": b"", "weighted-by": "num-examples"})
    assert refused(paper, unsigned) == "trust"


@pytest.mark.parametrize("kind", ["query", "train.other", "evaluate.other", "query.anything"])
def test_threat_49_other_kinds_of_messages_are_not_answered(paper: Any, kind: str) -> None:
    content = paper.content()
    assert refused(paper, paper.message(content, paper.announce(content), kind=kind)) == "trust"


def test_threat_49_another_signer(paper: Any) -> None:
    content = paper.content()
    other = paper.identity("server", Role.SERVER)
    assert refused(paper, paper.message(content, paper.announce(content), signer=other)) == "trust"


def test_threat_49_another_recipient(paper: Any) -> None:
    content = paper.content()
    announcement = paper.announce(content, recipient=paper.identity("server", Role.SERVER))
    assert refused(paper, paper.message(content, announcement)) == "trust"


def test_threat_49_other_aggregators(paper: Any) -> None:
    cluster: ClusterFile = paper.cluster
    key = paper.identity("party-2", Role.PARTY).public_key
    other_key = (*cluster.parties[:2], dataclasses.replace(cluster.parties[2], public_key=key))
    for parties in (other_key, cluster.parties[:2]):
        content = paper.content()
        announcement = paper.announce(content, cluster=dataclasses.replace(cluster, parties=parties))
        assert refused(paper, paper.message(content, announcement)) == "trust"


def test_threat_49_an_unknown_hospital_in_the_roster(paper: Any) -> None:
    sybil = {"hospital-99": paper.identity("hospital-99", Role.HOSPITAL).public_key}
    cluster = dataclasses.replace(paper.cluster, hospitals={**paper.cluster.hospitals, **sybil})
    content = paper.content()
    assert refused(paper, paper.message(content, paper.announce(content, cluster=cluster))) == "trust"


@pytest.mark.parametrize(
    "changes",
    [
        {"minimum_cohort": 2},
        {"largest_weight": 1001},
        {"clip": 4.5},
        {"ring_bits": 64},
        # Floors and fixed ranges: nothing that would make the ends of a range tell more than a mean.
        {"largest_weight": 99, "smallest_mean_weight": 10},
        {"clip": 0.009},
        {"clip": {"w": 2.0, "b": 0.009}},
        {"weights": "equal"},
        {"weights": "bucketed"},
        {"train_metrics": {"loss": (0.0, 9.0)}},
        {"train_metrics": {"loss": (1.0, 10.0)}},
        {"train_metrics": {"loss": (0.0, 10.0), "patients": (0.0, 1e6)}},
    ],
)
def test_threat_49_limits(paper: Any, changes: dict[str, Any]) -> None:
    plan: RoundPlan = dataclasses.replace(paper.plan, **changes)
    content = paper.content()
    assert refused(paper, paper.message(content, paper.announce(content, plan=plan))) == "trust"


def test_threat_26_another_model_or_config_than_announced(paper: Any) -> None:
    content = paper.content()
    announcement = paper.announce(content)
    zero = ConfigRecord({"lr": 0.0, "server-round": 1})
    more = ConfigRecord({"lr": 0.5, "server-round": 1, "epochs": 9})
    arrays = content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    changed = ArrayRecord({"w": Array(np.zeros((2, 3), np.float32)), "b": arrays["b"]})
    renamed = ArrayRecord({"v": arrays["w"], "b": arrays["b"]})
    extra: list[dict[str, Any]] = [
        {"config": zero},
        {"config": more},
        {"more": ConfigRecord({"lr": 0.0})},
        {"arrays": changed},
        {"arrays": renamed},
        {"more": arrays},
        {"more": MetricRecord({"lr": 0.0})},
    ]
    for change in extra:
        other = RecordDict({**content, **change})
        assert refused(paper, paper.message(other, announcement)) == "trust", sorted(change)


@pytest.mark.parametrize(
    "records",
    [
        {"config/optimizer": ConfigRecord({"lr": 0.1})},
        {"config%2Foptimizer": ConfigRecord({"lr": 0.1})},
        {"config": ConfigRecord({"optimizer/lr": 0.1}), "extra": ConfigRecord()},
    ],
)
def test_threat_26_no_two_contents_have_one_announcement(paper: Any, records: dict[str, Any]) -> None:
    arrays = paper.content()["arrays"]
    announced = RecordDict({"arrays": arrays, "config": ConfigRecord({"optimizer/lr": 0.1})})
    other = RecordDict({"arrays": arrays, **records})
    assert refused(paper, paper.message(other, paper.announce(announced))) == "trust"


def test_threat_26_a_record_cannot_stand_for_a_key_of_another(paper: Any) -> None:
    arrays = paper.content()["arrays"]
    config = ConfigRecord({"optimizer": 1, "optimizer/lr": 0.1})
    announced = RecordDict({"arrays": arrays, "config": config})
    # If "/" were not escaped, the size of the second record would pass for the key's value.
    other = {
        "config": ConfigRecord({**config, "optimizer": 9}),
        "config/optimizer": ConfigRecord({"lr": 0.1}),
    }
    message = paper.message(RecordDict({"arrays": arrays, **other}), paper.announce(announced))
    assert refused(paper, message) == "trust"


def test_threat_26_training_sees_nothing_that_is_not_announced(paper: Any) -> None:
    """Metadata, the order of records and keys, and how arrays are packed may differ between hospitals."""
    content = paper.content()
    announcement = paper.announce(content)
    array, config = content["arrays"]["w"].numpy(), content["config"]
    packed = Array(np.asfortranarray(array).astype(">f4"))
    packed.dtype = "a word for one hospital only"
    arrays = ArrayRecord({"w": packed, "b": content["arrays"]["b"]})
    turned = RecordDict({"config": ConfigRecord(dict(reversed(config.items()))), "arrays": arrays})
    seen: list[Message] = []
    for number, one in enumerate((content, turned)):
        message = paper.message(one, announcement)
        message.metadata.group_id, message.metadata.ttl = f"group {number}", 1000.0 + number
        message.metadata.__dict__["_message_id"] = f"id {number}"
        assert answer(paper.mod(message, paper.context(), app(seen)))[0] == "stored"
    first, second = ({**one.metadata.__dict__, "_created_at": 0} for one in seen)
    assert first == second
    assert (first["_group_id"], first["_message_id"]) == ("1", "")
    assert [list(one.content) for one in seen] == [["arrays", "config"]] * 2
    assert [list(one.content["config"]) for one in seen] == [["lr", "server-round"]] * 2
    assert seen[0].content.object_id == seen[1].content.object_id


def test_threat_26_another_weight_metric_than_announced(paper: Any) -> None:
    content = paper.content()
    message = paper.message(content, paper.announce(content))
    ours = message.content["fedsec"]
    assert isinstance(ours, ConfigRecord)
    message.content["fedsec"] = ConfigRecord({**ours, "weighted-by": "patients"})
    assert refused(paper, message) == "trust"


def test_threat_26_another_run_config_than_announced(paper: Any) -> None:
    content = paper.content()
    announcement = paper.announce(content, run_config={"lr": 0.1})
    status, _ = answer(paper.mod(paper.message(content, announcement), paper.context({"lr": 0.1}), app([])))
    assert status == "stored"
    paper.clients[0].submitted.clear()
    assert refused(paper, paper.message(content, announcement), paper.context({"lr": 0.0})) == "trust"


def test_an_evaluation_announcement_does_not_train(paper: Any) -> None:
    content = paper.content()
    assert refused(paper, paper.message(content, paper.announce(content, phase="evaluate"))) == "trust"


# What the hospital's own app may do wrong. Its hospital is out of the round, and nothing is told.


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": None},
        {"arrays": None},
        {"metrics": MetricRecord({"loss": 1.0})},
        {"metrics": MetricRecord({"num-examples": 10.5, "loss": 1.0})},
        {"metrics": MetricRecord({"num-examples": 10})},
        {"metrics": MetricRecord({"num-examples": 10, "loss": [1.0, 2.0]})},
        {"more": MetricRecord({"num-examples": 10})},
        {"more": ArrayRecord()},
        {"arrays": ArrayRecord({"w": Array(np.zeros((2, 3), np.float32))})},
        {"arrays": ArrayRecord({"w": Array(np.zeros((3, 2), np.float32)), "b": Array(np.zeros(3))})},
    ],
)
def test_a_reply_that_does_not_fit(paper: Any, changes: dict[str, Any]) -> None:
    content = paper.content()
    message = paper.message(content, paper.announce(content))
    assert answer(paper.mod(message, paper.context(), app([], **changes))) == ("failed", b"")
    assert paper.clients[0].submitted == []


def test_threat_45_no_text_of_the_app_leaves_or_is_logged(
    paper: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_message: Message, _context: Context) -> Message:
        raise ValueError("patient Quillfeather has a secret")

    def error(message: Message, _context: Context) -> Message:
        return Message(Error(0, "patient Quillfeather has a secret"), reply_to=message)

    caplog.set_level(logging.DEBUG)
    content = paper.content()
    announcement = paper.announce(content)
    for function in (broken, error):
        reply = paper.mod(paper.message(content, announcement), paper.context(), function)
        assert answer(reply) == ("failed", b"")
        assert "Quillfeather" not in repr(reply)
    assert "Quillfeather" not in caplog.text
    assert "ValueError at test_mod.py:" in caplog.text


@pytest.mark.parametrize(
    "failure",
    [PeerLostError("party-1 closed"), RangeError("too large"), ProtocolError("twice"), ValueError("no")],
)
def test_threat_14_after_training_began_there_is_one_code(paper: Any, failure: Exception) -> None:
    """Codes of checks that have seen the data would answer the server's questions about them."""
    content = paper.content()
    announcement = paper.announce(content)
    answer(paper.mod(paper.message(content, announcement), paper.context(), app([])))
    paper.clients[0].failure = failure
    reply = paper.mod(paper.message(content, announcement), paper.context(), app([]))
    assert answer(reply) == ("failed", b"")
