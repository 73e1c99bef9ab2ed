"""A shard over a broker in memory: taking it, answering, giving it up."""

from __future__ import annotations

import pytest
from temporalio.api.errordetails.v1 import message_pb2 as errordetails

from everfold.history.giving_up import Aftermath, HashMismatch, aftermath
from everfold.history.machine.shard_fold import LogRecord
from everfold.history.machine.step import Reply
from everfold.history.ports import ShellLimits
from everfold.history.taking import Phase, WrongCluster
from everfold.kernel.errors import Code, LogGap, StatusError, UnknownFeatureLevel
from everfold.kernel.features import FEATURE_LEVEL
from everfold.kernel.time import MILLISECOND_NS, SECOND_NS
from everfold.schemas import codec
from everfold.schemas.topics import HISTORY, SHARD_LOG, VISIBILITY, WORKFLOW_TASKS
from history_shell.messages import run_id_of, signal, start
from history_shell.world import NAMESPACE_ID, WORKFLOW, DictStore, Owner, World


@pytest.fixture
def world() -> World:
    return World()


def answer(verdicts: list[Reply | StatusError]) -> Reply | StatusError:
    assert len(verdicts) == 1, verdicts
    return verdicts[0]


def started(world: World, owner: Owner, workflow_id: str = "w") -> str:
    verdicts = owner.propose("START_WORKFLOW", start(workflow_id, "r-" + workflow_id), workflow_id)
    world.run_until(lambda: verdicts)
    reply = answer(verdicts)
    assert isinstance(reply, Reply)
    assert reply.error is None
    return run_id_of(reply.response)


def test_who_waits_for_a_record_that_kafka_has_acknowledged_and_lost_hears_of_it(world: World) -> None:
    """This owner had not read it, so nothing else tells it that the log's tail is another one now."""
    owner = Owner(world).take()
    started(world, owner, "before")
    world.run(5 * SECOND_NS)
    owner.reader.pause()
    verdicts = owner.propose("START_WORKFLOW", start("w", "r"), "w")
    world.run(10 * MILLISECOND_NS)
    world.logs[SHARD_LOG.name, 0].pop()
    world.epoch += 1
    owner.reader.resume()
    assert owner.shard.in_flight == 1
    started(world, owner, "other")
    lost = answer(verdicts)
    assert isinstance(lost, StatusError)
    assert lost.code == Code.UNAVAILABLE
    assert "acknowledged, and lost" in lost.message
    assert owner.shard.in_flight == 0
    assert owner.lost is None


# ---- taking


def test_an_empty_log_gets_genesis_and_then_its_owner(world: World) -> None:
    owner = Owner(world).take()
    assert world.kinds() == ["GENESIS", "SHARD_TAKEN"]
    assert owner.fold.meta.cluster_id == "cluster-1"
    assert owner.served


def test_a_second_owner_resumes_behind_the_applied_offset_and_says_so(world: World) -> None:
    first = Owner(world).take()
    started(world, first)
    first.crash()
    again = Owner(world, store=first.store)
    again.take(wait=False)
    assert again.shard.resume_position() == (len(world.logs[SHARD_LOG.name, 0]), 0)
    world.run_until(lambda: again.served)
    assert world.kinds().count("GENESIS") == 1
    assert world.kinds()[-1] == "SHARD_TAKEN" or world.kinds().count("SHARD_TAKEN") == 2


def test_two_owners_of_an_empty_log_end_with_one_cluster(world: World) -> None:
    one, two = Owner(world).take(wait=False), Owner(world).take(wait=False)
    world.run_until(lambda: one.served and two.served)
    world.run(3 * SECOND_NS)
    assert world.kinds().count("GENESIS") == 2
    assert one.fold.meta.state_hash == two.fold.meta.state_hash
    assert one.lost is None
    assert two.lost is None


def test_a_wiped_store_is_refolded_to_the_same_rows(world: World) -> None:
    first = Owner(world).take()
    for number in range(5):
        started(world, first, f"w{number}")
    again = Owner(world).take()
    world.run(5 * SECOND_NS)
    assert again.store.rows == first.store.rows


