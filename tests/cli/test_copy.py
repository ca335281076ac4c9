"""`shepherd copy`: a packaged recipe as a file to edit."""

from __future__ import annotations

from pathlib import Path

import pytest

from console import Shell
from shepherd import recipe


@pytest.fixture
def shell(capsys, monkeypatch, tmp_path) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys, monkeypatch)


@pytest.mark.parametrize("name", recipe.recipes())
def test_a_copy_is_the_packaged_recipe_byte_for_byte_and_gives_the_same_settings(shell, name):
    outcome = shell("copy", name)
    assert (outcome.status, outcome.out) == (0, f"{name}.toml\n")
    assert Path(f"{name}.toml").read_bytes() == (recipe.RECIPES / f"{name}.toml").read_bytes()
    assert recipe.load(f"{name}.toml") == recipe.load(name)


def test_a_copy_prints_what_to_type_next(shell):
    outcome = shell("copy", "demo", "my study.toml")
    assert outcome.out == "my study.toml\n" and Path("my study.toml").exists()
    assert "shepherd check 'my study.toml'\n" in outcome.err and "shepherd run 'my study.toml'\n" in outcome.err


def test_a_folder_takes_the_copy_under_the_name_of_the_recipe(shell):
    Path("studies").mkdir()
    assert shell("copy", "laptop", "studies").out == "studies/laptop.toml\n"


def test_an_edited_recipe_is_overwritten_only_with_force(shell):
    Path("demo.toml").write_text("# mine\n")
    outcome = shell("copy", "demo")
    assert outcome.status == 2 and "error: demo.toml exists already\n" in outcome.err
    assert "shepherd copy demo demo.toml --force" in outcome.err
    assert Path("demo.toml").read_text() == "# mine\n"
    assert shell("copy", "demo", "--force").status == 0
    assert recipe.load("demo.toml") == recipe.load("demo")


@pytest.mark.parametrize(
    ("typed", "message", "hint"),
    [(["demoo"], "no packaged recipe: demoo. Did you mean 'demo'?", "packaged recipes: demo, "),
     (["demo.toml"], "no packaged recipe: demo.toml. Did you mean 'demo'?", "can be edited as it is"),
     (["demo", "mine"], "mine does not end in .toml", "shepherd copy demo mine.toml"),
     (["demo", "no/mine.toml"], "no folder no", "mkdir -p no")],
)  # fmt: skip
def test_a_copy_that_cannot_be_made_is_explained_and_leaves_nothing(shell, typed, message, hint):
    outcome = shell("copy", *typed)
    assert outcome.status == 2 and f"error: {message}\n" in outcome.err and hint in outcome.err
    assert outcome.out == "" and list(Path().iterdir()) == []
