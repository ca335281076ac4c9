"""Faults found in published code, planted on purpose: the tests of the other files must detect each of them.

A fault is a function that patches a piece, registered with the test that must fail. Where a comment names a repository,
its released code has or had the fault.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import test_exactness as exactness_laws
import test_frlora as frlora
import test_merge as merge_laws
import test_methods as laws
import test_optimizer as optimizer_laws
import test_pieces as piece_laws
import test_rotation as rotation_laws
import test_scaffold as scaffold_laws

from federations import bfloat16
from shepherd.lowrank import LowRank, stack
from shepherd.server import method, optimizer, uploads
from shepherd.server.pieces import merge as merges
from shepherd.server.pieces import payload as payloads
from shepherd.server.pieces import remainder as remainders
from shepherd.server.pieces import split as splits
from shepherd.server.pieces import view as views
from shepherd.server.pieces import weighing
from shepherd.server.pieces.merge import Merged
from shepherd.server.pieces.schedule import Schedule, schedules
from shepherd.server.pieces.split import Halves
from shepherd.server.uploads import Uploads
from shepherd.types import ClientModel

FAULTS = {}


def promise(name: str, words: str) -> None:
    """The promises of a method, of which only the one with these words counts as broken."""
    try:
        exactness_laws.test_a_method_keeps_the_promises_of_aggregation(name)
    except AssertionError as broken:
        if words in str(broken):
            raise


def caught_by(law, *arguments):
    """Register a fault with the test, and its arguments, that must detect it."""

    def register(fault):
        assert fault.__name__ not in FAULTS
        FAULTS[fault.__name__] = (fault, law, arguments)
        return fault

    return register


def replaced(registry, name: str, change):
    """A registry entry whose pieces pass through `change`."""
    factory = registry.get(name)

    def faulty(**options):
        return change(factory(**options))

    return registry._factories, name, faulty


@caught_by(promise, "flora", "declared exact, and")
def alpha_over_r_is_missing_in_the_product(patch):
    def total(self):
        parts = [LowRank(t.local.B * t.share[: len(t.local.A)], t.local.A) for t in self.terms]
        return stack(parts if self.extra is None else [*parts, self.extra])

    patch.setattr(Merged, "total", property(total))


@caught_by(exactness_laws.test_the_law_holds_for_clients_of_mixed_ranks_and_scales, "flora", "own")
def every_client_counts_with_the_servers_scale(patch):
    def one_scale(self, module, before=Uploads.locals):
        return tuple(replace(local, scale=self.start(module).scale) for local in before(self, module))

    patch.setattr(Uploads, "locals", one_scale)


@caught_by(promise, "fedmomentum, all energy", "declared exact, and")
def the_root_of_the_singular_values_is_missing_on_one_side(patch):
    def unbalanced(svd, scale, rank, rng):
        _, B, used = balanced(svd, scale, rank, rng)
        return svd.V[:rank], B, used

    balanced = splits.balanced
    patch.setattr(splits, "balanced", unbalanced)


@caught_by(laws.test_the_balanced_split_gives_both_factors_of_a_slot_the_same_norm)
def the_balanced_split_leaves_all_singular_values_in_b(patch):
    patch.setattr(splits, "balanced", lambda svd, scale, rank, rng: splits.left(svd, scale, rank, rng))


@caught_by(promise, "fedex_lora", "declared exact, and")
def a_square_residual_is_added_transposed(patch):
    # CERT-Lab/fedex-lora: residueᵀ, right for Conv1D, and for a square Linear no shape check notices.
    def of(merged, context):
        rest = merged.residual
        return Halves(*merged.mean, LowRank(rest.R.T, rest.L.T) if rest.shape[0] == rest.shape[1] else rest)

    patch.setitem(*replaced(splits.splits, "mean", lambda split: replace(split, of=of)))


@caught_by(promise, "fedmomentum, all energy", "declared exact, and")
def the_remainder_is_kept_without_the_scale(patch):
    # FedLLM-Factory: the residual is merged without the factor s.
    def change(remainder):
        return replace(remainder, of=lambda rest, energy, module: 0.4 * remainder.of(rest, energy, module))

    patch.setitem(*replaced(remainders.remainders, "keep", change))


@caught_by(promise, "fedex_lora", "declared exact, and")
def one_clients_factors_are_used_for_all(patch):
    # FLoRIST's FlexLoRA branch appends one dict K times.
    def last(self, module, before=Uploads.locals):
        found = before(self, module)
        return (found[-1],) * len(found)

    patch.setattr(Uploads, "locals", last)


@caught_by(promise, "ffa_lora", "declared exact, and")
def a_is_trained_under_ffa(patch):
    # FedEx's E2E script freezes A before PEFT makes it trainable again.
    patch.setitem(schedules._factories, "B", lambda: Schedule(lambda number: (("AB",), "AB"), ("B",)))


@caught_by(promise, "ffa_lora", "declared exact, and")
def each_client_has_an_a_of_its_own_under_ffa(patch):
    def change(view):
        def make(model, client, rank, number, seed):
            made = view.make(model, client, rank, number, seed)
            factors = {m: pair._replace(A=pair.A * (1 + ord(client) / 100)) for m, pair in made.adapter.factors.items()}
            return replace(made, adapter=replace(made.adapter, factors=factors))

        return replace(view, make=make)

    patch.setitem(*replaced(views.views, "identity", change))


@caught_by(promise, "fedit", "declared linear, and")
def only_the_first_client_counts(patch):
    # FederatedLLM: a misspelt name, and FedIT is w₀ times one client.
    def change(merge):
        def of(uploads, module, shares, server):
            first = np.zeros_like(shares)
            first[0] = shares[0]
            return merge.of(uploads, module, first, server)

        return replace(merge, of=of)

    patch.setitem(*replaced(merges.merges, "factor", change))


@caught_by(promise, "rolora", "declared exact, and")
def sizes_are_commented_out_and_all_count_alike(patch):
    # FedDPA's aggregation is a uniform mean.
    patch.setattr(method, "_weights", lambda uploads, weights: np.full(len(weights), 1 / len(weights)))


@caught_by(laws.test_a_remainder_holds_the_sum_of_many_rounds_without_growing_beyond_the_matrix)
def the_remainder_of_the_last_round_replaces_the_earlier_ones(patch):
    patch.setattr(method, "accumulate", lambda before, more, dtype, module: more.astype(dtype))


@caught_by(laws.test_a_remainder_holds_the_sum_of_many_rounds_without_growing_beyond_the_matrix)
def the_remainder_is_merged_into_a_bfloat16_base_each_round(patch):
    def rounded(before, more, dtype, module):
        total = more if before is None else before.astype(more.L.dtype) + more
        dense = bfloat16(total.dense())
        return LowRank(dense, np.eye(dense.shape[1])).truncated().astype(dtype)

    patch.setattr(method, "accumulate", rounded)


@caught_by(laws.test_a_remainder_holds_the_sum_of_many_rounds_without_growing_beyond_the_matrix)
def the_remainder_grows_without_bound(patch):
    def grown(before, more, dtype, module):
        return more.astype(dtype) if before is None else before + more.astype(dtype)

    patch.setattr(method, "accumulate", grown)


@caught_by(exactness_laws.test_weights_that_do_not_sum_to_one_scale_the_change_but_not_the_model, "fedex_lora", 0.5)
def weights_that_do_not_sum_to_one_scale_the_model(patch):
    patch.setattr(merges, "_start_term", lambda shares, start: ())


@caught_by(laws.test_slots_without_a_singular_value_have_gradients_again, "raflora")
def empty_slots_stay_empty(patch):
    patch.setattr(splits, "_new_rows", lambda rng, count, existing: np.zeros((count, existing.shape[1])))


@caught_by(piece_laws.test_owners_share_each_slot_by_their_weights_and_equal_ranks_give_the_weights_of_the_round)
def slots_that_a_client_lacks_dilute_those_of_the_others(patch):
    patch.setitem(weighing.weighings._factories, "slot_owners", weighing.weighings.get("given"))


@caught_by(promise, "flexlora", "does not have the client's rank")
def every_client_gets_the_rank_of_the_last_one(patch):
    def change(view):
        return replace(view, make=lambda model, client, rank, *rest: view.make(model, client, model.adapter.r, *rest))

    patch.setitem(*replaced(views.views, "prefix", change))


@caught_by(promise, "fed_plora", "does not start from the global model")
def the_slots_that_a_client_does_not_train_are_left_out_instead_of_frozen(patch):
    def change(view):
        def make(model, client, rank, number, seed):
            made = view.make(model, client, rank, number, seed)
            factors = {
                m: pair._replace(B=pair.B * made.slots[m]) for m, pair in made.adapter.factors.items()
            }  # fmt: skip
            return replace(made, adapter=replace(made.adapter, factors=factors))

        return replace(view, make=make)

    patch.setitem(*replaced(views.views, "fold", change))


@caught_by(exactness_laws.test_the_law_holds_for_clients_of_mixed_ranks_and_scales, "lora_a2", "own")
def owned_slots_are_put_into_the_first_ones(patch):
    def packed(self, name, owned, before=ClientModel.scatter):
        if self.slots is None:
            return owned
        module = name.removesuffix(".control").rsplit(".", 1)[0]
        first = np.sort(self.slots[module])[::-1]
        return before(replace(self, slots={**self.slots, module: first}), name, owned)

    patch.setattr(ClientModel, "scatter", packed)


@caught_by(exactness_laws.test_the_law_holds_for_clients_of_mixed_ranks_and_scales, "lora_a2", "own")
def slots_that_a_client_did_not_choose_are_left_out_of_their_mean(patch):
    patch.setitem(weighing.weighings._factories, "given", weighing.weighings.get("slot_owners"))


@caught_by(promise, "fedmomentum", "the order of arrival")
def updates_are_summed_as_they_arrive(patch):
    patch.setattr(uploads, "sorted", lambda items, key=None: items if key else sorted(items), raising=False)


@caught_by(merge_laws.test_the_residual_of_nearly_identical_clients_is_accurate)
def the_residual_is_a_difference(patch):
    # CERT-Lab/fedex-lora and others: the mean of products minus the product of means.
    def residual(self):
        A, B = self.mean
        return self.total + LowRank(-self.scale * B, A)

    patch.setattr(Merged, "residual", property(residual))


@caught_by(piece_laws.test_a_slot_without_an_owner_is_unchanged, "product")
def the_global_rank_is_that_of_the_clients_present(patch):
    def change(weigh):
        def of(uploads, weights):
            shares = weigh.of(uploads, weights)

            def spread(module):
                found = shares(module)
                ownerless = found.sum(axis=0) == 0
                return np.where(ownerless, weights[:, None], found)  # as if the slot did not exist

            return spread

        return replace(weigh, of=of)

    patch.setitem(*replaced(weighing.weighings, "slot_owners", change))


@caught_by(optimizer_laws.test_fedavgm_accumulates_its_velocity)
def momentum_is_a_moving_average(patch):
    # OpenFedLLM's FedAvgM: (1 − β)Δ, ten times smaller at β = 0.9.
    def change(made):
        return replace(made, step=lambda state, delta: made.step(state, 0.5 * delta))

    patch.setitem(*replaced(optimizer.optimizers, "fedavgm", change))


@caught_by(optimizer_laws.test_fedadagrad_fedyogi_and_fedadam_take_the_steps_of_their_paper)
def second_moments_begin_at_zero(patch):
    def change(made):
        return replace(made, init=lambda delta: {"m": np.zeros_like(delta), "v": np.zeros_like(delta)})

    patch.setitem(*replaced(optimizer.optimizers, "fedadam", change))


@caught_by(optimizer_laws.test_fedadam_moves_a_coordinate_of_constant_change_by_about_the_learning_rate)
def second_moments_are_those_of_the_first(patch):
    # OpenFedLLM and what is made from it: v of m² in place of Δ².
    def change(made):
        def step(state, delta):
            m = 0.9 * state["m"] + 0.1 * delta
            v = 0.99 * state["v"] + 0.01 * m**2
            return {"m": m, "v": v}, m / (np.sqrt(v) + 1e-3)

        return replace(made, step=step)

    patch.setitem(*replaced(optimizer.optimizers, "fedadam", change))


@caught_by(scaffold_laws.test_clients_of_unequal_weights_converge_to_the_optimum_of_their_weighted_mean)
def control_variates_are_averaged_evenly_whatever_the_weights(patch):
    before = method.control_step
    patch.setattr(method, "control_step", lambda memory, changes, population: before(memory, changes, [0.5] * 2))


@caught_by(scaffold_laws.test_c_is_the_mean_of_all_control_variates_in_every_round_for_any_sampling_and_losses,
           "uniform", {})  # fmt: skip
def changes_of_control_variates_are_weighed_by_the_chance_to_be_drawn(patch):
    before = method.control_step
    patch.setattr(method, "control_step", lambda memory, changes, population: before(
        memory, changes, [2 * p for p in population]))  # fmt: skip


@caught_by(frlora.test_rounding_to_bfloat16_loses_two_thousandths_of_the_trained_increment_of_frlora, "factor")
def frlora_s_rest_is_a_difference_of_large_terms(patch):
    def change(split):
        def of(merged, context):
            A, B, _ = split.of(merged, context)
            return Halves(A, B, merged.total + LowRank(-merged.scale * B, A))

        return replace(split, of=of)

    patch.setitem(*replaced(splits.splits, "fixed", change))


@caught_by(rotation_laws.test_an_unchanged_client_is_not_rotated_for_any_rank_of_the_factors, 1.0, 2)
def any_of_the_best_rotations_is_taken(patch):
    patch.setattr(payloads, "SINGULAR", -1.0)


@caught_by(optimizer_laws.test_rolora_moves_the_moments_of_the_trained_factor_alone)
def both_factors_moments_move_in_every_round(patch):
    def change(merge):
        def of(uploads, module, shares, server):
            merged = merge.of(uploads, module, shares, server)
            start = uploads.start(module)
            server.step(f"{module}.A", np.zeros_like(start.A))
            return merged

        return replace(merge, of=of)

    patch.setitem(*replaced(merges.merges, "factor", change))


@caught_by(laws.test_fedsvd_never_leaves_the_row_space_of_its_first_a)
def fedsvd_draws_rows_anew(patch):
    def left(svd, scale, rank, rng):
        A, B, used = before(svd, scale, rank, rng)
        return A + 1e-3 * rng.normal(size=A.shape), B, used

    before = splits.left
    patch.setattr(splits, "left", left)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_detected(name, monkeypatch):
    fault, law, arguments = FAULTS[name]
    law(*arguments, *extra_arguments(law, monkeypatch))  # whole, before the fault
    fault(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law(*arguments, *extra_arguments(law, monkeypatch))


def extra_arguments(law, monkeypatch) -> tuple:
    return (monkeypatch,) if "monkeypatch" in law.__code__.co_varnames[: law.__code__.co_argcount] else ()