def test_settings_that_differ_go_into_the_log_once(world: World) -> None:
    settings = {"limit.historyCount.error": 100}
    first = Owner(world, settings=settings).take()
    assert world.kinds() == ["GENESIS", "SHARD_TAKEN", "SETTINGS_CHANGED"]
    first.crash()
    second = Owner(world, settings=settings, store=first.store).take()
    assert world.kinds().count("SETTINGS_CHANGED") == 1
    second.crash()
    third = Owner(world, store=second.store).take()
    assert world.kinds().count("SETTINGS_CHANGED") == 2
    assert third.fold.meta.limits["limit.historyCount.error"] == 51_200


def test_a_shard_serves_also_when_it_was_not_told_that_its_last_record_is_in_the_log(world: World) -> None:
    world.fates[SHARD_LOG.name] = ["ok", "ok", "unknown"]
    owner = Owner(world, settings={"limit.historyCount.error": 100}).take(wait=False)
    world.run_until(lambda: world.kinds() == ["GENESIS", "SHARD_TAKEN", "SETTINGS_CHANGED"])
    owner.reader.pause()
    world.run(10 * MILLISECOND_NS)  # the producer says that the outcome is unknown
    owner.reader.resume()
    world.run_until(lambda: owner.served, 5 * SECOND_NS)
    assert world.kinds().count("SETTINGS_CHANGED") == 1
    started(world, owner)


def test_a_feature_level_that_is_wanted_goes_into_the_log_once_and_builds_that_do_not_know_it_give_the_shard_up(
    world: World,
) -> None:
    old = Owner(world).take()
    newer = FEATURE_LEVEL + 1
    beside = Owner(world, feature_level_known=newer).take()
    assert world.kinds().count("FEATURE_LEVEL_RAISED") == 0
    started(world, beside)
    assert old.fold.meta.state_hash == beside.fold.meta.state_hash
    raising = Owner(world, feature_level_known=newer, feature_level=newer).take()
    assert world.kinds()[-2:] == ["SHARD_TAKEN", "FEATURE_LEVEL_RAISED"]
    assert raising.fold.meta.feature_level == newer
    assert isinstance(old.lost, UnknownFeatureLevel)
    assert aftermath(old.lost) is Aftermath.AGAIN
    assert beside.lost is None
    raising.crash()
    for wanted in (newer, FEATURE_LEVEL, 0):
        again = Owner(world, store=raising.store, feature_level_known=newer, feature_level=wanted).take()
        assert again.fold.meta.feature_level == newer
        again.crash()
    assert world.kinds().count("FEATURE_LEVEL_RAISED") == 1


def test_no_output_leaves_before_the_end_of_the_log_as_read_after_taking_it(world: World) -> None:
    first = Owner(world).take()
    started(world, first)
    first.crash()
    world.produced.clear()
    again = Owner(world, batch=1).take()
    topics = [topic for topic, _, _ in world.produced]
    assert topics[0] == SHARD_LOG.name  # ShardTaken
    assert again.shard.serving
    world.run(SECOND_NS)
    assert HISTORY.name in [topic for topic, _, _ in world.produced]


def test_taking_is_tried_again_when_the_broker_does_not_answer(world: World) -> None:
    world.answers_ends = False
    owner = Owner(world).take(wait=False)
    world.run(2 * SECOND_NS)
    assert owner.shard.phase is Phase.OPENING
    world.answers_ends = True
    world.fates[SHARD_LOG.name] = ["lost", "lost", "unknown"]
    world.run_until(lambda: owner.served)


def test_records_lost_before_they_were_read_are_not_waited_for(world: World) -> None:
    first = Owner(world).take()
    for number in range(5):
        started(world, first, f"w{number}")
    first.crash()
    again = Owner(world, batch=1).take(wait=False)
    world.run_until(lambda: again.shard.phase is Phase.CATCHING_UP)
    del world.logs[SHARD_LOG.name, 0][-2:]  # a leader that lacks them has taken over
    world.run_until(lambda: again.served, within_ns=10 * SECOND_NS)
    assert again.lost is None


def test_an_rpc_before_the_shard_serves_is_unavailable(world: World) -> None:
    owner = Owner(world).take(wait=False)
    error = answer(owner.propose("START_WORKFLOW", start()))
    assert isinstance(error, StatusError)
    assert error.code == Code.UNAVAILABLE


