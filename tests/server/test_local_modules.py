"""Local modules: their choice, messages, aggregation, local training and whole runs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from federations import BLOCKS, SEED, SHAPES, WEIGHTS, R, a_round, begin, fresh
from plain_client import train_plainly
from prepared import plan_of, trainer_of
from shepherd.clients.personal.methods import own_adapter
from shepherd.clients.settings import LocalTraining
from shepherd.clients.training import TrainingHost, train
from shepherd.errors import ClientError, UsageError
from shepherd.experiment import inputs
from shepherd.experiment import run as experiment
from shepherd.experiment.estimate import plan as planned
from shepherd.experiment.personal_models import personal_models
from shepherd.experiment.rows import prepare_rows
from shepherd.experiment.schedule import prepare_schedule
from shepherd.model.adapter import load_adapter
from shepherd.model.base import load_base
from shepherd.model.forward import PackedModel
from shepherd.model.lora import CohortLora
from shepherd.server.diagnostics import diagnose
from shepherd.server.methods import build_method, methods
from shepherd.server.pieces.local_modules import homes
from shepherd.server.traffic import SMOLLM2_QV, numbers, round_bytes
from shepherd.types import ClientModel, Factors, GlobalModel, Objective, ServerState, TrainTask, Work
from shepherd.updates.gate import Gate
from shepherd.updates.wire import Envelope, Sealed, pack
from tiny_training import adapter_for, base_model, distance, same_bytes, some_data, targets_of

TWELVE = tuple(f"model.layers.{n}.{name}" for n in range(12) for name in ("self_attn.q_proj", "mlp.down_proj"))


def local_names(modules, name, **options) -> list[str]:
    found = homes.build(name, options).of(modules)
    return [module for module in modules if module in found]


# Which modules


def test_the_last_blocks_are_chosen_by_number_not_alphabetically():
    assert local_names(TWELVE, "last_blocks") == list(TWELVE[-2:])
    assert local_names(TWELVE, "last_blocks", blocks=3) == list(TWELVE[-6:])  # 9, 10, 11; by letters 9 is the last
    assert local_names(TWELVE[::-1], "last_blocks", blocks=3) == list(TWELVE[-6:])[::-1]


def test_the_block_number_is_the_first_number_in_a_name():
    experts = [f"layers.{n}.experts.{k}.w1" for n in range(3) for k in range(8)]
    assert local_names(experts, "last_blocks") == experts[-8:]


def test_blocks_without_adapters_are_not_counted():
    assert local_names(["h.3.attn", "h.7.attn", "h.20.attn"], "last_blocks", blocks=2) == ["h.7.attn", "h.20.attn"]


@pytest.mark.parametrize(
    "names, expected",
    [
        (("layers.1",), ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"]),  # not layers.10, 11
        (("layers.1?",), list(TWELVE[20:])),
        (("layers.1*",), [*TWELVE[2:4], *TWELVE[20:]]),
        (("layers.[23].mlp", "layers.11.self_attn.q_proj"), [TWELVE[5], TWELVE[7], TWELVE[22]]),
        (("down_proj",), list(TWELVE[1::2])),
        (("model.layers.*.mlp",), list(TWELVE[1::2])),
    ],
    ids=str,
)
def test_a_name_matches_whole_parts_of_module_names(names, expected):
    assert local_names(TWELVE, "modules", names=names) == expected


@pytest.mark.parametrize(
    "modules, name, options, words, hint",
    [
        (TWELVE, "last_blocks", {"blocks": 12}, "last 12 blocks .* the adapter lies in 12: nothing", "at most 11"),
        (["h.0.q", "h.0.k"], "last_blocks", {}, "the adapter lies in 1: nothing would travel", "trains alone"),
        ([*TWELVE, "lm_head"], "last_blocks", {}, "the name of lm_head has no number", r'names = \["lm_head"\]'),
        (["eye.0.q", "ear.0.q"], "last_blocks", {}, "more than one kind, 'ear' and 'eye'", 'name = "modules"'),
        (
            TWELVE,
            "modules",
            {"names": ("dwn_proj",)},
            "'dwn_proj' in its name. Did you mean 'down_proj'",
            "last of the",
        ),
        (TWELVE, "modules", {"names": ("proj",)}, "no adapted module has 'proj'", "24 adapted modules"),
        (TWELVE, "modules", {"names": ("mlp", "self_attn")}, "mlp, self_attn are all 24 modules", "trains alone"),
    ],
)
def test_invalid_local_modules_are_refused_with_the_reason_and_a_hint(modules, name, options, words, hint):
    import re

    with pytest.raises(UsageError, match=words) as caught:
        local_names(modules, name, **options)
    assert re.search(hint, caught.value.hint)


@pytest.mark.parametrize(
    "table, words",
    [
        ({"blocks": -1}, "blocks must be at least 0, got -1"),
        ({"blocks": 0.5}, "blocks must be a whole number, got 0.5"),
        ({"home": "modules"}, "missing a required argument: 'names'"),
        ({"home": {"name": "modules", "names": []}}, "names is empty"),
        ({"home": {"name": "modules", "names": "lm_head"}}, "names must be"),
        ({"home": "last_block"}, "Did you mean 'last_blocks'"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(table, words):
    with pytest.raises(UsageError, match=words):
        build_method("fedper_lora", table)


# The server


def test_shared_blocks_are_averaged_and_local_modules_keep_their_initial_value():
    method, start = build_method("fedper_lora"), fresh(BLOCKS)
    below, last = BLOCKS
    A, B = (x.astype(np.float64) for x in start.factors[below])
    model = begin(method)
    for number in (1, 2, 3):
        done = a_round(method, model, number)
        assert {name.rsplit(".", 1)[0] for u in done.updates for name in u.delta} == {below}
        A = A + sum(WEIGHTS[u.client] * u.delta[f"{below}.A"] for u in done.updates)
        B = B + sum(WEIGHTS[u.client] * u.delta[f"{below}.B"] for u in done.updates)
        model = done.after
        np.testing.assert_allclose(model.adapter.factors[below].A, A, atol=1e-13)
        np.testing.assert_allclose(model.adapter.factors[below].B, B, atol=1e-13)
    assert list(model.adapter.factors) == list(start.factors)
    assert not model.adapter.factors[last].B.any()
    assert model.adapter.factors[last].A.tobytes() == start.factors[last].A.tobytes()


SILENT = {"fed_sb", "ravan", "lora_a2"}
"""Methods without support for local modules; see composition.conflicts."""
PLAIN = [(name, "fedavg") for name in methods if name not in SILENT and not methods.build(name).pieces.home.keeps]


@pytest.mark.parametrize("name, optimizer", [*PLAIN, ("fedit", "fedadam"), ("fedit", "fedyogi"), ("flora", "fedavgm")])
def test_every_method_aggregates_shared_modules_as_without_local_modules(name, optimizer):
    without = build_method(name, None, optimizer)
    method = build_method(name, {"home": {"name": "modules", "names": ["o"]}}, optimizer)
    ranks = {"a": 2, "b": 4, "c": 2} if method.mixed_ranks else None
    if name == "hetlora":  # weighs by norms over all that it gets
        without, method = (m.changed({"weigh": "given"}) for m in (without, method))
    whole, model = begin(without), begin(method)
    first = model
    for number in (1, 2, 3):
        done = a_round(without, whole, number, ranks=ranks)
        views = {c: method.view(model, c, (ranks or {}).get(c, R), number, SEED) for c in WEIGHTS}
        updates = [replace(u, delta={n: d for n, d in u.delta.items() if not n.startswith("o.")}) for u in done.updates]
        assert all(view.tensors().keys() == u.delta.keys() for view, u in zip(views.values(), updates, strict=True))
        whole, model = done.after, method.combine(model, views, updates, WEIGHTS)
    assert [x.tobytes() for x in model.adapter.factors["q"]] == [x.tobytes() for x in whole.adapter.factors["q"]]
    assert [x.tobytes() for x in model.adapter.factors["o"]] == [x.tobytes() for x in first.adapter.factors["o"]]
    for of, before in ((model, whole), (model, first)):
        name = "q" if before is whole else "o"
        rests = [m.remainder.get(name) for m in (of, before)]
        assert rests[0] is rests[1] or rests[0].dense().tobytes() == rests[1].dense().tobytes()
    assert not any(".o." in key for key in model.memory.keys() - first.memory.keys())


@pytest.mark.parametrize("name", sorted(SILENT))
def test_a_method_that_needs_all_modules_refuses_local_modules(name):
    with pytest.raises(UsageError, match=r'home "modules" and (merge "core"|view "probe") do not fit'):
        build_method(name, {"home": {"name": "modules", "names": ["o"]}})


def test_an_update_with_local_modules_is_refused():
    done = a_round(build_method("fedper_lora"), begin(build_method("fedper_lora")), 1)
    last = list(BLOCKS)[-1]
    more = replace(done.updates[0], delta={**done.updates[0].delta, f"{last}.A": np.ones((R, 64))})
    with pytest.raises(ClientError, match=rf"a: {last}.A is \[4, 64\], the round asked for absent"):
        replace(done, updates=(more, *done.updates[1:])).after  # noqa: B018


def test_diagnostics_cover_the_shared_modules_alone():
    found = []
    for method, shapes in (
        (build_method("fedit"), {"q": SHAPES["q"]}),
        (build_method("fedit", {"home": {"name": "modules", "names": ["o"]}}), {"q": SHAPES["q"], "o": SHAPES["o"]}),
    ):
        done = a_round(method, begin(method, shapes=shapes), 1)
        found.append(diagnose(done.before, done.after, done.views, done.updates, done.weights))
    assert found[0] == found[1] and found[1].modules == 1


def test_traffic_counts_the_shared_blocks_in_both_directions():
    plain = numbers(build_method("fedit"), SMOLLM2_QV, 8, [8])
    assert numbers(build_method("fedper_lora"), SMOLLM2_QV, 8, [8]) == tuple(29 / 30 * n for n in plain)
    assert numbers(build_method("fedper_lora", {"blocks": 0}), SMOLLM2_QV, 8, [8]) == plain
    below = BLOCKS[next(iter(BLOCKS))]
    for scaffold in (False, True):  # c is of what travels
        _, down = round_bytes(build_method("fedper_lora"), fresh(BLOCKS), 1, [R, R, R], scaffold=scaffold)
        assert down == 3 * 4 * R * sum(below) * (2 if scaffold else 1)


# The clients

RATES = (3e-3, 2e-3, 1e-3)
MODULES = targets_of(base_model())
DATA = some_data()
ADAPTER = adapter_for(MODULES)
LAST = frozenset(name for name in MODULES if ".1." in name)
BELOW = MODULES.keys() - LAST
VIEW = ClientModel(ADAPTER, local_modules=LAST)


def task_of(views, number=1, first=0, objective=None, c=None) -> TrainTask:
    work = {client: Work(client, first, 2 * len(RATES), RATES) for client in views}
    return TrainTask(number, views, 7, work, {}, objective or Objective(), c or {})


def one_round(view, private=None, **settings):
    """The update of client-0."""
    model = base_model()
    task = task_of({"client-0": view}, **settings)
    lora = lambda: CohortLora(targets_of(model))  # noqa: E731
    kept = {"client-0": private or {}}
    (update,) = train(task, kept, TrainingHost(PackedModel(model), lora, LocalTraining(weight_decay=0.5), DATA))
    return update


def plainly(adapter, first=0, **options):
    model = base_model()
    return train_plainly(
        model, targets_of(model), ClientModel(adapter), DATA["client-0"], "client-0", RATES, first=first, **options
    )


def adapter_of(tensors):
    return replace(ADAPTER, factors={n: Factors(tensors[f"{n}.A"], tensors[f"{n}.B"]) for n in MODULES})


def parts(tensors, modules, prefix=""):
    return {name: tensors[prefix + name] for name in (f"{m}.{part}" for m in sorted(modules) for part in "AB")}


def served(tensors):
    """The adapter sent by a server whose only client has trained these tensors, without the local modules."""
    start = {f"{n}.{part}": getattr(pair, part) for n, pair in ADAPTER.factors.items() for part in "AB"}
    return adapter_of({**start, **parts(tensors, BELOW)})


def test_messages_contain_no_local_modules_and_the_gate_rejects_them():
    objective = Objective(scaffold=True)
    update, task = one_round(VIEW, objective=objective), task_of({"client-0": VIEW}, objective=objective)
    assert {name.removesuffix(".control") for name in update.delta} == set(parts(VIEW.tensors(), BELOW))
    assert set(update.private) == {*parts_named(LAST, "home/"), *parts_named(BELOW, "control/")}

    def admitted(update):
        message = pack(update, Envelope("run", "1", "", "", ADAPTER.r, ADAPTER.scale))
        assert all(name.encode() in message for name in BELOW)
        return message, Gate(run="run").admit(Sealed("client-0", message), task)

    message, answer = admitted(update)
    assert not any(name.encode() in message for name in LAST)
    assert same_bytes(answer.delta, update.delta)
    told = {name.removeprefix("home/"): array for name, array in update.private.items() if name.startswith("home/")}
    assert admitted(replace(update, delta=update.delta | told))[1].code in ("tensors", "too-large")


def test_local_modules_are_trained_like_shared_ones():
    update, whole = one_round(VIEW), one_round(ClientModel(ADAPTER))
    assert same_bytes(update.delta, parts(whole.delta, BELOW)) and update.metrics == whole.metrics
    after, _, _ = plainly(ADAPTER)
    assert distance(parts(update.private, LAST, "home/"), parts(after, LAST)) < 1e-5
    assert one_round(ClientModel(ADAPTER)).private == {}


@pytest.mark.parametrize("scaffold", [False, True])
def test_the_second_round_of_a_client_starts_from_its_local_blocks_and_the_shared_ones(scaffold):
    # Textbook autograd on both rounds: of the modules at home go on the values, and there is nothing to correct them.
    objective = Objective(scaffold=scaffold)
    after, _, controls = plainly(ADAPTER, objective=objective)
    first = one_round(VIEW, objective=objective)
    c = {name: 0.3 * controls[name] for name in parts(controls, BELOW)}  # the server's: the mean with two clients at 0
    mixed = replace(VIEW, adapter=served({**after, **{name: 0.7 * after[name] for name in parts(after, BELOW)}}))
    start = adapter_of({**mixed.tensors(), **parts(after, LAST)})
    own = parts(controls, BELOW)
    expected, losses, _ = plainly(start, first=6, objective=objective, control=c, own_control=own)
    second = one_round(mixed, first.private, number=2, first=6, objective=objective, c=c if scaffold else {})
    assert second.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    begins = mixed.tensors()
    assert distance({n: second.delta[n] for n in begins}, {n: expected[n] - a for n, a in begins.items()}) < 1e-5
    assert distance(parts(second.private, LAST, "home/"), parts(expected, LAST)) < 1e-5
    without = one_round(mixed, {}, number=2, first=6, objective=objective)
    assert abs(without.metrics["loss"] - np.mean(losses)) > 1e-3  # the difference that it makes


def test_a_local_factor_that_a_round_does_not_train_is_kept_by_the_client():
    # RoLoRA: B in odd rounds, A in even ones. The B at home of round 1 is in force in round 2, where A moves.
    first = one_round(replace(VIEW, trains=("B",), sends="B"))
    even = replace(VIEW, trains=("A",), sends="A")
    second = one_round(even, first.private, number=2, first=6)
    for name in LAST:
        kept, before = (update.private[f"home/{name}.B"] for update in (second, first))
        assert kept.tobytes() == before.tobytes() != ADAPTER.factors[name].B.tobytes()
        assert second.private[f"home/{name}.A"].tobytes() != ADAPTER.factors[name].A.tobytes()
    own = own_adapter(even, first.private)
    alone = one_round(ClientModel(own, trains=("A",), sends="A"), number=2, first=6)
    assert same_bytes(second.delta, {n: d for n, d in alone.delta.items() if n.rsplit(".", 1)[0] in BELOW})


def test_a_factor_and_modules_can_both_be_local():
    update = one_round(replace(VIEW, sends="A"))  # FedSA-LoRA below, FedPer above
    assert set(update.delta) == {f"{name}.A" for name in BELOW}
    assert set(update.private) == {*(f"home/{name}.B" for name in BELOW), *parts_named(LAST, "home/")}


def test_a_personal_adapter_combines_shared_and_local_blocks_and_needs_a_round():
    update = one_round(VIEW)
    own = own_adapter(VIEW, update.private)
    for name, pair in own.factors.items():
        kept = ADAPTER.factors[name] if name in BELOW else [update.private[f"home/{name}.{part}"] for part in "AB"]
        assert [x.tobytes() for x in pair] == [x.tobytes() for x in kept]
    assert own_adapter(VIEW, {}) is None
    assert own_adapter(VIEW, {f"control/{next(iter(LAST))}.A": np.zeros(1)}) is None


def parts_named(modules, prefix):
    return {f"{prefix}{name}.{part}" for name in modules for part in "AB"}


# Whole runs

SMALL = (
    "federation.rounds=3", "federation.method=fedper_lora", "evaluation.generate=0", "training.local_steps=2",
    "evaluation.arms=base,federated",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(run_small):
    return run_small(*SMALL)


def test_the_federated_arm_is_the_shared_part_of_every_personal_model(whole):
    shared = load_adapter(whole.path / "adapter")
    assert all(pair.B.any() == (".layers.1." not in name) for name, pair in shared.factors.items())
    clients = sorted(json.loads((whole.path / "evaluation" / "metrics.json").read_text())["personal"])
    own = [load_adapter(whole.path / "personal" / client) for client in clients]
    assert len(own) == 8
    for name, pair in shared.factors.items():
        same = {adapter.factors[name].B.tobytes() for adapter in own} == {pair.B.tobytes()}
        assert same == (".layers.1." not in name)
        assert ".layers.1." not in name or len({adapter.factors[name].B.tobytes() for adapter in own}) == 8


def test_without_local_blocks_a_run_equals_fedit_and_with_half_of_them_it_sends_half(whole, run_small):
    none, plain = run_small(*SMALL, "method.blocks=0"), run_small(*SMALL, "federation.method=fedit")
    assert none.summary["adapter_sha256"] == plain.summary["adapter_sha256"] != whole.summary["adapter_sha256"]
    for way in ("bytes_up", "bytes_down"):
        assert none.summary[way] == plain.summary[way] == 2 * whole.summary[way]
        assert getattr(planned(whole.config), way) == whole.summary[way]
    assert not (none.path / "personal").exists()


def test_a_resumed_run_has_the_same_personal_models(whole, tmp_path):
    from stopped_runs import after_round, stopped

    folder = stopped(whole.config, tmp_path, after_round(2))
    experiment.resume(folder)
    assert files(folder) == files(whole.path)


def files(folder):
    found = [*folder.glob("personal/*/*.safetensors"), *folder.glob("checkpoints/round-0003/*.safetensors")]
    assert len(found) == 8 + 2
    return {file.relative_to(folder): file.read_bytes() for file in found}


def test_fine_tuning_continues_from_the_local_blocks(small_config):
    config = small_config(
        "federation.method=fedper_lora", "personalization.name=finetune", "personalization.learning_rate=1e-9",
        "personalization.steps=1",
    )  # fmt: skip
    base = load_base(config.model.base, device="cpu", dtype="float32")
    rows, _ = prepare_rows(config, base.tokenizer)
    learner, plan = trainer_of(config, base), plan_of(config, rows)
    one, *others = sorted(rows.clients)
    start = learner.adapter.factors
    kept = {f"home/{n}.{p}": np.full_like(getattr(start[n], p), 0.01) for n in start if ".1." in n for p in "AB"}
    state = ServerState(1, GlobalModel(learner.adapter), clients={one: kept})
    found, failures = personal_models(learner, plan, rows, state, prepare_schedule(config))
    assert not failures and sorted(found) == [one, *others]
    for client, model in found.items():
        for name, (A, B) in model.adapter.factors.items():
            own = client == one and ".1." in name
            np.testing.assert_allclose(A, 0.01 if own else start[name].A, atol=1e-8)
            np.testing.assert_allclose(B, 0.01 if own else 0.0, atol=1e-8)


def test_local_modules_that_the_model_does_not_have_are_refused_before_its_weights_are_loaded(
    small_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(inputs, "load_base", lambda **_: pytest.fail("the weights were loaded"))
    config = small_config(*SMALL, "method.blocks=2")
    for attempt in (planned, lambda config: experiment.run(config, out_dir=tmp_path)):
        with pytest.raises(UsageError, match=r"the last 2 blocks .* the adapter lies in 2: nothing would travel"):
            attempt(config)
    assert list(tmp_path.iterdir()) == []


def test_the_evaluation_of_personal_models_is_part_of_the_plan(small_config):
    with_home, without = (planned(small_config(*SMALL, f"method.blocks={n}")).tokens["evaluation"] for n in (1, 0))
    # Before, after each of 3 rounds and the reload check on all held-out rows; each under its one client's own model.
    assert with_home * 5 == without * 6
