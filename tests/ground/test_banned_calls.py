"""No module reads a format that can hold code, runs a text, or starts a shell: read in its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))
MODULES = {"pickle", "_pickle", "cPickle", "dill", "joblib", "shelve", "cloudpickle", "marshal", "jsonpickle"}
CALLS = {"eval", "exec", "__import__", "os.system", "os.popen", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
         "yaml.full_load", "shutil.unpack_archive", "torch.hub.load", "torch.jit.load"}  # fmt: skip
KEYWORDS = {"trust_remote_code": False, "shell": False, "allow_pickle": False, "verify": True}
"""Keywords with the only value they may be given, written out."""


def banned(source: str) -> list[str]:
    """`line: what` for everything in a module that is not allowed."""
    tree = ast.parse(source)
    names = dict(_names(tree))
    return [f"{node.lineno}: {what}" for node in ast.walk(tree) for what in _faults(node, names)]


def _names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What a name of the module stands for: `from torch import load as l` gives ("l", "torch.load")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _faults(node: ast.AST, names: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
        yield str(node.module)
    elif isinstance(node, ast.Attribute) and node.attr == "extractall":
        yield "extractall"
    elif isinstance(node, ast.Name | ast.Attribute):
        if _path(node, names) in CALLS:  # called, or handed on to be called
            yield str(_path(node, names))
    elif isinstance(node, ast.keyword) and node.arg in KEYWORDS and not _is_constant(node.value, KEYWORDS[node.arg]):
        yield f"{node.arg} is not {KEYWORDS[node.arg]}"
    elif isinstance(node, ast.Call):
        path = _path(node.func, names)
        weights_only = next((k.value for k in node.keywords if k.arg == "weights_only"), None)
        if path == "torch.load" and (weights_only is None or not _is_constant(weights_only, True)):
            yield "torch.load without weights_only=True"
        loads_code = ".Auto" in f".{path}" and str(path).endswith((".from_pretrained", ".from_config"))
        if loads_code and not any(k.arg in ("trust_remote_code", None) for k in node.keywords):
            yield f"{path} without trust_remote_code=False"
        if path == "importlib.import_module" and node.args and isinstance(node.args[0], ast.Constant):
            yield from (m for m in MODULES if str(node.args[0].value).split(".")[0] == m)


def _path(node: ast.AST, names: dict[str, str]) -> str | None:
    """`a.b.c` of a name or an attribute, with the module's imports put in; None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (before := _path(node.value, names)):
        return f"{before}.{node.attr}"
    return None


def _is_constant(node: ast.AST, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(path.parents[2])))
def test_no_module_can_be_made_to_run_what_it_reads(path):
    assert banned(path.read_text(encoding="utf-8")) == []


PLANTED = [
    *(f"import {module}" for module in sorted(MODULES)),
    *(f"from {module} import loads" for module in sorted(MODULES)),
    "import pickle as p",
    "def f():\n    import pickle",
    "import importlib; importlib.import_module('pickle')",
    "__import__('pickle')",
    "import torch; torch.load('x')",
    "import torch; torch.load('x', weights_only=False)",
    "import torch; torch.load('x', weights_only=flag)",
    "import torch as t; t.load('x')",
    "from torch import load; load('x')",
    "from torch import load as read; read('x')",
    "import yaml; yaml.load(text)",
    "import yaml; yaml.load(text, yaml.SafeLoader)",
    "from yaml import load; load(text)",
    "import yaml; yaml.unsafe_load(text)",
    "eval('1')",
    "exec('1')",
    "map(eval, lines)",
    "AutoModel.from_pretrained(x, trust_remote_code=True)",
    "AutoModel.from_pretrained(x, trust_remote_code=flag)",
    "AutoModel.from_pretrained(x)",
    "import transformers; transformers.AutoTokenizer.from_pretrained(x)",
    "subprocess.run('ls', shell=True)",
    "import os; os.system('ls')",
    "np.load('x', allow_pickle=True)",
    "zipfile.ZipFile('x').extractall('y')",
    "tarfile.open('x').extractall()",
    "import shutil; shutil.unpack_archive('x')",
    "requests.get('https://x', verify=False)",
    "import torch; torch.hub.load('x', 'y')",
]
FINE = [
    "model.eval()",
    "import torch; torch.load('x', weights_only=True)",
    "import yaml; yaml.safe_load(text)",
    "AutoModel.from_pretrained(x, trust_remote_code=False)",
    "subprocess.run(['ls'], shell=False)",
    "np.load('x', allow_pickle=False)",
    "json.load(file); store.load(folder)",
]


@pytest.mark.parametrize("snippet", PLANTED)
def test_each_banned_thing_is_found_where_it_is_planted(snippet):
    assert banned(snippet)


@pytest.mark.parametrize("snippet", FINE)
def test_their_harmless_kin_are_left_alone(snippet):
    assert banned(snippet) == []
