"""Server optimizers against hand-computed steps and their limiting cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from federations import SHAPES, WEIGHTS, a_round, after_rounds, assert_near, begin, dense, law
from shepherd.errors import UsageError
from shepherd.server.methods import build_method, methods
from shepherd.server.optimizer import control, control_step, optimizers


def walk(name: str, deltas: list[float], **options) -> list[float]:
    """The moves of one coordinate for these pseudo-gradients."""
    optimizer = optimizers.build(name, options)
    state, moves = None, []
    for delta in deltas:
        value = np.array([delta])
        state, move = optimizer.step(optimizer.init(value) if state is None else state, value)
        moves.append(move.item())
    return moves


def test_fedavgm_accumulates_its_velocity():
    # v = 1, then 0.5·1 + 2 = 2.5, then 0.5·2.5 − 1 = 0.25; η = 0.1
    assert walk("fedavgm", [1.0, 2.0, -1.0], learning_rate=0.1, momentum=0.5) == pytest.approx([0.1, 0.25, 0.025])


def test_fedadagrad_fedyogi_and_fedadam_take_the_steps_of_their_paper():
    # β = (0.5, 0.9), τ = 0.1, v₀ = 0.01, η = 1; m = 0.5, then 0.25 − 0.5 = −0.25 for Δ = 1, −1.
    m = [0.5, -0.25]
    # Δ² = 1 in both rounds, whatever m is.
    adagrad = [0.01 + 1, 1.01 + 1]
    adam = [0.9 * 0.01 + 0.1, 0.9 * 0.109 + 0.1]
    yogi = [0.01 + 0.1, 0.11 + 0.1]  # v − Δ² is −0.99, then −0.89: v grows
    for name, v, options in (
        ("fedadagrad", adagrad, {"momentum": 0.5}),
        ("fedadam", adam, {"betas": (0.5, 0.9)}),
        ("fedyogi", yogi, {"betas": (0.5, 0.9)}),
    ):
        expected = [mi / (np.sqrt(vi) + 0.1) for mi, vi in zip(m, v, strict=True)]
        assert walk(name, [1.0, -1.0], learning_rate=1.0, tau=0.1, **options) == pytest.approx(expected), name


def test_fedadam_moves_a_coordinate_of_constant_change_by_about_the_learning_rate():
    # Of Δ, m is 1 − 0.9^t and v 1 − 0.99^t: 0.1/0.1, 0.19/0.141, 0.41/0.221, 0.651/0.309, 0.958/0.51.
    # It was 9.05, 8.46, 6.36, 4.61, 2.43 with m² in place of Δ².
    moves = walk("fedadam", [1.0] * 30, learning_rate=1.0, tau=1e-3)
    np.testing.assert_allclose([moves[t - 1] for t in (1, 2, 5, 10, 30)], [0.99, 1.34, 1.84, 2.10, 1.87], atol=5e-3)
    moves = walk("fedyogi", [1.0] * 30, learning_rate=1.0, tau=1e-3)  # v grows by 0.01 as long as it is below Δ²
    np.testing.assert_allclose(moves[29], (1 - 0.9**30) / (0.3**0.5 + 1e-3), rtol=1e-5)


def test_yogi_shrinks_its_second_moment_where_adam_does():
    # After a large step a small one: v > Δ², so v − 0.1·Δ².
    optimizer = optimizers.build("fedyogi", {"betas": (0.0, 0.9), "tau": 0.1})
    state, _ = optimizer.step({"m": np.zeros(1), "v": np.full(1, 4.0)}, np.array([1.0]))
    assert state["v"].item() == pytest.approx(4.0 - 0.1)


def test_fedadam_without_memory_and_with_a_large_tau_is_in_proportion_to_fedavg():
    plain = a_round(build_method("fedit"), begin(build_method("fedit")), 1)
    tau = 1e6
    adam = build_method("fedit", None, "fedadam", {"betas": (0.0, 0.99), "tau": tau, "learning_rate": 2 * tau})
    # m = Δ, √v + τ → 2τ with v₀ = τ², 0.99 of which is left
    share = 2 * tau / (np.sqrt(0.99) * tau + tau)
    after = replace(plain, method=adam).after
    for module, (A, B) in after.adapter.factors.items():
        before, full = plain.before.adapter.factors[module], plain.after.adapter.factors[module]
        np.testing.assert_allclose(A - before.A, share * (full.A - before.A), rtol=1e-6)
        np.testing.assert_allclose(B - before.B, share * (full.B - before.B), rtol=1e-6)


@pytest.mark.parametrize("name", list(methods))
def test_a_server_learning_rate_scales_the_change_of_an_exact_method(name):
    method = build_method(name, None, "fedavg", {"learning_rate": 0.5})
    if not method.exact:
        return
    done = a_round(method, after_rounds(method, 2), 3)
    half = {client: 0.5 * weight for client, weight in WEIGHTS.items()}
    for module in SHAPES:
        assert_near(dense(done.after, module), law(done, module, half), 1e-11)


@pytest.mark.parametrize("name", ["fedex_lora", "flora", "fedmomentum"])
def test_momentum_of_increments_accumulates_the_velocity_of_products_over_rounds(name):
    options = {"energy": 1.0} if name == "fedmomentum" else {}
    method = build_method(name, options, "fedavgm", {"momentum": 0.5, "learning_rate": 0.8})
    model = begin(method)
    velocity = dict.fromkeys(SHAPES, 0.0)
    for number in (1, 2, 3):
        done = a_round(method, model, number)
        for module in SHAPES:
            E = dense(model, module)
            velocity[module] = 0.5 * velocity[module] + (law(done, module) - E)
            assert_near(dense(done.after, module), E + 0.8 * velocity[module], 1e-10)
        model = done.after


def test_the_velocity_of_increments_can_be_bounded_in_rank():
    method = build_method("fedex_lora", None, "fedavgm", {"rank": 3})
    assert after_rounds(method, 3).memory["server.q.velocity.L"].shape[1] == 3


def test_momentum_zero_is_fedavg():
    for name in ("fedit", "rolora", "fed_sb", "fedex_lora"):
        still = build_method(name, None, "fedavgm", {"momentum": 0.0})
        for module in SHAPES:
            expected = dense(after_rounds(build_method(name), 3), module)
            assert_near(dense(after_rounds(still, 3), module), expected, 1e-12)


def test_rolora_moves_the_moments_of_the_trained_factor_alone():
    method = build_method("rolora", None, "fedadam")
    first = after_rounds(method, 1)
    assert "server.q.B.m" in first.memory and "server.q.A.m" not in first.memory
    second = a_round(method, first, 2).after
    assert np.array_equal(second.memory["server.q.B.v"], first.memory["server.q.B.v"])
    assert np.array_equal(second.adapter.factors["q"].B, first.adapter.factors["q"].B)
    assert "server.q.A.v" in second.memory


def test_fednova_with_equal_steps_is_fedavg():
    for name in ("fedit", "fedex_lora", "fed_plora"):
        nova = build_method(name, None, "fednova")
        steps = dict.fromkeys(WEIGHTS, 7)
        plain = a_round(build_method(name), begin(nova), 1, steps=steps)
        for module in SHAPES:
            assert_near(dense(replace(plain, method=nova).after, module), dense(plain.after, module), 1e-13)


def test_fednova_normalises_changes_by_the_number_of_steps():
    # w = 0.2, 0.5, 0.3; τ_k = 1, 2, 10; τ = 0.2 + 1 + 3 = 4.2; c = w τ / τ_k = 0.84, 1.05, 0.126
    nova = build_method("fedex_lora", None, "fednova")
    done = a_round(nova, after_rounds(nova, 1), 2, steps={"a": 1, "b": 2, "c": 10})
    for module in SHAPES:
        assert_near(dense(done.after, module), law(done, module, {"a": 0.84, "b": 1.05, "c": 0.126}), 1e-12)


def test_torch_s_sgd_of_rate_one_is_fedavg_bit_for_bit():
    sgd = build_method("fedit", None, "torch", {"name": "SGD", "learning_rate": 1.0})
    done = a_round(sgd, after_rounds(build_method("fedit"), 2), 3)
    plain = replace(done, method=build_method("fedit")).after
    for module, (A, B) in done.after.adapter.factors.items():
        assert np.array_equal(A, plain.adapter.factors[module].A)
        assert np.array_equal(B, plain.adapter.factors[module].B)


@pytest.mark.parametrize(
    "name, options", [("AdamW", {"betas": [0.8, 0.95]}), ("SGD", {"momentum": 0.9}), ("NAdam", {})]
)
def test_torch_optimizers_with_saved_state_match_a_persistent_optimizer(name, options):
    method = build_method("fedit", None, "torch", {"name": name, "learning_rate": 0.02, **options})
    model = begin(method)
    weights = torch.tensor(model.adapter.factors["q"].B, requires_grad=True)
    own = getattr(torch.optim, name)([weights], lr=0.02, weight_decay=0.0, **options)
    for number in (1, 2, 3):
        done = a_round(method, model, number)
        weights.grad = -torch.from_numpy(sum(WEIGHTS[u.client] * u.delta["q.B"] for u in done.updates))
        own.step()
        model = done.after
        np.testing.assert_allclose(model.adapter.factors["q"].B, weights.detach().numpy(), rtol=1e-12, atol=1e-15)


def test_torch_optimizers_resumed_from_a_checkpoint_give_the_same_bits(tmp_path):
    settings = ("fedit", None, "torch", {"name": "AdamW"})
    before = after_rounds(build_method(*settings), 2, dtype=np.float32)
    save_file(dict(before.memory), tmp_path / "memory.safetensors")
    resumed = replace(before, memory=load_file(tmp_path / "memory.safetensors"))
    one, other = (a_round(build_method(*settings), model, 3).after for model in (before, resumed))
    assert before.memory["server.q.B.step"] == 2 and one.memory["server.q.B.exp_avg"].dtype == np.float32
    assert all(np.array_equal(value, other.memory[name]) for name, value in one.memory.items())
    assert all(np.array_equal(one.adapter.factors[m].B, other.adapter.factors[m].B) for m in SHAPES)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"name": "RMSpropp"}, "torch.optim has no 'RMSpropp'. Did you mean 'RMSprop'"),
        ({"name": "AdamW", "beta": 0.9}, "AdamW has no option 'beta'. Did you mean 'betas'"),
        ({"name": "AdamW", "weight_decay": 1e-3}, "leave out weight_decay"),
        ({"name": "LBFGS"}, "LBFGS cannot step so"),
        ({"name": "SGD", "momentum": -1.0}, "Invalid momentum"),
        ({}, "name"),
    ],
)
def test_unsupported_torch_optimizers_are_refused_with_an_alternative(options, words):
    with pytest.raises(UsageError) as refused:
        build_method("fedit", None, "torch", options)
    assert words in str(refused.value)


def test_a_large_server_rate_is_not_mistaken_for_dependence_on_the_weights():
    for rate in (1e-9, 65535.1, 65535.3, 65535.7):  # adding 1 needs one more bit
        build_method("fedit", None, "torch", {"name": "SGD", "momentum": 0.9, "learning_rate": rate})


def test_fednova_divides_by_the_effective_steps_that_the_server_counted():
    # ρ = 0.5: τ_k = 1, 1.5 + 1, 1.75 + 1.5 + 1; τ = 0.2·1 + 0.5·2.5 + 0.3·4.25 = 2.725
    nova = build_method("fedex_lora", None, "fednova")
    done = a_round(nova, after_rounds(nova, 1), 2, steps={"a": 1, "b": 2, "c": 3})
    for unit in (1.0, 1e-3):  # any one unit
        steps = {"a": 1.0 * unit, "b": 2.5 * unit, "c": 4.25 * unit}
        after = nova.combine(done.before, done.views, done.updates, done.weights, steps)
        for module in SHAPES:
            assert_near(dense(after, module), law(done, module, {"a": 0.545, "b": 0.545, "c": 0.8175 / 4.25}), 1e-12)


def test_effective_steps_claimed_by_a_client_are_ignored():
    nova = build_method("fedex_lora", None, "fednova")
    steps = {"a": 1, "b": 2, "c": 10}
    plain = a_round(nova, after_rounds(nova, 1), 2, steps=steps)
    claims = lambda u: replace(u, metrics={**u.metrics, "effective_steps": 1e9})  # noqa: E731
    claimed = a_round(nova, after_rounds(nova, 1), 2, steps=steps, change=claims)
    assert all(np.array_equal(dense(claimed.after, m), dense(plain.after, m)) for m in SHAPES)


def test_fednova_s_mean_of_steps_is_a_mean_where_weights_sum_to_a_half():
    # w = 0.1, 0.25, 0.15; τ = (0.1·1 + 0.25·2 + 0.15·10) / 0.5 = 4.2
    nova = optimizers.build("fednova")
    shares = np.array([[0.1], [0.25], [0.15]])
    found = nova.coefficients(shares, np.array([1.0, 2.0, 10.0]))
    np.testing.assert_allclose(found[:, 0], [0.42, 0.525, 0.063], rtol=1e-14)
    np.testing.assert_allclose(nova.coefficients(shares, np.full(3, 7.0)), shares, rtol=1e-14)


def test_the_server_step_of_scaffold_adds_the_mean_change_of_control_variates_over_all_clients():
    changes = {"q.A": [np.array([1.0]), np.array([3.0])]}
    memory = control_step({"other": np.zeros(2)}, changes, population=[1 / 8, 1 / 8])  # two of eight
    assert control(memory) == {"q.A": 0.5} and "other" in memory  # (1 + 3) / 8
    assert control(control_step(memory, changes, population=[1 / 8, 1 / 8])) == {"q.A": 1.0}
    assert control(control_step({}, changes, population=[0.1, 0.3])) == {"q.A": np.float32(1.0)}  # 0.1 · 1 + 0.3 · 3
    assert control({}) == {}


def test_control_variates_of_an_update_are_kept_and_not_merged():
    method = replace(build_method("fedit"), population={**dict.fromkeys(WEIGHTS, 1 / 6), "absent": 1 / 2})
    plain = a_round(method, begin(method), 1)
    with_control = replace(
        plain,
        updates=tuple(
            replace(u, delta={**u.delta, **{f"{n}.control": np.ones_like(d) for n, d in u.delta.items()}})
            for u in plain.updates
        ),
    )
    assert np.array_equal(with_control.after.adapter.factors["q"].A, plain.after.adapter.factors["q"].A)
    c = control(with_control.after.memory)
    assert c.keys() == plain.updates[0].delta.keys()
    np.testing.assert_allclose(c["q.A"], 3 / 6)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("fedavg", {"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        ("fedavgm", {"momentum": 1.0}, "momentum must be from 0 up to"),
        ("fedadam", {"betas": [0.9, 1.0]}, "betas must be from 0"),
        ("fedyogi", {"tau": 0.0}, "tau must be a number above 0"),
        ("fedadam", {"beta": 0.9}, "has no option 'beta'. Did you mean 'betas'"),
        ("fedavg", {"momentum": 0.9}, "has no option 'momentum'"),
        ("fedadam", {"learning_rate": float("inf")}, "learning_rate must be a number above 0"),
    ],
)
def test_options_of_optimizers_are_checked(name, options, words):
    with pytest.raises(UsageError) as caught:
        build_method("fedit", None, name, options)
    assert words in caught.value.message
