"""Differential privacy of the updates: what a number of noised rounds guarantees.

Input: the rounds, as sampling rate, noise multiplier and count. Output: ε at a δ (`accountant.py`, the only module that
imports dp-accounting, extra `dp`).
"""
