"""Refusals of `[privacy]`: what would void the guarantee is a sentence before anything loads."""

from __future__ import annotations

import pytest

from console import Shell
from planted import notice, texts_that_are_not_there_once
from shepherd.config import Config, PrivacyTable
from shepherd.errors import UsageError
from shepherd.experiment import privacy_conflicts
from shepherd.experiment.method import check_clients, compose
from shepherd.federation.privacy_card import PrivacyCard
from shepherd.recipe import merge, resolve, to_toml
from shepherd.server.composition import from_outside
from shepherd.server.methods import build_method, methods
from shepherd.server.optimizer import Optimizer, optimizers
from shepherd.server.pieces.merge import Merge, merges
from shepherd.server.pieces.payload import Payload, payloads
from shepherd.server.pieces.view import ViewRule, views
from shepherd.server.pieces.weighing import Weighing, weighings
from shepherd.updates.privacy.adaptive_clip import LEAST_CLIP, MOST_CLIP

PRIVATE = {
    "privacy": {"unit": "client", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-3},
    "federation": {"weights": "uniform", "on_too_few": "skip", "quarantine_after": 0, "method": "ffa_lora"},
    "selection": {"name": "poisson"},
    "evaluation": {"arms": ["base", "federated"]},
}
"""The tables of a private recipe."""


def private(**tables) -> Config:
    """The private recipe with other settings."""
    return resolve(merge([("private", PRIVATE), ("test", tables)])[0])


def refused(clients: int = 0, **tables) -> str:
    """The sentence with which the private recipe is refused for these settings."""
    with pytest.raises(UsageError) as error:
        checked(clients, private(**tables))
    return str(error.value.message)


def checked(clients: int, config: Config) -> None:
    """Compose a recipe and, with a number of clients, check it for them."""
    composition = compose(config)
    if clients:
        check_clients(config, composition, tuple(f"c{i:03}" for i in range(clients)), {})


def test_a_private_recipe_with_nothing_to_refuse_is_composed():
    checked(100, private(federation={"clients_per_round": 20}))


SUM = 'its merge needs every client\'s own factors, and a sum with noise is all that may leave; use "ffa_lora" or'


@pytest.mark.parametrize("method", ["fedmomentum", "fedex_lora", "flora", "florist", "flexlora", "lora_fair"])
def test_a_method_that_merges_products_is_refused(method):
    assert refused(federation={"method": method}).startswith(
        f'privacy.unit = "client" and federation.method = "{method}" do not fit: {SUM} "fed_sb"'
    )


@pytest.mark.parametrize(
    "tables, why, instead",
    [
        ({"federation": {"method": "hetlora"}}, "a client's weight is computed from its update", 'use "fedit"'),
        ({"federation": {"method": "fedrot_lora"}}, "rotation of a client's factors is computed", 'use "fedit"'),
        ({"lora": {"r": 8, "ranks": [4, 8]}, "federation": {"method": "fedilora"}},
         "a slot that few clients own is divided by few", "give all one rank"),
        ({"federation": {"weights": "examples"}}, "a client's size would change its bound", 'set federation.weights = "'
         'uniform"'),
        ({"federation": {"on_too_few": "stop"}}, "one client's failure would change", 'federation.on_too_few = "skip"'),
        ({"federation": {"on_too_few": "wait"}}, "one client's failure would change", 'federation.on_too_few = "skip"'),
        ({"federation": {"over_select": 0.5}}, "one client's failure would change", "leave federation.over_select at"),
        ({"federation": {"quarantine_after": 3}}, "one client's failure would change", "set federation.quarantine_afte"
         "r = 0"),
        ({"federation": {"min_updates": 2}}, "one client's failure would change", "set federation.min_updates = 1"),
        ({"federation": {"deadline": 9.0}}, "who is late depends on the rows", "leave federation.deadline at 0"),
        ({"federation": {"max_update_norm": 0.5}}, "longer updates would be rejected, and count as zero, before privacy"
         ".clip = 1", "set federation.max_update_norm above privacy.clip"),
        ({"run": {"workers": 2}}, "one client that ends or stalls a process would", "set run.workers = 0"),
        ({"federation": {"clip_update_norm": 1.0}}, "the noise is a multiple of privacy.clip", "clip_update_norm out"),
        ({"federation": {"method": "fedit", "aggregator": "trimmed_mean"}}, "its rule takes each client's own update",
         "leave federation.aggregator out"),
        ({"objective": {"scaffold": True}, "federation": {"method": "fedit"}, "training": {"optimizer": "sgd",
          "betas": [0.9, 0.999]}}, "it carries what a client learned past the noise", "set objective.scaffold = false"),
        ({"server": {"optimizer": "fednova"}}, "it carries what a client learned past the noise", 'use server.optimi'),
        ({"personalization": {"name": "ifca"}, "federation": {"method": "fedit"}},
         "it carries what a client learned past the noise", 'set personalization.name = "none"'),
    ],
)  # fmt: skip
def test_a_setting_that_voids_the_guarantee_is_refused(tables, why, instead):
    said = refused(**tables)
    assert 'privacy.unit = "client" and ' in said and why in said and instead in said


