"""A coordinator that asks a site, in good form, for more than its card and its policy say: refused by name."""

from __future__ import annotations

import json
import os
import tracemalloc
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from test_site import LIMIT, OWN, Clinic, a_site, admitted, asked, measured, offer, question

from broken_disks import QuickDisk
from federation_schedules import BASE, CARD, POLICY, MemoryPlace, card_of, task_of
from federations import a_round, begin
from shepherd.clients.progress import Progress as Steps
from shepherd.errors import UsageError
from shepherd.federation.cards import read_card
from shepherd.federation.groups import Group
from shepherd.federation.messages import Bye, Finish, Train, pack, read
from shepherd.federation.policy import builtin, judge
from shepherd.federation.site_store import Folder, SiteStore
from shepherd.federation.task_policy import judge_task
from shepherd.lowrank import LowRank
from shepherd.server.methods import build_method, methods
from shepherd.types import Objective, SiteFacts, SlotChoice, Stat, TrainTask, TransformSpec, Work
from shepherd.updates.layout import WireError
from shepherd.updates.task_wire import pack_task

TASK = task_of(1, 1, {"a": 0})
WORK, VIEW = TASK.work["a"], TASK.views["a"]


def train(task: TrainTask, attempt: int = 2, run: str = "demo") -> bytes:
    return pack(Train(run, task.round, attempt, "a", 0, 2, pack_task(task)))


def verdict_on(task: TrainTask, card=CARD, **policy: Any) -> str:
    """ "" for a task that is trained, else the code of the refusal."""
    site = a_site(**policy)
    assert asked(site, offer(card)).verdict == "admitted"
    answer = asked(site, train(task))
    assert bool(site.trainer.given) == (answer.code != "refused")
    return answer.detail


# Which rows are trained on, and how much


@pytest.mark.parametrize("rates", [(0.1, 0.0), (0.1, 1e-9), (0.0, 0.1), (0.0, 0.0)])
def test_steps_without_a_learning_rate_do_not_hide_that_an_update_shows_a_few_rows(rates):
    assert verdict_on(replace(TASK, work={"a": replace(WORK, learning_rates=rates)}), min_rows_round=4) == "rows"
    assert verdict_on(TASK, min_rows_round=4) == ""


def test_a_task_with_a_warm_up_within_the_round_is_trained():
    assert verdict_on(replace(TASK, work={"a": replace(WORK, learning_rates=(0.05, 0.1))}), min_rows_round=3) == ""


@pytest.mark.parametrize(
    "changed", [{"rows": 5}, {"rows": 3}, {"learning_rates": (0.1,)}, {"learning_rates": (0.1,) * 4}]
)
def test_two_tasks_cannot_differ_by_a_row_since_rows_and_steps_of_a_round_follow_from_the_card(changed):
    assert verdict_on(replace(TASK, work={"a": replace(WORK, **changed)})) == "task"


def test_the_order_of_rows_is_that_of_the_cards_seed():
    assert verdict_on(replace(TASK, seed=1)) == "task"


def test_a_learning_rate_above_that_of_the_card_is_refused():
    assert verdict_on(replace(TASK, work={"a": replace(WORK, learning_rates=(0.2, 0.1))})) == "rates"


def test_a_site_with_fewer_rows_than_the_least_of_a_round_does_not_take_part():
    assert asked(a_site(min_rows_round=5), offer()).verdict == "few-rows"


# What is trained and sent


@pytest.mark.parametrize(
    "changed",
    [{"trains": ("A",)}, {"sends": "AB"}, {"trains": ("A", "B"), "sends": "AB"}, {"choice": SlotChoice(1, 1)}],
)
def test_a_task_trains_and_sends_what_the_method_of_the_card_does(changed):
    card = card_of(federation={"rounds": 4, "method": "ffa_lora"})
    assert verdict_on(TASK, card) == ""
    assert verdict_on(replace(TASK, views={"a": replace(VIEW, **changed)}), card) == "task"


