"""The files around the package stay true: version, citation, hooks, sessions of nox, issue forms."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from shepherd import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FORMS = [path for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# Version


def test_the_version_is_that_of_the_changelog_and_of_the_citation():
    heading = re.search(r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", read("CHANGELOG.md"), re.M)
    assert heading is not None and heading[1] == __version__
    assert yaml.safe_load(read("CITATION.cff"))["version"] == __version__


def test_a_released_version_has_its_date_in_the_citation_and_an_unreleased_one_has_none():
    released = re.search(rf"^## {re.escape(__version__)} \(([\d-]+)\)$", read("CHANGELOG.md"), re.M)
    cited = yaml.safe_load(read("CITATION.cff")).get("date-released")
    assert (str(cited) if cited else None) == (released[1] if released else None)


# CITATION.cff


REQUIRED = {"cff-version", "message", "title", "authors"}
ALLOWED = REQUIRED | {
    "abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license", "license-url",
    "preferred-citation", "references", "repository", "repository-artifact", "repository-code", "type", "url",
    "version",
}  # fmt: skip
"""The keys of schema 1.2.0."""


def test_the_citation_has_the_fields_of_its_schema_and_names_the_paper():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert REQUIRED <= citation.keys() <= ALLOWED and citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": "The Shepherd contributors"}] and citation["type"] == "software"
    assert citation["license"] == PROJECT["license"] and set(citation["keywords"]) == set(PROJECT["keywords"])
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys() and paper["url"] == "https://arxiv.org/abs/2305.05644"
    assert all(author.keys() == {"family-names", "given-names"} for author in paper["authors"])


# .pre-commit-config.yaml


HOOKS = {
    hook["id"]: hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]
}


def test_the_hooks_need_nothing_but_the_test_environment():
    repos = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    tools = {re.split(r"[<>=]", name)[0] for name in PROJECT["optional-dependencies"]["test"]} | {"python"}
    for name, hook in HOOKS.items():
        folder, tool = Path(hook["entry"].split()[0]).parent, Path(hook["entry"].split()[0]).name
        assert (hook["language"], str(folder)) == ("system", ".venv/bin") and tool in tools, name
        assert {"id", "name", "language", "entry"} <= hook.keys()


@pytest.mark.parametrize(("hook", "good", "bad"), [("toml", "a = 1", "a = "), ("yaml", "a: 1", "a: [1")])
def test_the_hooks_of_syntax_pass_good_files_and_refuse_bad_ones(tmp_path, hook, good, bad):
    (tmp_path / "good").write_text(good)
    (tmp_path / "bad").write_text(bad)
    _, *words = shlex.split(HOOKS[hook]["entry"])
    status = [
        subprocess.run([sys.executable, *words, *files], cwd=tmp_path, capture_output=True).returncode
        for files in (["good"], ["good", "bad"])
    ]
    assert status == [0, 1]


# noxfile.py


class Recorder:
    """A session that only notes what is installed and run."""

    def __init__(self) -> None:
        self.posargs: list[str] = ["-x"]
        self.virtualenv = SimpleNamespace(location="ENV")
        self.done: list[tuple[str, ...]] = []

    def install(self, *words: str) -> None:
        self.done.append(("install", *words))

    def run(self, *words: str, **_: Any) -> None:
        self.done.append(words)


@pytest.fixture
def sessions(monkeypatch) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> (function, arguments of its decorator); nox itself is not needed."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {}

    def session(function: Any = None, **settings: Any) -> Any:
        def keep(function: Any) -> Any:
            found[function.__name__] = (function, settings)
            return function

        return keep(function) if function else keep

    nox = ModuleType("nox")
    vars(nox).update(session=session, options=SimpleNamespace(), Session=Recorder)
    monkeypatch.setitem(sys.modules, "nox", nox)
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    default = nox.options.sessions
    assert all(name.partition("-")[0] in found for name in default)
    return found


def done_by(sessions, name: str) -> list[tuple[str, ...]]:
    recorder = Recorder()
    sessions[name][0](recorder)
    return recorder.done


def test_nox_has_the_versions_of_python_from_the_lowest_on(sessions):
    lowest = PROJECT["requires-python"].removeprefix(">=")
    for name in ("pinned", "lowest"):
        assert sessions[name][1]["python"] == tuple(f"3.{minor}" for minor in range(11, 15))
        assert sessions[name][1]["python"][0] == lowest


def test_the_pinned_session_is_make_test_and_lint_its_first_lines(sessions):
    assert done_by(sessions, "pinned") == [("make", "test", "VENV=ENV", "-x")]
    recipe = re.findall(r"^\t\$\(BIN\)/(ruff.*|mypy.*)$", MAKEFILE, re.M)
    assert [" ".join(words) for words in done_by(sessions, "lint")[1:]] == recipe


def test_the_lowest_session_solves_for_the_lowest_versions(sessions):
    install, run = done_by(sessions, "lowest")
    assert install == ("install", "--resolution", "lowest-direct", "-e", ".[test]")
    assert run == ("python", "-m", "pytest", "-x") and sessions["lowest"][1]["venv_backend"] == "uv"


def test_no_pin_is_below_its_floor():
    pins = dict(line.split("==") for line in read("constraints.txt").splitlines() if "==" in line)
    pins = {name.casefold().replace("_", "-"): version for name, version in pins.items()}
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    for name, bounds in (need.split(">=") for need in needed if ">=" in need):
        floor, _, ceiling = bounds.partition(",<")
        assert numbers(pins[name.casefold()]) >= numbers(floor), name
        assert not ceiling or numbers(pins[name.casefold()]) < numbers(ceiling), name


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


# Issue forms


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_a_name_a_description_and_fields_with_labels(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["type"] in ("textarea", "input", "dropdown", "checkboxes") for field in fields)
    assert len({field["id"] for field in fields}) == len(fields) > 1
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_there_are_a_form_for_bugs_and_one_for_proposals():
    assert {path.stem for path in FORMS} == {"bug", "proposal"}
