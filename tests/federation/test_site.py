"""A site: approval before rows, tasks within its policy, private state by round; nothing leaves it by mistake."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest

from broken_disks import QuickDisk
from federation_schedules import BASE, CARD, POLICY, SECRET, TOKENIZER, MemoryPlace, Numbers, card_of, task_of
from shepherd.clients.progress import Progress as Steps
from shepherd.errors import DataError, UsageError
from shepherd.federation.groups import Group, shown
from shepherd.federation.messages import (
    Answer,
    Bye,
    Facts,
    Finish,
    Measure,
    Measured,
    Offer,
    Progress,
    Train,
    pack,
    read,
)
from shepherd.federation.policy import Own
from shepherd.federation.site import Site
from shepherd.federation.site_store import Folder, SiteStore, StateLost, identity_lock
from shepherd.federation.verdicts import ADMITTED, DECLINED
from shepherd.store import read_journal
from shepherd.types import GlobalModel, SiteFacts, Stat
from shepherd.updates import wire
from shepherd.updates.task_wire import pack_global, pack_task

LIMIT = 2**20
GROUPS = {"flu": Group(Stat(30.0, 10.0), 12), "cold": Group(Stat(20.0, 5.0), 11), "rare": Group(Stat(9.0, 1.0), 1)}


OWN = Own(BASE, TOKENIZER, "0.1.0")


class Clinic(Numbers):
    """A trainer that also measures, and remembers what it was given."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.loaded = 0
        self.given: list = []

    def load_rows(self, card):
        self.loaded += 1
        return super().load_rows(card)

    def train(self, task, private, observe):
        self.given.append({name: array.tolist() for name, array in private.items()})
        observe({"a": Steps("training", 1, 2, math.nan, 3, 4, 0.5)})
        return super().train(task, private, lambda steps: None)

    def measure(self, model, rows_of):
        self.given.append((model, rows_of))
        return GROUPS

    def finish(self, task, private):
        self.given.append({name: array.tolist() for name, array in private.items()})
        return {"flu": Group(Stat(12.0, 10.0), 12)}


def a_site(trainer=None, place=None, now=datetime(2026, 11, 30, 12), own=OWN, **policy) -> Site:
    store = SiteStore(place if place is not None else MemoryPlace())
    return Site("a", POLICY.model_copy(update=policy), own, trainer or Clinic("a"), store, lambda: now)


def offer(card=CARD, client: str = "a") -> bytes:
    return pack(Offer(card.run, 0, 1, client, card.to_json()))


def question(number: int = 1, attempt: int = 2, counted: int = 0, first: int = 0, model: int = 1) -> bytes:
    return pack(Train("demo", number, attempt, "a", counted, 2, pack_task(task_of(number, model, {"a": first}))))


def asked(site: Site, data: bytes):
    """The answer of a site, read."""
    return read(site.handle(data), LIMIT)


def admitted(**options) -> Site:
    site = a_site(**options)
    assert asked(site, offer()).verdict == "admitted"
    return site


# Offers


def test_no_row_is_read_before_a_person_has_approved_the_card():
    place = MemoryPlace()
    site = a_site(place=place, approve="ask")
    assert [asked(site, offer()).verdict for _ in range(2)] == ["approval", "approval"]
    assert asked(site, question()) == Answer("demo", 1, 2, site.session, "refused", "not-admitted", b"")
    assert site.trainer.loaded == 0
    assert site.approve("demo") == CARD
    facts = asked(site, offer())
    assert (facts.verdict, facts.rows, site.trainer.loaded) == ("admitted", 4, 1)
    assert asked(a_site(place=place, approve="ask"), offer()).verdict == "admitted", (
        "approved once, also after a restart"
    )
    assert asked(site, offer(card_of(seed=1))).verdict == "card-changed", "another card was not approved"
    with pytest.raises(UsageError, match="no card of a run other"):
        site.approve("other")


def test_a_person_decides_in_another_process_and_may_change_the_decision_before_the_rows_are_read():
    place = MemoryPlace()
    site, elsewhere = a_site(place=place, approve="ask"), SiteStore(place)
    assert asked(site, offer()).verdict == "approval"
    elsewhere.decide("demo", "0" * 64, ADMITTED)
    assert asked(site, offer()).verdict == "approval", "another card was approved"
    elsewhere.decide("demo", CARD.digest, DECLINED)
    assert asked(site, offer()).verdict == "declined" and site.trainer.loaded == 0
    elsewhere.decide("demo", CARD.digest, ADMITTED)
    assert (asked(site, offer()).verdict, site.trainer.loaded) == ("admitted", 1)


