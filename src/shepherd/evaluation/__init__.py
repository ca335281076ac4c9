"""Evaluation of models: losses on held-out rows, generated answers and their metrics, intervals for differences.

Input: a model, tokens or texts. Output: sums that merge exactly (`Stat`), scores and confidence intervals.
Add a metric of generated answers in `text.py`: one function, one decorator (`metrics.py`).
"""
