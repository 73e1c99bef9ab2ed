"""From `commands` into the log: each record once, and nothing bad stops it."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from temporalio.api.common.v1 import message_pb2 as common_pb2

from everfold.history.ingress import PASSED_HEADER, CommandRecord, CommandSkipped, Ingress
from everfold.history.machine.shard_fold import ShardFold
from everfold.kernel.ids import record_key, shard_of
from everfold.kernel.time import MILLISECOND_NS, SECOND_NS
from everfold.schemas import codec
from everfold.schemas.topics import COMMANDS, COMMANDS_REJECTED, SHARD_LOG
from history_shell.messages import start
from history_shell.world import Namespaces, Owner, World


@pytest.fixture
def world() -> World:
    return World()


def command(name: str, workflow_id: str = "w", namespace: str = "default", request_id: str = "", **body: Any) -> bytes:
    bodies: dict[str, dict[str, Any]] = {
        "StartWorkflow": {"workflow_type": "greet", "task_queue": "queue"},
        "SignalWorkflow": {"signal_name": "go"},
        "SignalWithStartWorkflow": {"workflow_type": "greet", "task_queue": "queue"},
    }
    return codec.encode(
        "Command",
        {
            "command_id": "c",
            "namespace": namespace,
            "workflow_id": workflow_id,
            "request_id": request_id,
            "body": (name, {**bodies[name], **body}),
        },
    )


def put(world: World, value: bytes | None, partition: int = 0, workflow_id: str = "w") -> int:
    return world.append(COMMANDS.name, partition, record_key("default", workflow_id), value)


def from_commands(world: World, shard: int = 0) -> list[tuple[str, int]]:
    return [
        (record["kind"], record["origin"]["offset"])
        for record in world.records(SHARD_LOG.name, shard)
        if record["origin"] is not None
    ]


def status(owner: Owner, workflow_id: str = "w") -> Any:
    return owner.fold.run("namespace-1", "default", workflow_id, "")


def test_a_command_starts_a_workflow_as_the_rpc_does(world: World) -> None:
    owner = Owner(world).take()
    owner.open_ingress()
    put(world, command("StartWorkflow"))
    put(world, command("SignalWorkflow"))
    world.run(SECOND_NS)
    assert from_commands(world) == [("START_WORKFLOW", 0), ("SIGNAL_WORKFLOW", 1)]
    assert status(owner).signal_count == 1
    assert owner.fold.meta.commands_offset == 1


def test_a_command_may_ask_for_retries_and_a_delay_as_the_rpc_may(world: World) -> None:
    owner = Owner(world).take()
    owner.open_ingress()
    policy = {"initial_interval_ns": SECOND_NS, "maximum_attempts": 3}
    put(world, command("StartWorkflow", retry_policy=policy, start_delay_ns=60 * SECOND_NS))
    world.run(SECOND_NS)
    assert owner.offers == []
    run = status(owner)
    assert common_pb2.RetryPolicy.FromString(run.retry_policy).maximum_attempts == 3
    world.run(61 * SECOND_NS)
    assert [offer.workflow_id for offer in owner.offers] == ["w"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"start_delay_ns": -1}, "start_delay_ns is negative: -1"),
        ({"retry_policy": {"backoff_coefficient": 0.5}}, "BackoffCoefficient cannot be less than 1 on retry policy."),
        ({"cron_schedule": "61 * * * *"}, "invalid CronSchedule."),
        ({"cron_schedule": "CRON_TZ=Nowhere/City 1 * * * *"}, "invalid CronSchedule."),
        ({"cron_schedule": "* * * * *", "start_delay_ns": 1}, "may not be used together"),
        ({"cron_schedule": "0 0 31 2 *"}, "no time can be found"),
        ({"workflow_type": "t" * 1_001}, "WorkflowType length exceeds limit."),
        ({"request_id": "r" * 1_001}, "RequestId length exceeds limit."),
        ({"task_queue": "/_sys/queue/1"}, "cannot start with reserved prefix /_sys/"),
        ({"input": [{"metadata": {}, "data": bytes(2 * 1024 * 1024)}]}, "Blob data size exceeds limit."),
        ({"memo": {"m": {"metadata": {}, "data": bytes(2 * 1024 * 1024)}}}, "Memo size exceeds limit."),
        ({"priority": {"priority_key": -1}}, "priority key can't be negative"),
        (
            {"id_reuse_policy": "TERMINATE_IF_RUNNING", "id_conflict_policy": "USE_EXISTING"},
            "Invalid WorkflowIDReusePolicy",
        ),
        ({"name": "SignalWorkflow", "signal_name": "s" * 1_001}, "SignalName length exceeds limit."),
        ({"workflow_id": "w" * 1_001}, "WorkflowId exceeds maximum allowed length (1001/1000)"),
        (
            {"name": "SignalWithStartWorkflow", "signal_name": "s", "id_conflict_policy": "FAIL"},
            "WORKFLOW_ID_CONFLICT_POLICY_FAIL is not supported for this operation.",
        ),
    ],
)
def test_a_command_that_the_rpc_would_refuse_is_rejected(world: World, fields: dict[str, Any], reason: str) -> None:
    owner = Owner(world).take()
    owner.open_ingress()
    put(world, command(**{"name": "StartWorkflow", **fields}))
    world.run(SECOND_NS)
    (rejected,) = world.records(COMMANDS_REJECTED.name)
    assert reason in rejected["reason"]
    assert status(owner) is None


def test_the_records_form_a_chain(world: World) -> None:
    Owner(world).take().open_ingress()
    for _ in range(3):
        put(world, command("SignalWorkflow"))
    world.run(SECOND_NS)
    records = [record for record in world.records(SHARD_LOG.name) if record["origin"] is not None]
    assert records[0]["predecessor"] is None
    assert [r["predecessor"]["offset"] for r in records[1:]] == [r["origin"]["offset"] for r in records[:-1]]


@pytest.mark.parametrize("fates", [["unknown"], ["lost"], ["ok", "lost", "ok"], ["unknown", "unknown", "lost"]])
def test_each_record_enters_once_whatever_happens_to_deliveries(world: World, fates: list[str]) -> None:
    owner = Owner(world).take()
    put(world, command("StartWorkflow"))
    owner.open_ingress()
    world.run(SECOND_NS)
    world.fates[SHARD_LOG.name] = list(fates)
    for _ in range(4):
        put(world, command("SignalWorkflow"))
    world.run(20 * SECOND_NS)
    assert status(owner).signal_count == 4
    assert owner.fold.meta.commands_offset == 4


def test_a_new_owner_goes_on_where_the_state_says(world: World) -> None:
    owner = Owner(world).take()
    owner.open_ingress()
    put(world, command("StartWorkflow"))
    world.run(SECOND_NS)
    owner.crash()
    put(world, command("SignalWorkflow"))
    again = Owner(world, store=owner.store).take()
    assert again.open_ingress().resume_position() == (1, 0)
    world.run(SECOND_NS)
    assert from_commands(world) == [("START_WORKFLOW", 0), ("SIGNAL_WORKFLOW", 1)]


def test_a_former_owner_that_still_reads_commands_is_harmless(world: World) -> None:
    one = Owner(world).take()
    two = Owner(world).take()
    one.open_ingress()
    two.open_ingress()
    put(world, command("StartWorkflow"))
    for _ in range(3):
        put(world, command("SignalWorkflow"))
    world.run(10 * SECOND_NS)
    assert len(from_commands(world)) == 8
    assert status(one).signal_count == 3
    assert one.fold.meta.state_hash == two.fold.meta.state_hash


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"plain text", "Confluent framing"),
        (b"\0\x7f\xff\xff\xffabc", "unknown schema id"),
        (b"", "Confluent framing"),
        (None, "no value"),
        (command("StartWorkflow", task_queue=""), "task_queue is not set"),
        (command("StartWorkflow", namespace="nowhere"), "Namespace nowhere is not found."),
        (command("StartWorkflow")[:-3], ""),
    ],
)
def test_a_bad_record_is_rejected_with_its_place_and_the_shard_goes_on(
    world: World, value: bytes | None, reason: str
) -> None:
    owner = Owner(world).take()
    owner.open_ingress()
    put(world, value)
    put(world, command("StartWorkflow"))
    world.run(5 * SECOND_NS)
    assert [kind for kind, _ in from_commands(world)] == ["COMMAND_REJECTED", "START_WORKFLOW"]
    (rejected,) = world.records(COMMANDS_REJECTED.name)
    assert (rejected["partition"], rejected["offset"]) == (0, 0)
    assert reason in rejected["reason"]
    assert rejected["sample"] == (value or b"")
    assert (rejected["sha256"], rejected["size_bytes"]) == (sha256(value or b"").digest(), len(value or b""))
    assert rejected["rejected_at_ns"] > 0
    assert status(owner) is not None


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        (command("SignalWorkflow", "nobody", request_id="r-1"), ("c", "r-1", "default", "nobody")),
        (command("StartWorkflow", request_id="r-2", task_queue=""), ("c", "r-2", "default", "w")),
        (command("StartWorkflow", namespace="nowhere"), ("c", "", "nowhere", "w")),
        (b"nonsense", ("", "", "", "")),
    ],
    ids=["by the fold", "an essential is missing", "no such namespace", "nonsense"],
)
def test_a_rejection_says_whose_record_it_was(world: World, value: bytes, ids: tuple[str, ...]) -> None:
    owner = Owner(world).take()
    owner.open_ingress()
    headers = [("trace", b"t-1"), ("Authorization", b"Bearer secret"), ("large", b"x" * 20_000), ("behind", b"")]
    world.append(COMMANDS.name, 0, b"the producer's key", value, headers)
    world.run(5 * SECOND_NS)
    (rejected,) = world.records(COMMANDS_REJECTED.name)
    assert rejected["topic"] == "test.commands"
    assert tuple(rejected[name] for name in ("command_id", "request_id", "namespace", "workflow_id")) == ids
    assert rejected["headers"] == [{"name": "trace", "value": b"t-1"}]
    assert [stored.key for stored in world.logs[COMMANDS_REJECTED.name, 0]] == [b"the producer's key"]
    assert b"secret" not in b"".join(stored.value or b"" for stored in world.logs[SHARD_LOG.name, 0])


def test_a_rejection_by_the_machine_is_told_too(world: World) -> None:
    owner = Owner(world).take()
    owner.open_ingress()
    value = command("SignalWorkflow", workflow_id="nobody")
    put(world, value)
    put(world, b"nonsense")
    world.run(SECOND_NS)
    rejected, nonsense = world.records(COMMANDS_REJECTED.name)
    assert (rejected["code"], nonsense["code"]) == (5, 3)
    assert (rejected["sha256"], rejected["size_bytes"]) == (sha256(value).digest(), len(value))
    assert rejected["rejected_at_ns"] > 0
    assert {name: count for name, count in owner.metrics.of.items() if "rejected" in name} == {
        "records_rejected/NOT_FOUND": 1,
        "records_rejected/INVALID_ARGUMENT": 1,
    }
    assert owner.fold.meta.commands_offset == 1


def test_a_namespace_that_is_not_known_yet_is_looked_up_first(world: World) -> None:
    owner = Owner(world).take()
    owner.namespaces.after_refresh = {"namespace-2": ("new", 1)}
    owner.open_ingress()
    put(world, command("StartWorkflow", namespace="new"))
    world.run(SECOND_NS)
    assert from_commands(world) == [("START_WORKFLOW", 0)]
    assert owner.namespaces.refreshes == 1


def test_a_namespace_lookup_that_fails_rejects_nothing(world: World) -> None:
    owner = Owner(world).take()
    owner.namespaces.readable = False
    owner.namespaces.after_refresh = {"namespace-2": ("new", 1)}
    owner.open_ingress()
    put(world, command("StartWorkflow", namespace="new"))
    world.run(5 * SECOND_NS)
    assert from_commands(world) == []
    owner.namespaces.readable = True
    world.run(5 * SECOND_NS)
    assert from_commands(world) == [("START_WORKFLOW", 0)]


def test_commands_are_paused_when_the_log_takes_nothing(world: World) -> None:
    owner = Owner(world).take()
    ingress = owner.open_ingress()
    put(world, command("StartWorkflow"))
    world.run(SECOND_NS)
    bound = owner.shard.limits.ingress_in_flight_max
    owner.reader.pause()
    for _ in range(4 * bound):
        put(world, command("SignalWorkflow"))
    world.run(5 * SECOND_NS)
    assert ingress.waiting <= 2 * bound + owner.batch
    assert owner.commands.paused
    owner.reader.resume()
    world.run(20 * SECOND_NS)
    assert status(owner).signal_count == 4 * bound


# ---- bursts


@pytest.mark.parametrize("at_once", [False, True], ids=["answers later", "answers at once"])
@pytest.mark.parametrize("count", [1, 10, 200, 1_000])
def test_a_burst_enters_whole_and_in_order(world: World, count: int, at_once: bool) -> None:
    owner = Owner(world, batch=count).take()
    world.at_once = at_once
    owner.open_ingress()
    for number in range(count):
        put(world, command("StartWorkflow", f"w{number}"), workflow_id=f"w{number}")
    world.run_until(lambda: owner.fold.meta.commands_offset == count - 1, within_ns=600 * SECOND_NS)
    assert from_commands(world) == [("START_WORKFLOW", number) for number in range(count)]
    assert all(status(owner, f"w{number}") is not None for number in range(count))
    assert owner.lost is None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("at_once", [False, True], ids=["answers later", "answers at once"])
def test_fifty_thousand_in_one_call_enter_whole(world: World, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    """The shard only moves its position here, and starts nothing, so that they are soon done. It misses what is not
    there, as always.
    """
    count = 50_000
    owner = Owner(world, batch=count).take()
    verdicts = owner.propose("START_WORKFLOW", start())
    world.run_until(lambda: verdicts)
    monkeypatch.setattr(ShardFold, "_do", lambda self, ctx, body, record: ctx.commit())
    world.at_once = at_once
    ingress = owner.open_ingress()
    value = command("StartWorkflow")
    ingress.on_commands([CommandRecord(b"", value, number, 0) for number in range(count)])
    world.run_until(lambda: owner.fold.meta.commands_offset == count - 1, within_ns=600 * SECOND_NS)
    assert ingress.waiting == 0
    assert owner.lost is None


@pytest.mark.parametrize("at_once", [False, True], ids=["answers later", "answers at once"])
def test_a_burst_in_namespaces_that_are_not_known_yet_enters_whole(world: World, at_once: bool) -> None:
    count = 300
    owner = Owner(world, batch=count).take()
    world.at_once = at_once
    owner.namespaces.answer = world.soon
    for number in range(count):
        owner.namespaces.known[f"id-{number}"] = (f"new-{number}", 1)
        put(world, command("StartWorkflow", namespace=f"new-{number}"))
        put(world, command("StartWorkflow", namespace=f"nowhere-{number}"))
    owner.open_ingress()
    world.run_until(lambda: owner.fold.meta.commands_offset == 2 * count - 1, within_ns=600 * SECOND_NS)
    assert from_commands(world) == [
        pair
        for number in range(count)
        for pair in (("START_WORKFLOW", 2 * number), ("COMMAND_REJECTED", 2 * number + 1))
    ]


# ---- a hole in the chain


def test_a_command_that_is_dropped_on_its_way_is_missed_by_the_fold_and_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect between reading and appending, whatever it is."""
    owner = Owner(world).take()
    ingress = owner.open_ingress()
    take = Ingress._take

    def forgetful(self: Ingress, read: Any) -> None:
        if self is ingress and read.record.offset == 3:
            self._queue.popleft()
        else:
            take(self, read)

    monkeypatch.setattr(Ingress, "_take", forgetful)
    for number in range(8):
        put(world, command("StartWorkflow", f"w{number}"))
    world.run(SECOND_NS)
    assert isinstance(owner.lost, CommandSkipped)
    assert owner.fold.meta.commands_offset == 2
    assert "offset 4 (epoch 0)" in str(owner.lost)
    again = Owner(world, store=owner.store).take()
    again.open_ingress()
    world.run(SECOND_NS)
    assert again.fold.meta.commands_offset == 7
    assert all(status(again, f"w{number}") is not None for number in range(8))


