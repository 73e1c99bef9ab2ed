"""Records on `commands` that are valid Avro and hold what nobody means in one field."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections import Counter
from random import Random
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, Producer, TopicPartition

from everfold.schemas import codec, registry
from mutations.corpus import HIT, QUEUE
from mutations.mutator import DATA, FLOATS, MANY, NO_UTF8, TEXTS
from support.raw import RawClient, RpcError

COMMANDS: Final = "everfold.commands"
REJECTED: Final = "everfold.commands-rejected"
SECONDS_MAX: Final = 60.0
_HALF: Final = "half of a surrogate pair!"

SCALARS: Final[dict[str, tuple[Any, ...]]] = {
    "int": (0, -1, 1, -(1 << 31), (1 << 31) - 1),
    "long": (0, -1, 1, -(1 << 63), (1 << 63) - 1, 101 * 365 * 86_400 * 10**9),
    "float": tuple(value for value in FLOATS if abs(value) < 1e38 or not math.isfinite(value)),
    "double": FLOATS,
    "string": (*TEXTS, _HALF),
    "bytes": DATA,
    "boolean": (True, False),
}

Record = dict[str, Any]


class Produced(NamedTuple):
    """Where a record is."""

    partition: int
    offset: int


def _payload(data: bytes) -> Record:
    return {"metadata": {"encoding": b"json/plain"}, "data": data}


def _start() -> Record:
    return {
        "workflow_type": "Order", "task_queue": QUEUE, "input": [_payload(b'"hello"')],
        "execution_timeout_ns": 10**10, "run_timeout_ns": 10**10, "task_timeout_ns": 10**9, "start_delay_ns": None,
        "retry_policy": {"initial_interval_ns": 10**9, "backoff_coefficient": 2.0, "maximum_interval_ns": 10**10,
                         "maximum_attempts": 2, "non_retryable_error_types": ["Bad"]},
        "memo": {"note": _payload(b'"memo"')},
        "search_attributes": {"AKeyword": _payload(b'"word"'), "ADatetime": _payload(b'"2026-01-02T03:04:05Z"')},
        "header": {"trace": _payload(b'"header"')},
        "user_metadata": {"summary": _payload(b'"summary"'), "details": None},
        "priority": {"priority_key": 2, "fairness_key": "f", "fairness_weight": 0.5},
    }  # fmt: skip


def _bodies() -> dict[str, Record]:
    signal = {"signal_name": "go"}
    return {
        "StartWorkflow": _start(),
        "SignalWithStartWorkflow": {**_start(), **signal, "signal_input": [_payload(b"1")]},
        "SignalWorkflow": {**signal, "input": [_payload(b"1")], "header": {"trace": _payload(b'"header"')}},
        "RequestCancelWorkflow": {"reason": "why", "first_execution_run_id": ""},
        "TerminateWorkflow": {"reason": "why", "details": [_payload(b"1")], "first_execution_run_id": ""},
    }


def _full(kind: str, body: Record, workflow_id: str) -> Record:
    """The record with every field, as the codec reads it."""
    record = {"namespace": HIT, "workflow_id": workflow_id, "identity": "producer", "body": (kind, body)}
    return codec.decode_command(codec.encode_command(record))


class _Changer:
    """Changes one field of a record, by its schema."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._names: dict[str, Any] = {}
        self._learn(registry.current("Command").raw)

    def _learn(self, schema: Any) -> None:
        for part in schema if isinstance(schema, list) else [schema]:
            if isinstance(part, dict):
                if "name" in part:
                    self._names[part["name"]] = part
                for inner in (part.get("items"), part.get("values"), *(f["type"] for f in part.get("fields", ()))):
                    if inner is not None:
                        self._learn(inner)

    def change(self, schema: Any, value: Any) -> Any:
        """The value, or something else of its type."""
        if isinstance(schema, str) and schema not in SCALARS and schema != "null":
            schema = self._names[schema.rpartition(".")[2]]
        if isinstance(schema, dict) and isinstance(schema["type"], (dict, list)):
            schema = schema["type"]
        if isinstance(schema, list):
            return self._of_union(schema, value)
        kind = schema if isinstance(schema, str) else schema["type"]
        if kind in SCALARS:
            return self._random.choice(SCALARS[kind])
        if kind == "enum":
            return self._random.choice(schema["symbols"])
        if kind == "array":
            return self._of_array(schema["items"], list(value))
        if kind == "map":
            return self._of_map(schema["values"], dict(value))
        field = self._random.choice(schema["fields"])
        return {**value, field["name"]: self.change(field["type"], value[field["name"]])}

    def _of_union(self, branches: list[Any], value: Any) -> Any:
        if isinstance(value, tuple):
            kind, inner = value
            return kind, self.change(kind, inner)
        some = next(branch for branch in branches if branch != "null")
        if value is None or self._random.random() < 0.8:
            return self.change(some, value) if value is not None or some in SCALARS else None
        return None

    def _of_array(self, items: Any, values: list[Any]) -> list[Any]:
        if not values or self._random.random() < 0.2:
            return values * MANY
        at = self._random.randrange(len(values))
        values[at] = self.change(items, values[at])
        return values

    def _of_map(self, inner: Any, values: dict[str, Any]) -> dict[str, Any]:
        if not values or self._random.random() < 0.2:
            return {}
        key = self._random.choice(sorted(values))
        changed = self.change(inner, values[key])
        if self._random.random() < 0.2:
            key = self._random.choice(SCALARS["string"])
        return {**values, key: changed}


