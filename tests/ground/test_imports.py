"""The floors of the house: imports go down, circles do not exist, files are small, light commands stay light.

An import inside a function or under TYPE_CHECKING counts like any other: it shows that one room knows the other.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import shepherd

SOURCES = Path(__file__).parents[2] / "src" / "shepherd"

FLOORS = (
    ("cli", "testing"),
    ("experiment",),
    ("serving", "engines", "round"),
    ("federation",),
    ("store", "evaluation", "clients", "server"),
    ("data", "model", "updates"),
    ("types", "report"),
    ("arms", "recipe", "lowrank"),
    ("registry",),
    ("errors", "config", "rng", "network", "outcomes", "_version"),
)
"""Rooms (folders) and ground files, from the top: each imports from the floors below its own, from none beside it."""
FACES = ("__init__", "__main__")
"""What the package shows: names that are imported at their first use, and the command. Nothing imports from them."""
LIBRARIES = {
    "torch": {"cli", "clients", "engines", "experiment", "model", "server", "serving", "testing"},
    "transformers": {"experiment", "model", "serving", "testing"},
    "peft": {"experiment", "model", "serving"},
    "tokenizers": {"experiment", "model"},
    "safetensors": {"clients", "engines", "evaluation", "experiment", "federation", "model", "store", "updates"},
    "gguf": {"model"},
    "datasets": {"data", "experiment"},
    "lm_eval": {"experiment"},
    "pyarrow": {"data"},
    "huggingface_hub": {"data", "model"},
    "yaml": {"data", "experiment", "model"},
    "jinja2": {"data", "report"},
    "markupsafe": {"report"},
    "openai": {"evaluation"},
    "scipy": {"evaluation", "report", "updates"},
    "cryptography": {"federation", "updates"},
    "dp_accounting": {"updates"},
    "pydantic": {"config", "experiment", "federation", "recipe", "registry"},
    "pydantic_core": {"config"},
    "filelock": {"model", "store"},
    "psutil": {"cli", "experiment", "model"},
    "nvflare": {"federation"},
    "click": {"cli"},
    "rich": {"cli", "serving"},
    "tqdm": {"model"},
}
"""Outside library -> the rooms that import it; numpy may be anywhere. `experiment` records versions of most of them."""
CONFIG = {"cli", "experiment", "serving", "recipe"}
"""Where settings arrive as a config; every other room takes plain arguments."""
MOST_ROOMS, MOST_FILES, MOST_FLOORS, MOST_LINES = 15, 13, 10, 300
LONGER = {"types.py", "config.py", "round.py"}
"""The dictionaries to look things up in, and the round in one file."""
HEAVY = ("torch", "transformers", "peft", "datasets")


def modules() -> dict[str, Path]:
    """Every module of the package by its name below it, the package itself as `__init__`."""
    paths = sorted(SOURCES.rglob("*.py"))
    return {".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__"): path
            for path in paths}  # fmt: skip


MODULES = modules()


def place_of(module: str) -> str:
    """The room or ground file of a module."""
    return module.split(".")[0]


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Dotted names of all that a file imports, the package's own as `shepherd.…` to the module."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written from the package's name on"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name.removeprefix("shepherd.") in MODULES else str(node.module) for name in full)


def own(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    return {name.removeprefix("shepherd.") for name in imports(path) if name.split(".")[0] == "shepherd"}


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; none where there is no circle."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def python(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES.parent)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_every_room_and_ground_file_stands_on_one_floor_of_at_most_ten():
    places = [place for floor in FLOORS for place in floor]
    assert sorted(places) == sorted({place_of(module) for module in MODULES} - set(FACES))
    assert len(FLOORS) <= MOST_FLOORS


@pytest.mark.parametrize("place", [place for floor in FLOORS for place in floor])
def test_a_room_imports_only_from_the_floors_below_it(place):
    level = next(level for level, floor in enumerate(FLOORS) if place in floor)
    below = {lower for floor in FLOORS[level + 1 :] for lower in floor} | {place}
    wrong = {
        f"{module} -> {other}"
        for module, path in MODULES.items()
        for other in own(path)
        if place_of(module) == place and place_of(other) not in below
    }
    assert not (found := sorted(wrong)), found


def test_settings_end_as_plain_arguments_above_the_rooms():
    takers = {module for module, path in MODULES.items() if own(path) & {"config", "recipe"}}
    wrong = {f"{module} -> config" for module in takers if place_of(module) not in CONFIG | set(FACES)}
    assert not (found := sorted(wrong)), found


def test_no_modules_import_each_other_in_a_circle():
    arrows = {module: set(own(path))
              for module, path in MODULES.items()}  # fmt: skip
    assert circle(arrows) == []


def test_a_circle_is_found():
    assert sorted(set(circle({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}}))) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}}) == []


def test_outside_libraries_stay_in_their_rooms():
    strangers = {
        f"{module} -> {library}"
        for module, path in MODULES.items()
        for library in {name.split(".")[0] for name in imports(path)} - {"shepherd", "numpy", *sys.stdlib_module_names}
        if place_of(module) not in LIBRARIES.get(library, ())
    }
    assert not (found := sorted(strangers)), found


def test_the_house_is_small_enough_to_know():
    rooms = {place_of(module) for module in MODULES if "." in module}
    assert len(rooms) <= MOST_ROOMS
    assert len(list(SOURCES.glob("*.py"))) <= MOST_FILES
    lines = {path.relative_to(SOURCES).as_posix(): path.read_text().count("\n") for path in MODULES.values()}
    long = {name for name, count in lines.items() if count > MOST_LINES}
    assert not (found := sorted(long - LONGER)), found


def test_dir_shows_the_public_names_and_loads_neither_torch_nor_the_rest():
    heavy = ("torch", "numpy", "pydantic")
    done = python(f"import sys, shepherd; print(dir(shepherd)); print([m for m in {heavy} if m in sys.modules])")
    names, loaded = map(ast.literal_eval, done.stdout.splitlines())
    assert [name for name in names if not name.startswith("_")] == sorted(shepherd.__all__)
    assert "__version__" in names and loaded == []
    assert all(getattr(shepherd, name) is not None for name in names), "what it shows is there"


def test_no_public_name_loads_torch_before_it_is_used():
    code = f"""import sys, shepherd
