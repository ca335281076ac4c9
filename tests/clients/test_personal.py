"""Models of a client's own: what stays at home, what is pulled towards the global adapter, what is tuned afterwards."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from plain_client import train_plainly
from prepared import plan_of, trainer_of
from shepherd.clients.personal.methods import own_adapter, personalizations, second_adapter
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.errors import ClientError, UsageError
from shepherd.evaluation.losses import row_losses
from shepherd.experiment.personal_models import personal_models
from shepherd.experiment.rows import prepare_rows
from shepherd.experiment.schedule import prepare_schedule
from shepherd.lowrank import LowRank
from shepherd.model.adapter import load_adapter
from shepherd.model.base import load_base
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.serving.tuned import load_tuned
from shepherd.types import ClientModel, Factors, GlobalModel, Objective, ServerState, TrainTask, Work
from tiny_training import adapter_for, base_model, distance, same_bytes, some_data, targets_of

RATES = (3e-3, 2e-3, 1e-3)
MODULES = targets_of(base_model())
DATA = some_data()
ADAPTER = adapter_for(MODULES)


def one_round(views, private=None, first=0, objective=None, control=None, **settings):
    model = base_model()
    modules = targets_of(model)
    work = {client: Work(client, first, 2 * len(RATES), RATES) for client in views}
    task = TrainTask(1, views, 7, work, {}, objective or Objective(), control or {})
    local = LocalTraining(weight_decay=0.5, **settings)
    found = train(task, private or {}, TrainingHost(PackedModel(model), lambda: CohortLora(modules), local, DATA))
    return {update.client: update for update in found}


def moved(adapter, update):
    """The adapter after an update of both factors."""
    factors = {
        n: Factors(A + update.delta.get(f"{n}.A", 0), B + update.delta.get(f"{n}.B", 0))
        for n, (A, B) in adapter.factors.items()
    }
    return replace(adapter, factors=factors)


# Parts at home


def test_a_part_that_does_not_travel_is_in_force_again_in_the_clients_next_round():
    view = ClientModel(ADAPTER, sends="A")
    both = one_round({"client-0": ClientModel(ADAPTER)})["client-0"]
    home = one_round({"client-0": view})["client-0"]
    assert {name.rsplit(".", 1)[1] for name in home.delta} == {"A"}
    assert {name.split("/")[0] for name in home.private} == {"home"}
    assert same_bytes(home.delta, {n: d for n, d in both.delta.items() if n.endswith(".A")})
    after = moved(ADAPTER, both)  # the server has one client: it takes its A over and knows no B
    served = replace(ADAPTER, factors={n: Factors(after.factors[n].A, ADAPTER.factors[n].B) for n in ADAPTER.factors})
    again = one_round({"client-0": replace(view, adapter=served)}, {"client-0": home.private}, first=6)["client-0"]
    whole = one_round({"client-0": ClientModel(own_adapter(replace(view, adapter=served), home.private))}, first=6)[
        "client-0"
    ]
    assert again.metrics == whole.metrics
    assert same_bytes(again.delta, {n: d for n, d in whole.delta.items() if n.endswith(".A")})
    for name, pair in after.factors.items():
        np.testing.assert_allclose(home.private[f"home/{name}.B"], pair.B, atol=1e-7)


def test_what_does_not_travel_has_no_control_variate_and_the_client_keeps_both():
    view, objective = ClientModel(ADAPTER, sends="A"), Objective(scaffold=True)
    c = {f"{name}.A": np.full(pair.A.shape, 0.1, np.float32) for name, pair in ADAPTER.factors.items()}
    update = one_round({"client-0": view}, objective=objective, control=c)["client-0"]
    assert {name.split(".", 1)[0].split("/")[0] for name in update.private} == {"control", "home"}
    assert all(name.endswith((".A", ".A.control")) for name in update.delta)
    assert not any(name.startswith("control/") and name.endswith(".B") for name in update.private)


def test_a_part_at_home_of_another_rank_is_refused_with_the_module():
    home = {f"home/{name}.B": pair.B[:, :2] for name, pair in ADAPTER.factors.items()}
    with pytest.raises(ClientError, match=r"the client keeps .*\.B\[24, 2\], its view has \[24, 4\]"):
        one_round({"client-0": ClientModel(ADAPTER, sends="A")}, {"client-0": home})


def test_a_view_that_moves_only_what_travels_keeps_nothing():
    for view in (
        ClientModel(ADAPTER),
        ClientModel(ADAPTER, trains=("B",), sends="B"),
        ClientModel(ADAPTER, trains=("B", "A")),
    ):
        assert one_round({"client-0": view})["client-0"].private == {}


def test_what_a_round_does_not_touch_a_client_keeps_from_the_round_before():
    views = {part: ClientModel(ADAPTER, trains=(part,), sends=part) for part in "BA"}  # RoLoRA's rounds
    objective = Objective(scaffold=True)
    first = one_round({"client-0": views["B"]}, objective=objective)["client-0"].private
    second = one_round({"client-0": views["A"]}, {"client-0": first}, objective=objective)["client-0"].private
    assert {name.rsplit(".", 1)[1] for name in first} == {"B"}
    assert {name.rsplit(".", 1)[1] for name in second} == {"A", "B"}
    assert all(second[name].tobytes() == array.tobytes() and array.any() for name, array in first.items())


# Ditto


def ditto(**options):
    return personalizations.build("ditto", options)


@pytest.mark.parametrize("form", ["factors", "product"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_the_second_adapter_is_pulled_towards_the_global_one_by_autograds_gradient(form, optimizer, ratio):
    own = {n: Factors(A * 1.5, B * -0.5) for n, (A, B) in ADAPTER.factors.items()}
    private = {"client-0": {f"personal/{n}.{p}": getattr(pair, p) for n, pair in own.items() for p in "AB"}}
    personal = ditto(strength=2.0, form=form)
    update = one_round(
        {"client-0": ClientModel(ADAPTER)}, private, personal=personal, optimizer=optimizer,
        objective=Objective(rate_ratio=ratio),
    )["client-0"]  # fmt: skip
    model = base_model()
    start = ClientModel(replace(ADAPTER, factors=own))
    after, losses, _ = train_plainly(
        model, targets_of(model), start, DATA["client-0"], "client-0", RATES,
        optimizer=optimizer, objective=replace(personal.pull, rate_ratio=ratio), anchor=ADAPTER,
    )  # fmt: skip
    expected = {name: after[name] - begin for name, begin in start.tensors().items()}
    got = {name: update.private[f"personal/{name}"] - begin for name, begin in start.tensors().items()}
    assert distance(got, expected) < 1e-5
    assert update.metrics["personal_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_global_update_does_not_notice_a_second_adapter():
    views = dict.fromkeys(DATA, ClientModel(ADAPTER))
    plain, beside = one_round(views), one_round(views, personal=ditto(), clients_at_once=2)
    for client in DATA:
        assert same_bytes(plain[client].delta, beside[client].delta)
        assert {name.split("/")[0] for name in beside[client].private} == {"personal"}


def test_without_a_pull_the_second_adapter_is_the_client_alone_over_the_rounds():
    view = ClientModel(ADAPTER)
    first = one_round({"client-0": view}, personal=ditto(strength=0.0))["client-0"]
    other = replace(
        view, adapter=replace(ADAPTER, factors={n: Factors(A * 0, B) for n, (A, B) in ADAPTER.factors.items()})
    )
    second = one_round({"client-0": other}, {"client-0": first.private}, first=6, personal=ditto(strength=0.0))[
        "client-0"
    ]
    alone = one_round({"client-0": ClientModel(second_adapter(view, first.private))}, first=6)["client-0"]
    expected = moved(second_adapter(view, first.private), alone)
    for name, pair in second_adapter(view, second.private).factors.items():
        np.testing.assert_allclose(pair.A, expected.factors[name].A, atol=1e-7)
        np.testing.assert_allclose(pair.B, expected.factors[name].B, atol=1e-7)


def test_a_strong_pull_keeps_the_second_adapter_near_the_global_one():
    ways = {}
    for strength in (0.0, 200.0):
        options = dict(optimizer="sgd", max_grad_norm=0.0, personal=ditto(strength=strength))
        update = one_round({"client-0": ClientModel(ADAPTER)}, **options)["client-0"]
        own = second_adapter(ClientModel(ADAPTER), update.private)
        ways[strength] = sum(np.abs(pair.B - ADAPTER.factors[n].B).sum() for n, pair in own.factors.items())
    assert ways[200.0] < 0.8 * ways[0.0]


def test_a_second_adapter_whose_loss_is_not_finite_costs_its_client_the_round_and_nobody_else():
    broken = {f"personal/{n}.{p}": getattr(pair, p) * np.nan for n, pair in ADAPTER.factors.items() for p in "AB"}
    found = one_round(dict.fromkeys(DATA, ClientModel(ADAPTER)), {"client-1": broken}, personal=ditto())
    assert (found["client-1"].code, found["client-1"].detail) == (
        "diverged", "of its second adapter the loss became nan in local step 1",
    )  # fmt: skip
    healthy = one_round(dict.fromkeys(DATA, ClientModel(ADAPTER)), personal=ditto())
    for client in ("client-0", "client-2"):
        assert same_bytes(found[client].private, healthy[client].private)


# Whole runs


SMALL = (
    "federation.rounds=2",
    "evaluation.generate=0",
    "training.local_steps=2",
    "evaluation.arms=base,federated,local",
)


@pytest.mark.parametrize(
    "settings",
    [
        ("federation.method=fedsa_lora",),
        ("federation.method=fedper_lora",),
        (
            "federation.method=hetlora", "lora.ranks=[1,2]", 'method.home={name="modules",names=["layers.1","v_proj"]}',
            "personalization.name=finetune", "personalization.steps=4",
        ),
        ("personalization.name=ditto", "personalization.strength=0.5"),
        ("personalization.name=finetune", "personalization.steps=4"),
        ("personalization.name=finetune", "personalization.steps=4", "federation.method=fedex_lora"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_run_measures_each_clients_own_model_on_its_own_rows_and_leaves_it_on_disk(settings, run_small):
    run = run_small(*SMALL, *settings)
    metrics = json.loads((run.path / "evaluation" / "metrics.json").read_text())
    own = metrics["personal"]
    assert sorted(own) == next(event["clients"] for event in run.events if event["event"] == "start")
    for client, losses in own.items():
        assert losses["base"] == pytest.approx(metrics["arms"]["base"]["per_client"][client]["loss"])
        assert losses["global"] == pytest.approx(metrics["arms"]["federated"]["per_client"][client]["loss"])
        assert losses["local"] == pytest.approx(metrics["arms"]["local"][client]["per_client"][client]["loss"])
    mean = {model: np.mean([losses[model] for losses in own.values()]) for model in ("base", "global", "personal")}
    assert mean["personal"] < mean["base"]
    if "federation.method=fedsa_lora" in settings:
        assert mean["global"] == mean["base"]
    if "personalization.name=finetune" in settings:
        assert mean["personal"] < mean["global"]
    if "personalization.name=ditto" in settings:
        assert all(losses["personal"] not in (losses["global"], losses["local"]) for losses in own.values())
    assert "Personal models" in (run.path / "report.html").read_text(encoding="utf-8")
    tuned = load_tuned(run.path)
    client, losses = next(iter(own.items()))
    lora = CohortLora(tuned.lora.modules).hold([load_adapter(run.path / "personal" / client)])
    rows = held_out_rows(run.config, tuned, client)
    (again,) = row_losses(PackedModel(tuned.base.model), rows, lora)
    assert again.stat.mean == pytest.approx(losses["personal"], rel=1e-4)


def test_tuning_afterwards_begins_from_adapter_and_remainder_together(small_config):
    config = small_config("personalization.name=finetune", "training.optimizer=sgd", "training.learning_rate=0.1")
    base = load_base(config.model.base, device="cpu", dtype="float32")
    rows, _ = prepare_rows(config, base.tokenizer)
    learner, plan = trainer_of(config, base), plan_of(config, rows)
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(0, 0.1, shape).astype(np.float32)  # noqa: E731
    remainder = {n: LowRank(draw(len(B), 2), draw(2, A.shape[1])) for n, (A, B) in learner.adapter.factors.items()}
    beside = ServerState(1, GlobalModel(learner.adapter, remainder))
    found, failures = personal_models(learner, plan, rows, beside, prepare_schedule(config))
    assert sorted(found) == sorted(rows.clients) and not failures
    assert all(model.remainder is remainder for model in found.values())
    for name, term in remainder.items():
        base.model.get_submodule(name).weight.data += torch.from_numpy(term.dense())
    inside, _ = personal_models(
        learner, plan, rows, ServerState(1, GlobalModel(learner.adapter)), prepare_schedule(config)
    )
    for client, model in found.items():
        ours, theirs = (
            {n: pair.B for n, pair in m.adapter.factors.items()} for m in (model, inside[client])
        )  # fmt: skip
        assert distance(ours, theirs) < 1e-3


@pytest.mark.parametrize(
    ("key", "values"), [("personalization.learning_rate", (0.05, 0.2)), ("objective.rate_ratio", (1, 4))]
)
def test_tuning_afterwards_goes_at_the_rate_that_personalization_sets_and_the_ratio_of_the_run(
    key, values, small_config
):
    # One step of SGD from B = 0 moves B in proportion to its rate: here four times as far, whatever training goes at.
    usual = ("personalization.name=finetune", "personalization.steps=1", "training.optimizer=sgd",
             "training.learning_rate=0.1", "training.max_grad_norm=0")  # fmt: skip
    base, moved = None, []
    for value in values:
        config = small_config(*usual, f"{key}={value}")
        base = base or load_base(config.model.base, device="cpu", dtype="float32")
        rows, _ = prepare_rows(config, base.tokenizer)
        learner, plan = trainer_of(config, base), plan_of(config, rows)
        found, _ = personal_models(
            learner, plan, rows, ServerState(1, GlobalModel(learner.adapter)), prepare_schedule(config)
        )
        moved.append({(c, n): pair.B for c, m in found.items() for n, pair in m.adapter.factors.items()})
    assert distance({k: 4 * B for k, B in moved[0].items()}, moved[1]) < 1e-5


def held_out_rows(config, tuned, client):
    rows, _ = prepare_rows(config, tuned.base.tokenizer)
    return [rows.held_out[i] for i in rows.held_out_of(client)]


def test_state_and_personal_models_of_a_run_are_the_same_bytes_with_fewer_clients_at_once(run_small):
    found = []
    for at_once in (0, 3):
        run = run_small(*SMALL[:3], "evaluation.arms=base,federated", "personalization.name=ditto",
                        "objective.scaffold=true", "training.tokens_per_pass=250",
                        f"training.clients_at_once={at_once}")  # fmt: skip
        files = sorted([*(run.path / "checkpoints" / "round-0002").iterdir(), *(run.path / "personal").rglob("*")])
        names = ("state.safetensors", "adapter_model.safetensors")
        found.append([(f.relative_to(run.path), f.read_bytes()) for f in files if f.name in names])
    assert len(found[0]) > 2 and found[0] == found[1]


def test_a_run_without_personal_models_has_no_such_entry(tiny_run):
    assert "personal" not in json.loads((tiny_run.path / "evaluation" / "metrics.json").read_text())
    assert not (tiny_run.path / "personal").exists()


# Mistakes


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("dito", {}, "Did you mean 'ditto'"),
        ("ditto", {"strength": -1.0}, "strength must be at least 0"),
        ("ditto", {"lambda": 1.0}, "no option 'lambda'"),
        ("ditto", {"form": "gram"}, "'factors' or 'product'"),
        ("finetune", {"steps": 0}, "steps must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_what_would(name, options, words):
    with pytest.raises(UsageError, match=words):
        personalizations.build(name, options)


@pytest.mark.parametrize("method", ["flora", "fedex_lora", "fed_sb", "fedsa_lora", "fedper_lora", "frlora"])
def test_ditto_beside_a_method_that_leaves_nothing_to_be_pulled_to_is_refused_before_anything_is_loaded(
    method, small_config, tmp_path
):
    from shepherd.experiment.run import run

    config = small_config("personalization.name=ditto", f"federation.method={method}", "model.base=/nowhere")
    with pytest.raises(UsageError, match=f'"ditto" and federation.method = "{method}" do not fit'):
        run(config, out_dir=tmp_path)