def test_a_person_who_declines_a_run_at_work_stops_it_at_the_next_question():
    place = MemoryPlace()
    site, elsewhere = a_site(place=place, approve="ask"), SiteStore(place)
    elsewhere.decide("demo", CARD.digest, ADMITTED)
    assert asked(site, offer()).verdict == "admitted"
    assert not asked(site, question()).code
    elsewhere.decide("demo", CARD.digest, DECLINED)
    answer = asked(site, question(2, 3, 1, 4))
    assert (answer.code, answer.detail, len(site.trainer.given)) == ("refused", "declined", 1)
    assert asked(site, offer()).verdict == "declined"


def test_a_card_that_asks_for_what_the_policy_forbids_gets_the_code_and_no_text_and_no_row_is_read():
    site = a_site(methods=("ffa_lora",), require=("a protection of our own",))
    sent = site.handle(offer())
    assert read(sent, LIMIT).verdict == "method" and site.trainer.loaded == 0
    assert b"ffa_lora" not in sent and b"protection" not in sent


def test_a_refusal_of_another_base_tokenizer_or_version_names_what_the_site_has():
    site = a_site(own=Own("e" * 64, TOKENIZER, "0.0.9"))
    facts = asked(site, offer())
    assert (facts.verdict, facts.version, facts.base) == ("version", "0.0.9", "e" * 64)


def test_an_offer_to_another_site_or_that_cannot_be_read_is_refused():
    site = a_site()
    assert asked(site, offer(client="b")).verdict == "other-site"
    assert asked(site, pack(Offer("demo", 0, 1, "a", b"{}"))).verdict == "card"
    assert asked(site, pack(Offer("other", 0, 1, "a", CARD.to_json()))).verdict == "card-changed"
    assert not site.store.record("demo") and not site.store.record("other")


@pytest.mark.parametrize(("rows", "least", "verdict"), [(0, 1, "no-rows"), (3, 4, "few-rows"), (4, 4, "admitted")])
def test_a_site_without_enough_usable_rows_does_not_take_part(rows, least, verdict):
    trainer = Clinic("a")
    trainer.facts = SiteFacts(rows, "digest")
    assert asked(a_site(trainer, min_rows=least), offer()).verdict == verdict


@pytest.mark.parametrize(("error", "verdict"), [(DataError(SECRET), "no-rows"), (OSError(SECRET), "cannot")])
def test_rows_that_cannot_be_read_are_a_code_and_their_error_stays_at_the_site(error, verdict):
    trainer, place = Clinic("a"), MemoryPlace()

    def fails(card):
        raise error

    trainer.load_rows = fails
    sent = a_site(trainer, place).handle(offer())
    assert read(sent, LIMIT).verdict == verdict
    assert SECRET.encode() not in sent + b"".join(place.files.values())


def test_rows_that_change_within_a_run_are_refused_before_they_are_trained_on():
    place = MemoryPlace()
    admitted(place=place)
    changed = Clinic("a")
    changed.facts = SiteFacts(4, "other rows")
    site = a_site(changed, place)
    assert asked(site, offer()).verdict == "rows-changed"
    answer = asked(site, question())
    assert (answer.code, answer.detail, changed.given) == ("refused", "rows-changed", [])


def test_a_digest_of_rows_says_nothing_to_another_site_and_a_small_number_of_rows_is_stated_as_a_larger_one():
    first, second = admitted(), admitted(min_rows_tell=1000)
    one, two = (asked(site, offer()) for site in (first, second))
    assert one.digest != two.digest and len(one.digest) == 64, "each site has its own salt"
    assert (one.rows, two.rows) == (4, 1000)
    again = a_site(place=first.store.place)
    assert asked(again, offer()).digest == one.digest, "and keeps it"
    task = task_of(1, 1, {"a": 0})
    work = replace(task.work["a"], rows=1000, learning_rates=(0.1,) * 500)  # the share of a round of as many as stated
    larger = pack(Train("demo", 1, 2, "a", 0, 2, pack_task(replace(task, work={"a": work}))))
    sent = (asked(first, question()), asked(second, larger))
    answers = [wire.unpack(answer.update)[0].num_examples for answer in sent]
    assert answers == [4, 1000], "an update does not give the number away"


