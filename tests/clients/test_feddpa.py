"""FedDPA: a global adapter that travels and a local one that never does, mixed by how much an input is the client's."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from plain_client import low_rank, train_plainly
from prepared import plan_of, trainer_of
from shepherd.clients.cohort import Cohort
from shepherd.clients.personal.feddpa import beside_shared, initial_local
from shepherd.clients.personal.joined import joined
from shepherd.clients.personal.methods import personalizations
from shepherd.clients.personal.mixture import Mixture, hidden_states, load_mixture, prompt_of, save_mixture
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.errors import ModelError, UsageError
from shepherd.evaluation.losses import row_losses, row_losses_each
from shepherd.experiment import run as experiment
from shepherd.experiment.personal_models import mixtures, personal_models
from shepherd.experiment.rows import prepare_rows
from shepherd.experiment.schedule import prepare_schedule
from shepherd.model.adapter import load_adapter
from shepherd.model.base import load_base
from shepherd.model.forward import PackedModel
from shepherd.model.generate import generate
from shepherd.model.lora import CohortLora
from shepherd.serving.tuned import load_tuned
from shepherd.types import Adapter, ClientModel, Factors, GlobalModel, ServerState, TrainTask, Work
from tiny_training import ALPHA, adapter_for, base_model, distance, same_bytes, some_data, targets_of

RATES = (3e-3, 2e-3, 1e-3)
DATA = some_data()
SHARED = adapter_for(targets_of(base_model()))


def another(like: Adapter, r: int, alpha: float, seed: int = 21, rslora: bool = False) -> Adapter:
    draw = np.random.default_rng(seed)
    factors = {
        name: Factors(
            draw.normal(0, 0.3, (r, A.shape[1])).astype(np.float32),
            draw.normal(0, 0.3, (len(B), r)).astype(np.float32),
        )
        for name, (A, B) in like.factors.items()
    }
    return Adapter(factors, r, alpha, rslora)


LOCAL = another(SHARED, 4, ALPHA)


def increment(adapter: Adapter, module: str) -> np.ndarray:
    """alpha / r · B A, or alpha / √r with rsLoRA, in float64."""
    A, B = (m.astype(np.float64) for m in adapter.factors[module])
    return adapter.alpha / (len(A) ** 0.5 if adapter.rslora else len(A)) * B @ A


def put_into_base(modules, terms) -> None:
    """Add the weighted increments to the weights of the base."""
    for name, module in modules.items():
        total = sum(weight * increment(adapter, name) for adapter, weight in terms)
        total = total.T if type(module).__name__ == "Conv1D" else total
        module.weight.data += torch.from_numpy(total).to(module.weight.dtype)


# Two adapters as one


@pytest.mark.parametrize("rslora", [False, True])
def test_two_adapters_of_any_rank_and_scale_are_one_whose_increment_is_their_weighted_sum(rslora):
    first, second = another(SHARED, 3, 5.0, 1, rslora), another(SHARED, 2, 7.0, 2, rslora)
    both = joined(first, second, (0.3, 0.7))
    for name in SHARED.factors:
        expected = 0.3 * increment(first, name) + 0.7 * increment(second, name)
        np.testing.assert_allclose(increment(both, name), expected, atol=1e-6)
        assert both.factors[name].A[3:].tobytes() == second.factors[name].A.tobytes()
        assert both.factors[name].B[:, 3:].tobytes() == second.factors[name].B.tobytes()


def test_adapters_of_other_modules_cannot_be_joined():
    some = replace(LOCAL, factors=dict(list(LOCAL.factors.items())[1:]))
    with pytest.raises(ModelError, match=rf"{next(iter(LOCAL.factors))} is in one of them only"):
        joined(SHARED, some)


# What an input is held against


def mixture(weight=0.5, anchors=None, shared=SHARED, local=LOCAL) -> Mixture:
    anchors = np.random.default_rng(2).normal(size=(5, 24)).astype(np.float32) if anchors is None else anchors
    return Mixture(shared, local, anchors, weight)


def test_lambda_is_the_weight_times_the_mean_cosine_of_the_prompts_last_hidden_state_under_the_local_adapter_alone():
    model = base_model()
    modules, rows = targets_of(model), DATA["client-0"]
    prompts = [list(row.input_ids[: int(np.argmax(row.loss_mask))]) for row in rows]
    tensors = {name: tuple(map(torch.from_numpy, pair)) for name, pair in LOCAL.factors.items()}
    with torch.no_grad(), low_rank(modules, tensors.__getitem__, ALPHA / 4):
        states = [
            model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1].double() for ids in prompts
        ]
    expected = [
        0.3 * np.mean([torch.cosine_similarity(state, anchor, dim=0).item() for anchor in states[:2]])
        for state in states[2:]
    ]
    packed, lora = PackedModel(model), CohortLora(modules)
    anchors = hidden_states(packed, lora, LOCAL, [prompt_of(row) for row in rows[:2]])
    got = mixture(0.3, anchors).measure(packed, lora, [prompt_of(row) for row in rows[2:]])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_an_input_that_is_an_anchor_has_the_whole_weight_and_its_opposite_as_much_below_zero():
    state = np.arange(1.0, 25.0, dtype=np.float32)[None]
    np.testing.assert_allclose(mixture(0.5, state).shares(np.concatenate([3 * state, -state])), [0.5, -0.5])


def test_the_response_cannot_be_seen_in_lambda_and_neither_can_other_prompts():
    model = base_model()
    packed, lora = PackedModel(model), CohortLora(targets_of(model))
    rows = DATA["client-1"]
    changed = [replace(r, input_ids=np.where(r.loss_mask, 5, r.input_ids).astype(np.int32)) for r in rows]
    together = hidden_states(packed, lora, LOCAL, [prompt_of(row) for row in rows])
    alone = [hidden_states(packed, lora, LOCAL, [prompt_of(row)], 8) for row in changed]
    assert together.tobytes() == np.concatenate(alone).tobytes()
    backwards = hidden_states(packed, lora, LOCAL, [prompt_of(row) for row in reversed(rows)], 16)
    assert together.tobytes() == np.ascontiguousarray(backwards[::-1]).tobytes()


# What is computed with


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("r, alpha", [(4, ALPHA), (2, 7.0)])
def test_each_row_is_computed_with_its_own_lambda(kind, r, alpha):
    shares = [0.0, 0.25, -0.1, 0.5, 1.0, 0.4]
    model = base_model(kind)
    shared = adapter_for(targets_of(model, kind))
    local = another(shared, r, alpha)
    lora = mixture(shared=shared, local=local).hold(CohortLora(targets_of(model, kind)), shares)
    rows = DATA["client-2"]
    got = row_losses_each(PackedModel(model), rows, lora, tokens_per_pass=24)
    for share, row, nll, count, hits in zip(shares, rows, got.nll, got.tokens, got.hits, strict=True):
        plain = base_model(kind)
        put_into_base(targets_of(plain, kind), [(shared, 1 - share), (local, share)])
        ids = torch.from_numpy(row.input_ids.astype(np.int64))
        with torch.no_grad():
            logits = plain(ids[None]).logits[0, :-1][torch.from_numpy(row.loss_mask[1:])]
        targets = ids[1:][torch.from_numpy(row.loss_mask[1:])]
        assert nll == pytest.approx(F.cross_entropy(logits, targets, reduction="sum").item(), rel=2e-5)
        assert (count, hits) == (len(targets), int((logits.argmax(-1) == targets).sum()))


def test_without_weight_the_mixture_is_the_global_model():
    model = base_model()
    packed, lora, rows = PackedModel(model), CohortLora(targets_of(model)), DATA["client-0"]
    none = mixture(weight=0.0)
    shares = none.measure(packed, lora, [prompt_of(row) for row in rows])
    assert not shares.any()
    got = row_losses_each(packed, rows, none.hold(lora, shares))
    (expected,) = row_losses(packed, rows, lora.load(GlobalModel(SHARED)))
    np.testing.assert_allclose(got.nll, expected.nll, rtol=1e-6)


def test_a_mixture_answers_as_the_base_with_both_increments_would(model_folder):
    def answer(model, lora=None):
        return generate(model.model, model.tokenizer, [[5, 80, 120, 200]], lora=lora, max_new_tokens=6)

    base = load_base(str(model_folder()), device="cpu", dtype="float32")
    modules = {n: m for n, m in base.model.named_modules() if n.endswith(("q_proj", "v_proj", "down_proj"))}
    like = adapter_for(modules)
    shared, local = another(like, 2, 4.0, 1), another(like, 3, 9.0, 2)
    lora = mixture(shared=shared, local=local).hold(CohortLora(modules), [0.4])
    mixed, before = answer(base, lora), answer(base)
    put_into_base(modules, [(shared, 0.6), (local, 0.4)])
    assert mixed == answer(base) != before


# Training


def feddpa(**options):
    return personalizations.build("feddpa", options)


def one_round(views, private=None, data=DATA, **settings):
    model = base_model()
    modules = targets_of(model)
    work = {client: Work(client, 0, 2 * len(RATES), RATES) for client in views}
    task = TrainTask(1, views, 7, work)
    local = LocalTraining(weight_decay=0.5, **settings)
    found = train(task, private or {}, TrainingHost(PackedModel(model), lambda: CohortLora(modules), local, data))
    return {update.client: update for update in found}


def kept(adapter: Adapter):
    return {f"personal/{n}.{part}": getattr(pair, part) for n, pair in adapter.factors.items() for part in "AB"}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_in_T_the_local_adapter_is_trained_at_weight_a_on_a_base_that_holds_the_global_one_at_the_rest(
    optimizer,
):
    update = one_round(
        {"client-0": ClientModel(SHARED)}, {"client-0": kept(LOCAL)}, optimizer=optimizer,
        personal=feddpa(variant="T", share=0.3),
    )["client-0"]  # fmt: skip
    model = base_model()
    modules = targets_of(model)
    put_into_base(modules, [(SHARED, 0.7)])
    weighted = ClientModel(replace(LOCAL, alpha=0.3 * LOCAL.alpha))
    after, losses, _ = train_plainly(model, modules, weighted, DATA["client-0"], "client-0", RATES, optimizer=optimizer)
    begin = weighted.tensors()
    expected = {name: after[name] - begin[name] for name in begin}
    assert distance({name: update.private[f"personal/{name}"] - begin[name] for name in begin}, expected) < 1e-5
    assert update.metrics["personal_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_frozen_half_keeps_its_bits_and_the_local_half_moves():
    model = base_model()
    lora = CohortLora(targets_of(model))
    view = beside_shared(SHARED, LOCAL, 0.5)
    cohort = Cohort(PackedModel(model), lora, LocalTraining(weight_decay=0.5), {"client-0": view}, DATA, 7)
    cohort.run([Work("client-0", 0, 6, RATES)], 1, lambda report: None)
    for name, (A, B) in lora.read(0).items():
        before = view.adapter.factors[name]
        assert A[:4].tobytes() == before.A[:4].tobytes() and B[:, :4].tobytes() == before.B[:, :4].tobytes()
        assert (A[4:] != before.A[4:]).any() and (B[:, 4:] != before.B[:, 4:]).any()


def test_the_message_is_that_of_the_method_alone_and_the_local_adapter_stays():
    views = dict.fromkeys(DATA, ClientModel(SHARED))
    plain, both = one_round(views), one_round(views, personal=feddpa(variant="T"), clients_at_once=2)
    for client in DATA:
        assert same_bytes(plain[client].delta, both[client].delta)
        assert set(both[client].delta) == set(ClientModel(SHARED).tensors())
        assert set(both[client].private) == {f"personal/{name}" for name in ClientModel(SHARED).tensors()}


def test_the_local_adapter_of_a_client_does_not_depend_on_who_trains_beside_it():
    personal = feddpa(variant="T")
    all_ = one_round(dict.fromkeys(DATA, ClientModel(SHARED)), personal=personal)
    for client in DATA:
        assert same_bytes(
            all_[client].private, one_round({client: ClientModel(SHARED)}, personal=personal)[client].private
        )


def test_in_T_the_local_adapter_begins_as_one_that_changes_nothing_and_goes_on_from_what_was_kept():
    first, second = initial_local(SHARED, 7, "a"), initial_local(SHARED, 7, "b")
    for name, (A, B) in first.factors.items():
        assert not B.any() and A.any() and A.shape == SHARED.factors[name].A.shape
        assert (A != second.factors[name].A).any() and (A != SHARED.factors[name].A).any()
    assert first.scale == SHARED.scale
    personal, view = feddpa(variant="T"), {"client-0": ClientModel(SHARED)}
    fresh = one_round(view, personal=personal)["client-0"].private
    given = one_round(view, {"client-0": kept(initial_local(SHARED, 7, "client-0"))}, personal=personal)[
        "client-0"
    ].private
    again = one_round(view, {"client-0": fresh}, personal=personal)["client-0"].private
    assert same_bytes(fresh, given) and not same_bytes(fresh, again)


def test_a_variant_does_not_train_where_it_should_not():
    assert one_round({"client-0": ClientModel(SHARED)}, personal=feddpa(variant="F"))["client-0"].private == {}


@pytest.fixture
def prepared(small_config):
    def prepare(*settings):
        config = small_config("training.optimizer=sgd", "training.learning_rate=0.1", *settings)
        base = load_base(config.model.base, device="cpu", dtype="float32")
        rows, _ = prepare_rows(config, base.tokenizer)
        learner, plan = trainer_of(config, base), plan_of(config, rows)
        shared = replace(another(learner.adapter, learner.adapter.r, learner.adapter.alpha))
        state = ServerState(1, GlobalModel(shared), cursors=dict.fromkeys(rows.clients, 3))
        return config, base, rows, learner, plan, state

    return prepare


def test_in_F_the_local_adapter_starts_from_the_global_one_and_is_tuned_alone(prepared):
    found = {}
    for name in ("feddpa", "finetune"):
        config, _, rows, learner, plan, state = prepared(f"personalization.name={name}", "personalization.steps=3")
        found[name], failures = personal_models(learner, plan, rows, state, prepare_schedule(config))
        assert sorted(found[name]) == sorted(rows.clients) and not failures
    for client, model in found["feddpa"].items():
        assert same_bytes(
            ClientModel(model.adapter).tensors(), ClientModel(found["finetune"][client].adapter).tensors()
        )


def test_in_F_with_a_share_the_local_adapter_is_tuned_on_a_base_that_holds_the_global_one_at_the_rest(prepared):
    config, base, rows, learner, plan, state = prepared(
        "personalization.name=feddpa", "personalization.steps=3", "personalization.share=0.4"
    )
    found, _ = personal_models(learner, plan, rows, state, prepare_schedule(config))
    shared = state.model.adapter
    modules = {name: base.model.get_submodule(name) for name in shared.factors}
    put_into_base(modules, [(shared, 0.6)])
    for client in sorted(rows.clients)[:2]:
        view = ClientModel(replace(shared, alpha=0.4 * shared.alpha))
        after, _, _ = train_plainly(
            base.model, modules, view, rows.clients[client], client, (0.1,) * 3, optimizer="sgd",
            weight_decay=config.training.weight_decay, max_grad_norm=config.training.max_grad_norm,
            momentum=config.training.momentum, seed=config.run.seed, first=3,
        )  # fmt: skip
        begin = view.tensors()
        got = ClientModel(found[client].adapter).tensors()
        expected = {name: after[name] - begin[name] for name in begin}
        assert distance({n: got[n] - begin[n] for n in begin}, expected) < 1e-3
        assert found[client].adapter.scale == shared.scale


def test_anchors_are_of_the_clients_own_rows_whoever_else_is_there(prepared):
    _, _, rows, learner, _, state = prepared("personalization.name=feddpa", "personalization.samples=2")
    shared, names = state.model.adapter, sorted(rows.clients)
    all_ = mixtures(learner, rows, shared, dict.fromkeys(reversed(names), shared), 3)
    for client in names[:3]:
        alone = mixtures(learner, rows, shared, {client: shared}, 3)[client]
        assert alone.anchors.tobytes() == all_[client].anchors.tobytes()
        assert alone.anchors.shape == (2, 32) and alone.anchors.dtype == np.float32
        own = hidden_states(learner.packed, learner.make_lora(), shared, [prompt_of(r) for r in rows.clients[client]])
        chosen = {row.tobytes() for row in own}
        assert all(anchor.tobytes() in chosen for anchor in alone.anchors)


# Whole runs

SMALL = (
    "federation.rounds=2",
    "evaluation.generate=0",
    "training.local_steps=2",
    "evaluation.arms=base,federated,local",
)
VARIANTS = {
    "F": ("personalization.name=feddpa", "personalization.steps=4"),
    "T": ("personalization.name=feddpa", "personalization.variant=T", "personalization.weight=0.9"),
    "mixed ranks": (
        "personalization.name=feddpa", "personalization.variant=T", "federation.method=flexlora", "lora.ranks=1,2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_measures_each_clients_mixture_and_what_it_leaves_on_disk_gives_the_same_losses(variant, run_small):
    run = run_small(*SMALL, *VARIANTS[variant])
    metrics = json.loads((run.path / "evaluation" / "metrics.json").read_text())
    own, weight = metrics["personal"], 0.9 if variant == "T" else 0.5
    assert sorted(own) == next(event["clients"] for event in run.events if event["event"] == "start")
    assert all(-weight <= losses["share"] <= weight for losses in own.values())
    assert len({losses["share"] for losses in own.values()}) == len(own)
    means = {model: np.mean([losses[model] for losses in own.values()]) for model in ("base", "global", "personal")}
    assert means["personal"] < means["base"] and means["global"] < means["base"]
    assert all(losses["personal"] not in (losses["global"], losses["local"]) for losses in own.values())
    report = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Personal models" in report and "Mean λ" in report
    tuned = load_tuned(run.path)
    packed, rows = PackedModel(tuned.base.model), prepare_rows(run.config, tuned.base.tokenizer)[0]
    for client, losses in own.items():
        read = load_mixture(run.path / "personal" / client, load_adapter(run.path / "adapter"))
        held = [rows.held_out[i] for i in rows.held_out_of(client)]
        lora = CohortLora(tuned.lora.modules)
        shares = read.measure(packed, lora, [prompt_of(row) for row in held])
        again = row_losses_each(packed, held, read.hold(lora, shares))
        assert again.stat.mean == pytest.approx(losses["personal"], rel=1e-6)
        assert shares.mean() == pytest.approx(losses["share"], rel=1e-5)


def test_a_run_with_T_has_the_global_adapter_and_the_bytes_up_of_one_without(run_small):
    settings = ("evaluation.arms=base,federated", "evaluation.generate=0")
    with_, without = run_small(*settings, *VARIANTS["T"]), run_small(*settings)
    assert with_.summary["adapter_sha256"] == without.summary["adapter_sha256"]
    assert with_.summary["bytes_up"] == without.summary["bytes_up"]


@pytest.mark.parametrize("variant", ["F", "T"])
def test_a_run_that_was_stopped_ends_with_the_same_local_adapters_anchors_and_losses(variant, small_config, tmp_path):
    settings = ("federation.rounds=3", "federation.clients_per_round=5", "training.clients_at_once=3")
    config = small_config(*settings, "evaluation.arms=base,federated", "evaluation.generate=0", *VARIANTS[variant])
    whole = experiment.run(config, out_dir=tmp_path / "whole").path

    def stop_after_round_2(event):
        if event["event"] == "round" and event["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, observer=stop_after_round_2, out_dir=tmp_path / "stopped")
    resumed = experiment.resume(tmp_path / "stopped" / config.run.name).path
    names = [f.relative_to(whole) for f in sorted(whole.rglob("*.safetensors"))]
    assert sum(name.parts[0] == "personal" for name in names) >= 10
    assert [f.relative_to(resumed) for f in sorted(resumed.rglob("*.safetensors"))] == names
    assert all((whole / name).read_bytes() == (resumed / name).read_bytes() for name in names)
    metrics = [json.loads((f / "evaluation" / "metrics.json").read_text())["personal"] for f in (whole, resumed)]
    assert metrics[0] == metrics[1]


# Mistakes


@pytest.mark.parametrize("method", ["flora", "fedex_lora", "fed_sb", "fedsa_lora", "fedper_lora", "frlora"])
@pytest.mark.parametrize("variant", ["F", "T"])
def test_beside_a_method_whose_adapter_is_no_whole_model_it_is_refused(method, variant, small_config, tmp_path):
    config = small_config("personalization.name=feddpa", f"personalization.variant={variant}",
                          f"federation.method={method}", "model.base=/nowhere")  # fmt: skip
    with pytest.raises(UsageError, match=f'"feddpa" and federation.method = "{method}" do not fit: .* mixed with'):
        experiment.run(config, out_dir=tmp_path)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"variant": "G"}, "'F' or 'T'"),
        ({"weight": 1.5}, "weight must be 0 to 1, got 1.5"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"share": 1.2}, "share must be more than 0 and at most 1"),
        ({"steps": -1}, "must be at least 0, got -1"),
        ({"variant": "T", "steps": 5}, 'are those of variant "F"'),
        ({"variant": "T", "learning_rate": 0.1}, 'are those of variant "F"'),
        ({"lambda": 0.5}, "no option 'lambda'"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_what_would(options, words):
    with pytest.raises(UsageError, match=words):
        feddpa(**options)


def test_what_is_no_mixture_on_disk_is_refused_with_what_is_wrong(tmp_path):
    save_mixture(tmp_path, mixture(0.25), base_name="tiny")
    assert load_mixture(tmp_path, SHARED).weight == 0.25
    with pytest.raises(ModelError, match="belong to different bases: unknown and abc"):
        load_mixture(tmp_path, replace(SHARED, base_digest="abc"))
    save_mixture(tmp_path, mixture(anchors=np.full((5, 24), np.nan, np.float32)), base_name="tiny")
    with pytest.raises(ModelError, match="not finite"):
        load_mixture(tmp_path, SHARED)
    (tmp_path / "mixture.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match=r"mixture\.safetensors cannot be read"):
        load_mixture(tmp_path, SHARED)
    (tmp_path / "mixture.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no mixture\.safetensors"):
        load_mixture(tmp_path, SHARED)
