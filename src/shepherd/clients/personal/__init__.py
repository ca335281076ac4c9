"""Personalization: one model per client or per cluster (Ditto, FedDPA, IFCA, local fine-tuning, local modules).

Input: the client model of a round and the client's private tensors. Output: its personal parts, adapters or cluster.
Add a personalization to the registry in `methods.py`: one function, one decorator.
"""
