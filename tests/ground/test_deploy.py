"""Commands and options in docs and in deploy/ exist: units, Containerfile, blocks of sh and of output."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from shepherd.cli.commands import cli

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(sh|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A script, or what was typed after `$ ` with what it printed."""


def fault(words: list[str]) -> str:
    """What the command line refuses in the words after `shepherd`, or an empty text; nothing is run."""
    # With the settings of the command line: a command keeps the names of its help that it had first.
    context, command = click.Context(cli, **cli.context_settings), cli
    try:
        while isinstance(command, click.Group):
            if not words or words[0].startswith("-"):
                break
            name, *words = words
            found = command.get_command(context, name)
            if found is None:
                return f"no command {name}"
            context, command = click.Context(found, parent=context), found
        command.make_parser(context).parse_args(list(words))
    except click.UsageError as error:
        return error.format_message()
    return ""


def commands(text: str) -> Iterator[list[str]]:
    """The words after `shepherd` in each command of a shell, placeholders and all."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        words = [word.removeprefix("/opt/shepherd/.venv/bin/") for word in shlex.split(line, comments=True)]
        for part in _parts(words):
            if "shepherd" in part and part[:2] != ["docker", "build"]:
                yield part[len(part) - part[::-1].index("shepherd") :]  # `sudo -u shepherd` comes before


def typed(block: str) -> str:
    """The lines after `$ `."""
    return "\n".join(line[2:] for line in block.splitlines() if line.startswith("$ "))


def _parts(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in ("|", "&&", "||", ";", ">", "2>", "&", "<"):
            yield part
            part = []
        else:
            part.append(word.removesuffix(";"))
            if word.endswith(";"):
                yield part
                part = []
    yield part


def read_unit(path: Path) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, strict=False, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text(encoding="utf-8").replace("\\\n", " "))
    return {name: dict(parser[name]) for name in parser.sections()}


def test_a_command_or_option_that_does_not_exist_is_found():
    assert fault(["site", "start", "--once"]) == "" and fault(["federation", "remove", "SITE", "--yes"]) == ""
    assert fault(["site", "begin"]) == "no command begin"
    assert "--twice" in fault(["site", "start", "--twice"])
    assert list(commands(typed("$ shepherd run a | shepherd list\nshepherd's\n$ ls # shepherd no\n"))) == [
        ["run", "a"],
        ["list"],
    ]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_commands_that_exist_as_another_user_than_root_and_with_a_closed_system(path):
    service = read_unit(path)["Service"]
    start = service["ExecStart"]
    script = re.fullmatch(r"/bin/sh -c '(.*)'", start)
    found = list(commands(script[1] if script else start))
    assert found
    assert [words for words in found if fault(words)] == []
    assert service["User"] == "shepherd" and service["CapabilityBoundingSet"] == ""
    assert service["ProtectSystem"] == "strict" and "/var/lib/shepherd" in service["ReadWritePaths"]
    for key in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "RestrictNamespaces", "RestrictSUIDSGID"):
        assert service[key] == "yes", key
    assert service["SuccessExitStatus"] == "143" and service["UMask"] == "0077"


def test_the_container_runs_a_command_that_exists_not_as_root_on_a_pinned_image():
    lines = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    (image,), (user,) = ([rest for step, rest in steps if step == name] for name in ("FROM", "USER"))
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", image) and user == "shepherd"
    entry, words = (json.loads(next(rest for step, rest in steps if step == name)) for name in ("ENTRYPOINT", "CMD"))
    assert entry == ["shepherd"] and fault(words) == ""
    copied = [name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_page_on_deployment_names_each_file_of_the_folder():
    page = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    assert [path.name for path in DEPLOY.iterdir() if f"deploy/{path.name}" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_in_the_blocks_of_a_page_exist(page):
    faults = [
        f"{' '.join(words)}: {wrong}"
        for kind, block in BLOCK.findall(page.read_text(encoding="utf-8"))
        for words in commands(typed(block) if kind == "console" else block)
        if (wrong := fault(words))
    ]
    assert faults == []
