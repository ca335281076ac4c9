"""Personalization: one model per client or per cluster (Ditto, FedDPA, IFCA, local fine-tuning, local modules).

In: a client's model of the round and its private tensors. Out: what it trains, keeps and uses besides the global model.
Add a personalization to the registry in `methods.py`: one function, one decorator.
"""
