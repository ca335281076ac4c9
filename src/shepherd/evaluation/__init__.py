"""How good a model is: losses on held-out rows, answers and their metrics, intervals for differences.

In: a model, tokens or texts. Out: sums that merge exactly (`Stat`), scores and confidence intervals.
Add a metric of generated answers in `text.py`: one function, one decorator (`metrics.py`).
"""
