"""Who takes part in a round, and what they do: selection of the cohort, local training, personalization.

In: a pool of clients, a `TrainTask`. Out: the cohort of a round, one `ClientUpdate` or failure for each of its clients.
Add a selection in `selection.py`, a personalization in `personal/`: one function, one decorator.
"""