for name in shepherd.__all__:
    getattr(shepherd, name)
    assert not (loaded := [m for m in {HEAVY} if m in sys.modules]), (name, loaded)"""
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "shepherd",
        "shepherd.cli",
        "shepherd.config",
        "shepherd.round",
        "shepherd.experiment.method",
        "shepherd.cli.output",
        "shepherd.cli.progress",
        "shepherd.cli.doctor",
        "shepherd.report",
        "shepherd.evaluation.judge.pairs",
        "shepherd.data.partition",
        "shepherd.data.sources",
        "shepherd.model.fetch",
        "shepherd.store",
        "shepherd.engines.remote",
        "shepherd.federation.site",
        "shepherd.experiment.site",
        "shepherd.experiment.sites.attend",
        "shepherd.experiment.sites.coordinator",
        "shepherd.testing",
    ],
)
def test_light_modules_do_not_load_torch(module):
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


LIGHT = {
    ("--help",): ("numpy", "pydantic", "rich", "jinja2", "dp_accounting"),
    ("--version",): ("numpy", "pydantic", "rich", "jinja2"),
    ("completion", "fish"): ("numpy", "pydantic"),
    ("list", "recipes"): (),
    ("copy", "demo"): ("numpy", "rich"),
    ("config", "show", "demo"): (),
    ("model", "list"): (),
    ("runs", "ls"): ("numpy", "pydantic"),
    ("data", "partition", "demo"): (),
    ("doctor",): (),
    ("federation", "new", "--help"): ("numpy", "pydantic", "rich", "nvflare"),
    ("site", "join", "--help"): ("numpy", "pydantic", "rich", "nvflare"),
    ("privacy", "--help"): ("numpy", "pydantic", "scipy", "dp_accounting"),
    ("privacy", "plan", "--clients=9", "--per-round=3", "--rounds=1", "--noise=2", "--delta=1e-3"): (),
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
    "lora.ranks names 'open_qaa', which is not a client": (
        "check", "--set", "federation.method=flexlora", "--set", "lora.ranks={open_qaa=4}"),
    "personalization.clusters = 9 start from a client each, and a round samples 8": (
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
