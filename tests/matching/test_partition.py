"""The pure task partition: what a worker's poll gets, and when."""

from __future__ import annotations

import pytest

from everfold.kernel.time import SECOND_NS
from everfold.matching.machine import partition
from everfold.matching.machine.pollers import SEEN_NS, Poller, Pollers
from everfold.matching.machine.queue import STICKY_TASKS_MAX
from everfold.matching.machine.task import WORKFLOW
from matching.machine_table import Table, task


def test_a_waiting_poll_is_served_at_once_the_longest_waiting_first() -> None:
    table = Table()
    table.poll("first")
    table.poll("second")
    assert table.offer(task("a")) == ["a -> first"]
    assert table.offer(task("b")) == ["b -> second"]
    assert table.offer(task("c")) == []
    assert table.poll("third") == ["c -> third"]


def test_workflow_and_activity_tasks_of_one_queue_name_go_to_their_own_polls() -> None:
    table = Table()
    table.poll("activities")
    assert table.offer(task("w", type=WORKFLOW)) == []
    assert table.workflow_poll("workflows") == ["w -> workflows"]
    assert table.offer(task("a")) == ["a -> activities"]


def test_the_record_that_follows_a_direct_hand_off_queues_nothing() -> None:
    table = Table()
    table.poll("p")
    table.offer(task("a"))
    table.partition.started(table.handed["a"])
    table.poll("q")
    assert table.record(task("a")) == []
    assert table.tombstone("a") == []
    assert table.backlog() == 0
    assert not table.partition.settled


def test_a_task_that_waits_is_queued_once_however_often_it_appears() -> None:
    table = Table()
    table.offer(task("a"), task("a"))
    table.record(task("a"), task("a"))
    assert table.backlog() == 1
    assert table.drain() == ["a"]


def test_a_tombstone_drops_a_waiting_task() -> None:
    table = Table()
    table.record(task("a"), task("b"))
    table.tombstone("a")
    assert table.drain() == ["b"]


def test_a_tombstone_before_the_starts_answer_leaves_the_start_alone() -> None:
    table = Table()
    table.poll("p")
    table.offer(task("a"))
    table.tombstone("a")
    table.partition.started(table.handed["a"])
    assert not table.partition.entries
    assert not table.partition.settled


def test_a_task_refused_for_now_comes_again_a_little_later_in_its_old_place() -> None:
    table = Table()
    table.poll("p")
    table.offer(task("a", age_s=9))
    table.partition.requeue(table.handed["a"], table.now_ns, SECOND_NS)
    table.record(task("b"), task("c"))
    assert table.backlog() == 3
    assert table.poll("q") == ["b -> q"]
    table.poll("r")  # takes c
    assert table.poll("s") == []
    assert table.pass_time(1.5) == ["a -> s"]


def test_a_task_refused_for_now_is_dropped_when_its_tombstone_comes() -> None:
    table = Table()
    table.poll("p")
    table.offer(task("a"))
    table.partition.requeue(table.handed["a"], table.now_ns, SECOND_NS)
    table.tombstone("a")
    table.poll("q")
    assert table.pass_time(5) == []
    assert table.backlog() == 0


def test_nothing_goes_out_before_the_topics_are_read_to_the_end() -> None:
    table = Table(loaded=False)
    table.poll("p")
    table.poll("q")
    assert table.record(task("void"), task("good")) == []
    assert table.offer(task("fresh")) == []
    table.tombstone("void")
    table.partition.loading_ended(table.now_ns)
    assert table.effects() == ["good -> p", "fresh -> q"]


def test_a_sticky_queue_needs_no_topic_to_be_read() -> None:
    table = Table(loaded=False)
    table.workflow_poll("p", queue="host:1", sticky=True)
    assert table.offer(task("w", type=WORKFLOW, queue="host:1", sticky=True)) == ["w -> p"]


def test_a_poll_that_disconnected_gets_no_task() -> None:
    table = Table()
    table.poll("p")
    table.disconnect("p")
    assert table.offer(task("a")) == []
    assert table.backlog() == 1


