"""Command line: parsing and printing, nothing else. Arguments in, calls of the package, text out.

stdout is data, stderr is talk. A command imports what it needs when it runs, so that `shepherd --help` loads neither
torch nor numpy. `settings.py` turns flags into a config, `output.py` writes tables, `commands.py` names the commands:
write a function with a docstring, decorate it, and name it there.
"""
