"""Visibility: finding workflow executions by what they are, rather than by id.

- `tree`, `values`, `query`: PURE. Temporal's list filter, parsed and type-checked into a tree.
- `sql`: that tree as parameterised SQL.
- `rows`: a VisibilityRecord as rows, and a row as a WorkflowExecutionInfo.
- `store`: the index itself, in SQLite: written by the topology, read by every frontend.
"""
