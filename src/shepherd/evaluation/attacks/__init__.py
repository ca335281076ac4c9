"""Attacks on a trained model and on updates, as functions of losses and arrays: each figure beside its baseline.

A failed attack is no proof of privacy: another one may succeed.
"""
