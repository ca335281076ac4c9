"""The pieces of a method: start, view, schedule, local modules, payload, weighing, merge, split, remainder.

One file and one registry for each; `composition.py` builds them from a recipe. To add one: a function, a decorator.
"""
