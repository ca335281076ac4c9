"""Completion in bash, zsh and fish: recipes, and keys and values after --set, without PyTorch."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from shepherd.cli.commands import cli
from shepherd.cli.list import KINDS
from shepherd.config import keys

SOURCES = Path(__file__).parents[2] / "src"
BREAKS = " \t\n\"'><=;|&(:"
"""COMP_WORDBREAKS of bash as it starts."""


def completed(monkeypatch, shell: str, line: str) -> str:
    """What the script of a shell receives for a line that ends at the cursor."""
    done, _, word = line.rpartition(" ")
    whole = {"COMP_WORDS": line, "COMP_CWORD": word if shell == "fish" else str(len(shlex.split(done)))}
    for name, value in {"COMP_LINE": line, "COMP_WORDBREAKS": BREAKS, **whole}.items():
        monkeypatch.setenv(name, value)
    return get_completion_class(shell)(cli, {}, "shepherd", "_SHEPHERD_COMPLETE").complete()


def offered(monkeypatch, line: str) -> dict[str, str]:
    """Completions of a line in zsh, whole words: {word: help}."""
    lines = completed(monkeypatch, "zsh", line).splitlines()
    return dict(zip((word.replace("\\:", ":") for word in lines[1::3]), lines[2::3], strict=True))


@pytest.mark.parametrize(
    ("shell", "answer"),
    [("bash", "plain,federation.rounds="), ("zsh", "plain\nfederation.rounds=\n{}"),
     ("fish", "plain,federation.rounds=\t{}")],
)  # fmt: skip
def test_each_shell_completes_a_key_with_type_default_and_meaning(monkeypatch, shell, answer):
    meaning = "whole number, default 3. Communication rounds."
    assert completed(monkeypatch, shell, "shepherd run --set federation.ro") == answer.format(meaning)


def test_bash_gets_what_follows_the_last_break_and_zsh_and_fish_the_word(monkeypatch):
    line = "shepherd run demo --set model.dtype=b"
    assert completed(monkeypatch, "bash", line) == "plain,bfloat16"
    assert completed(monkeypatch, "zsh", line) == "plain\nmodel.dtype=bfloat16\n_"
    assert completed(monkeypatch, "fish", line) == "plain,model.dtype=bfloat16"
    assert completed(monkeypatch, "bash", "shepherd run --set=model.dtype=b") == "plain,bfloat16"
    assert completed(monkeypatch, "zsh", "shepherd run --set=model.dtype=b") == "plain\n--set=model.dtype=bfloat16\n_"
    assert completed(monkeypatch, "fish", "shepherd run --set=model.dtype=b") == "plain,--set=model.dtype=bfloat16"


def test_within_quotes_bash_splits_at_no_break(monkeypatch):
    assert completed(monkeypatch, "bash", "shepherd run --set 'model.dtype=b") == "plain,model.dtype=bfloat16"


def test_every_key_of_the_config_is_offered_and_has_help(monkeypatch):
    words = offered(monkeypatch, "shepherd check --set ")
    assert words.keys() == {f"{key}=" for key in keys()}
    assert [word for word, about in words.items() if len(about) < 10] == []


@pytest.mark.parametrize(
    ("typed", "values"),
    [("lora.rslora=", ["true", "false"]), ("model.quantize=", ["none", "8bit", "4bit"]),
     ("evaluation.arms=base,l", ["base,local"]), ("lora.targets=", ["all-linear"]), ("federation.rounds=", []),
     ("partition.name=sh", ["shards"]), ("server.optimizer=fedn", ["fednova"]), ("nosuch.key=", [])],
)  # fmt: skip
def test_values_are_completed_where_they_can_be_listed(monkeypatch, typed, values):
    head = typed.partition("=")[0]
    words = completed(monkeypatch, "fish", f"shepherd run --set {typed}").splitlines()
    assert [word.split("\t")[0] for word in words if word] == [f"plain,{head}={value}" for value in values]


@pytest.mark.parametrize("key", sorted(used for _, used in KINDS.values() if used.count(".") == 1 and " " not in used))
def test_a_key_that_takes_a_name_offers_the_names_of_its_registry(monkeypatch, key):
    words = offered(monkeypatch, f"shepherd run --set {key}=")
    assert len(words) > 1 and all(word.startswith(f"{key}=") for word in words)
    assert [word for word, about in words.items() if about == "_"] == [], "each with its first line"


def test_options_are_those_of_what_the_recipe_and_earlier_settings_select(monkeypatch):
    assert "partition.key=" in offered(monkeypatch, "shepherd run demo --set partition.")
    line = "shepherd run demo --set partition.name=dirichlet --set partition."
    assert offered(monkeypatch, line)["partition.alpha="] == "number, default 0.5. Option of dirichlet."
    assert "partition.alpha=" not in offered(monkeypatch, "shepherd run --set partition.name=nosuch --set partition.")
    assert "method.merge=" in offered(monkeypatch, "shepherd run --set method.")


def test_a_built_in_dataset_is_one_completion_although_bash_splits_it(monkeypatch):
    line = "shepherd run --set data.source=builtin:ins"
    assert completed(monkeypatch, "bash", line).splitlines() == ["plain,instructions", "file,builtin:ins"]
    assert "data.source=builtin:instructions" in offered(monkeypatch, line)


def test_the_script_of_an_earlier_version_is_still_answered(monkeypatch):
    monkeypatch.delenv("COMP_LINE", raising=False)
    monkeypatch.setenv("COMP_WORDS", "shepherd run --set lora.rs")
    monkeypatch.setenv("COMP_CWORD", "3")
    bash = get_completion_class("bash")(cli, {}, "shepherd", "_SHEPHERD_COMPLETE")
    assert bash.complete() == "plain,lora.rslora="


@pytest.mark.parametrize(
    ("line", "printed"),
    [("shepherd run --set federation.ro", ["compopt -o nospace", "federation.rounds="]),
     ("shepherd run --set model.dtype=fl", ["float32"]), ("shepherd copy la", ["laptop"])],
)  # fmt: skip
def test_bash_itself_completes_without_a_space_after_a_key(tmp_path, line, printed):
    """The script in bash; `compopt`, which bash allows only while it completes, prints what is asked of it."""
    command = tmp_path / "shepherd"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m shepherd "$@"\n')
    command.chmod(0o755)
    script = f"""
        source <(shepherd completion bash)
        compopt() {{ echo "compopt $*"; }}
        COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}}
        _shepherd_completion shepherd
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    place = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(["bash", "-c", script], env=place, capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr) == (printed, "")


def test_no_completion_loads_pytorch():
    code = """if True:
        import os, sys
        from click.shell_completion import get_completion_class
        from shepherd.cli.commands import cli
        for word in ("federation.ro", "federation.method=", "method.", "method.merge=", "selection.", "model.base="):
            os.environ.update(COMP_WORDS=f"shepherd run --set {word}", COMP_CWORD="3")
            assert get_completion_class("zsh")(cli, {}, "shepherd", "_SHEPHERD_COMPLETE").complete(), word
        print([name for name in ("torch", "transformers") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SOURCES)
    assert done.stdout == "[]\n", done.stderr


def test_a_completion_of_a_broken_recipe_still_offers_keys(monkeypatch, tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("[partition\n")
    assert "partition.clients=" in offered(monkeypatch, f"shepherd run {broken} --set partition.")
