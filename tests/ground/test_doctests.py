"""The examples in docstrings, in a process of their own that must not load PyTorch."""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    "shepherd.registry",
    "shepherd.rng",
    "shepherd.lowrank",
    "shepherd.types",
    "shepherd.server.aggregators",
    "shepherd.data.loading",
)
CODE = """
import doctest, importlib, sys
for name in sys.argv[1:]:
    result = doctest.testmod(importlib.import_module(name))
    print(name, result.attempted, result.failed)
assert "torch" not in sys.modules, "an example loads PyTorch"
"""


def test_the_examples_in_docstrings_give_what_they_show_without_pytorch():
    done = subprocess.run([sys.executable, "-Werror", "-c", CODE, *MODULES], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    counts = [line.split() for line in done.stdout.splitlines() if line.startswith("shepherd.")]
    assert [name for name, *_ in counts] == list(MODULES), done.stdout
    assert all(int(tried) >= 2 and failed == "0" for _, tried, failed in counts), done.stdout
