"""Many updates in, one better adapter out: aggregation methods, their pieces, server optimizers, diagnostics.

`method.py` holds the story of one aggregation, `methods.py` the published methods as lists of pieces, `composition.py`
what fits what. Add a method there, a piece in `pieces/`: one function, one decorator.
"""
