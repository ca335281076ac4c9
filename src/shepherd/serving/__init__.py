"""A tuned model in use: loaded from a run directory, asked questions, exported.

In: a run directory. Out: a base with its adapter, answers, a PEFT folder or a merged model. `tuned.py` loads,
`chat.py` holds conversations without a terminal, `export.py` writes for other tools. A new surface (a web page, an
endpoint) stands on `chat.Conversation`; a new format of export is a branch of `export.export`.
"""
