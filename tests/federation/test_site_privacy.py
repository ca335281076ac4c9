"""Privacy at a site: what a card promises is judged by the site's own numbers, and tasks are held to the card."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from safetensors.numpy import load
from test_site import OWN, Clinic, a_site, asked, offer

from federation_schedules import MemoryPlace, card_of, task_of
from shepherd.errors import UsageError
from shepherd.federation import site_privacy
from shepherd.federation.cards import read_card, read_site
from shepherd.federation.messages import Measure, Train, pack, read
from shepherd.federation.policy import judge
from shepherd.federation.privacy_card import TRUST
from shepherd.federation.site_privacy import LEDGER, most_trainings
from shepherd.store.lines import line_of
from shepherd.types import ClientFailure, ExamplePrivacy, TransformSpec
from shepherd.updates.layout import WireError
from shepherd.updates.privacy.accountant import Rounds, epsilons
from shepherd.updates.privacy.example_account import ExampleAccounts, ExampleRelease
from shepherd.updates.privacy.ledger import Ledger, releases_in
from shepherd.updates.task_wire import pack_task

CLIENT = {"unit": "client", "clip": 0.5, "noise_multiplier": 2.0, "delta": 1e-3, "sites": 10, "sampling_rate": 0.5,
          "drawn_by": "coordinator", "trust": TRUST["client"]}  # fmt: skip
EXAMPLE = {"unit": "example", "clip": 0.5, "noise_multiplier": 3.0, "delta": 0.05, "drawn_by": "site",
           "trust": TRUST["example"]}  # fmt: skip
DP = {"require": ("dp",), "epsilon_max": 8.0, "delta_max": 0.1}
CLIP = TransformSpec("clip", {"norm": 0.5})
DP_SGD = ExamplePrivacy(0.5, 3.0)
UNIFORM = {"rounds": 4, "method": "fedit", "weights": "uniform"}


def private(table, federation=UNIFORM, **changes):
    """A card with this table `privacy`, with `changes` in it."""
    return read_card(card_of(federation=federation, privacy={**table, **changes}).to_json())


def verdict(card, **policy):
    return judge(card, a_site(**policy).policy, OWN)


# Cards


def test_a_card_without_privacy_has_no_such_key_and_one_with_it_says_in_words_who_is_trusted():
    assert b"privacy" not in card_of().to_json()
    assert read_card(private(CLIENT).to_json()) == private(CLIENT)
    assert "coordinator is trusted" in private(CLIENT).privacy.trust
    for wrong in ({"trust": TRUST["example"]}, {"drawn_by": "site"}, {"sites": 0}, {"unit": "example"},
                  {"mechanism": "none"}, {"clip": 0.0}, {"sampling_rate": 1.5}, {"delta": 1.0}):  # fmt: skip
        data = card_of().to_json()[:-1] + b', "privacy": ' + line_of({**CLIENT, **wrong}).strip() + b"}"
        with pytest.raises(WireError, match="privacy"):
            read_card(data)


@pytest.mark.parametrize(
    ("expected", "changes", "policy"),
    [
        ("admitted", {}, DP),
        ("admitted", {}, {}),
        ("epsilon", {}, DP | {"epsilon_max": 1.5}),
        ("epsilon", {}, {"epsilon_max": 1.5}),
        ("epsilon", {}, DP | {"delta_max": 1e-4}),
        ("epsilon", {"noise_multiplier": 0.005}, DP | {"epsilon_max": 1e9}),
        ("epsilon", {"sampling_rate": 1.0}, DP | {"epsilon_max": 2.7}),
        ("privacy", {"noise_multiplier": 0.0}, {}),
        ("privacy", {"noise": "repeatable"}, DP),
        ("admitted", {"noise": "repeatable"}, {}),
        ("admitted", {"epsilon": 0.01}, DP),
        ("cohort", {}, {"least_cohort": 6}),
        ("admitted", {}, {"least_cohort": 5}),
    ],
)
def test_epsilon_of_a_card_is_the_sites_own_and_not_what_the_card_claims(expected, changes, policy):
    assert verdict(private(CLIENT, **changes), **policy) == expected


def test_the_promised_epsilon_is_that_of_the_cards_q_z_and_rounds():
    spent = epsilons([Rounds(0.5, 2.0, 4)], 1e-3).least
    assert verdict(private(CLIENT), **DP | {"epsilon_max": spent}) == "admitted"
    assert verdict(private(CLIENT), **DP | {"epsilon_max": spent * 0.999}) == "epsilon"
    assert verdict(private(CLIENT, UNIFORM | {"rounds": 5}), **DP | {"epsilon_max": spent}) == "epsilon"


@pytest.mark.parametrize(
    "federation",
    [{"method": "fedmomentum"}, {"method": "hetlora"}, {"weights": "examples"}, {"min_updates": 2},
     {"clip_update_norm": 1.0}],
)  # fmt: skip
def test_a_card_whose_settings_void_its_guarantee_promises_none(federation):
    card = card_of(federation=UNIFORM | federation, privacy=CLIENT, method={})
    assert verdict(card) == "privacy"


def test_a_site_that_requires_privacy_takes_no_word_for_it(monkeypatch, tmp_path):
    assert verdict(card_of(offers=("dp",)), **DP) == "require"
    monkeypatch.setattr(site_privacy, "find_spec", lambda name: None)
    assert verdict(private(CLIENT), **DP) == "accountant", "without the extra dp it believes none"
    assert verdict(private(CLIENT)) == "admitted"
    text = '[site]\nname = "a"\n[data]\nsource = "x"\n[model]\nbase = "y"\n[policy]\nrequire = ["dp"]\n'
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(UsageError, match=r'"dp" needs policy.epsilon_max and policy.delta_max'):
        read_site(tmp_path / "site.toml")


# Unit client: tasks


def trained(card, task, site=None, attempt=2, **policy):
    site = site or a_site(**policy)
    assert asked(site, offer(card)).verdict == "admitted"
    return asked(site, pack(Train("demo", task.round, attempt, "a", 0, 1, pack_task(task))))


def clip_task(number=1, **options):
    return replace(task_of(number, 1, {"a": 0}), transforms=(TransformSpec("clip", {"norm": 0.5, **options}),))


@pytest.mark.parametrize(
    "task",
    [replace(clip_task(), transforms=()), clip_task(norm=0.6), clip_task(norm=0.4), clip_task(norm=1e300),
     clip_task(report=True), replace(clip_task(), transforms=(CLIP, CLIP))],
)  # fmt: skip
def test_a_task_that_does_not_clip_as_the_card_says_is_refused(task):
    assert trained(private(CLIENT), task).detail == "transform"
    assert trained(private(CLIENT), clip_task()).code == ""


@pytest.mark.parametrize("unit", [CLIENT, EXAMPLE], ids=["client", "example"])
def test_more_rounds_than_the_card_has_are_refused(unit):
    task = replace(
        clip_task(5), transforms=(CLIP,) if unit is CLIENT else (), privacy=None if unit is CLIENT else DP_SGD
    )
    assert trained(private(unit), task).detail == "rounds"


def test_an_adaptive_clip_moves_no_further_than_its_rule_can_move_it():
    card = private(CLIENT, adaptive_clip=True)
    near, far = 0.5 * 2.71 ** (0.2 * 1.4), 0.5 * 2.72 ** (0.2 * 1.45)
    assert trained(card, clip_task(1, norm=near, report=True)).detail == "transform", "the first is the card's"
    assert trained(card, clip_task(2, norm=near, report=True)).detail == ""
    assert trained(card, clip_task(2, norm=far, report=True)).detail == "transform"
    assert trained(card, clip_task(3, norm=far, report=True)).detail == ""


class Unclipped(Clinic):
    """A trainer that forgets to clip."""

    def train(self, task, private, observe):
        reply = super().train(task, private, observe)
        return replace(reply, delta={name: 100 + array for name, array in reply.delta.items()})


def test_the_site_clips_its_update_itself():
    answer = trained(private(CLIENT), clip_task(), a_site(Unclipped("a")))

    tensors = list(load(answer.update).values())
    assert 0.49 < sum(float((array.astype("f8") ** 2).sum()) for array in tensors) ** 0.5 <= 0.5


def test_the_number_of_sites_in_a_round_is_a_secret_and_no_reason_against_a_task():
    assert trained(private(CLIENT), clip_task(), least_cohort=5).code == ""


def test_a_site_is_sampled_no_more_often_than_q_and_the_rounds_explain():
    rare = private(CLIENT, UNIFORM | {"rounds": 100}, sampling_rate=0.02, sites=100)
    most = most_trainings(rare, 300)
    assert 10 < most < 25 and most_trainings(card_of(), 300) == 300 and most_trainings(rare, 5) == 5
    assert most_trainings(private(CLIENT, sampling_rate=1.0), 300) == 4 + 3, "a release a round, and some repeats"
    site = a_site()
    answers = [trained(rare, clip_task(number), site, 1 + number).detail for number in range(1, most + 2)]
    assert answers == [""] * most + ["trainings"]


@pytest.mark.parametrize("unit", [CLIENT, EXAMPLE], ids=["client", "example"])
def test_a_site_measures_nothing_in_a_private_run(unit):
    site = a_site()
    assert asked(site, offer(private(unit))).verdict == "admitted"
    for rows_of in ("held-out", "training"):
        answer = asked(site, pack(Measure("demo", 0, 3, "a", rows_of, b"")))
        assert (answer.code, answer.detail, answer.groups) == ("refused", "losses", ())


# Unit example: noise and ledger of the site


class Noisy(Clinic):
    """A trainer that enters each training in the site's ledger, within a budget."""

    def __init__(self, place, epsilon=0.0, **options):
        super().__init__("a", **options)
        name = f"runs/demo/{LEDGER}"

        def open_ledger(client):
            lines = releases_in(place.read(name) or b"", ExampleRelease, name)
            return Ledger(lines, lambda line: place.write(name, (place.read(name) or b"") + line_of(line)))

        self.accounts = ExampleAccounts(0.05, epsilon, open_ledger)

    def train(self, task, private, observe):
        if self.accounts.enter(task, task.work["a"], 4) is None:
            return ClientFailure("a", task.round, "refused", "its privacy budget is spent")
        return super().train(task, private, observe)


