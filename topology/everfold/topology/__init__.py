"""The stream topology: what reads the engine's topics and makes something of them.

- `chain`: PURE. What a record of a chained topic is to its reader: to take, a repeat, or a gap.
- `projection`: the base of every processor, exactly once over at-least-once delivery.
- `state`: a processor's own RocksDB, where state and source position move together.
- `events`, `index`: the processors: typed events, the visibility index.
- `transport`: Faust's Kafka consumer, handing agents whole batches.
- `app`: the Faust application, as `faust -A everfold.topology.app worker` runs it.
- `worker`: the same in a process of ours, as `everfold topology worker` runs it.
"""