def test_a_command_that_kafka_has_acknowledged_and_lost_is_read_again(world: World) -> None:
    owner = Owner(world).take()
    owner.open_ingress()
    put(world, command("StartWorkflow"))
    world.run(5 * SECOND_NS)
    owner.reader.pause()
    put(world, command("StartWorkflow", "lost"))
    world.run_until(lambda: from_commands(world)[-1] == ("START_WORKFLOW", 1))
    world.run(10 * MILLISECOND_NS)
    assert world.kinds()[-1] == "START_WORKFLOW"
    world.logs[SHARD_LOG.name, 0].pop()
    owner.reader.resume()
    put(world, command("StartWorkflow", "behind"))
    world.run(SECOND_NS)
    assert isinstance(owner.lost, CommandSkipped)
    again = Owner(world, store=owner.store).take()
    again.open_ingress()
    world.run(SECOND_NS)
    assert from_commands(world)[-2:] == [("START_WORKFLOW", 1), ("START_WORKFLOW", 2)]
    assert status(again, "lost") is not None
    assert status(again, "behind") is not None


# ---- the wrong partition


def two_shards(world: World) -> tuple[Owner, Owner]:
    names = Namespaces()
    return (
        Owner(world, 0, 2, namespaces=names).take(),
        Owner(world, 1, 2, namespaces=names).take(),
    )