def test_modules_that_the_method_leaves_at_the_site_are_not_sent_because_a_task_asks_for_them():
    card = card_of(federation={"rounds": 4, "method": "fedper_lora"}, method={}, parameters=8)
    pair = VIEW.adapter.factors["q"]
    adapter = replace(VIEW.adapter, factors={"layers.0.q": pair, "layers.1.q": pair})
    view = replace(VIEW, adapter=adapter, trains=("AB",), sends="AB")
    assert verdict_on(replace(TASK, views={"a": replace(view, local_modules=frozenset({"layers.1.q"}))}), card) == ""
    assert verdict_on(replace(TASK, views={"a": view}), card) == "task"
    assert (
        verdict_on(replace(TASK, views={"a": replace(view, local_modules=frozenset({"layers.0.q"}))}), card) == "task"
    )
    only = replace(view, adapter=replace(adapter, factors={"q": pair}))
    assert verdict_on(replace(TASK, views={"a": only}), card) == "task", "the rule does not apply to these modules"


@pytest.mark.parametrize("name", sorted(builtin(methods)))
def test_the_tasks_of_every_method_are_what_its_card_says(name):
    method = build_method(name, {})
    ranks = {"a": 2 if method.mixed_ranks else 4, "b": 4}
    card = card_of(federation={"rounds": 4, "method": name}, method={}, lora={"r": 4, "alpha": 10.0}, parameters=10**6)
    assert judge(card, POLICY, OWN) == "admitted"
    model = begin(method)
    for number in (1, 2, 3):
        for client, view in method.views(model, ranks, number, 0).items():
            view = replace(view, adapter=replace(view.adapter, base_digest=BASE))
            work = Work(client, 0, 4, (0.1, 0.1))
            task = TrainTask(number, {client: view}, 0, {client: work}, model.remainder)
            message = Train("demo", number, 2, client, 0, 2, b"")
            assert judge_task(task, message, card, POLICY, datetime(2026, 11, 30), 4) == ""
        model = a_round(method, model, number, {"a": 0.5, "b": 0.5}, ranks).after


def test_a_method_without_a_remainder_gets_none_beside_the_base():
    rest = {"q": LowRank(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))}
    assert verdict_on(replace(TASK, remainder=rest)) == "task"
    card = card_of(federation={"rounds": 4, "method": "fedex_lora"}, method={})
    view = replace(VIEW, trains=("AB",), sends="AB")
    assert verdict_on(replace(TASK, views={"a": view}, remainder=rest), card) == ""


def test_a_transform_has_the_options_of_the_card():
    noise = {"name": "clip", "options": {"norm": 1.0}}
    card = card_of(transforms=(noise,))
    assert verdict_on(replace(TASK, transforms=(TransformSpec("clip", {"norm": 1.0}),)), card) == ""
    assert verdict_on(replace(TASK, transforms=(TransformSpec("clip", {"norm": 1e9}),)), card) == "transform"
    clips = card_of(federation={"rounds": 4, "method": "fedit", "clip_update_norm": 0.5})
    for specs, verdict in (((0.5,), ""), ((50.0,), "transform"), ((), "transform")):
        task = replace(TASK, transforms=tuple(TransformSpec("clip", {"norm": norm}) for norm in specs))
        assert verdict_on(task, clips) == verdict


def both():
    return replace(VIEW, trains=("AB",), sends="AB")


# Cards


def test_options_of_a_personalization_do_not_change_its_name():
    card = card_of(personalization={"name": "none", "options": {"name": "ditto"}})
    assert judge(card, POLICY.model_copy(update={"personalizations": ("none",)}), OWN) == "personalization"


@pytest.mark.parametrize(
    ("personalization", "verdict"),
    [
        ({"name": "finetune", "options": {"steps": 1001}}, "steps"),
        ({"name": "finetune", "options": {"learning_rate": 1.5}}, "rates"),
        ({"name": "finetune", "options": {"steps": -1}}, "personalization"),
        ({"name": "finetune", "options": {"stepz": 3}}, "personalization"),
        ({"name": "finetune", "options": {"steps": 1000}}, "admitted"),
    ],
)
def test_the_tuning_of_a_sites_own_model_is_within_its_policy(personalization, verdict):
    assert judge(card_of(personalization=personalization), POLICY, OWN) == verdict


