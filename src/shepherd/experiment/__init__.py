"""From a recipe to a finished run: load, divide, train every arm, measure, write.

In: a `Config`. Out: a run directory and its summary. The only room that knows the config: rooms below take plain
arguments.
"""