def of_shard(shard: int) -> str:
    return next(f"w{n}" for n in range(100) if shard_of("default", f"w{n}", 2) == shard)


def test_a_record_on_the_wrong_partition_is_passed_on_once(world: World) -> None:
    zero, one = two_shards(world)
    zero.open_ingress()
    one.open_ingress()
    workflow_id = of_shard(1)
    put(world, command("StartWorkflow", workflow_id), 0, workflow_id)
    put(world, command("StartWorkflow", of_shard(0)), 0)
    world.run(5 * SECOND_NS)
    assert from_commands(world, 0) == [("COMMANDS_PASSED", 0), ("START_WORKFLOW", 1)]
    assert from_commands(world, 1) == [("START_WORKFLOW", 0)]
    assert world.logs[COMMANDS.name, 1][0].headers == [(PASSED_HEADER, b"0/0/0")]
    assert status(one, workflow_id) is not None


@pytest.mark.parametrize("fate", ["unknown", "lost"])
def test_a_second_copy_is_the_same_request(world: World, fate: str) -> None:
    zero, one = two_shards(world)
    one.open_ingress()
    workflow_id = of_shard(1)
    put(world, command("StartWorkflow", workflow_id), 1, workflow_id)
    world.run(SECOND_NS)
    put(world, command("SignalWorkflow", workflow_id), 0, workflow_id)
    world.fates[COMMANDS.name] = [fate]
    zero.open_ingress()
    world.run(5 * SECOND_NS)
    assert len(world.logs[COMMANDS.name, 1]) == (3 if fate == "unknown" else 2)
    assert status(one, workflow_id).signal_count == 1
    assert zero.fold.meta.commands_offset == 0