def test_the_pieces_of_a_method_are_built_in_and_fit():
    from shepherd.server.pieces.merge import merges

    def of_a_script():
        """A merge of a script."""

    with merges.including(of_a_script):
        named = ("of_a_script", {"name": "of_a_script"}, {"name": ["mean"]}, {"name": ""}, "no_such", "", None, 5, [])
        for method in ({"x": 1}, *({"merge": name} for name in named)):
            assert judge(card_of(method=method), POLICY, OWN) == "method"
    kept = {"federation": {"rounds": 4, "method": "fedex_lora"}, "method": {"remainder": {"rank": 4}}}
    for fits in ({"method": {"train": "B"}}, kept):
        assert judge(card_of(**fits), POLICY, OWN) == "admitted"


def test_a_policy_that_names_methods_allows_these_and_not_their_names_for_other_pieces():
    named = POLICY.model_copy(update={"methods": ("ffa_lora",)})
    whole = {"federation": {"rounds": 4, "method": "ffa_lora"}, "method": {}}
    assert judge(card_of(**whole), named, OWN) == "admitted"
    assert judge(card_of(**whole | {"method": {"start": "orthonormal"}}), named, OWN) == "admitted", "an option of it"
    for pieces in ({"train": "AB"}, {"remainder": {"name": "keep"}}, {"view": "prefix"}):
        assert judge(card_of(**whole | {"method": pieces}), named, OWN) == "method"


@pytest.mark.parametrize("options", ['{"x": 1e999}', json.dumps({"x": "\U0001f411" * 120_000}, ensure_ascii=False)])
def test_a_card_that_the_site_could_not_read_again_is_refused(options):
    text = CARD.to_json().decode().replace('"method": {"train": "B"}', f'"method": {options}')
    assert text.count(options) == 1 and len(text.encode()) < 2**20
    with pytest.raises(WireError):
        read_card(text.encode())


def test_a_coordinator_cannot_fill_the_disk_or_the_memory_of_a_site_with_cards():
    place = MemoryPlace()
    site = a_site(place=place, approve="ask", max_runs=3)
    verdicts = [asked(site, offer(card_of(run=f"run-{n}"))).verdict for n in range(5)]
    assert verdicts == ["approval"] * 3 + ["runs"] * 2
    assert asked(a_site(place=place, approve="ask", max_runs=3), offer(card_of(run="run-9"))).verdict == "runs"
    assert asked(site, offer(card_of(run="run-1"))).verdict == "approval", "a run that is known goes on"
    for n in range(50):
        asked(site, train(TASK, run=f"unknown-{n}"))
        site.handle(pack(Bye(f"unknown-{n}", 0, 0, "", "over")))
    assert len(site.store._records) == 3 and len([name for name in place.files if "/" in name]) == 6


# Which rows the trainer holds


class TwoRuns(Clinic):
    """A trainer that holds the rows of one run at a time, and notes for which run each task was trained."""

    def load_rows(self, card):
        self.holds = card.run
        return SiteFacts(4 if card.run == "demo" else 1, card.run)

    def train(self, task, private, observe):
        assert self.holds == "demo", "rows and settings of another run"
        return super().train(task, private, observe)


def test_a_run_that_is_refused_after_its_rows_were_read_leaves_none_of_them_to_another_run():
    site = admitted(trainer=TwoRuns("a"), min_rows=2)
    assert asked(site, offer(card_of(run="other"))).verdict == "few-rows"
    assert asked(site, question()).code == ""


# Measures and progress


@pytest.mark.parametrize("bad", [Stat(float("nan"), 10.0), Stat(float("inf"), 10.0), Stat(0.0, float("nan"))])
def test_a_model_that_makes_the_losses_overflow_is_a_code_and_ends_no_site(bad):
    trainer = Clinic("a")
    site = admitted(trainer=trainer)
    trainer.measure = lambda model, rows_of: {"flu": Group(bad, 12), "cold": Group(Stat(1.0, 1.0), 12)}
    answer = measured(site)
    assert (answer.code, answer.groups) == ("diverged", ())


def test_a_number_of_rows_that_is_stated_larger_cannot_be_seen_in_a_measure_or_by_the_size_of_its_groups():
    site = admitted(min_rows_tell=1000, categories="shown", least_group=5)
    assert measured(site, "training").groups == (("", 59.0, 16.0, 1000),)
    assert measured(site).groups == (("", 59.0, 16.0, 1000),)


