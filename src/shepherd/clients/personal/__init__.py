"""Personalization: models of the clients' own beside the global one (Ditto, FedDPA, IFCA, local fine-tuning).

`methods.py` has the registry. Add one there: one function, one decorator.
"""