def test_a_record_is_passed_on_one_time_only(world: World) -> None:
    zero, _ = two_shards(world)
    zero.open_ingress()
    value = command("StartWorkflow", of_shard(1))
    world.append(COMMANDS.name, 0, b"", value, [(PASSED_HEADER, b"1/0/7")])
    world.append(COMMANDS.name, 0, b"", value, [(PASSED_HEADER, b"nonsense")])
    world.run(5 * SECOND_NS)
    assert [kind for kind, _ in from_commands(world)] == ["COMMAND_REJECTED", "COMMAND_REJECTED"]
    assert not world.logs[COMMANDS.name, 1]


def test_a_burst_on_the_wrong_partition_is_passed_on_whole(world: World) -> None:
    zero, one = two_shards(world)
    one.open_ingress()
    wrong = [f"w{n}" for n in range(1_000) if shard_of("default", f"w{n}", 2) == 1][:300]
    for workflow_id in wrong:
        put(world, command("StartWorkflow", workflow_id), 0, workflow_id)
    world.at_once = True
    zero.open_ingress()
    world.run_until(lambda: one.fold.meta.commands_offset == len(wrong) - 1)
    assert from_commands(world, 0) == [("COMMANDS_PASSED", offset) for offset in range(len(wrong))]
    assert from_commands(world, 1) == [("START_WORKFLOW", offset) for offset in range(len(wrong))]
    assert all(status(one, workflow_id) is not None for workflow_id in wrong)