def test_an_unrecorded_task_is_offered_again_by_a_new_owner(world: World) -> None:
    owner = Owner(world).take()
    started(world, owner)
    assert [offer.type for offer in owner.offers] == ["workflow"]
    owner.crash()
    again = Owner(world, store=owner.store).take()
    assert again.offers == []  # it has a task record, which matching reads


# ---- answering


def test_a_caller_gets_the_verdict_of_its_own_record(world: World) -> None:
    owner = Owner(world).take()
    first = owner.propose("START_WORKFLOW", start("w", "one"))
    second = owner.propose("START_WORKFLOW", start("w", "two"))
    world.run_until(lambda: first and second)
    good, bad = answer(first), answer(second)
    assert isinstance(good, Reply)
    assert good.error is None
    assert isinstance(bad, Reply)
    assert bad.error is not None
    assert bad.error.code == Code.ALREADY_EXISTS


def test_a_namespace_is_told_to_the_shard_before_its_first_use_and_before_its_newer_version(world: World) -> None:
    owner = Owner(world).take()
    started(world, owner, "w1")
    started(world, owner, "w2")
    assert world.kinds()[2:] == ["NAMESPACE_CHANGED", "START_WORKFLOW", "START_WORKFLOW"]
    owner.namespaces.known[NAMESPACE_ID] = ("default", 2)
    started(world, owner, "w3")
    assert world.kinds()[5:7] == ["NAMESPACE_CHANGED", "START_WORKFLOW"]


def test_when_the_namespace_cannot_be_told_nothing_that_needs_it_is_appended(world: World) -> None:
    owner = Owner(world).take()
    world.fates[SHARD_LOG.name] = ["lost"]
    error = owner.propose("START_WORKFLOW", start())
    world.run_until(lambda: error)
    assert isinstance(answer(error), StatusError)
    assert "START_WORKFLOW" not in world.kinds()
    started(world, owner)


@pytest.mark.parametrize("fate", ["lost", "unknown"])
def test_a_failed_delivery_is_an_unknown_outcome(world: World, fate: str) -> None:
    owner = Owner(world).take()
    started(world, owner)
    world.fates[SHARD_LOG.name] = [fate]
    verdicts = owner.propose("SIGNAL_WORKFLOW", signal())
    world.run_until(lambda: verdicts)
    world.run(SECOND_NS)
    outcome = verdicts[0]
    if fate == "lost":
        assert isinstance(outcome, StatusError)
        assert outcome.code == Code.UNAVAILABLE
    assert len(verdicts) == 1
    assert world.kinds().count("SIGNAL_WORKFLOW") == (fate == "unknown")


def test_more_in_flight_than_the_bound_is_refused_before_anything_is_appended(world: World) -> None:
    owner = Owner(world, limits=ShellLimits(in_flight_max=3)).take()
    started(world, owner)
    all_verdicts = [owner.propose("SIGNAL_WORKFLOW", signal(request_id=f"s{n}")) for n in range(5)]
    refused = [verdicts for verdicts in all_verdicts if verdicts]
    assert len(refused) == 2
    error = refused[0][0]
    assert isinstance(error, StatusError)
    assert error.code == Code.RESOURCE_EXHAUSTED
    ((name, detail),) = error.details
    assert name == "temporal.api.errordetails.v1.ResourceExhaustedFailure"
    assert errordetails.ResourceExhaustedFailure.FromString(detail).cause == 3  # SYSTEM_OVERLOADED
    task_start = owner.propose("START_WORKFLOW", start("other"), "other", bounded=False)
    world.run(SECOND_NS)
    assert all(all_verdicts)
    assert task_start
    assert world.kinds().count("SIGNAL_WORKFLOW") == 3
    assert owner.shard.in_flight == 0


def test_more_bytes_in_flight_than_the_bound_are_refused_and_come_free_again(world: World) -> None:
    owner = Owner(world, limits=ShellLimits(in_flight_bytes_max=1_000)).take()
    started(world, owner)
    large = signal(request_id="s" * 900)
    taken = [owner.propose("SIGNAL_WORKFLOW", large) for _ in range(2)]
    error = answer(owner.propose("SIGNAL_WORKFLOW", signal(request_id="one more")))
    assert isinstance(error, StatusError)
    assert error.code == Code.RESOURCE_EXHAUSTED
    world.run_until(lambda: all(taken))
    later = owner.propose("SIGNAL_WORKFLOW", signal(request_id="later"))
    world.run_until(lambda: later)
    assert isinstance(answer(later), Reply)


