"""What `shepherd judge` does with recordings: options, files that it writes, and what it prints."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shepherd.cli import output
from shepherd.errors import DataError, ResourceError, UsageError
from shepherd.updates.privacy.publication import PRIVATE, place_of

if TYPE_CHECKING:
    from shepherd.evaluation.judge.replay import Recording
    from shepherd.evaluation.judge.summary import Known

_PATH = click.Path(path_type=Path)
_NOTE = 110
"""Columns of a note below a table."""


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `show`, added to a command in this order."""
    for option in reversed((
        click.option("--margin", type=click.FloatRange(min=0, min_open=True), metavar="POINTS",
                     help="Mean difference below which two systems count as equal; name it before you look."),
        click.option("--labels", multiple=True, metavar="FILE", type=_PATH,
                     help="People's verdicts, such as votes.jsonl of a chat: how far they agree with the judge."),
        click.option("--categories", metavar="FILE", type=_PATH,
                     help="The question set, for categories that a recording lacks."),
        click.option("--answers", multiple=True, metavar="FILE", type=_PATH,
                     help="FastChat's files of answers, for names and lengths that a recording lacks."),
        click.option("--out", metavar="FILE", type=_PATH,
                     help="Write all figures as JSON; RUN/judge/judge.json is shown by the report of RUN."),
        click.option("--latex", metavar="FILE", type=_PATH, help="Write the table of pairs for LaTeX, with booktabs."),
        click.option("--export", "reviews", metavar="FOLDER", type=_PATH,
                     help="Write the judgements in FastChat's review format."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    )):  # fmt: skip
        command = option(command)
    return command


def show(recordings: Sequence[Recording], given: Mapping[str, Any], known: Known | None = None) -> dict[str, Any]:
    """Compare, write what was asked for, and print; returns the contents of judge.json. given: values of `options`."""
    recordings = _supplemented(recordings, given["categories"], given["answers"])
    run = _run_of(given["out"])
    found = _judged(recordings, given["margin"], [*given["labels"], *_votes(run, given["labels"])], known)
    if run is not None:
        _add_background(found, run)
    if given["out"] is not None:
        _write(given["out"], output.to_json(found, indent=2) + "\n")
    if given["latex"] is not None:
        from shepherd.report.judge.latex_table import judged_table

        _write(given["latex"], judged_table(found))
    if given["reviews"] is not None:
        from shepherd.evaluation.judge.export import export_reviews

        for path in export_reviews(recordings, given["reviews"]):
            output.note(f"wrote {path}")
    if given["as_json"]:
        output.print_json(found)
    else:
        _print(found)
    if run is not None and (run / "report.html").exists():
        from shepherd.report import write_report

        output.note(f"wrote {write_report(run)}")
    return found


def _run_of(out: Path | None) -> Path | None:
    """The run that RUN/judge/judge.json belongs to; None for any other file."""
    if out is None or out.parts[-2:] != ("judge", "judge.json"):
        return None
    run = out.parent.parent
    run = run.parent if run.name == PRIVATE else run
    return run if (run / "config.toml").is_file() else None


def _votes(run: Path | None, named: Sequence[Path]) -> list[Path]:
    """The votes of `/better` in chats with a run, where they are not named already."""
    votes = None if run is None else place_of(run, "judge/votes.jsonl")
    return [votes] if votes and votes.is_file() and votes.resolve() not in {one.resolve() for one in named} else []


def _add_background(found: dict[str, Any], run: Path) -> None:
    """Budgets and categories trained on, from the run, where nobody gave them."""
    from shepherd.report.judge import background
    from shepherd.report.load import load_run

    try:
        record, names = load_run(run), [arm["name"] for arm in found["arms"]]
    except DataError as error:
        output.note(f"budgets and categories of {run} are left out: {error.message}")
        return
    if found["budget"] is None:
        found["budget"] = background.budget(record, names)
    if found["questions"]["trained_on"] is None:
        found["questions"]["trained_on"] = background.trained_on(record, found["questions"]["categories"] or ())


def _supplemented(
    recordings: Sequence[Recording], categories: Path | None, answers: Sequence[Path]
) -> Sequence[Recording]:
    from shepherd.evaluation.judge import supplement

    if categories is not None:
        names = supplement.read_categories(categories)
        recordings = [supplement.with_categories(recording, names) for recording in recordings]
    if answers:
        files = [file for path in answers for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
        answered = supplement.Answered.read(files)
        recordings = [answered.added_to(recording) for recording in recordings]
    return recordings


def _judged(
    recordings: Sequence[Recording], margin: float | None, labels: Sequence[Path], known: Known | None
) -> dict[str, Any]:
    """The contents of judge.json as JSON reads them: lists for tuples, texts for paths."""
    from shepherd.evaluation.judge.labels import read_labels
    from shepherd.evaluation.judge.summary import judged

    if margin is not None and not math.isfinite(margin):
        raise UsageError(f"--margin {margin} is not a number of points", hint="for example --margin 0.25")
    people = [(str(file), read_labels(file)) for file in labels]
    return json.loads(output.to_json(judged(recordings, margin, people, known)))


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all, with its folder."""
    from shepherd.report.page import write_page

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_page(file, text)
    except OSError as error:
        raise ResourceError(f"{file}: {error.strerror or error}", hint="give a file that can be written") from None
    output.note(f"wrote {file}")


def _print(found: Mapping[str, Any]) -> None:
    from shepherd.report.judge.figures import between, total
    from shepherd.report.wording import digits, from_to, signed, significant

    pairs = found["pairs"]
    for number, pair in enumerate(pairs, 1):
        click.echo(f"{number}  {output.clean(str(pair['file']))} ({pair['format']})")
        click.echo(f"   a {output.clean(pair['a'])}, b {output.clean(pair['b'])}")
    click.echo()
    output.print_table(
        ("", "questions", "total a", "total b", "b / a", "95 %", "b - a", "95 %", "Holm p", "b won/lost/tied",
         "verdict on b"),
        [
            (number, pair["questions"], total(pair["total_a"]), total(pair["total_b"]), digits(pair["relative"]),
             between(pair["relative_ci95"]), signed(pair["difference"]), from_to(pair["ci95"]),
             significant(pair["holm_p"]), f"{pair['wins']}/{pair['losses']}/{pair['ties']}", pair["verdict"])
            for number, pair in enumerate(pairs, 1)
        ],
        right=range(9),
    )  # fmt: skip
    click.echo()
    for line in _notes(found):
        click.echo(output.clean(line))
    _print_tables(found)


def _print_tables(found: Mapping[str, Any]) -> None:
    """The tables of the report page but for the two that the first table holds."""
    from dataclasses import replace

    from shepherd.report.comparison.tables import plain_text
    from shepherd.report.judge import contents, section
    from shepherd.report.page import Limits

    for table in section.tables(contents.completed(found), Limits())[2:]:
        click.echo()
        if any(table.columns):
            click.echo(plain_text(replace(table, note="\n".join(textwrap.wrap(table.note, _NOTE)))))
        else:
            click.echo(f"{table.caption}\n")
            output.print_table(table.rows[0], table.rows[1:])


def _notes(found: Mapping[str, Any]) -> Sequence[str]:
    from shepherd.report.judge.contents import completed
    from shepherd.report.judge.sentences import unlike
    from shepherd.report.wording import digits, signed

    lines = []
    for number, pair in enumerate(found["pairs"], 1):
        lines.append(f"{number}: {'; '.join([*_left_out(pair), *_seen(pair)])}.")
    for both in found["orders"]:
        lines.append(f"{both['files'][0]} and {both['files'][1]} show one pair in both orders: b / a is "
                     f"{digits(both['relative_b_second'])} with b second, {digits(both['relative_b_first'])} with b "
                     f"first ({signed(both['shift'])}).")  # fmt: skip
    both_ways = {file for both in found["orders"] for file in both["files"]}
    if alone := [n for n, p in enumerate(found["pairs"], 1) if p["orders"] == 1 and p["file"] not in both_ways]:
        lines.append(f"One order only: {', '.join(map(str, alone))}. A judge favours the answer that it is shown "
                     "first; give the recording of the other order too.")  # fmt: skip
    if any(pair["seeds"] == 1 for pair in found["pairs"]):
        lines.append("The verdicts hold for this training; other seeds may turn them.")
    return [*lines, *unlike(completed(found))]


def _left_out(pair: Mapping[str, Any]) -> Sequence[str]:
    """What a pair's figures do not count, and texts against scores."""
    unparsed = f"{pair['unparsed']} of {pair['texts']} texts are unparsed; a recorded score counts all the same"
    found = (
        ("left_out", f"{pair['left_out']} of {pair['judgements']} judgements without a score are left out"),
        ("one_order", f"{pair['one_order']} of the questions have a score in one order only and are left out"),
        ("lacking", _lacking(pair)),
        ("superseded", f"{pair['superseded']} judgements of answers that were written anew since are left out"),
        ("unparsed", unparsed),
        ("disagreements", f"{pair['disagreements']} recorded scores differ from their texts"),
    )
    lines = [text for key, text in found if pair[key] and text]
    first, second = pair.get("in_order", {"a_first": 0, "b_first": 0}).values()
    if first != second:
        lines.append(f"{first} judgements in use show a first and {second} b: totals and b / a lean to the order that "
                     "has more, b - a does not")  # fmt: skip
    return lines


def _lacking(pair: Mapping[str, Any]) -> str:
    """Questions without a score under one of several seeds; with one seed the judgements without one are counted."""
    if pair["seeds"] == 1:
        return ""
    return f"{pair['lacking']} of the questions have no score under one of the {pair['seeds']} seeds and are left out"


def _seen(pair: Mapping[str, Any]) -> Sequence[str]:
    """What a pair's design can see, and what else its recording shows."""
    from shepherd.report.wording import digits, from_to, percent, signed

    parts = []
    if pair["smallest_difference"] is None:
        parts.append("no interval: a single question" if pair["questions"] == 1 else
                     "no interval: the difference is the same on every question")  # fmt: skip
    else:
        parts.append(f"smallest difference seen with 80 % power: {digits(pair['smallest_difference'])} points")
    if (pair["wins"] - pair["losses"]) * pair["difference"] < 0:
        more, less = ("b", "a") if pair["wins"] > pair["losses"] else ("a", "b")
        parts.append(f"both hold: {more} wins more questions, {less} has the higher total")
    if "win_rate" in pair:
        parts.append(f"b wins {percent(pair['win_rate'] / 100)}")
    if pair.get("first_gain") is not None:
        parts.append(f"the answer shown first gains {signed(pair['first_gain'])} points "
                     f"(95 %: {from_to(pair['first_gain_ci95'])})")  # fmt: skip
    if right := pair.get("right"):
        parts.append(f"right in both orders: {right['both']} of {right['pairs']}")
    return parts
