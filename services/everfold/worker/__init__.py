"""The worker service: work that the engine does for itself, beside the workflows of its users.

- `server`: keeps the stream processors (the topology) running in a process of their own.
"""
