"""Rows in, one set of tokens per client out: files and built-ins -> examples -> prompts -> tokens -> partition.

`load_examples` reads, `hold_out` and `divide` say who holds what, `build_template` and `tokenize` make what the model
sees, `audit` says what is wrong with it. Add a dataset in `builtins.py` and a way to divide in `partition.py`: one
function, one decorator.
"""
