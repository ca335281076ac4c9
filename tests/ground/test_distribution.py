"""The name that is installed is not the name that is imported: the package index has another project under that."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from shepherd.cli import doctor
from shepherd.errors import missing_extra

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TEXTS = sorted(
    path
    for folder in ("src", "docs", "benchmarks", ".")
    for pattern in ("*.py", "*.md", "*.toml", "*.j2", "Makefile")
    for path in ((ROOT / folder).glob(pattern) if folder == "." else (ROOT / folder).rglob(pattern))
)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """The metadata of this project where pip puts it, and no other package there."""
    folder = tmp_path / f"{PROJECT['name'].replace('-', '_')}-0.1.0.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.4", f"Name: {PROJECT['name']}", "Version: 0.1.0"]
    for extra, needed in PROJECT["optional-dependencies"].items():
        lines += [f"Provides-Extra: {extra}", *(f'Requires-Dist: {name}; extra == "{extra}"' for name in needed)]
    (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "_version", lambda name: "")


def test_the_hint_for_a_missing_extra_installs_this_project():
    for extra in PROJECT["optional-dependencies"]:
        assert missing_extra("module", extra).hint == f"pip install '{PROJECT['name']}[{extra}]'"


def test_the_doctor_reads_the_extras_of_this_project_and_installs_them_from_it(installed):
    values = {line.name: line.value for line in doctor._extras().lines}
    assert set(values) == set(PROJECT["optional-dependencies"])
    assert values["hub"] == f"missing datasets: pip install '{PROJECT['name']}[hub]'"


def test_the_doctor_names_a_stranger_that_is_installed_under_the_import_name(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "11.2" if name == "shepherd" else "")
    (line,) = (line for line in doctor._clashes() if line.name == "shepherd, twice")
    assert "shepherd 11.2" in line.value and PROJECT["name"] in line.hint and line.state == "note"
    monkeypatch.setattr(doctor, "_version", lambda name: "")
    assert doctor._clashes() == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_installs_the_project_that_has_our_import_name(path):
    """`pip install shepherd`, with or without extras, would run a stranger's code."""
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"(?:pip|uv|pipx|poetry)[a-z ]* (?:install|add)[^\n]*\bshepherd(?![-\w./])", text) == []
    assert re.findall(r"\bshepherd\[", text) == []
