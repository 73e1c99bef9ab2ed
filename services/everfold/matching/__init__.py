"""Matching: hosts the task queues. Brings the tasks of the task topics, and of the direct hand-off, to polling
workers.
"""
