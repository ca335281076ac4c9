"""A tuned model in use: loaded from a run directory, talked to, exported.

In: a run directory. Out: a base with its adapter, answers, a PEFT folder or a merged model.
"""