def dp_task(number=1, first=0, **changes):
    return replace(task_of(number, 1, {"a": first}), privacy=replace(DP_SGD, **changes))


def noisy_site(epsilon=0.0, place=None, **policy):
    place = place or MemoryPlace()
    return a_site(Noisy(place, epsilon), place, **policy)


def lines_of(site):
    return [(line.round, line.attempt) for line in site_privacy.releases(site.store, "demo")]


@pytest.mark.parametrize(
    "changes", [{"noise_multiplier": 0.0}, {"noise_multiplier": 2.9}, {"clip": 5.0}, {"repeatable": True}]
)
def test_noise_and_clip_of_a_task_are_those_of_the_card(changes):
    site = noisy_site()
    assert trained(private(EXAMPLE), dp_task(**changes), site).detail == "privacy" and not lines_of(site)
    assert trained(private(EXAMPLE), replace(dp_task(), privacy=None), site).detail == "privacy"
    assert trained(card_of(), dp_task(), noisy_site()).detail == "privacy", "a card without privacy has no such task"
    assert trained(private(EXAMPLE), dp_task(), site).code == "" and lines_of(site) == [(1, 1)]


def test_epsilon_of_a_site_is_that_of_the_rows_it_holds_and_of_all_rounds():
    """Four rows, of which a step draws two: q = 1/2, and two steps in each of four rounds."""
    spent = epsilons([Rounds(0.5, 3.0, 8)], 0.05).least
    for most, expected in ((spent, "admitted"), (spent * 0.999, "epsilon")):
        site = noisy_site(**DP | {"epsilon_max": most})
        assert asked(site, offer(private(EXAMPLE))).verdict == expected
    assert asked(noisy_site(**DP | {"delta_max": 0.5}), offer(private(EXAMPLE, delta=0.3))).verdict == "epsilon", "1/n"