@pytest.mark.parametrize(
    "selection",
    [
        {"name": "uniform"},
        {"name": "size_weighted"},
        {"name": "everyone"},
        {"name": "oort"},
        {"name": "power_of_choice"},
    ],
)
def test_a_draw_that_is_not_of_each_client_independently_is_refused(selection):
    assert refused(selection=selection).endswith(
        f'selection.name = "{selection["name"]}" do not fit: epsilon is computed for a draw of each client '
        'independently of the others; use "poisson"'
    )


def test_arms_without_noise_are_refused_unless_nothing_is_published():
    arms = {"arms": ["base", "federated", "local", "centralised"]}
    said = refused(evaluation=arms)
    assert 'the arms "local", "centralised" do not fit: their adapters are trained without noise' in said
    compose(private(privacy={"publish_nothing": True}, evaluation=arms))


def test_personal_models_are_no_reason_to_refuse_as_the_run_withholds_them():
    compose(private(federation={"method": "fedit"}, personalization={"name": "ditto"}))
    compose(private(federation={"method": "fedsa_lora"}))


def test_adaptive_clipping_needs_clients_to_count():
    adaptive = {"privacy": {"adaptive_clip": True}, "federation": {"clients_per_round": 5}}
    said = refused(100, **adaptive)
    assert said.startswith("privacy.adaptive_clip with 5 clients a round: counting who was clipped would need more")
    assert "than z = 1 leaves" in said
    adaptive["federation"]["clients_per_round"] = 11
    checked(100, private(**adaptive))


@pytest.mark.parametrize("more", [{}, {"adaptive_clip": True}])
def test_a_rate_at_which_hardly_a_client_takes_part_is_refused(more):
    said = refused(100, selection={"q": 1e-300}, privacy=more)
    assert said.startswith("selection.q = 1e-300 of 100 clients samples 1e-298 clients in a round: below 0.01 nothing")


def test_the_least_and_the_largest_clip_are_those_of_cards_and_of_adaptive_clipping():
    def ends(table, least):
        bounds = {type(bound).__name__: bound for bound in table.model_fields["clip"].metadata}
        return least or bounds["Ge"].ge, bounds["Le"].le

    assert ends(PrivacyCard, 0) == ends(PrivacyTable, LEAST_CLIP) == (LEAST_CLIP, MOST_CLIP)
    compose(private(privacy={"clip": LEAST_CLIP}))


def test_delta_is_at_most_one_by_the_number_of_clients():
    said = refused(100, privacy={"delta": 0.02})
    assert said == "privacy.delta = 0.02 for 100 clients: at most 1/N, better 1/(10N); set 0.001"


@pytest.mark.parametrize(
    "table, said",
    [
        ({"unit": "none"}, 'would have no effect: set privacy.unit = "client"'),
        ({"clip": 0.0}, "privacy.clip is missing"),
        ({"delta": 0.0}, "privacy.delta is missing: at most 1/N for N clients"),
        ({"noise_multiplier": "from_epsilon"}, "neither privacy.noise_multiplier nor privacy.epsilon is given"),
        ({"epsilon": 4.0}, "privacy.noise_multiplier and privacy.epsilon are both given: leave one out"),
        ({"delta": 1.0}, "privacy.delta: must be less than 1"),
        (
            {"clip": 1e-39},
            "privacy.clip = 1e-39 is below 1e-9: what a model shows of such an update",
        ),
        ({"clip": 1e13}, "privacy.clip: must be at most 1000000000000.0"),
        ({"noise_multiplier": 1e7}, "privacy.noise_multiplier: must be"),
    ],
)
def test_a_table_that_is_no_mechanism_is_refused(table, said):
    assert said in refused(privacy=table)


@pytest.mark.parametrize("module", ["cryptography", "dp_accounting"])
def test_a_missing_package_is_named_with_its_install_line(module, monkeypatch):
    monkeypatch.setattr(privacy_conflicts, "find_spec", lambda name: None if name == module else name)
    with pytest.raises(UsageError) as error:
        compose(private())
    assert module.replace("_", "-") in error.value.message and "[dp]" in error.value.hint


