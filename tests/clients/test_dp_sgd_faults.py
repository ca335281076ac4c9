"""Faults planted in DP-SGD and in the accounts of clients: the law beside each of them fails."""

from __future__ import annotations

import re
from functools import partial

import pytest
import test_dp_sgd as dp_sgd
import test_example_gradients as gradients_of_rows

from planted import notice, texts_that_are_not_there_once
from shepherd.clients.example_level import cohort, gradients, sampling
from shepherd.updates.privacy import example_account

by_hand = partial(dp_sgd.test_a_round_equals_dp_sgd_by_autograd_with_the_same_rows_and_noise, view=dp_sgd.VIEW)
each_alone = partial(
    gradients_of_rows.test_each_row_is_clipped_alone_over_all_tensors_as_by_autograd_one_row_at_a_time,
    name="fedit, round 1",
)
one_row = partial(
    gradients_of_rows.test_removing_one_row_moves_the_sum_by_its_clipped_gradient_alone_at_most_the_clip,
    name="fedit, round 1",
)
scale = dp_sgd.test_a_step_without_rows_is_a_step_of_noise_of_the_stated_scale
rate = dp_sgd.test_the_rate_is_the_planned_batch_over_the_rows_held_and_one_at_the_most
independent = dp_sgd.test_each_row_is_drawn_independently_with_the_planned_rate
FAULTS = [
    (gradients, "return clip / norm if norm > clip else 1.0", "return 1.0", each_alone),
    (gradients, "for parts in found]).tolist()", "for parts in [one[:1] for one in found]]).tolist()", each_alone),
    (gradients, "clip_factor(norm / tokens.targets, clip)", "clip_factor(norm, clip)", one_row),
    (gradients, "deviation * randomness.normal(", "deviation / batch * randomness.normal(", scale),
    (gradients, "deviation * randomness.normal(sum(map(len, totals)))",
     "deviation * randomness.normal(1).repeat(sum(map(len, totals)))", scale),
    (cohort, "self.privacy.noise_multiplier * self.privacy.clip", "self.privacy.noise_multiplier", scale),
    (cohort, "deviation, batch, randomness)", "deviation, max(1, len(drawn)), randomness)",
     dp_sgd.test_the_sum_is_divided_by_the_planned_batch_whatever_was_drawn),
    (cohort, 'return {w.client: {"steps": w.steps, "targets": w.rows} for w in work',
     'return {w.client: {"steps": w.steps, "targets": w.rows, "loss": 1.0} for w in work',
     dp_sgd.test_no_loss_and_no_count_of_drawn_rows_leaves_the_client),
    (cohort, "self._dropout(work, step, int(i))) for i in drawn_rows(len(rows), rate, randomness)",
     "self._dropout(work, step, n)) for n, i in enumerate(drawn_rows(len(rows), rate, randomness))",
     dp_sgd.test_dropout_of_a_row_does_not_depend_on_other_rows),
    (sampling, "drawn = randomness.uniform(held) < rate",
     "drawn = np.argsort(np.argsort(randomness.uniform(held))) < round(rate * held)", independent),
    (sampling, "drawn = randomness.uniform(held) < rate", "drawn = np.repeat(randomness.uniform(1), held) < rate",
     independent),
    (example_account, "work.rows / (work.steps * held))", "work.rows / held)", rate),
    (example_account, "min(1.0, work.rows / (work.steps * held))", "work.rows / (work.steps * held)", rate),
]  # fmt: skip


def test_every_planted_fault_of_dp_sgd_matches_the_source_of_its_module_exactly_once():
    assert texts_that_are_not_there_once(FAULTS) == {}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: re.sub(r"\W+", " ", f"{fault[2]} for {fault[1]}")[:60])
def test_the_law_beside_a_planted_fault_of_dp_sgd_fails(fault, monkeypatch, tmp_path):
    notice(fault, monkeypatch, tmp_path, {})