def test_the_same_question_has_the_same_answer_without_new_noise_and_after_a_restart_a_second_line():
    place = MemoryPlace()
    site, card = noisy_site(place=place), private(EXAMPLE)
    asked(site, offer(card))
    question = pack(Train("demo", 1, 2, "a", 0, 2, pack_task(dp_task())))
    answers = [site.handle(question), site.handle(question)]
    assert answers[0] == answers[1] and lines_of(site) == [(1, 1)]
    site = noisy_site(place=place)
    asked(site, offer(card))
    assert asked(site, question).code == "" and lines_of(site) == [(1, 1), (1, 2)]


def test_a_task_beyond_the_budget_is_refused_and_enters_no_line():
    spent = epsilons([Rounds(0.5, 3.0, 4)], 0.05).least  # two trainings
    site = noisy_site(spent)
    answers = [trained(private(EXAMPLE), dp_task(number), site, 1 + number) for number in (1, 2, 3)]
    assert [(answer.code, answer.detail) for answer in answers] == [("", ""), ("", ""), ("refused", "epsilon")]
    assert lines_of(site) == [(1, 1), (2, 1)]


def test_no_update_leaves_without_a_line_or_with_measures_and_a_ledger_that_was_cut_ends_it():
    assert trained(private(EXAMPLE), dp_task()).detail == "ledger", "the trainer entered nothing"
    place = MemoryPlace()
    site = noisy_site(place=place)
    answer = trained(private(EXAMPLE), dp_task(), site)
    assert b"loss" not in answer.update and site._loss is None
    name = f"runs/demo/{LEDGER}"
    kept = place.read(name)
    for data in (b"", kept.replace(b"{", b"[", 1)):
        place.write(name, data)
        assert trained(private(EXAMPLE), dp_task(2), site, 3).detail == "ledger"
    assert asdict(site_privacy.releases_in(kept, ExampleRelease, name)[0])["unit"] == "example"


def test_progress_by_dp_sgd_shows_steps_alone():
    site, sent = noisy_site(), []
    asked(site, offer(private(EXAMPLE)))
    site.handle(pack(Train("demo", 1, 2, "a", 0, 2, pack_task(dp_task()))), sent.append)
    (step,) = (read(data, 2**20) for data in sent)
    assert (step.step, step.loss, step.targets, step.tokens, step.seconds) == (1, None, 0, 0, 0.0)
