"""The pure part of matching: one task partition with its queues, pollers, queries and limits, in whatever time it is
told.

    task.py       what waits: a task, and its entry in a queue
    backlog.py    the order in which tasks leave: priority, then fairness, then age; with a tail on disk
    pollers.py    who polled lately, and how fast tasks come and go
    rate.py       how many tasks a queue may dispatch per second
    queue.py      one task queue: tasks and queries meet polls
    partition.py  all the queues of one task partition, and the ids that make a repeated task one task

Nothing here knows asyncio, a clock, Kafka or protobuf: times come in as `now_ns`, and what shall happen goes out as
effects.
"""
