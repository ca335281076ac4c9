"""Benchmarks: a run's models on tasks of lm-evaluation-harness, and on our own offline tasks of held-out or given rows.

In: a run, names of tasks. Out: benchmarks/TASK.json in the run directory, with standard errors and differences.
`documents.py` makes documents of rows, `tasks.py` writes them as tasks of the harness, `models.py` finds the models,
`child.py` is the process that the harness runs in (`harness_model.py`, `scores.py`), `record.py` shapes its results.
Add a kind of offline task in `documents.py` and its YAML in `tasks.py`.
"""
