"""Imports go down, and light commands stay light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import shepherd

SOURCES = Path(__file__).parents[2] / "src" / "shepherd"

# What each part may import, beside itself. A part is a module or a folder of the package.
GROUND = {"types", "registry", "rng", "errors", "network", "lowrank", "tensors"}
BOTTOM = GROUND | {"config", "store"}
DATA_AND_MODEL = {"data", "model"}
ROOMS = {"clients", "updates", "server", "evaluation"}
MIDDLE = BOTTOM | DATA_AND_MODEL | ROOMS | {"state"}
RUN = {
    "dividing", "fitting", "starting", "identity", "meter", "prepare", "arms", "results", "estimate", "mixtures",
    "own_models", "experiment", "tuned",
}  # fmt: skip
COMMANDS = {"cli", "doctor", "output", "progress", "chat", "export", "runs"}
MAY_IMPORT = {
    "errors": set(),
    "network": set(),
    "interrupts": set(),
    "types": GROUND,
    "lowrank": GROUND,
    "registry": GROUND,
    "rng": GROUND,
    "config": GROUND,
    "store": GROUND,
    "tensors": GROUND,
    "state": GROUND | {"model", "store"},
    "data": GROUND,
    "model": GROUND,
    **{room: GROUND | DATA_AND_MODEL for room in ROOMS},
    "round": MIDDLE,
    "engines": MIDDLE,
    "report": BOTTOM,
    **{part: MIDDLE | {"round", "engines", "report"} | RUN for part in RUN},
    **{part: MIDDLE | {"round", "engines", "report"} | RUN | COMMANDS | {"interrupts"} for part in COMMANDS},
}
HEAVY = ("torch", "transformers", "peft", "datasets")


def modules() -> list[Path]:
    return sorted(
        path for path in SOURCES.rglob("*.py") if path.name != "__main__.py" and path.parent != SOURCES / "__init__"
    )


def part_of(path: Path) -> str:
    return path.relative_to(SOURCES).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """Names of the package's parts that a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("shepherd.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "shepherd":
            found |= {alias.name for alias in node.names if not alias.name.startswith("_")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shepherd."):
            found.add(node.module.split(".")[1])
    return found


def python(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES.parent)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCES)))
def test_a_part_imports_only_what_lies_below_it(path):
    part = part_of(path)
    if part == "__init__":
        return  # names its exports lazily
    assert part in MAY_IMPORT, f"{part} is new: say in MAY_IMPORT where it stands"
    upwards = imported(ast.parse(path.read_text(encoding="utf-8"))) - MAY_IMPORT[part] - {part}
    assert not upwards, f"{path.name} imports {sorted(upwards)}, which {part} may not know"


def test_dir_shows_the_public_names_and_loads_neither_torch_nor_the_rest():
    heavy = ("torch", "numpy", "pydantic")
    done = python(f"import sys, shepherd; print(dir(shepherd)); print([m for m in {heavy} if m in sys.modules])")
    names, loaded = map(ast.literal_eval, done.stdout.splitlines())
    assert [name for name in names if not name.startswith("_")] == sorted(shepherd.__all__)
    assert "__version__" in names and loaded == []
    assert all(getattr(shepherd, name) is not None for name in names), "what it shows is there"


@pytest.mark.parametrize(
    "module",
    [
        "shepherd",
        "shepherd.cli",
        "shepherd.config",
        "shepherd.experiment.method",
        "shepherd.cli.output",
        "shepherd.cli.progress",
        "shepherd.cli.doctor",
        "shepherd.report",
        "shepherd.data.partition",
        "shepherd.data.sources",
        "shepherd.model.fetch",
        "shepherd.store",
        "shepherd.round",
    ],
)
def test_light_modules_do_not_load_torch(module):
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


LIGHT = {
    ("--help",): ("numpy", "pydantic", "rich", "jinja2"),
    ("--version",): ("numpy", "pydantic", "rich", "jinja2"),
    ("completion", "fish"): ("numpy", "pydantic"),
    ("list", "recipes"): (),
    ("config", "show", "demo"): (),
    ("model", "list"): (),
    ("runs", "ls"): ("numpy", "pydantic"),
    ("data", "partition", "demo"): (),
    ("doctor",): (),
}


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_do_not_load_torch(arguments, tmp_path):
    forbidden = (*HEAVY, *LIGHT[arguments])
    code = (
        "import sys; from shepherd.cli.main import main; status = main(sys.argv[1:]); "
        f"print([m for m in {forbidden} if m in sys.modules], file=sys.stderr); sys.exit(status)"
    )
    done = python(code, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "[]"


MISTAKES = {
    "evaluation.arms must name base and federated": ("check", "--set", "evaluation.arms=local"),
    "names 'open_qaa', which is not a client. Did you mean 'open_qa'?": (
        "check", "--set", 'evaluation.local_clients=["open_qaa"]'),
    "federation.clients_per_round = 9 is more than the 8 clients": ("run", "--set", "federation.clients_per_round=9"),
    "federation.min_updates = 9 can never come from 8 clients": ("check", "--set", "federation.min_updates=9"),
    "lora.ranks names 'open_qaa', which is no client": (
        "check", "--set", "federation.method=flexlora", "--set", "lora.ranks={open_qaa=4}"),
    "personalization.clusters = 9 begin with a client each, and a round asks 8": (
        "check", "--set", "personalization.name=ifca", "--set", "personalization.clusters=9"),
    "900 clients are more than the": ("check", "own-data", "--data", "builtin:instructions", "--set",
                                      "partition.clients=900"),
    "no run directory can be made in nowhere/runs": ("run", "--out", "nowhere/runs"),
    "data.max_length = 5000 is more than the 512 positions": (
        "check", "--model", "MODEL", "--set", "data.max_length=5000"),
    "unknown model: 'nosuch'": ("run", "--model", "nosuch"),
    "unknown model: 'neither'": ("data", "inspect", "builtin:instructions", "--model", "neither"),
    "unknown model: 'nor'": ("data", "partition", "demo", "--tokenize", "--model", "nor"),
    "data not found: nor-this.jsonl": ("data", "partition", "nor-this.jsonl", "--tokenize"),
    "data not found: not-here.jsonl": ("data", "inspect", "not-here.jsonl"),
    "no column 'ward'": ("data", "partition", "builtin:instructions", "--set", "partition.name=by_key", "--set",
                         "partition.key=ward"),
}  # fmt: skip


def test_mistakes_in_settings_and_data_are_answered_before_torch_loads(tmp_path, model_folder):
    """Of them some show only when the rows are divided, or when the folder of the model is looked at."""
    (tmp_path / "nowhere").write_text("a file, not a folder")
    lines = [[word.replace("MODEL", str(model_folder())) for word in line] for line in MISTAKES.values()]
    code = (
        f"import sys; from shepherd.cli.main import main; status = [main(line) for line in {lines!r}]; "
        f"print(status, [m for m in {HEAVY} if m in sys.modules])"
    )
    done = python(code, cwd=tmp_path)
    assert [words for words in MISTAKES if words not in done.stderr] == [], done.stderr
    assert done.stderr.count("error: ") == len(MISTAKES)
    statuses, loaded = done.stdout.strip().split("] ")
    assert 0 not in ast.literal_eval(statuses + "]") and loaded == "[]", done.stdout
