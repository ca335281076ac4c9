"""Comparison of several runs: groups of seeds, paired differences, a ranking, one page.

Run directories in; a `Comparison` out, which writes itself as text or HTML. `groups.py` computes, `ranking.py` tests
leads over seeds, `tables.py` and `figures.py` show. Add a column in `tables.py`, a picture in `figures.py`.
"""