def test_a_full_producer_refuses_rpcs(world: World) -> None:
    owner = Owner(world).take()
    started(world, owner)
    world.full = True
    error = answer(owner.propose("SIGNAL_WORKFLOW", signal()))
    assert isinstance(error, StatusError)
    assert error.code == Code.RESOURCE_EXHAUSTED
    assert owner.shard.in_flight == 0


def test_a_zombie_is_harmless(world: World) -> None:
    zombie = Owner(world).take()
    started(world, zombie, "w1")
    heir = Owner(world, store=DictStore()).take()
    one = started(world, heir, "w2")
    two = started(world, zombie, "w3")
    world.run(10 * SECOND_NS)
    assert one != two
    assert zombie.fold.meta.state_hash == heir.fold.meta.state_hash
    assert zombie.lost is None
    assert heir.lost is None
    seen: list[tuple[int, int, int]] = []
    for record in world.records(VISIBILITY.name):
        place = (record["origin"]["epoch"], record["origin"]["offset"], record["origin"]["index"])
        predecessor = record["predecessor"]
        before = None if predecessor is None else (predecessor["epoch"], predecessor["offset"], predecessor["index"])
        if not seen or place > seen[-1]:
            assert before == (seen[-1] if seen else None)
            seen.append(place)
    assert len(seen) == 3


def test_an_owner_under_a_new_leader_offers_the_tasks_that_wait_once_and_until_it_is_done(world: World) -> None:
    first = Owner(world).take()
    started(world, first)
    first.crash()
    assert "OFFER_TASKS_AGAIN" not in world.kinds()
    world.epoch = 1
    second = Owner(world).take()
    world.fates[SHARD_LOG.name] = ["lost"]
    world.run_until(lambda: not second.fold.tasks_to_offer)
    world.run(5 * SECOND_NS)
    done = world.kinds().count("OFFER_TASKS_AGAIN")
    assert done > 1, "4096 slots are looked at in several records"
    offers = [offer for offer in second.offers if offer.workflow_id == "w"]
    assert len({offer.task_id for offer in offers}) == 1
    (partition,) = {offer.partition for offer in offers}
    ended = [r.key for r in world.logs[WORKFLOW_TASKS.name, partition] if r.value is None]
    assert len(ended) == 1
    assert offers[-1].task_id.encode() not in ended
    second.crash()
    third = Owner(world).take()
    world.run(5 * SECOND_NS)
    assert third.served
    assert world.kinds().count("OFFER_TASKS_AGAIN") == done


# ---- giving up


def test_a_gap_gives_the_shard_up_and_answers_everybody(world: World) -> None:
    owner = Owner(world).take()
    started(world, owner)
    waiting = owner.propose("SIGNAL_WORKFLOW", signal())
    read: list[StatusError | None] = []
    owner.shard.read(WORKFLOW, read.append)
    woken: list[bool] = []
    owner.shard.waiters.park(("n", "w", "r"), woken.append)  # type: ignore[arg-type]
    owner.shard.on_records([LogRecord(b"", owner.fold.meta.applied_offset + 2, 0, 0)])
    assert isinstance(owner.lost, LogGap)
    assert isinstance(answer(waiting), StatusError)
    assert isinstance(read[0], StatusError)
    assert woken == [False]
    assert owner.shard.closed


@pytest.mark.parametrize("trouble", [MemoryError(), OSError("No space left on device"), KeyError("rocksdb")])
def test_trouble_with_the_store_gives_the_shard_up_and_the_log_refolds_it(world: World, trouble: Exception) -> None:
    owner = Owner(world).take()
    owner.store.fail_with = trouble
    verdicts = owner.propose("START_WORKFLOW", start())
    world.run(SECOND_NS)
    assert owner.lost is trouble
    assert aftermath(owner.lost) is Aftermath.AGAIN
    assert verdicts
    owner.store.fail_with = None
    again = Owner(world, store=owner.store).take()
    rest = Owner(world).take()
    world.run(5 * SECOND_NS)
    assert again.fold.meta.state_hash == rest.fold.meta.state_hash


