"""The frozen base and the adapters on it.

In: a name (built-in, folder, GGUF file or hub id). Out: a frozen `Base`, and low-rank adapters that train on top of it.
`fetch.py` finds the files, `convert.py` makes a folder of a GGUF file, `base.py` loads; `threads.py` sets the CPU up.
To add a built-in model, add a line to `catalogue.BUILTIN`; a new kind of layer to adapt goes into `base.is_linear`.
"""