@pytest.mark.parametrize(("first", "then", "rows"), [(0, 1000, 24), (1000, 0, 1000), (1000, 2000, 1000)])
def test_a_number_of_rows_that_was_stated_once_stays_as_stated_in_measures_of_the_run(first, then, rows):
    place = MemoryPlace()
    admitted(place=place, min_rows_tell=first)
    assert measured(a_site(place=place, min_rows_tell=then)).groups == (("", 59.0, 16.0, rows),)


def losses_of(batches: tuple[int, int], **policy: Any) -> list[float | None]:
    """The losses in the progress of a task of (rows, steps)."""
    rows, steps = batches

    class Steady(Clinic):
        def train(self, task, private, observe):
            observe({"a": Steps("training", 1, steps, 0.75, 3, 4, 0.5)})
            return super().train(task, private, lambda report: None)

    trainer, reports = Steady("a"), []
    trainer.facts = SiteFacts(rows, "rows")
    site = admitted(trainer=trainer, **policy)
    task = replace(TASK, work={"a": replace(WORK, rows=rows, learning_rates=(0.1,) * steps)})
    assert read(site.handle(train(task), reports.append), LIMIT).code == ""
    return [read(data, LIMIT).loss for data in reports]


def test_the_loss_of_a_step_over_a_few_rows_stays_at_the_site():
    assert losses_of((8, 4), least_group=2) == [0.75]
    assert losses_of((8, 4), least_group=3) == [None]
    assert losses_of((7, 4), least_group=2) == [None], "the last batch has one row"


# Files


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_a_folder_that_is_there_already_is_closed_to_others_before_anything_private_is_written(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    SiteStore(Folder(folder, QuickDisk())).salt()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_task_with_a_huge_head_is_refused_before_it_is_read():
    text = b'{"a":[' + b"[]," * 2**23 + b"[]]}"
    site = admitted(max_message_mib=1024)
    data = pack(Train("demo", 1, 2, "a", 0, 2, len(text).to_bytes(8, "little") + text))
    tracemalloc.start()
    assert asked(site, data).detail == "task"
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()


def test_the_own_model_of_a_site_is_made_of_a_task_that_no_round_would_have():
    """What ends a run is checked by the policy, and not by the work and the views of a round."""
    site = admitted()
    task = task_of(5, 9, {"a": 0})
    work = replace(task.work["a"], rows=6, learning_rates=(0.05,) * 3)
    sent = pack(Finish("demo", 5, 4, "a", 0, pack_task(replace(task, work={"a": work}, views={"a": both()}))))
    assert asked(site, sent).code == ""


def test_the_objective_is_that_of_the_card():
    assert verdict_on(replace(TASK, objective=Objective(proximal=0.1))) == "task"


def test_a_task_has_the_clusters_of_its_card_or_none():
    card = card_of(personalization={"name": "ifca", "options": {"clusters": 2}})
    for clusters, refusal in ((0, ""), (2, ""), (1, "task"), (10_000, "task")):
        assert verdict_on(replace(TASK, clusters={"a": (VIEW,) * clusters} if clusters else {}), card) == refusal


class CaseBlind(MemoryPlace):
    """A disk to which upper and lower case are one."""

    def read(self, name):
        return super().read(name.lower())

    def write(self, name, data):
        super().write(name.lower(), data)


def test_a_run_in_other_letters_does_not_get_the_card_and_the_limits_of_another():
    site = admitted(place=CaseBlind(), max_trainings=1)
    assert asked(site, train(TASK, run="DEMO")).detail == "not-admitted"
    assert asked(site, offer(card_of(run="DEMO"))).verdict == "card-changed"
    assert asked(site, question()).code == ""


@pytest.mark.parametrize("run", ["../outside", "no-such-run", "", "a\n"])
def test_a_run_that_was_not_offered_is_neither_approved_nor_left(run):
    site = admitted()
    files = dict(site.store.place.files)
    for act in (site.approve, site.leave):
        with pytest.raises(UsageError, match="no card of a run"):
            act(run)
    assert site.store.place.files == files
