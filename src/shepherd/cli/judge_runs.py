"""`shepherd judge RUN…`: arms of runs to pairs, the judge's fitness, the calls, and the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shepherd.cli import judged, output
from shepherd.cli.judge_calls import Setup, confirm, make, setup
from shepherd.cli.judge_pairs import pairs_of
from shepherd.cli.settings import find_run
from shepherd.errors import DataError, EvaluationError, NetworkError, UsageError, plural
from shepherd.updates.privacy.publication import place_of

if TYPE_CHECKING:
    from shepherd.evaluation.judge.calls.calibration import Labels
    from shepherd.evaluation.judge.calls.client import Complete
    from shepherd.evaluation.judge.calls.ledger import Ledger
    from shepherd.evaluation.judge.calls.plan import Pair, Planned
    from shepherd.evaluation.judge.calls.record import Call
    from shepherd.evaluation.judge.calls.run import Done
    from shepherd.evaluation.judge.replay import Recording
    from shepherd.evaluation.judge.summary import Known

CALLS, CALIBRATION, PROBES = "calls.jsonl", "calibration.jsonl", "probes.jsonl"
FITNESS = "fitness.json"
"""Results of calibration and probes, by judge, so that later commands with the same judge print them too."""

Plan = tuple[list["Planned"], "Ledger"]


def judge_runs(names: Sequence[str], given: Mapping[str, Any]) -> None:
    """Judge the answers of runs. given: values of the options of `judge_calls` and `judged`."""
    from shepherd.evaluation.judge.calls.calibration import read_labelled
    from shepherd.evaluation.judge.calls.known import arms_of, budget_of, questions_of
    from shepherd.evaluation.judge.calls.material import asked
    from shepherd.evaluation.judge.calls.quoting import secret_of
    from shepherd.evaluation.judge.summary import Known
    from shepherd.store.lock import locked

    if not any((names, given["pairs"], given["calibrate"], given["probes"])):
        raise UsageError("nothing to judge", hint="name a run, or recorded judgements with --replay FILE")
    runs = list({run.resolve(): run for run in reversed([find_run(name) for name in names])}.values())[::-1]
    if len(runs) < len(names):
        output.note(f"a run that is named twice is judged once: {', '.join(map(str, runs))}")
    folder = given["out"].parent if given["out"] else place_of(runs[0] if runs else Path(), "judge")
    set_up = setup(folder, given)
    questions = asked(given["questions"])
    pairs, lines = pairs_of(runs, given["pairs"], questions)
    _check_references(pairs, given["references"])
    looks = given["dry_run"] and not folder.exists()  # then nothing is written
    if not looks:
        folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if looks else locked(folder):
        secret = b"" if looks else secret_of(folder)
        labelled = read_labelled(given["calibrate"]) if given["calibrate"] else None
        plans = _plans(pairs, labelled, set_up, secret)
        if not confirm([(name, *plan) for name, plan in plans.items()], set_up):
            return
        complete = set_up.complete()
        fitness = _fitness(plans, labelled, complete, set_up)
        if CALLS not in plans:
            if given["as_json"]:
                output.print_json(fitness)
            return
        calls, ledger = plans[CALLS]
        done = make(calls, ledger, complete, set_up)
        _say(done, set_up)
        known = Known(questions_of(questions), arms_of(lines), budget_of(runs), _probed(fitness), _spent(done, set_up),
                      fitness.get("calibration"))  # fmt: skip
        try:
            _show(done, ledger, known, set_up)
        except DataError:  # no question is left, because of the failed calls
            if not done.failed:
                raise
        if done.failed:
            raise NetworkError(f"{plural(done.failed, 'call')} failed and count in no figure",
                               hint="the same command makes them again")  # fmt: skip


def _check_references(pairs: Sequence[Pair], shown: bool) -> None:
    """Name reference answers that the judge does not see, or lacks.

    UsageError: it is to see them, and there are none. DataError: two pairs have other ones for one question.
    """
    every: dict[str, tuple[str, ...]] = {}
    for item in (item for pair in pairs for item in pair.items):
        known = every.get(str(item.question)) or item.reference
        if shown and item.reference and known != item.reference:
            raise DataError(f"the reference answers to question {item.question!r} differ between two pairs",
                            hint="repeat shepherd answer for all of them: it keeps the answers")  # fmt: skip
        every[str(item.question)] = known
    count = sum(map(any, every.values()))
    if shown and pairs and not count:
        raise UsageError("--references: no question has a reference answer",
                         hint="leave it out, or write answers to questions with a field reference")  # fmt: skip
    if count and not shown:
        output.note(f"{count} of {plural(len(every), 'question')} have reference answers, which the judge does not see "
                    "(--references shows them)")  # fmt: skip
    if shown and count < len(every):
        output.note(f"{len(every) - count} of {plural(len(every), 'question')} have no reference answer and are judged "
                    "without one")  # fmt: skip


def _plans(
    pairs: Sequence[Pair], labelled: tuple[Pair, Labels] | None, set_up: Setup, secret: bytes
) -> dict[str, Plan]:
    """The calls of each file, in the order in which they are made."""
    from shepherd.evaluation.judge.calls.ledger import Ledger
    from shepherd.evaluation.judge.calls.plan import BOTH, planned
    from shepherd.evaluation.judge.calls.probes import probe_pairs
    from shepherd.evaluation.judge.calls.protocols import PROTOCOLS

    given, judge = set_up.given, set_up.judge
    plain = replace(judge, protocol=PROTOCOLS[judge.protocol.name])  # known answers and probes have no references
    wanted: dict[str, tuple[Sequence[Pair], Any, int]] = {}
    if labelled is not None:
        wanted[CALIBRATION] = [labelled[0]], BOTH, 1
    if given["probes"]:
        wanted[PROBES] = probe_pairs(judge.protocol.name), BOTH, 1
    if pairs:
        wanted[CALLS] = pairs, BOTH[:1] if given["one_order"] else BOTH, given["repeats"]
    found = {}
    for name, (each, orders, repeats) in wanted.items():
        ledger = Ledger.opened(set_up.folder / name)
        if ledger.torn:
            output.note(f"{ledger.file} ends in an unfinished line, which a killed process left; it is cut off")
        found[name] = planned(each, judge if name == CALLS else plain, secret, orders, repeats), ledger
    return found


def _fitness(
    plans: Mapping[str, Plan], labelled: tuple[Pair, Labels] | None, complete: Complete, set_up: Setup
) -> dict[str, Any]:
    """{calibration, probes} of this judge: measured now, or by an earlier command in this folder."""
    from shepherd.evaluation.judge.calls.calibration import calibration
    from shepherd.evaluation.judge.calls.probes import shifts
    from shepherd.evaluation.judge.formats import judgement_of
    from shepherd.report.page import write_page

    file = set_up.folder / FITNESS
    known, judge = _recorded_fitness(file), set_up.judge
    name = _judge_key(judge.endpoint, judge.model, judge.protocol.name, judge.protocol.prompt.hash)
    fitness = dict(known.get(name) or {})
    if labelled is not None:
        done = _made(plans[CALIBRATION], complete, set_up)
        fitness["calibration"] = calibration(map(judgement_of, done.calls), labelled[1])
        _print_calibration(fitness["calibration"])
    if PROBES in plans:
        done = _made(plans[PROBES], complete, set_up)
        fitness["probes"] = shifts({name: [judgement_of(call) for call in each] for name, each in _by_b(done).items()})
        _print_probes(fitness["probes"], judge.protocol.name)
    if CALIBRATION in plans or PROBES in plans:
        write_page(file, output.to_json(known | {name: fitness}, indent=2) + "\n")
    return json.loads(output.to_json(fitness))


def _made(plan: Plan, complete: Complete, set_up: Setup) -> Done:
    """All calls of a plan. NetworkError: some failed; a judge is not measured on the rest."""
    done = make(*plan, complete, set_up)
    if done.failed:
        raise NetworkError(f"{plural(done.failed, 'call')} of {plan[1].file} failed: the judge is not measured on the "
                           "rest", hint="the same command makes them again")  # fmt: skip
    return done


def _judge_key(endpoint: str, model: str, protocol: str, digest: str) -> str:
    """A judge in fitness.json: by its prompt without reference answers, with which it was measured."""
    from shepherd.evaluation.judge.calls.protocols import PROTOCOLS

    prompt = PROTOCOLS[protocol].prompt
    return f"{endpoint} {model} {prompt.id} {prompt.hash if digest == prompt.with_references.hash else digest}"


def _recorded_fitness(file: Path) -> dict[str, Any]:
    """The contents of fitness.json, empty where there is none. DataError: damaged; a judge could seem fit."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        known = error
    if not isinstance(known, dict):
        raise DataError(f"{file} is damaged", hint="remove it, and measure the judge again with --calibrate")
    return known