def test_tasks_leave_by_priority_and_then_by_age() -> None:
    table = Table()
    table.record(
        task("low", priority=5, age_s=99),
        task("young", age_s=1),
        task("old", age_s=2),
        task("urgent", priority=1),
    )
    assert table.drain() == ["urgent", "old", "young", "low"]


def test_fairness_keys_take_turns_by_weight() -> None:
    table = Table()
    table.record(*(task(f"a{i}", fairness="a", weight=2, age_s=100) for i in range(4)))
    table.record(*(task(f"b{i}", fairness="b", weight=1) for i in range(4)))
    order = "".join(name[0] for name in table.drain())
    assert order[:6].count("a") == 4
    assert order[:6].count("b") == 2


def test_a_fairness_key_that_ran_empty_cannot_jump_the_line_by_coming_back() -> None:
    table = Table()
    table.record(*(task(f"many{i}", fairness="many") for i in range(6)))
    order = []
    for i in range(6):
        table.record(task(f"single{i}", fairness="single", age_s=50))
        table.poll("p")
        order += [name for name in table.handed if name not in order]
    assert sum(name.startswith("many") for name in order) == 3


def test_the_rate_that_a_worker_asks_for_is_kept() -> None:
    table = Table()
    table.record(*(task(f"t{i}", age_s=100 - i) for i in range(10)))
    served = [effect for n in range(6) for effect in table.poll(f"p{n}", rate=2.0)]
    assert served == ["t0 -> p0", "t1 -> p1"]
    assert table.pass_time(0.4) == []
    assert table.pass_time(0.2) == ["t2 -> p2"]
    assert table.pass_time(1.0) == ["t3 -> p3", "t4 -> p4"]
    assert table.partition.queues["activity", "ns", "orders"].stats(table.now_ns).rate_limited


def test_a_sticky_task_waits_for_its_worker_as_long_as_the_worker_polled_lately() -> None:
    table = Table()
    table.workflow_poll("p", queue="host:1", sticky=True)
    assert table.offer(task("w1", type=WORKFLOW, queue="host:1", sticky=True)) == ["w1 -> p"]
    assert table.pass_time(4) == []
    assert table.offer(task("w2", type=WORKFLOW, queue="host:1", sticky=True)) == []
    assert table.workflow_poll("q", queue="host:1", sticky=True) == ["w2 -> q"]


def busy_sticky_worker() -> Table:
    """The worker of host:1 polled, and does not wait for a task now."""
    table = Table()
    table.workflow_poll("p", queue="host:1", sticky=True)
    table.disconnect("p", type=WORKFLOW, queue="host:1")
    return table


def test_a_sticky_worker_that_does_not_poll_for_ten_seconds_is_gone() -> None:
    table = busy_sticky_worker()
    assert table.pass_time(3) == []
    table.offer(task("w1", type=WORKFLOW, queue="host:1", sticky=True))
    assert table.pass_time(6.9) == []
    assert table.pass_time(0.2) == ["worker of w1 gone"]
    assert table.offer(task("w2", type=WORKFLOW, queue="host:1", sticky=True)) == ["worker of w2 gone"]


def test_a_new_owner_does_not_wait_for_a_sticky_worker_that_has_not_come_to_it() -> None:
    table = Table()
    assert table.offer(task("w1", type=WORKFLOW, queue="host:1", sticky=True)) == ["worker of w1 gone"]
    table.workflow_poll("p", queue="host:1", sticky=True)
    assert table.offer(task("w2", type=WORKFLOW, queue="host:1", sticky=True)) == ["w2 -> p"]


def test_a_sticky_task_offered_twice_waits_once() -> None:
    table = busy_sticky_worker()
    table.offer(*[task("w", type=WORKFLOW, queue="host:1", sticky=True)] * 2)
    assert table.backlog(type=WORKFLOW, queue="host:1") == 1