# Tasks


def test_a_task_is_trained_from_the_private_state_of_the_round_that_counted_last():
    site = admitted()
    asked(site, question(1, 2))
    asked(site, question(2, 3, counted=1, first=4))  # its answer is lost
    asked(site, question(3, 4, counted=1, first=4))
    asked(site, question(4, 5, counted=3, first=8))
    states = [given.get("p") for given in site.trainer.given]
    assert states[0] is None and states[1] == states[2] != states[3]
    assert asked(site, question(3, 6, counted=3, first=12)).code == "no-state", "of another row"
    assert asked(site, question(3, 7, counted=2, first=4)).code == "no-state", "of a round that did not count"
    assert len(site.trainer.given) == 4


def test_a_repeated_question_gets_the_same_bytes_and_after_a_restart_the_same_update():
    place = MemoryPlace()
    site = admitted(place=place)
    first = site.handle(question())
    assert site.handle(question()) == first and len(site.trainer.given) == 1
    again = a_site(place=place)
    answer = asked(again, question())
    assert answer.update == read(first, LIMIT).update and answer.session != read(first, LIMIT).session


def test_a_task_of_a_round_that_is_over_is_refused_also_after_a_restart():
    place = MemoryPlace()
    site = admitted(place=place)
    asked(site, question(1, 2))
    asked(site, question(2, 3, counted=1, first=4))
    for again in (site, a_site(place=place)):
        answer = asked(again, question(1, 2, model=7))
        assert (answer.code, answer.detail) == ("refused", "stale")


def test_a_task_for_another_site_is_refused():
    site = admitted()
    message = Train("demo", 1, 2, "b", 0, 2, pack_task(task_of(1, 1, {"b": 0})))
    assert asked(site, pack(message)).detail == "other-site"


def test_a_task_outside_the_window_of_the_site_is_refused():
    night = {"window": "20:00-06:00"}
    assert asked(admitted(now=datetime(2026, 11, 30, 21), **night), question()).code == ""
    answer = asked(admitted(now=datetime(2026, 11, 30, 12), **night), question())
    assert (answer.code, answer.detail) == ("refused", "window")


@pytest.mark.parametrize(
    ("policy", "training", "verdict"),
    [
        ({"min_rows_round": 4}, {"local_steps": 2}, "admitted"),
        ({"min_rows_round": 5}, {"local_steps": 2}, "rows"),
        ({"max_rows": 15}, {"local_epochs": 2.0}, "rows"),
        ({"max_local_steps": 7}, {"local_epochs": 2.0}, "steps"),
        ({"max_local_steps": 8}, {"local_epochs": 2.0}, "admitted"),
    ],
)
def test_a_run_whose_every_round_would_be_refused_is_refused_at_its_offer(policy, training, verdict):
    trainer = Clinic("a")
    trainer.facts = SiteFacts(8, "rows")
    card = card_of(training={"learning_rate": 0.1, "batch_size": 2, **training})
    site = a_site(trainer, **policy)
    assert asked(site, offer(card)).verdict == verdict
    assert ("rows" in site.store.record("demo")) == (verdict == "admitted")


def test_a_policy_that_is_changed_holds_from_the_next_start_also_for_tasks_without_an_offer():
    place = MemoryPlace()
    asked(admitted(place=place), question(1, 2))
    for changed, verdict in (({"methods": ("ffa_lora",)}, "method"), ({"approve": "ask"}, "approval")):
        again = a_site(place=place, **changed)
        assert asked(again, question(1, 3)).detail == verdict and again.trainer.loaded == 0


def test_a_round_with_fewer_sites_than_the_policy_wants_is_refused():
    site = admitted()
    site.policy = POLICY.model_copy(update={"least_cohort": 3})
    assert asked(site, question()).detail == "cohort"


@pytest.mark.parametrize(
    "error", [ValueError(SECRET), type(f"Bad{SECRET}!", (RuntimeError,), {})(SECRET), MemoryError()]
)
def test_of_an_exception_the_class_leaves_the_site_and_no_text_of_it_is_kept(error, tmp_path):
    trainer = Clinic("a")

    def fails(task, private, observe):
        raise error

    trainer.train = fails
    site = admitted(trainer=trainer, place=Folder(tmp_path, QuickDisk()))
    sent = site.handle(question())
    name = "out-of-memory" if isinstance(error, MemoryError) else f"error:{type(error).__name__.removesuffix('!')}"
    assert read(sent, LIMIT) == Answer("demo", 1, 2, site.session, name, "", b"")
    if isinstance(error, ValueError):
        assert SECRET.encode() not in sent + b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())


