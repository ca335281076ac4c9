"""What a person reads: help, lists, settings, plans, tables of data, errors, the talk of a run and its report.

TEXTS["help.txt"](work) -> the text; `text/help.txt` holds it. Each command line stands before what it printed.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from golden import runs
from golden.command import shepherd
from golden.mistakes import MISTAKES, lay_out_mistakes
from golden.recipes import SMALL, lay_out
from golden.record import PLACE

GOLDENS = Path(__file__).parent / "text"
OF_NUMBERS = {"report.html", "run.txt", "errors.txt"}
"""Those that hold losses: on a machine that rounds otherwise their digits are left out of the comparison."""
DURATION = re.compile(r"\b\d+(?:\.\d+)? (?:ms|s|min|h)\b")


def said(work: Path, *lines: str) -> str:
    return "".join(_said(work, line) for line in lines)


def _said(work: Path, line: str) -> str:
    status, out, err = shepherd(work, *shlex.split(line))
    told = "".join(f"[stderr] {text}\n" for text in err.splitlines())
    ended = f"[exit status {status}]\n" if status else ""
    return f"$ shepherd {line}\n{out}{told}{ended}\n".replace(str(work), PLACE)


def helps(work: Path, line: str = "") -> str:
    """The help of a command and of those below it, which it names."""
    text = _said(work, f"{line} --help".strip())
    _, _, commands = text.partition("\nCommands:\n")
    below = [match[1] for row in commands.split("\n\n")[0].splitlines() if (match := re.match(r"  ([a-z-]+) ", row))]
    return text + "".join(helps(work, f"{line} {name}".strip()) for name in below)


def lists(work: Path) -> str:
    kinds = list(json.loads(shepherd(work, "list", "--json").out))
    return said(work, "list", *(f"list {kind}" for kind in kinds), "list --json")


def settings(work: Path) -> str:
    return said(work, "config show", "config show demo --quick --seed 7 --set lora.r=4 --origin")


def check(work: Path) -> str:
    """The plan of a small run; memory and time, which are measured, are masked by their labels."""
    _recipe(work)
    text = said(work, "check small.toml", "check small.toml --set federation.method=flora --set lora.ranks=[1,2]")
    return re.sub(r"(?m)^((?:memory|time), about +).*$", r"\1…", text)


def data(work: Path) -> str:
    lay_out(work)
    return said(
        work,
        "data partition demo",
        "data partition builtin:chatterbot --set partition.name=dirichlet --set partition.clients=3 --json",
        "data partition wards --set partition.name=files --set partition.clients=0 --tokenize --model base",
        "data inspect builtin:instructions --model base --rows 3",
        "data inspect wards --model base --rows 3 --set data.template=alpaca",
        "data inspect wards --model base --rows 1 --json",
    )


def errors(work: Path) -> str:
    lay_out_mistakes(work)
    return said(work, *MISTAKES)


def run(work: Path) -> str:
    """What a run says when it is no terminal that listens; durations are masked."""
    _recipe(work)
    late = "--set federation.over_select=0.5 --set federation.clients_per_round=4"
    return DURATION.sub("… s", said(work, f"run small.toml --set evaluation.generate=1 {late}"))


def report(work: Path) -> str:
    return runs.files_of("fedit with every arm and answers", work)["report.html"].decode()


def _recipe(work: Path) -> None:
    """Lay small.toml into `work`, beside what it names."""
    lay_out(work)
    pairs = [word for pair in SMALL for word in ("--set", pair)]
    (work / "small.toml").write_text(shepherd(work, "config", "show", *pairs).out, encoding="utf-8")


TEXTS: Mapping[str, Callable[[Path], str]] = {
    "help.txt": helps, "list.txt": lists, "settings.txt": settings, "check.txt": check, "data.txt": data,
    "errors.txt": errors, "run.txt": run, "report.html": report,
}  # fmt: skip
