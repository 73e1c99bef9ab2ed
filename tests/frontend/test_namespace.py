"""Namespaces through the frontend, and the registry below: changes are decided by shard 0 and seen when read back."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from temporalio.api.operatorservice.v1 import request_response_pb2 as op
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.kernel.errors import Code, StatusError
from everfold.runtime.namespaces import (
    STATE_DELETED,
    STATE_DEPRECATED,
    InMemoryNamespaces,
    Namespace,
    NamespaceRegistry,
    decode_namespace,
    encode_namespace,
)
from frontend.fakes import DEFAULT, Frontend, run
from frontend.refusals import START

NEW = Namespace(namespace_id="7b4f1d6e-0000-4000-8000-000000000009", name="new", retention_ns=86_400 * 10**9)


def test_a_namespace_is_described_by_name_and_by_id() -> None:
    async def scenario(frontend: Frontend) -> None:
        by_name = ws.DescribeNamespaceRequest(namespace="default")
        by_id = ws.DescribeNamespaceRequest(id=DEFAULT.namespace_id)
        found = await frontend.call("DescribeNamespace", by_name, ws.DescribeNamespaceResponse)
        assert found == await frontend.call("DescribeNamespace", by_id, ws.DescribeNamespaceResponse)
        assert found.namespace_info.name == "default"
        assert found.namespace_info.id == DEFAULT.namespace_id
        assert found.namespace_info.state == 1
        assert found.namespace_info.limits.blob_size_limit_error == 2_097_152
        assert found.namespace_info.limits.memo_size_limit_error == 2_097_152
        assert found.config.workflow_execution_retention_ttl.seconds == 86_400
        assert found.replication_config.active_cluster_name == "active"
        assert not found.is_global_namespace

    run(scenario)


def test_capabilities_that_are_not_built_are_off() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.DescribeNamespaceRequest(namespace="default")
        info = (await frontend.call("DescribeNamespace", request, ws.DescribeNamespaceResponse)).namespace_info
        assert info.HasField("capabilities")
        on = {field.name for field, value in info.capabilities.ListFields() if value}
        assert on == {"eager_workflow_start", "sync_update", "async_update", "reported_problems_search_attribute"}
        assert not info.supports_schedules

    run(scenario)


def test_a_namespace_that_another_process_registered_a_moment_ago_is_found() -> None:
    async def scenario(frontend: Frontend) -> None:
        frontend.namespaces.put(NEW, later=True)
        request = ws.StartWorkflowExecutionRequest(**{**START, "namespace": "new"})
        await frontend.call("StartWorkflowExecution", request, ws.StartWorkflowExecutionResponse)
        assert frontend.router.only().args[1] == NEW.namespace_id
        assert frontend.namespaces.refreshes == 1

    run(scenario)


def test_registering_answers_when_the_namespace_can_be_used() -> None:
    async def scenario(frontend: Frontend) -> None:
        loop = asyncio.get_running_loop()

        def decide(*args: object) -> bytes:
            loop.call_later(0.05, frontend.namespaces.put, NEW)
            return b""

        frontend.router.answers["history", "execute"] = decide
        request = ws.RegisterNamespaceRequest(
            namespace="new", workflow_execution_retention_period={"seconds": 86_400}, description="d"
        )
        await frontend.call("RegisterNamespace", request, ws.RegisterNamespaceResponse)
        call = frontend.router.only()
        assert (call.role, call.partition, call.method) == ("history", 0, "execute")
        assert call.args[:5] == ["REGISTER_NAMESPACE", "", "", "", request.SerializeToString()]
        assert frontend.namespaces.by_name("new") is not None

    run(scenario)


def test_an_update_answers_with_what_it_made() -> None:
    async def scenario(frontend: Frontend) -> None:
        def decide(*args: object) -> bytes:
            changed = dataclasses.replace(DEFAULT, version=2, description="changed")
            asyncio.get_running_loop().call_later(0.02, frontend.namespaces.put, changed)
            return b""

        frontend.router.answers["history", "execute"] = decide
        request = ws.UpdateNamespaceRequest(namespace="default", update_info={"description": "changed"})
        response = await frontend.call("UpdateNamespace", request, ws.UpdateNamespaceResponse)
        assert response.namespace_info.description == "changed"
        assert response.config.workflow_execution_retention_ttl.seconds == 86_400
        assert frontend.router.only().args[:2] == ["UPDATE_NAMESPACE", DEFAULT.namespace_id]

    run(scenario)


def test_an_update_that_changes_nothing_produces_nothing() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.UpdateNamespaceRequest(namespace="default", update_info={"state": 1})
        await frontend.call("UpdateNamespace", request, ws.UpdateNamespaceResponse)
        assert frontend.router.calls == []

    run(scenario)


def test_a_state_is_never_taken_back() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.UpdateNamespaceRequest(namespace="default", update_info={"state": 1})
        error = await frontend.error("UpdateNamespace", request)
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "Invalid namespace state update.")

    run(scenario, dataclasses.replace(DEFAULT, state=STATE_DEPRECATED))


def test_deprecating_goes_to_shard_0_once() -> None:
    async def scenario(frontend: Frontend) -> None:
        def decide(*args: object) -> bytes:
            frontend.namespaces.put(dataclasses.replace(DEFAULT, version=2, state=STATE_DEPRECATED))
            return b""

        frontend.router.answers["history", "execute"] = decide
        request = ws.DeprecateNamespaceRequest(namespace="default")
        for _ in range(2):
            await frontend.call("DeprecateNamespace", request, ws.DeprecateNamespaceResponse)
        assert frontend.router.only().args[:2] == ["DEPRECATE_NAMESPACE", DEFAULT.namespace_id]

    run(scenario)


def test_a_deletion_names_the_id_and_answers_with_the_name_that_is_left() -> None:
    async def scenario(frontend: Frontend) -> None:
        def decide(*_: object) -> bytes:
            frontend.namespaces.put(dataclasses.replace(DEFAULT, version=2, state=STATE_DELETED, deleted=True))
            return b""

        frontend.router.answers["history", "execute"] = decide
        request = op.DeleteNamespaceRequest(namespace="default")
        deleted = await frontend.call("DeleteNamespace", request, op.DeleteNamespaceResponse)
        assert deleted.deleted_namespace == f"default-deleted-{DEFAULT.namespace_id[:5]}"
        kind, *_, message, _ = frontend.router.only().args
        assert kind == "DELETE_NAMESPACE"
        assert op.DeleteNamespaceRequest.FromString(message).namespace_id == DEFAULT.namespace_id
        error = await frontend.error("DescribeNamespace", ws.DescribeNamespaceRequest(namespace="default"))
        assert error.code == Code.NOT_FOUND

    run(scenario)


def test_an_update_with_an_empty_replication_config_is_taken() -> None:
    async def scenario(frontend: Frontend) -> None:
        request = ws.UpdateNamespaceRequest(namespace="default", replication_config={})
        await frontend.call("UpdateNamespace", request, ws.UpdateNamespaceResponse)
        request.replication_config.active_cluster_name = "elsewhere"
        error = await frontend.error("UpdateNamespace", request)
        assert error.code == Code.UNIMPLEMENTED

    run(scenario)


def test_a_list_has_pages_and_leaves_out_what_is_deleted() -> None:
    names = [dataclasses.replace(NEW, namespace_id=f"id-{name}", name=name) for name in ("a", "b", "c", "d", "e")]
    gone = dataclasses.replace(NEW, namespace_id="id-gone", name="aa", state=STATE_DELETED)

    async def scenario(frontend: Frontend) -> None:
        seen: list[str] = []
        token = b""
        pages = 0
        while True:
            request = ws.ListNamespacesRequest(page_size=2, next_page_token=token)
            page = await frontend.call("ListNamespaces", request, ws.ListNamespacesResponse)
            seen += [entry.namespace_info.name for entry in page.namespaces]
            pages += 1
            token = page.next_page_token
            if not token:
                break
        assert seen == ["a", "b", "c", "d", "e"]
        assert pages == 3
        everything = ws.ListNamespacesRequest(namespace_filter={"include_deleted": True})
        page = await frontend.call("ListNamespaces", everything, ws.ListNamespacesResponse)
        assert [entry.namespace_info.name for entry in page.namespaces] == ["a", "aa", "b", "c", "d", "e"]
        error = await frontend.error("ListNamespaces", ws.ListNamespacesRequest(next_page_token=b"\xff"))
        assert error.code == Code.INVALID_ARGUMENT

    run(scenario, *names, gone)


# The registry
# -----------------------------------------------------------------------------------------------------------


def test_a_record_survives_encoding() -> None:
    namespace = dataclasses.replace(DEFAULT, data={"team": "a"}, config=b"\x0a\x00", owner_email="a@example.com")
    value = encode_namespace(namespace)
    read = decode_namespace(value)
    assert dataclasses.replace(read, encoded=b"") == namespace
    assert read.encoded == value


def test_an_older_version_is_a_repeat() -> None:
    registry = InMemoryNamespaces(dataclasses.replace(DEFAULT, version=3, description="third"))
    registry.put(dataclasses.replace(DEFAULT, version=2, description="second"))
    found = registry.by_name("default")
    assert found is not None
    assert found.description == "third"
    version, data = registry.version_and_bytes(DEFAULT.namespace_id) or (0, b"")
    assert (version, data) == (3, found.encoded)


def test_a_deleted_namespace_frees_its_name_and_keeps_its_id() -> None:
    registry = InMemoryNamespaces(DEFAULT)
    successor = dataclasses.replace(NEW, name="default")
    registry.put(dataclasses.replace(DEFAULT, version=2, deleted=True))
    assert registry.by_name("default") is None
    assert registry.by_id(DEFAULT.namespace_id) is None
    assert registry.name_of(DEFAULT.namespace_id) == "default"
    registry.put(successor)
    assert registry.id_of("default") == successor.namespace_id
    # A late repeat of the deleted one takes nothing from its successor.
    registry.put(dataclasses.replace(DEFAULT, version=3, deleted=True))
    assert registry.id_of("default") == successor.namespace_id
    registry.apply(successor.namespace_id.encode(), None)
    assert registry.by_name("default") is None


def test_a_renamed_namespace_gives_its_old_name_up() -> None:
    registry = InMemoryNamespaces(DEFAULT)
    registry.put(dataclasses.replace(DEFAULT, version=2, name="renamed"))
    assert registry.by_name("default") is None
    assert registry.id_of("renamed") == DEFAULT.namespace_id


def test_callers_share_a_refresh_that_began_after_they_came() -> None:
    async def body() -> None:
        reads = 0
        gate = asyncio.Event()

        async def catch_up() -> None:
            nonlocal reads
            reads += 1
            await gate.wait()

        registry = NamespaceRegistry(catch_up)
        loop = asyncio.get_running_loop()
        first = loop.create_task(registry.refresh())
        await asyncio.sleep(0)
        others = [loop.create_task(registry.refresh()) for _ in range(10)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.wait_for(asyncio.gather(first, *others), 5)
        assert reads == 2

    asyncio.run(body())


def test_a_failed_refresh_fails_its_callers_and_not_the_next_ones() -> None:
    async def body() -> None:
        trouble = [StatusError(Code.UNAVAILABLE, "the namespaces cannot be read")]

        async def catch_up() -> None:
            if trouble:
                raise trouble.pop()

        registry = NamespaceRegistry(catch_up)
        with pytest.raises(StatusError):
            await registry.refresh()
        await registry.refresh()

    asyncio.run(body())


def test_waiting_for_a_change_ends_with_it_or_with_the_time() -> None:
    async def body() -> None:
        registry = InMemoryNamespaces()
        loop = asyncio.get_running_loop()
        assert not await registry.wait_until(lambda: registry.by_name("new") is not None, 0.02)
        loop.call_later(0.01, registry.put, DEFAULT)
        loop.call_later(0.02, registry.put, NEW)
        assert await registry.wait_until(lambda: registry.by_name("new") is not None, 5)

    asyncio.run(body())