def test_progress_goes_up_as_numbers_and_a_loss_that_is_not_finite_as_nothing():
    site, reports = admitted(), []
    site.handle(question(), reports.append)
    assert [read(data, LIMIT) for data in reports] == [
        Progress("demo", 1, 2, site.session, "training", 1, 2, None, 3, 4, 0.5)
    ]


def test_a_site_that_leaves_sends_a_goodbye_and_trains_no_more():
    site = admitted()
    assert read(site.leave("demo"), LIMIT) == Bye("demo", 0, 0, site.session, "left")
    assert asked(site, question()).detail == "left" and asked(site, offer()).verdict == "left"
    assert site.handle(pack(Bye("demo", 4, 9, "", "finished"))) is None


def test_every_message_has_a_line_in_the_log_of_the_site_with_the_verdict_on_it(tmp_path):
    site = admitted(place=Folder(tmp_path, QuickDisk()))
    site.handle(question())
    site.handle(b"junk")
    site.handle(question(1, 1))
    lines = read_journal(tmp_path / "audit.jsonl").rows
    assert [(line["event"], line["verdict"]) for line in lines] == [
        ("offer", "admitted"), ("train", ""), ("unreadable", "format"), ("train", "stale"),
    ]  # fmt: skip
    assert lines[1]["bytes_in"] == len(question()) and lines[1]["time"] == "2026-11-30T12:00:00"


def test_two_processes_with_one_identity_on_a_machine_are_refused_with_the_one_that_runs(tmp_path):
    words = r"another process is the site hospital-a: process \d+ since"
    with identity_lock(tmp_path, "hospital-a"), pytest.raises(UsageError, match=words):
        identity_lock(tmp_path, "hospital-a").__enter__()
    with identity_lock(tmp_path, "hospital-a"):
        pass


# Measures


def measured(site: Site, rows_of: str = "held-out", model: bytes = b"", attempt: int = 3) -> Measured:
    return asked(site, pack(Measure("demo", 1, attempt, "a", rows_of, model)))


def test_a_measure_is_sums_and_weights_without_the_names_of_categories():
    site = admitted()
    answer = measured(site)
    assert (answer.code, answer.groups, answer.stat) == ("", (("", 59.0, 16.0, 24),), Stat(59.0, 16.0))
    model = GlobalModel(task_of(1, 5, {"a": 0}).views["a"].adapter)
    measured(site, "training", pack_global(model))
    (none, held_out), (given, training) = site.trainer.given
    assert (none, held_out, training) == (None, "held-out", "training")
    assert given.adapter.factors["q"].B.tolist() == [[5.0]]


def test_categories_are_named_where_the_site_allows_it_and_no_small_group_can_be_computed_from_the_others():
    assert measured(admitted(categories="shown")).groups == (("", 29.0, 6.0, 12), ("flu", 30.0, 10.0, 12))
    assert shown(GROUPS, 1, names=True) == (("cold", 20.0, 5.0, 11), ("flu", 30.0, 10.0, 12), ("rare", 9.0, 1.0, 1))
    assert shown(GROUPS, 13, names=True) == (("", 59.0, 16.0, 24),)
    assert shown(GROUPS, 25, names=True) == shown({}, 1, names=True) == ()


def test_fewer_held_out_rows_than_the_policy_shows_are_not_measured():
    answer = measured(admitted(least_group=25))
    assert (answer.code, answer.detail, answer.groups) == ("refused", "few-held-out", ())


def test_a_model_that_cannot_be_read_or_is_of_another_base_is_not_measured():
    site = admitted()
    adapter = replace(task_of(1, 5, {"a": 0}).views["a"].adapter, base_digest="e" * 64)
    assert measured(site, model=b"junk").detail == "task"
    assert measured(site, model=pack_global(GlobalModel(adapter))).detail == "base"
    assert site.trainer.given == []


