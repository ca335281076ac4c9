"""Example-level differential privacy of local training: DP-SGD, with the per-example gradients of the cohort axis.

Abadi et al., 2016 (1607.00133), algorithm 1. The unit is one row as given: rows that repeat it are not covered. In: the
client model, rows and a secret source of randomness. Out: the same local optimizer as without privacy, after its steps.
"""
