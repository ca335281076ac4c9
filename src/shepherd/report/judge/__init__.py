"""judge.json to text, tables and figures: on the page of a run, in a terminal, in LaTeX.

`contents.py` reads and checks a file, `sentences.py` says what it means, `figures.py` has the tables of comparisons,
`facts.py` those of how they were made, `latex_table.py` the table for a paper. Add a table as a function
Mapping -> Table | None, with its place in `tables`.
"""