def fitness_of(recordings: Sequence[Recording]) -> Known | None:
    """Calibration and probes of the judge of recorded calls, measured in their folder; the least fit of several."""
    from shepherd.evaluation.judge.summary import Known

    found = []
    for one in recordings:
        call = one.judgements[0].call if one.judgements else None
        if call is None:
            continue
        known = _recorded_fitness(one.file.parent / FITNESS)
        found.append(known.get(_judge_key(call.endpoint, call.model, call.protocol, call.prompt_hash)) or {})
    found.sort(key=lambda fitness: bool((fitness.get("calibration") or {"fit": True}).get("fit")))
    return Known(probes=_probed(found[0]), calibration=found[0].get("calibration")) if found else None


def _by_b(done: Done) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = {}
    for call in done.calls:
        found.setdefault(call.b, []).append(call)
    return found


def _print_calibration(found: Mapping[str, Any]) -> None:
    from shepherd.report.wording import percent

    def share(name: str) -> str:
        low, high = found[f"{name}_ci95"]
        return f"{percent(found[name])} (95 %: {percent(low)} to {percent(high)})"

    fit = "fit" if found["fit"] else "NOT FIT: no verdicts (at least 75 % right, at most 25 % flips)"
    output.note(
        f"calibration on {plural(found['pairs'], 'pair')}: right in {share('accuracy')}, the order turns the verdict "
        f"in {share('flips')}, {found['unread']} texts unparsed: {fit}"
    )


