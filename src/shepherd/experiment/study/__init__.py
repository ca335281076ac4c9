"""A study: many settings times seeds, compared by comparisons that were fixed beforehand.

A study file in; runs in one folder, and study.json, STUDY.md, study.csv, study.tex and report.html out. `file.py` reads
the file, `variants.py` and `sides.py` resolve it to `Study`, `folder.py` is the folder that several processes share,
`running.py` carries the runs out, `record.py` makes of each its RUN.json, `losses.py` and `comparisons.py` compute the
table, `forecast.py` what a design costs and can see.
"""
