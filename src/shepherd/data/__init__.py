"""Datasets and their partition: files and built-ins in, one sequence of token rows per client out.

`load_examples` reads rows into examples, `hold_out` and `divide` assign them to the evaluation and to clients,
`build_template` and `tokenize` render and encode them, `audit` reports duplicates, overlaps and damaged texts.
No model is needed, only its tokenizer. Add a dataset in `builtins.py`, a rule of partition in `partitioners.py`, a row
format in `formats.py`, each one function with one decorator.
"""