def test_an_answer_stands_although_the_batch_was_not_written(world: World) -> None:
    """Law 3: the record is durable, and the refold gives the same answer."""
    owner = Owner(world).take()
    world.run(SECOND_NS)
    owner.propose("SIGNAL_WORKFLOW", signal())  # tells the namespace
    world.run(SECOND_NS)
    owner.store.fail_with = OSError("disk")
    verdicts = owner.propose("START_WORKFLOW", start())
    world.run_until(lambda: owner.lost)
    reply = answer(verdicts)
    assert isinstance(reply, Reply)
    run_id = run_id_of(reply.response)
    owner.store.fail_with = None
    again = Owner(world, store=owner.store).take()
    assert again.fold.run(NAMESPACE_ID, "default", "w", run_id) is not None


def test_a_wrong_state_hash_in_the_log_gives_the_shard_up(world: World) -> None:
    owner = Owner(world).take()
    owner.crash()
    again = Owner(world, store=owner.store).take()
    position = {"source": "SHARD_LOG", "partition": 0, "epoch": 0, "offset": 0, "index": 0}
    offset = again.fold.meta.applied_offset
    body = {"position": position, "offset": offset, "epoch": 0, "state_hash": b"x" * 16}
    _, value = again.shard.encode("OUTPUTS_SENT", "", "", "", body, 0)
    world.append(SHARD_LOG.name, 0, b"", value)
    world.run(SECOND_NS)
    assert isinstance(again.lost, HashMismatch)
    assert aftermath(again.lost) is Aftermath.SET_ASIDE
    refolded = Owner(world).take()  # its state is the definition, so it goes on
    assert refolded.lost is None


def test_a_log_of_another_cluster_is_not_served(world: World) -> None:
    Owner(world).take().crash()
    other = Owner(world, shard_count=2).take()
    assert isinstance(other.lost, WrongCluster)
    assert aftermath(other.lost) is Aftermath.AGAIN


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_garbage_on_the_log_is_counted_and_told_once_a_batch_and_the_shard_serves(
    world: World, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = Owner(world).take()
    for _ in range(count):
        world.append(SHARD_LOG.name, 0, b"a key", b"\0\0\0\0\1junk")
    world.run(SECOND_NS)
    assert owner.lost is None
    assert owner.metrics.of["records_set_aside"] == count
    told = [line for line in capsys.readouterr().out.splitlines() if "are set aside" in line]
    assert 1 <= len(told) <= 1 + count // 50
    assert f"records={count}" in told[0] or count == 1000
    started(world, owner)
    again = Owner(world).take()
    assert again.lost is None
    started(world, again, "after the refold")


def test_a_closed_shard_sends_nothing_more(world: World) -> None:
    owner = Owner(world).take()
    started(world, owner)
    owner.crash()
    world.run(10 * MILLISECOND_NS)
    world.produced.clear()
    world.run(100 * SECOND_NS)
    assert world.produced == []


def test_proposals_carry_instance_sequence_and_clock(world: World) -> None:
    owner = Owner(world).take()
    started(world, owner)
    records = [codec.decode_shard_record(stored.value or b"") for stored in world.logs[SHARD_LOG.name, 0]]
    assert len({record["proposer"]["instance"] for record in records}) == 1
    assert [record["proposer"]["sequence"] for record in records] == list(range(1, len(records) + 1))
    assert all(record["proposer"]["clock_ns"] > 0 for record in records)


@pytest.mark.parametrize("fate", ["unknown", "lost"])
def test_a_phase_that_is_over_is_not_entered_again(world: World, fate: str) -> None:
    world.fates[SHARD_LOG.name] = [fate, fate, fate]
    owner = Owner(world).take()
    world.run(10 * SECOND_NS)
    assert owner.shard.serving
    started(world, owner)


def test_only_what_was_there_before_counts_as_refolded(world: World) -> None:
    first = Owner(world).take()
    assert first.metrics.of["records_refolded"] == 0
    first.propose("START_WORKFLOW", start("w"))
    world.run(SECOND_NS)
    before = len(world.records(SHARD_LOG.name))
    first.crash()
    again = Owner(world, store=first.store).take()
    assert again.metrics.of["records_refolded"] == 0
    again.crash()
    wiped = Owner(world).take()
    assert wiped.metrics.of["records_refolded"] >= before
