"""The machine: a history shard as a pure fold of its log.

`ShardFold.fold` takes one record of the shard log and returns a `Step`: the reply, the outputs, the task offers, as
values. It reads and writes rows through a `RowStore` and touches nothing else: no clock, no randomness, no network, no
logging, no Kafka. Whoever folds the same records reaches the same rows and the same outputs (architecture, laws 1-6).

Inside, a command is *decided* against a run's state (`decide/`), which *records* history events (`recorder`), and only
*apply* functions (`apply`) change state; a stored event is never rejected.
"""
