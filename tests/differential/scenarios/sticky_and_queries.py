"""Sticky execution, and queries in all their ways."""

from __future__ import annotations

import time
from typing import Any

from temporalio.api.enums.v1 import query_pb2
from temporalio.api.enums.v1.task_queue_pb2 import TASK_QUEUE_KIND_STICKY
from temporalio.api.query.v1 import message_pb2 as query_v1

from differential.scenarios import scenario
from differential.script import NAMESPACE, WORKER, Script, failure, payloads
from support.raw import Pending, RpcError


def _warm_sticky_queue(s: Script) -> None:
    """The server gives sticky tasks only to queues that were polled of late."""
    assert not s.poll_once(sticky=True, timeout=2.5).task_token


@scenario("10", "nobody takes a sticky task in time")
def sticky_timeout(s: Script) -> None:
    s.start()
    task = s.poll()
    _warm_sticky_queue(s)
    s.complete(task, s.activity(), sticky=1)
    s.complete_activity(s.poll_activity())
    s.complete(s.poll("on the normal queue"), s.done())


@scenario("10e", "a sticky task whose worker never polled for any goes to the normal queue at once")
def sticky_worker_never_seen(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60), sticky=60)
    s.signal("one")
    s.complete(s.poll("on the normal queue"), s.done())


@scenario("10b", "a sticky task carries only what is new")
def sticky_task(s: Script) -> None:
    s.start()
    task = s.poll("full history")
    waiting = _begin_sticky_poll(s)
    s.complete(task, s.timer(after=60), sticky=5)
    s.signal("one")
    task = waiting.result()
    s.note("on the sticky queue", task)
    waiting = _begin_sticky_poll(s)
    s.complete(task, sticky=5)
    s.signal("two")
    task = waiting.result()
    s.note("again", task)
    s.complete(task, s.done())


@scenario("10c", "a reset sticky queue sends the next task to the normal one, whole")
def reset_sticky(s: Script) -> None:
    s.start()
    task = s.poll()
    _warm_sticky_queue(s)
    s.complete(task, s.timer(after=60), sticky=5)
    s.client.call("ResetStickyTaskQueue", namespace=NAMESPACE, execution=s.execution())
    s.signal("one")
    s.complete(s.poll("on the normal queue"), s.done())


@scenario("10d", "a failed sticky task is tried again on the normal queue, as a first attempt")
def sticky_failure(s: Script) -> None:
    s.start()
    task = s.poll()
    waiting = _begin_sticky_poll(s)
    s.complete(task, s.timer(after=60), sticky=5)
    s.signal("one")
    s.fail(waiting.result())
    s.complete(s.poll("on the normal queue"), s.done())


@scenario("11", "queries on an open and on a closed workflow leave no trace")
def query_idle_and_closed(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    asked = s.begin_query()
    _answer(s, s.poll("query on an open workflow"), "open")
    s.note("answer", asked.result())
    s.terminate()
    asked = s.begin_query()
    _answer(s, s.poll("query on a closed workflow"), "closed")
    s.note("answer", asked.result())


@scenario("11b", "a query rides on a workflow task")
def query_with_task(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    s.signal("first")
    task = s.poll()
    asked = s.begin_query()
    time.sleep(0.5)  # for the query to arrive while the task runs: nothing shows that it waits
    s.complete(task, force_create_new_workflow_task=True)
    task = s.poll()
    for query in task.queries.values():  # keyed by ids of the server's own
        s.note("query", query)
    results = {
        key: query_v1.WorkflowQueryResult(
            result_type=query_pb2.QUERY_RESULT_TYPE_ANSWERED, answer=payloads("after the signal")
        )
        for key in task.queries
    }
    s.complete(task, query_results=results)
    s.note("answer", asked.result())
    s.terminate()


@scenario("11c", "a query handler fails")
def query_fails(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.timer(after=60))
    asked = s.begin_query("unknown")
    task = s.poll()
    s.client.call(
        "RespondQueryTaskCompleted",
        namespace=NAMESPACE,
        task_token=task.task_token,
        completed_type=query_pb2.QUERY_RESULT_TYPE_FAILED,
        error_message="no such query",
        failure=failure("no such query"),
    )
    try:
        asked.result()
    except RpcError as error:
        s.note_error("answer", error)
    s.terminate()


@scenario("11d", "a query that asks for an open workflow is rejected on a closed one")
def query_rejected(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.done())
    asked = s.begin_query(query_reject_condition=query_pb2.QUERY_REJECT_CONDITION_NOT_OPEN)
    s.note("answer", asked.result())


@scenario("11e", "a query goes to the sticky queue without any history")
def query_sticky(s: Script) -> None:
    s.start()
    task = s.poll()
    waiting = _begin_sticky_poll(s)
    s.complete(task, s.timer(after=60), sticky=5)
    asked = s.begin_query()
    task = waiting.result()
    s.note("query task", task)
    _answer(s, task, "sticky")
    s.note("answer", asked.result())
    s.terminate()


def _begin_sticky_poll(s: Script) -> Pending:
    waiting = s.client.begin(
        "PollWorkflowTaskQueue",
        timeout=20.0,
        namespace=NAMESPACE,
        task_queue={"name": s.sticky_queue, "kind": TASK_QUEUE_KIND_STICKY, "normal_name": s.queue},
        identity=WORKER,
    )
    time.sleep(0.5)  # for the poll to arrive: a sticky queue that nobody polls gets no tasks
    return waiting


def _answer(s: Script, task: Any, text: str) -> None:
    s.client.call(
        "RespondQueryTaskCompleted",
        namespace=NAMESPACE,
        task_token=task.task_token,
        completed_type=query_pb2.QUERY_RESULT_TYPE_ANSWERED,
        query_result=payloads(text),
    )
