"""The frozen base model and the LoRA adapters on it.

Input: a model name (built-in, folder, GGUF file or hub id). Output: a frozen `Base` and the adapters of a cohort.
`fetch.py` and `hub.py` find the files, `convert.py` turns a GGUF file into a folder, `base.py` loads it, `packing.py`
and `forward.py` run passes, `slots.py` and `lora.py` hold the adapters of a cohort, `threads.py` sets the CPU up.
To add a built-in model, add a line to `catalogue.BUILTIN`; a new kind of layer to adapt goes into `targets.is_linear`.
"""
