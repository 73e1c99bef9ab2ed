"""Deciders: one module per family of commands. A decider reads state, records events, and returns a reply or a
rejection.

A rejection leaves no trace: `StatusError` is raised before anything is recorded, or the step is dropped with it.
"""
