"""Pieces of a method: start, view, schedule, local modules, payload, weighing, merge, refactorisation, remainder.

Input: the options of a piece in a recipe. Output: a frozen dataclass of functions with a name.
One file and one registry for each; `composition.py` builds them and checks that they are compatible.
Add a piece in the file of its kind: one function, one decorator.
"""
