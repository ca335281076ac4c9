"""Evaluation of models: losses on held-out rows, generated answers, text metrics, intervals for differences.

Input: a model, tokens or texts. Output: sums that merge exactly (`Stat`), scores and confidence intervals.
Add a metric in `text.py`: one function, one decorator.
"""
