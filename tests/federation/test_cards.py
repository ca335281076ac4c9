"""The run card and site.toml: what is agreed on and what is a machine's own, read strictly."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path

import pytest

from federation_schedules import CARD, card_of
from shepherd.config import Config
from shepherd.errors import UsageError
from shepherd.federation import cards
from shepherd.federation.cards import Policy, RunCard, SiteFile, read_card, read_site
from shepherd.federation.messages import KINDS
from shepherd.federation.policy import Own, builtin, judge
from shepherd.federation.window import check_window, is_open
from shepherd.server.methods import methods
from shepherd.updates.layout import WireError

SITE = """[site]
name = "hospital-a"
threads = 2
[data]
source = "/rows/a.jsonl"
columns = {instruction = "question"}
[model]
base = "/models/base"
[policy]
approve = "policy"
methods = ["fedit", "ffa_lora"]
window = "Mon-Fri 20:00-06:00"
"""


def test_a_card_is_the_same_bytes_there_and_back():
    assert read_card(CARD.to_json()) == CARD
    assert read_card(CARD.to_json()).digest == CARD.digest != card_of(seed=1).digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: card.pop("run"), "run is missing"),
        (lambda card: card.update(run="../x"), "run has another value"),
        (lambda card: card.update(device="cuda"), "holds a key that is not known"),
        (lambda card: card["federation"].update(rounds="3"), "federation.rounds has another value"),
        (lambda card: card["federation"].update(rounds=True), "federation.rounds has another value"),
        (lambda card: card["lora"].update(r=2.0), "lora.r has another value"),
        (lambda card: card["training"].pop("batch_size"), "training.batch_size is missing"),
        (lambda card: card.update(transforms=[{"name": "clip", "options": {}, "secret": 1}]), "transforms holds a key"),
        (lambda card: card.update(schema="shepherd-card-2"), "schema has another value"),
    ],
)
def test_a_card_with_a_mistake_is_refused_by_the_name_of_its_field(change, words):
    card = json.loads(CARD.to_json())
    change(card)
    with pytest.raises(WireError) as caught:
        read_card(json.dumps(card).encode())
    assert caught.value.code == "fields" and words in caught.value.detail
    assert "secret" not in caught.value.detail and ".." not in caught.value.detail


def test_the_settings_of_a_card_have_the_names_of_the_recipe():
    tables = Config.model_fields
    shared = {
        "lora": "lora",
        "federation": "federation",
        "objective": "objective",
        "training": "training",
        "data": "data",
    }
    for part, table in shared.items():
        ours = set(RunCard.model_fields[part].annotation.model_fields)
        assert ours <= set(tables[table].annotation.model_fields), part


def test_nothing_of_a_site_file_is_in_a_card_or_a_message():
    """Values of a machine never come from the wire: no field holds them."""
    own = {
        "source",
        "format",
        "columns",
        "device",
        "dtype",
        "threads",
        "tokens_per_pass",
        "policy",
        *Policy.model_fields,
    }
    fields = {field.name for kind in KINDS.values() for field in dataclasses.fields(kind)}
    assert not own & fields
    assert not own & (cards._NAMES - {"transforms"})


def test_a_site_file_is_read_with_its_policy(tmp_path):
    (tmp_path / "site.toml").write_text(SITE)
    site = read_site(tmp_path / "site.toml")
    assert site.site.name == "hospital-a" and site.data.columns == {"instruction": "question"}
    assert site.policy == Policy(approve="policy", methods=("fedit", "ffa_lora"), window="Mon-Fri 20:00-06:00")
    assert SiteFile.model_validate(site.model_dump()) == site
    assert Policy().approve == "ask", "without a word of the site a person approves"


def test_the_site_file_of_the_docs_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "sites.md").read_text(encoding="utf-8")
    (tmp_path / "site.toml").write_text(page.partition("```toml\n")[2].partition("```")[0])
    assert read_site(tmp_path / "site.toml").policy.least_cohort == 3


def test_every_mistake_in_a_site_file_is_reported_with_the_nearest_name(tmp_path):
    text = SITE.replace("source", "sorce").replace("threads = 2", 'threads = "two"').replace("methods", "metods")
    (tmp_path / "site.toml").write_text(text + '[polcy]\nrequire = ["dp"]\n')
    with pytest.raises(UsageError) as caught:
        read_site(tmp_path / "site.toml")
    for words in ("5 problems", "data.source: missing", "data.sorce: unknown key. Did you mean 'source'?",
                  "site.threads: ", "got 'two'", "policy.metods: unknown key. Did you mean 'methods'?",
                  "polcy: unknown key. Did you mean 'policy'?"):  # fmt: skip
        assert words in caught.value.message, words
    (tmp_path / "site.toml").write_text(SITE.replace("Mon-Fri 20:00-06:00", "at night"))
    with pytest.raises(UsageError, match=r'policy.window: write it as "Mon-Fri'):
        read_site(tmp_path / "site.toml")
    (tmp_path / "site.toml").write_text("[site\n")
    with pytest.raises(UsageError, match="is not valid TOML"):
        read_site(tmp_path / "site.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_site(tmp_path / "none.toml")


OWN = Own("b" * 64, "c" * 64, "0.1.0", frozenset({"tls1.3"}))


def changed(**fields):
    """The card with fields of its tables changed, by `table__field`."""
    card = json.loads(CARD.to_json())
    for name, value in fields.items():
        table, _, key = name.partition("__")
        card[table] = {**card[table], key: value} if key else value
    return read_card(json.dumps(card).encode())


@pytest.mark.parametrize(
    ("verdict", "card", "policy"),
    [
        ("admitted", {}, {}),
        ("version", {"version": "0.2.0"}, {}),
        ("base", {"base__digest": "e" * 64}, {}),
        ("base", {}, {"bases": ("e" * 12,)}),
        ("admitted", {}, {"bases": ("e" * 12, "b" * 12)}),
        ("tokenizer", {"tokenizer": "e" * 64}, {}),
        ("outside-code", {"federation__method": "my_lab.rules:median"}, {"methods": ("my_lab.rules:median",)}),
        ("outside-code", {"method": {"split": "os:system"}}, {}),
        ("outside-code", {"method": {"home": {"name": "modules", "deep": ["x", {"y": "os:system"}]}}}, {}),
        ("outside-code", {"personalization": {"name": "os:system", "options": {}}}, {}),
        ("outside-code", {"transforms": [{"name": "clip", "options": {"by": "os:system"}}]}, {}),
        ("method", {"federation__method": "no_such"}, {}),
        ("method", {}, {"methods": ("ffa_lora",)}),
        ("optimizer", {"server": {"optimizer": "no_such"}}, {}),
        ("personalization", {"personalization": {"name": "ditto", "options": {}}}, {"personalizations": ("none",)}),
        ("transform", {"transforms": [{"name": "no_such", "options": {}}]}, {}),
        ("rounds", {"federation__rounds": 101}, {}),
        ("steps", {"training__local_steps": 1001}, {}),
        ("rates", {"training__learning_rate": 1.5}, {}),
        ("size", {"parameters": 2**30}, {}),
        ("cohort", {"federation__min_updates": 2}, {"least_cohort": 3}),
        ("require", {}, {"require": ("tls1.3", "dp")}),
        ("require", {"offers": ["dp"]}, {"require": ("tls1.3", "dp")}),
        ("require", {}, {"require": ("tls1.3", "audited")}),
        ("admitted", {"offers": ["audited"]}, {"require": ("tls1.3", "audited")}),
    ],
)  # fmt: skip
def test_a_policy_judges_a_card_by_the_first_reason_against_it(verdict, card, policy):
    assert judge(changed(**card), Policy(**{"least_cohort": 1, **policy}), OWN) == verdict


def test_a_method_that_a_plug_in_or_a_user_registered_is_not_built_in():
    def outside_method():
        """A method of somebody else."""

    with methods.including(outside_method):
        assert "outside_method" in methods and "outside_method" not in builtin(methods)
        assert judge(changed(federation__method="outside_method"), Policy(least_cohort=1), OWN) == "method"


@pytest.mark.parametrize(
    ("window", "when", "open_"),
    [
        ("", "2026-11-29 12:00", True),
        ("20:00-06:00", "2026-11-29 05:59", True),
        ("20:00-06:00", "2026-11-29 06:00", False),
        ("08:00-12:00", "2026-11-29 08:00", True),
        ("08:00-12:00", "2026-11-29 12:00", False),
        ("Sat-Mon 00:00-24:00", "2026-11-29 23:59", True),  # a Sunday
        ("Sat-Mon 00:00-24:00", "2026-12-01 00:00", False),
        ("Wed 10:00-11:00; Sun 12:00-13:00", "2026-11-29 12:30", True),
        ("Fri-Fri 20:00-06:00", "2026-11-28 05:00", True),
        ("Fri 20:00-06:00", "2026-11-28 21:00", False),
    ],
)
def test_a_window_is_open_in_its_hours_and_a_night_belongs_to_the_day_on_which_it_begins(window, when, open_):
    assert check_window(window) == []
    assert is_open(window, datetime.fromisoformat(when)) is open_


@pytest.mark.parametrize("window", ["at night", "Mon-Fri", "25:00-06:00", "10:61-11:00", "Xyz 10:00-11:00", "10:00"])
def test_a_window_that_cannot_be_read_is_refused(window):
    assert len(check_window(window)) == 1
