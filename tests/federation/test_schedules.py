"""A thousand schedules of faults between a coordinator and its sites, against a small model of the rules.

What arrives is decided by a seed: messages are lost, delayed, repeated, replayed, damaged and forged, processes of both
ends end at any point, disks are full, transports are aborted. The rules (federation_rules.py) are written apart from
the code.
"""

from __future__ import annotations

from collections import Counter

import pytest

from federation_schedules import Schedule
from planted import plant, texts_that_are_not_there_once
from shepherd import outcomes
from shepherd.federation import coordinator, inbox, limits, site, site_store, states, waiting

LEAST = 50
"""Every kind of fault and of outcome happens at least this often in a thousand schedules."""
WAYS = ("lost", "delayed", "duplicated", "replayed", "aborted", "site restarted", "site stopped")
FORGED = ("other counts", "other session", "other run", "other attempt", "second answer", "damaged")
KINDS = {
    *(f"{way}: {fault}" for way in ("down", "up") for fault in WAYS),
    *(f"training: {mood}" for mood in ("crash", "raise", "diverge", "nan")),
    *(f"forged: {kind}" for kind in FORGED),
    *(f"outcome: {outcome}" for outcome in ("trained", "failed", "lost", "late", "rejected")),
    "site: disk full", "journal: disk full", "coordinator restarted", "coordinator restarted between rounds",
    "killed after the commit", "paused",
}  # fmt: skip


@pytest.mark.parametrize("schedules", [1000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_what_counts_is_what_the_rules_say_whatever_is_lost_late_repeated_or_killed(schedules):
    hits: Counter[str] = Counter()
    for seed in range(schedules):
        try:
            Schedule(seed, hits).run()
        except Exception as error:
            raise AssertionError(f"schedule {seed}: {type(error).__name__}: {error}") from error
    print(dict(sorted(hits.items())))
    rare = {kind: hits[kind] for kind in KINDS if hits[kind] < LEAST}
    assert not rare
    assert hits.keys() - KINDS == {"site not admitted"}


ANSWERS = """        for client, answer, seconds in self.inbox.answers(messages, attempt, wait, observe):
            reply = self._take(client, answer, task, waiting)
            if reply is not None:
                self.seconds.setdefault(client, seconds)
                yield reply
"""
QUIETLY = "        try:\n" + "".join(f"    {line}\n" for line in ANSWERS.splitlines()) + (
    "        except Exception:\n            pass\n"
)  # fmt: skip
FAULTS = {
    "the newest private state in place of the one that counted": (
        site_store, 'if version["round"] == round_number and version["row"] == row:',
        'if version["round"] == max(v["round"] for v in self._versions(run)):'),
    "only the newest private state is kept": (site_store, '["round"] <= counted][-2:]', '["round"] <= counted][:0]'),
    "the first task that ended there counted, not the last": (states, "return found[-1]", "return found[0]"),
    "a later answer counts again": (waiting, "return client not in self._final\n", "return True\n"),
    "a rejected answer takes the place of a good one": (
        waiting, "return client not in self._final\n", "return client not in self._final | self._rejected.keys()\n"),
    "an answer to an attempt that is over counts": (inbox, "message.attempt != attempt", "False"),
    "an answer of another run counts": (inbox, "message.run != self.run,", "False,"),
    "an answer without the lease counts": (inbox, '"lease": getattr(message, "session", "") !=', '"lease": False and'),
    "counts of the wire are believed": (limits, "if facts is None or rows != facts.rows:", "if facts is None:"),
    "an aborted transport commits": (coordinator, ANSWERS, QUIETLY),
    "a resumed round has other sites": (
        coordinator, "return known or self.ledger", "return tuple(sorted(there)) if known else self.ledger"),
    "who is connected is lost, not late": (coordinator, "elif client not in there:", "elif client in there:"),
    "a site trains a task that is over": (site, 'message.attempt < record["attempt"]', "False"),
    "a site forgets the task that it has trained": (
        site, "self.store.note(message.run, attempt=message.attempt, **{what: done + 1})", "pass"),
    "a site does not keep its private state": (
        site, "        self.store.keep(message.run, message.round, work.first_row + work.rows, message.counted, "
        "reply.private)\n", ""),
    "the text of an exception leaves the site": (outcomes, "type(error).__name__", "str(error)"),
    "an attempt is not in the journal": (
        states, "self._write(line)  # first", 'line["event"] == "attempt" or self._write(line)  # first'),
    "an answer is not in the journal": (
        coordinator, '        self.ledger.site(client, "answered", round=task.round)\n', ""),
}  # fmt: skip


def test_every_planted_fault_matches_the_source_exactly_once():
    assert texts_that_are_not_there_once(list(FAULTS.values())) == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_by_the_schedules(fault, monkeypatch):
    plant(monkeypatch, *FAULTS[fault])
    with pytest.raises((AssertionError, ValueError, KeyError, site_store.StateLost)):
        run_schedules(300)


def run_schedules(number: int) -> None:
    for seed in range(number):
        Schedule(seed, Counter()).run()
