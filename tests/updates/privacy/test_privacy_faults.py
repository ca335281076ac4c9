"""Faults planted in client-level privacy, its sampling, noise and ledger: the law beside each of them fails."""

from __future__ import annotations

import re
from functools import partial

import pytest
import test_ledger as ledgers
import test_private_rounds as rounds

from planted import notice, texts_that_are_not_there_once
from shepherd import round as one_round
from shepherd.updates.privacy import accountant, client_level, ledger

one_client = partial(rounds.test_without_one_clients_data_the_sum_moves_by_at_most_the_clip, case="all reply", size=3.0)
normal = rounds.test_the_noise_of_a_round_is_normal_with_z_times_the_clip_over_qn_in_every_tensor
uncorrelated = rounds.test_the_noise_is_uncorrelated_between_tensors_rounds_and_runs_of_one_seed
weight = rounds.test_the_weight_of_an_update_is_one_by_qn_however_many_reply_with_however_many_rows
again = rounds.test_a_round_again_has_another_cohort_and_other_noise_and_both_attempts_count
count = rounds.test_the_count_has_noise_and_the_updates_have_the_rest
FAULTS = [
    (one_round, "kept, norm = clipped(passed, clip_of(task)),", "kept, norm = passed,", one_client),
    (client_level, "start, noise, self.weight)", "start, noise, self.weight**2)", normal),
    (client_level, "return Noise()", 'return Noise(repeatable_key(0, round_number, purpose))', uncorrelated),
    (client_level, 'self._source(given.round, "noise")', "Noise(bytes(32))", uncorrelated),
    (one_round, "shares=replies.shares if plan.select.fixed else None", "shares=None", weight),
    (one_round, "_secret_draw(plan.privacy, number))",
     "_secret_draw(replace(plan.privacy, clients=tuple(sorted({*plan.clients} - {*state.quarantined}))), number))",
     rounds.test_clients_in_quarantine_or_with_strikes_stay_in_the_pool),
    (one_round, "    if not merged.updates:", "    if not updates:",
     rounds.test_an_empty_round_moves_the_model_by_noise_and_is_in_the_ledger),
    (client_level, 'source = self._source(given.round, "noise")',
     'source = self._source(given.round, "noise")\n        self.ledger._write({"round": given.round})',
     rounds.test_the_line_of_a_release_is_written_before_its_noise_is_drawn),
    (client_level, "self.ledger.enter(self._release(given.round, clip))", "self._source(given.round, '').normal(1)",
     rounds.test_the_line_of_a_release_is_written_before_its_noise_is_drawn),
    (ledger, "self._releases.append(release)",
     "self._releases = [r for r in self._releases if r.round != release.round] + [release]", again),
    (client_level, 'self._source(round_number, "cohort")', 'Noise(repeatable_key(0, round_number, "cohort"))', again),
    (one_round, "shares=draw.weights or {}",
     "shares={c: w * work[c].rows for c, w in (draw.weights or {}).items()}", weight),
    (client_level, "drawn = self.count_noise *", "drawn = 0.0 *", count),
    (client_level, "return update_noise(self.noise_multiplier, self.count_noise) if self.adaptive else self.noise_mult",
     "return self.noise_multiplier if self.adaptive else self.noise_mult", count),
    (client_level, "for name, tensor in start.tensors().items()",
     "for name, tensor in start.tensors().items() if name.endswith('B')", normal),
    (accountant, "counts[part.sampling_rate, part.noise_multiplier]", "counts[0.05, part.noise_multiplier]",
     ledgers.test_lines_of_one_noise_and_other_rates_each_count_with_their_own),
    (accountant, "counts[part.sampling_rate, part.noise_multiplier]", "counts[part.sampling_rate, 3.0]",
     ledgers.test_epsilon_rises_with_every_line_of_any_kind_and_does_not_depend_on_their_order),
    (ledger, "if len(self._releases) < count:", "if False:",
     ledgers.test_fewer_lines_than_the_manifest_has_are_refused_and_more_count),
    (ledger, 'if _digest(self._releases[:count]) != mark["sha256"]:', "if False:",
     ledgers.test_lines_that_were_changed_after_a_round_was_committed_are_refused),
]  # fmt: skip


def test_every_planted_fault_of_privacy_matches_the_source_of_its_module_exactly_once():
    assert texts_that_are_not_there_once(FAULTS) == {}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: re.sub(r"\W+", " ", f"{fault[2]} for {fault[1]}")[:60])
def test_the_law_beside_a_planted_fault_of_privacy_fails(fault, monkeypatch, tmp_path):
    notice(fault, monkeypatch, tmp_path, {})
