"""Aggregation methods, the pieces they are composed of, server optimizers and diagnostics.

Input: the global model, the client models of a cohort and their updates. Output: the next global model.
`method.py` is one aggregation step, `composition.py` the rules of composition.
Add a published method in `methods.py`, a piece in `pieces/`, an optimizer in `optimizer.py`: one function, one
decorator.
"""