def test_the_own_model_of_a_site_is_made_of_the_private_state_that_counted():
    site = admitted()
    asked(site, question(1, 2))
    kept = site.store.state("demo", 1, 4)
    asked(site, question(2, 3, counted=1, first=4))
    answer = asked(site, pack(Finish("demo", 5, 4, "a", 1, pack_task(task_of(5, 9, {"a": 4})))))
    assert answer.groups == (("", 12.0, 10.0, 12),)
    assert site.trainer.given[-1] == {"p": kept["p"].tolist()}


def test_a_run_gets_a_limited_number_of_trainings_and_of_measures_also_over_restarts():
    place, limits = MemoryPlace(), {"max_trainings": 2, "max_measures": 1}
    site = admitted(place=place, **limits)
    assert [asked(site, question(1, n, model=n)).detail for n in (2, 3)] == ["", ""]
    assert measured(site, attempt=4).detail == ""
    again = a_site(place=place, **limits)
    assert asked(again, question(1, 5)).detail == "trainings" and measured(again, attempt=6).detail == "measures"


# What a site keeps


def test_the_store_keeps_the_state_that_counted_the_one_before_and_the_newest(tmp_path):
    store = SiteStore(Folder(tmp_path, QuickDisk()))
    for number, counted in ((1, 0), (2, 1), (3, 2), (4, 2), (5, 4)):
        store.keep("demo", number, 10 * number, counted, {"z": np.array([number]), "a": np.ones(2, np.float32)})
    assert list(store.state("demo", 5, 50)) == ["z", "a"], "in the order of training"
    assert [v["round"] for v in json.loads((tmp_path / "runs/demo/states.json").read_text())] == [2, 4, 5]
    assert len(list((tmp_path / "runs/demo").glob("state-*"))) == 3
    assert SiteStore(Folder(tmp_path)).state("demo", 4, 40)["z"] == 4
    for number, row in ((3, 30), (4, 41), (0, 10), (6, 60)):
        with pytest.raises(StateLost):
            store.state("demo", number, row)
    assert store.state("demo", 0, 0) == {}
    for file in (tmp_path / "runs/demo").glob("state-*"):
        file.unlink()
    with pytest.raises(StateLost):
        store.state("demo", 4, 40)


@pytest.mark.parametrize("file", ["run.json", "states.json", "audit.jsonl"])
def test_a_full_disk_costs_no_answer_and_no_second_training(file, tmp_path):
    class Full(QuickDisk):
        full = False

        def write(self, target, data):
            self.refuse(target)
            super().write(target, data)

        def append(self, target, data):
            self.refuse(target)
            super().append(target, data)

        def refuse(self, target):
            if self.full and file in target.name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    disk, whole = Full(), admitted()
    site = admitted(place=Folder(tmp_path, disk))
    disk.full = True
    for _ in range(3):
        with pytest.raises(OSError, match="No space left on device"):
            site.handle(question())
    assert len(site.trainer.given) == (0 if file == "run.json" else 1), "it is counted before, and trained once"
    disk.full = False
    answer, undisturbed = asked(site, question()), asked(whole, question())
    assert (answer.code, answer.update) == ("", undisturbed.update)
    assert len(site.trainer.given) == 1
    assert SiteStore(Folder(tmp_path)).record("demo")["trainings"] == 1
    second = question(2, 3, counted=1, first=4)
    assert asked(site, second).update == asked(whole, second).update, "from the state of the round"
    assert len(site.trainer.given) == 2


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_the_folder_of_a_site_is_open_to_its_owner_only(tmp_path):
    SiteStore(Folder(tmp_path / "site", QuickDisk())).salt()
    assert (tmp_path / "site").stat().st_mode & 0o777 == 0o700


def test_a_round_that_is_trained_again_takes_the_place_of_what_was_kept_of_it():
    store = SiteStore(MemoryPlace())
    store.keep("demo", 1, 4, 0, {"p": np.array([1])})
    store.keep("demo", 2, 8, 1, {"p": np.array([2])})
    store.keep("demo", 2, 8, 1, {"p": np.array([3])})
    assert (store.state("demo", 1, 4)["p"], store.state("demo", 2, 8)["p"]) == (1, 3)
    store.keep("demo", 2, 8, 1, {})
    assert store.state("demo", 2, 8) == {} and len(store.place.files) == 2


def test_the_answer_of_an_offer_is_facts():
    assert isinstance(asked(a_site(), offer()), Facts)
