"""A judge's ratings of pairs of answers: recordings, readings of its texts, statistics of a comparison.

Input: files of recorded judgements. Output: totals, relative scores, intervals and verdicts per pair of systems. No
judge is called. Add a recorded format in `formats.py`: one row to judgements, one line in `FORMATS`.
"""
