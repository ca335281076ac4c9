"""Client selection, local training and personalization.

Input: the `Pool` of clients before a round, and the `TrainTask` of its cohort. Output: the `Draw` of a cohort, and one
`ClientUpdate` or `ClientFailure` for each of its clients.
Add a selection rule in `selection.py`, a personalization in `personal/methods.py`: one function, one decorator.
"""
