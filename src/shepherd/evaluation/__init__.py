"""How good a model is: losses on held-out rows, answers and text metrics, intervals for differences.

In: a model, tokens or texts. Out: sums that merge exactly (`Stat`), scores and confidence intervals.
Add a metric in `text.py`: one function, one decorator.
"""
