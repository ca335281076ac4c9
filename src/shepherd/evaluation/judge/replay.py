"""Files of recorded judgements: read whole, or refused with the lines at fault.

replay.read(Path("review_gpt35_vicuna-13b.jsonl")).judgements[0].points    # (9.0, 8.5)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd.errors import DataError, plural
from shepherd.evaluation.judge.calls.record import Call, settled
from shepherd.evaluation.judge.formats import FORMATS, Judgement, Malformed, exchanged, judgement_of

NAMED = 5
"""Most malformed lines that an error names."""


@dataclass(frozen=True)
class Recording:
    """The judgements of one pair of systems, in one file.

    format: a name of `formats.FORMATS`. a, b: what the file's first row calls the two. scores: points are ratings on a
    scale, not verdicts. torn: the file ends in an unfinished line, which is left out. superseded: calls on earlier
    answers to questions that were answered and judged again, which are left out.
    """

    file: Path
    format: str
    a: str
    b: str
    scores: bool
    judgements: tuple[Judgement, ...]
    torn: bool = False
    superseded: int = 0


def read_pairs(file: Path) -> list[Recording]:
    """Read recorded judgements, one recording per pair: a file of calls holds several, any other file one."""
    found = read(file)
    calls = [judgement.call for judgement in found.judgements if judgement.call is not None]
    recordings = recordings_of(file, calls, found.torn) if calls else [found]
    return sorted(recordings, key=lambda one: (not one.scores, one.a, one.b)) if calls else recordings


def recordings_of(file: Path, calls: Iterable[Call], torn: bool = False) -> list[Recording]:
    """Calls to one recording per judge, protocol, decoding and pair, with one judgement per `settled` call.

    Where an arm answered a question anew, only the judgements of the answers that were judged last count. In order of
    questions, seeds, repeats and orders: calls made at once are recorded in any order, and sums of floats depend on
    theirs.
    """
    calls = list(calls)
    last = {_cell(call): _answers(call) for call in calls}
    found: dict[tuple[str, ...], list[Judgement]] = {}
    superseded: Counter[tuple[str, ...]] = Counter()
    for call in sorted(settled(calls), key=_place):
        if last[_cell(call)] == _answers(call):
            found.setdefault(_recording(call), []).append(judgement_of(call))
        else:
            superseded[_recording(call)] += 1
    return [
        Recording(file, "calls", key[-2], key[-1], key[-3] == "fedit", tuple(judgements), torn, superseded[key])
        for key, judgements in found.items()
    ]


def _recording(call: Call) -> tuple[str, ...]:
    limit = str(call.answer_limit or "")
    return call.endpoint, call.model, call.prompt_hash, call.drawn_by, limit, call.protocol, call.a, call.b


def outdated(calls: Iterable[Call], recorded: Iterable[Call]) -> list[Call]:
    """Those of `calls` that a later line of `recorded` supersedes, in their order."""
    last = {_cell(call): _answers(call) for call in recorded}
    return [call for call in calls if last.get(_cell(call), _answers(call)) != _answers(call)]


def _cell(call: Call) -> tuple[Any, ...]:
    return *_recording(call), call.seed, call.question


def _answers(call: Call) -> tuple[str, ...]:
    return call.question_hash, call.a_answer, call.b_answer, call.reference


def _place(call: Call) -> tuple[Any, ...]:
    number = call.question if isinstance(call.question, int) else -1
    return number, str(call.question), -1 if call.seed is None else call.seed, call.repeat, call.order


def read(file: Path) -> Recording:
    """Read recorded judgements of one pair, JSON lines or a JSON list, in any of `formats.FORMATS`.

    DataError: the file cannot be read, is of no known format, or has malformed lines, which are named.
    """
    text = content(file)
    rows = list(_rows(file, text))
    first = next((row for _, row in rows if isinstance(row, dict)), None)
    if first is None:
        reason = rows[0][1] if rows and isinstance(rows[0][1], Malformed) else "it holds no row in JSON"
        raise DataError(f"{file}: no recorded judgements: {reason}", hint=_known())
    name = next((name for name, kind in FORMATS.items() if kind.recognises(first)), None)
    if name is None:
        keys = ", ".join(map(repr, list(first)[:8])) or "no keys"
        raise DataError(f"{file}: not a known format of recorded judgements: a row has {keys}", hint=_known())
    torn = FORMATS[name].own and not text.endswith("\n") and isinstance(rows[-1][1], Malformed)
    if torn:  # what a killed process leaves
        rows.pop()
    found: list[Judgement] = []
    wrong: list[str] = []
    pair = _Pair(name, [row for _, row in rows])
    for place, (where, row) in enumerate(rows):
        try:
            judgements = _judgements(name, row, place)
            found += map(exchanged, judgements) if pair.turned(row, judgements[0].question) else judgements
        except Malformed as reason:
            wrong.append(f"{file}, {where}: {reason}")
    if wrong:
        more = f"\nand {plural(len(wrong) - NAMED, 'more line')}" if len(wrong) > NAMED else ""
        raise DataError("\n".join(wrong[:NAMED]) + more, hint=f"the other rows are in the format {name!r}")
    a, b = FORMATS[name].names(first)
    return Recording(file, name, a, b, FORMATS[name].scores, tuple(found), torn)


class _Pair:
    """The pair of a file of one pair: which rows name b first, and which are of another pair."""

    def __init__(self, name: str, rows: Sequence[Any]) -> None:
        kind = FORMATS[name]
        self.names, self.own = kind.names, kind.own
        pairs = [(kind.names(row), row.get("question_id", place)) for place, row in enumerate(rows)
                 if isinstance(row, Mapping) and kind.recognises(row)]  # fmt: skip
        self.first, question = pairs[0]
        # Ids are those of answers, other ones for each question, or names of systems, which recur.
        self.systems = any({*pair} == {*self.first} and each != question for pair, each in pairs)
        self.of_question: dict[Any, tuple[str, str]] = {}
        self.reviews: set[str] = set()

    def turned(self, row: Mapping[str, Any], question: Any) -> bool:
        """Whether this row names b first. Raises Malformed for one of another pair, or one that was there already."""
        if self.own:
            return False
        if row.get("review_id"):
            content = json.dumps(row, sort_keys=True)
            if content in self.reviews:
                raise Malformed(f"the review {str(row['review_id'])[:40]!r} stands there already")
            self.reviews.add(content)
        named = self.names(row)
        usual = self.first if self.systems else self.of_question.setdefault(question, named)
        if self.systems and {*named} != {*usual}:
            raise Malformed(f"of {named[0]} and {named[1]}, not of {usual[0]} and {usual[1]}: a file holds one pair")
        return named != usual and named == usual[::-1]


def _judgements(name: str, row: Any, place: int) -> list[Judgement]:
    if isinstance(row, Malformed):
        raise row
    if not isinstance(row, Mapping):
        raise Malformed(f"{type(row).__name__}, not an object with keys")
    if not FORMATS[name].recognises(row):
        raise Malformed(f"not a row of the format {name!r}, which the first row has")
    return FORMATS[name].judgements(row, place)


def content(file: Path, wanted: str = "give a file of recorded judgements") -> str:
    """The text of a file; DataError with the hint `wanted` where there is none, or where it is not text."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"file not found: {file}", hint=wanted) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text in UTF-8 (byte {error.start})", hint="unpack archives first") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from None


def _rows(file: Path, content: str) -> Iterator[tuple[str, Any]]:
    """Each row with its place, `line 3` or `entry 3`; a Malformed in place of a line that does not parse."""
    if content.lstrip()[:1] == "[":
        rows = _loaded(content)
        if isinstance(rows, Malformed):
            raise DataError(f"{file}: not a list in JSON: {rows}")
        yield from ((f"entry {number}", row) for number, row in enumerate(rows, 1))
        return
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _loaded(line)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return Malformed(f"not JSON: {error.msg} ({at})")
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, brackets without end
        return Malformed(f"not JSON: {error}")


def _known() -> str:
    return f"known formats: {', '.join(sorted(FORMATS))} (docs/judge.md)"