def test_a_worker_that_shuts_down_lets_its_tasks_go_at_once_and_its_polls_end() -> None:
    table = busy_sticky_worker()
    table.offer(task("w1", type=WORKFLOW, queue="host:1", sticky=True))
    table.partition.shut_down_sticky("ns", "host:1", table.now_ns)
    assert table.effects() == ["worker of w1 gone"]
    table.workflow_poll("p", queue="host:1", sticky=True)
    table.partition.shut_down_sticky("ns", "host:1", table.now_ns)
    assert table.effects() == ["p ends"]
    assert table.offer(task("w2", type=WORKFLOW, queue="host:1", sticky=True)) == ["worker of w2 gone"]


def test_a_sticky_queue_is_bounded() -> None:
    table = busy_sticky_worker()
    for i in range(STICKY_TASKS_MAX):
        table.offer(task(f"w{i}", type=WORKFLOW, queue="host:1", sticky=True))
    assert table.offer(task("over", type=WORKFLOW, queue="host:1", sticky=True)) == ["worker of over gone"]


def test_a_query_goes_before_the_tasks() -> None:
    table = Table()
    table.record(task("w", type=WORKFLOW))
    assert table.query("q") == []
    assert table.workflow_poll("p1") == ["query q -> p1"]
    assert table.workflow_poll("p2") == ["w -> p2"]


def test_a_query_whose_poller_disconnects_goes_to_the_next() -> None:
    table = Table()
    table.workflow_poll("p1")
    assert table.query("q") == ["query q -> p1"]
    table.partition.query_undelivered(table.partition.queries["q"], table.now_ns)
    assert table.workflow_poll("p2") == ["query q -> p2"]


def test_a_query_that_was_given_up_is_not_delivered() -> None:
    table = Table()
    table.query("q")
    table.partition.query_ended(table.partition.queries["q"])
    assert table.workflow_poll("p") == []


def test_an_idle_queue_is_forgotten_and_comes_back_by_itself() -> None:
    table = Table()
    table.poll("p")
    table.pass_time(20 * 60)
    assert table.partition.queues  # a poll waits
    table.disconnect("p")
    table.pass_time(11 * 60)
    assert not table.partition.queues
    table.record(task("a"))
    table.pass_time(20 * 60)
    assert table.poll("q") == ["a -> q"]


def test_statistics_show_backlog_age_rates_and_pollers() -> None:
    table = Table()
    table.record(task("a", age_s=30, priority=1), task("b", age_s=10), task("c"))
    table.poll("p")  # takes the urgent one
    stats = table.partition.queues["activity", "ns", "orders"].stats(table.now_ns)
    assert (stats.total.backlog_count, stats.total.backlog_age_ns) == (2, 10 * SECOND_NS)
    assert stats.by_priority[1].backlog_count == 0
    assert stats.by_priority[3].backlog_count == 2
    assert stats.total.add_rate == 3.0
    assert stats.total.dispatch_rate == 1.0
    assert [poller.identity for poller in stats.pollers] == ["worker-p"]
    table.pass_time(4 * 60)
    table.poll("q")
    table.pass_time(2 * 60)
    stats = table.partition.queues["activity", "ns", "orders"].stats(table.now_ns)
    assert [poller.identity for poller in stats.pollers] == ["worker-q"]
    assert stats.total.add_rate == 0.0


def test_polls_make_no_more_queues_than_a_partition_may_have_and_tasks_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "QUEUES_MAX", 2)
    table = Table()
    table.poll("a", queue="one")
    table.poll("b", queue="two")
    with pytest.raises(partition.TooManyQueues, match="has 2 task queues in use"):
        table.poll("c", queue="three")
    table.poll("d", queue="one")
    assert not table.partition.worker_there((WORKFLOW, "ns", "sticky"), table.now_ns)
    table.offer(task("t", queue="three"))
    assert table.poll("e", queue="three") == ["t -> e"]


def test_a_poller_that_was_not_seen_for_long_is_forgotten() -> None:
    pollers = Pollers()
    for number in range(3):
        pollers.seen(Poller(f"p{number}", 0), number)
    later = SEEN_NS + 2
    for _ in range(2):
        pollers.seen(Poller("p2", 0), later)
    assert list(pollers._by_identity) == ["p2"]