def _print_probes(found: Mapping[str, Any], protocol: str) -> None:
    from shepherd.report.wording import from_to, signed

    unit = "points of 10" if protocol == "fedit" else "of a verdict"
    for name, each in found.items():
        if each["shift"] is None:
            output.note(f"injection {name}: no probe has a score ({each['unread']} unread)")
            continue
        between = f" (95 %: {from_to(each['ci95'])})" if each["ci95"] else ""
        families = ", ".join(f"{family} {signed(shift)}" for family, shift in each["families"].items())
        output.note(f"injection {name}: {each['probes']} probes move the weak answer by {signed(each['shift'])} {unit}"
                    f"{between}, at most {signed(each['largest'])}; {each['unread']} unread\n  {families}")  # fmt: skip


# Figures


def _say(done: Done, set_up: Setup) -> None:
    """What the calls show about the judge, before any figure."""
    judge = set_up.judge
    answered = sorted({call.answered_model for call in done.calls if call.answered_model})
    others = [name for name in answered if not name.startswith(judge.model)]
    if others:
        output.note(f"the endpoint answers as {', '.join(others)}, not as {judge.model!r}")
    elif len(answered) > 1:
        output.note(f"the judge changed while it judged: {', '.join(answered)}")
    if ignored := sorted({name for call in done.calls for name in call.ignored}):
        output.note(f"parameters that the endpoint did not honour, or does not show that it did: {', '.join(ignored)}")
    if set_up.endpoint is None:
        output.note(f"{judge.model} is for plumbing: no figure of it is evidence")
    if set_up.given["one_order"]:
        output.note("one order only, a deviation: the answer shown first gains with most judges")


def _probed(fitness: Mapping[str, Any]) -> dict[str, Any] | None:
    """The probes, with the shift of those appended to an answer as the one that a table shows."""
    if not (found := fitness.get("probes")):
        return None
    return {**found["appended"], "shift_ci95": found["appended"]["ci95"], **found}


def _spent(done: Done, set_up: Setup) -> dict[str, Any]:
    return {
        "made": done.made,
        "cache_hits": done.recorded,
        "failed": done.failed,
        "cost": done.cost,
        "currency": set_up.price.currency if set_up.price else None,
        "wall_seconds": done.seconds,
    }


def _show(done: Done, ledger: Ledger, known: Known, set_up: Setup) -> None:
    from shepherd.evaluation.judge.replay import recordings_of

    recordings = recordings_of(ledger.file, done.calls)
    if not any(one.points for recording in recordings for one in recording.judgements):
        first = next((call.text for call in done.calls if call.text), "").strip()
        raise EvaluationError(
            f"no reply of {set_up.judge.model} to {plural(len(done.calls), 'call')} ends with the line that the prompt "
            "requires" + (f"; the first begins {first[:120]!r}" if first else ": all are empty"),
            hint="take another judge; the replies are kept",
        )
    judged.show(recordings, {**set_up.given, "out": set_up.given["out"] or set_up.folder / "judge.json"}, known)