def produce(kafka: str, seed: int, count: int) -> list[Produced]:
    """Writes `count` changed commands. Returns where they are."""
    random = Random(seed)
    changer = _Changer(random)
    schema = registry.current("Command").raw
    producer = Producer({"bootstrap.servers": kafka, "partitioner": "murmur2_random", "linger.ms": 5})
    places: list[Produced] = []

    def delivered(error: Any, message: Any) -> None:
        assert error is None, error
        places.append(Produced(message.partition(), message.offset()))

    for number in range(count):
        kind, body = random.choice(sorted(_bodies().items()))
        workflow_id = (
            f"command-{random.randrange(max(1, number // 3))}" if kind != "StartWorkflow" else f"command-{number}"
        )
        record = _full(kind, body, workflow_id)
        if number % 10:  # some are as they should be
            record = changer.change(schema, record)
        data = codec.encode_command(record)
        data = data.replace(NO_UTF8.encode(), b"\xff" * len(NO_UTF8))
        data = data.replace(_HALF.encode(), b"\xed\xa0\x80" * 8 + b"!")
        producer.produce(COMMANDS, data, f"{record['namespace']}/{record['workflow_id']}"[:1000], on_delivery=delivered)
        producer.poll(0)
    assert producer.flush(SECONDS_MAX) == 0
    return places


def outcomes(kafka: str, address: str, produced: list[Produced]) -> Counter[str]:
    """What became of the records, once all are behind: how many were rejected, and how many taken."""
    _pass_behind(kafka, address)
    rejected = {(record["partition"], record["offset"]) for record in _rejections(kafka)}
    found: Counter[str] = Counter("rejected" if place in rejected else "taken" for place in produced)
    return found


def _pass_behind(kafka: str, address: str) -> None:
    """Writes a last start to each partition and waits until it has started: commands are taken in their order."""
    producer: Any = Producer({"bootstrap.servers": kafka, "partitioner": "murmur2_random"})
    missing = set(producer.list_topics(COMMANDS, timeout=20).topics[COMMANDS].partitions)
    last: list[str] = []
    while missing:
        workflow_id = f"last-{uuid.uuid4()}"
        data = codec.encode_command(_full("StartWorkflow", _start(), workflow_id))
        producer.produce(
            COMMANDS, data, f"{HIT}/{workflow_id}", on_delivery=lambda _, message: missing.discard(message.partition())
        )
        assert producer.flush(SECONDS_MAX) == 0
        last.append(workflow_id)
    client = RawClient(address)
    deadline = time.monotonic() + SECONDS_MAX
    while last:
        assert time.monotonic() < deadline, "commands are not taken any more"
        with contextlib.suppress(RpcError):  # it is not there yet
            client.call("DescribeWorkflowExecution", namespace=HIT, execution={"workflow_id": last[-1]})
            last.pop()
    client.close()


def _rejections(kafka: str) -> list[Record]:
    consumer: Any = Consumer({"bootstrap.servers": kafka, "group.id": str(uuid.uuid4()), "enable.auto.commit": False})
    place = TopicPartition(REJECTED, 0, 0)
    _, end = consumer.get_watermark_offsets(place, timeout=20)
    consumer.assign([place])
    found: list[Record] = []
    while end and (not found or consumer.position([place])[0].offset < end):
        found += [codec.decode_rejected_command(record.value()) for record in consumer.consume(500, 1.0)]
    consumer.close()
    return found