def test_check_refuses_with_status_2_before_the_data_are_read(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = [f"--set=privacy.{key}={value}" for key, value in PRIVATE["privacy"].items()]
    done = Shell(capsys, monkeypatch)("check", "demo", "--data", "absent.jsonl", *settings)
    assert done.status == 2 and 'selection.name = "uniform" do not fit' in done.err
    assert "absent.jsonl" not in done.err


def test_the_command_refuses_a_private_recipe_in_the_words_of_privacy_and_of_no_other_rule(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private.toml").write_text(to_toml(private()))
    shell = Shell(capsys, monkeypatch)
    for setting, instead in {
        "federation.method=hetlora": 'use "fedit"',
        "selection.name=size_weighted": 'use "poisson"',
        "selection.name=power_of_choice": 'use "poisson"',
        "federation.on_too_few=wait": 'set federation.on_too_few = "skip"',
        "federation.over_select=0.5": "leave federation.over_select at 0",
    }.items():
        done = shell("check", "private.toml", "--set", setting)
        assert done.status == 2 and done.err.startswith('error: privacy.unit = "client" and '), done.err
        assert instead in done.err and "federation.weights" not in done.err and done.err.count("do not fit") == 1


# Plug-ins


@pytest.fixture
def plugged_in(monkeypatch):
    """Pieces of a user's module, which state of themselves that they fit: each reads single updates."""
    for registry in (weighings, merges, payloads, views, optimizers):
        monkeypatch.setattr(registry, "_factories", dict(registry._factories))

    @weighings
    def by_size() -> Weighing:
        """Weights by the size of the updates."""
        return Weighing(lambda uploads, weights: lambda module: weights[:, None])

    @merges
    def largest() -> Merge:
        """The largest update."""
        return Merge(lambda uploads, module, shares, server: None, space="factors", linear=True)

    @payloads
    def louder() -> Payload:
        """Twice the update."""
        return Payload(lambda local, start, number: local)

    @views
    def closer() -> ViewRule:
        """Another scale for each client."""
        return ViewRule(lambda model, client, rank, number, seed: None)

    @optimizers
    def by_hand() -> Optimizer:
        """Coefficients of its own."""
        return Optimizer(coefficients=lambda shares, steps: shares / shares.sum())


@pytest.mark.parametrize(
    "table, named",
    [
        ({"method": {"weigh": "by_size"}}, 'method.weigh = "by_size"'),
        ({"method": {"merge": "largest"}}, 'method.merge = "largest"'),
        ({"method": {"payload": "louder"}}, 'method.payload = "louder"'),
        ({"method": {"view": "closer"}}, 'method.view = "closer"'),
        ({"server": {"optimizer": "by_hand"}}, 'server.optimizer = "by_hand"'),
    ],
)
def test_a_plug_in_that_sees_single_updates_is_refused_whatever_it_states_of_itself(plugged_in, table, named):
    said = refused(**table)
    assert f'privacy.unit = "client" and {named} do not fit: a plug-in sees single updates' in said
    checked(100, private(privacy={"unit": "example"}, **table))


def test_no_method_and_no_server_optimizer_of_this_package_is_taken_for_a_plug_in():
    options = {"torch": {"name": "SGD"}}
    for method in (build_method(name) for name in methods):
        for name in optimizers:
            assert not list(from_outside(method.pieces, optimizers.build(name, options.get(name, {}))))


# Faults


def refusal(table: str, **settings):
    """The law that the private recipe is refused with these settings."""
    return lambda: refused(**{table: settings})


FAULTS = [
    (privacy_conflicts, 'if federation.weights != "uniform":', "if False:", refusal("federation", weights="examples")),
    (privacy_conflicts, 'if pieces.payload.name != "plain":', "if False:", refusal("federation", method="fedrot_lora")),
    (privacy_conflicts, "if pieces.weigh.own:", "if False:", refusal("federation", method="hetlora")),
    (privacy_conflicts, "elif not pieces.merge.linear:", "elif False:", refusal("federation", method="flora")),
    (privacy_conflicts, 'if config.selection.name != "poisson":', "if False:", refusal("selection", name="everyone")),
    (privacy_conflicts, "if federation.quarantine_after:", "if False:", refusal("federation", quarantine_after=3)),
]


def test_every_planted_fault_of_the_refusals_matches_the_source_exactly_once():
    assert texts_that_are_not_there_once(FAULTS) == {}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[1])
def test_without_its_line_a_setting_that_voids_the_guarantee_passes(fault, monkeypatch, tmp_path):
    notice(fault, monkeypatch, tmp_path, {})
