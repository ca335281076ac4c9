"""Faults planted in approval, digests, measures, hours and leases, which no schedule reaches: each law fails."""

from __future__ import annotations

import math
import re
from functools import partial

import pytest
import test_cards as cards
import test_coordinator as coordinators
import test_hostile_coordinator as hostile
import test_hostile_site as outsiders
import test_site as sites
import test_site_privacy as privacy

from planted import notice, texts_that_are_not_there_once
from shepherd.errors import DataError
from shepherd.federation import (
    coordinator,
    groups,
    inbox,
    limits,
    policy,
    site,
    site_log,
    site_privacy,
    site_store,
    states,
    task_policy,
    transport,
)
from shepherd.types import Stat

judged = cards.test_a_policy_judges_a_card_by_the_first_reason_against_it
lease = coordinators.test_one_process_at_a_time_has_the_lease_of_a_site_and_answers_of_another_are_ignored
salt = sites.test_a_digest_of_rows_says_nothing_to_another_site_and_a_small_number_of_rows_is_stated_as_a_larger_one
shown = sites.test_categories_are_named_where_the_site_allows_it_and_no_small_group_can_be_computed_from_the_others
ledger = privacy.test_no_update_leaves_without_a_line_or_with_measures_and_a_ledger_that_was_cut_ends_it
FAULTS = [
    (site, "own.version,\n", "str(self.policy),\n",
     sites.test_a_card_that_asks_for_what_the_policy_forbids_gets_the_code_and_no_text_and_no_row_is_read),
    (site, 'self.policy.approve == "ask"', "False",
     sites.test_no_row_is_read_before_a_person_has_approved_the_card),
    (site, 'record.get("card", card.digest) != card.digest', "False",
     sites.test_no_row_is_read_before_a_person_has_approved_the_card),
    (site, 'if record.get("digest", salted) != salted:', "if False:",
     sites.test_rows_that_change_within_a_run_are_refused_before_they_are_trained_on),
    (site, "self.store.salt() + f", "f", salt),
    (site, "max(facts.rows, self.policy.min_rows_tell)", "facts.rows", salt),
    (site, 'names = self.policy.categories == "shown"', "names = True",
     sites.test_a_measure_is_sums_and_weights_without_the_names_of_categories),
    (site, 'if not rows and getattr(message, "rows_of", "") != "none":', "if False:",
     sites.test_fewer_held_out_rows_than_the_policy_shows_are_not_measured),
    (site, "if message.client != self.name:", "if False:",
     sites.test_a_task_for_another_site_is_refused),
    (site, "_log.debug(\"rows cannot be loaded\", exc_info=True)", 'self.store.audit(error=str(error))', partial(
        sites.test_rows_that_cannot_be_read_are_a_code_and_their_error_stays_at_the_site,
        error=DataError(sites.SECRET), verdict="no-rows")),
    (site, "if key and key == self._last[0]:", "if False:",
     sites.test_a_repeated_question_gets_the_same_bytes_and_after_a_restart_the_same_update),
    (site, "if done >= most:", "if False:",
     sites.test_a_run_gets_a_limited_number_of_trainings_and_of_measures_also_over_restarts),
    (groups, "in rest) < least:", "in rest) < 0:", shown),
    (policy, '"outside-code": any(map(names_code, _names(card))),', '"outside-code": False,', partial(
        judged, verdict="outside-code", card={"method": {"split": "os:system"}}, policy={})),
    (policy, 'partition(".")[0] == "shepherd"', 'partition(".")[0] != ""',
     cards.test_a_method_that_a_plug_in_or_a_user_registered_is_not_built_in),
    (task_policy, '"window": not is_open(policy.window, now),', '"window": False,',
     sites.test_a_task_outside_the_window_of_the_site_is_refused),
    (task_policy, "isinstance(message, Train) and not is_drawn(card)", "False and not is_drawn(card)",
     sites.test_a_round_with_fewer_sites_than_the_policy_wants_is_refused),
    (site_store, "SALT, found)", "RECORD, found)", salt),
    (transport, "if held is not None and held.session not in (session, replaces)", "if False", lease),
    (inbox, " and message.session == self.holders.get(client)", "",
     coordinators.test_a_copy_of_a_site_cannot_take_it_out_of_the_run),
    (coordinator, "if verdict == ADMITTED and site.facts not in", "if False and site.facts not in",
     coordinators.test_a_site_that_restarts_shows_its_rows_again_and_other_rows_are_refused),
    (coordinator, "return not site.admitted or site.session != self.inbox.holders[client]", "return not site.admitted",
     coordinators.test_a_site_that_restarts_shows_its_rows_again_and_other_rows_are_refused),
    (states, "        self._write(line)  # first: a change that is not written has not happened\n        change()\n",
     "        change()\n        self._write(line)\n",
     coordinators.test_a_change_that_cannot_be_written_has_not_happened),
    (states, "if number <= MOST_IGNORED:", "if True:",
     coordinators.test_a_site_that_sends_in_vain_without_end_gets_a_limited_number_of_lines),
    (site, '        self._loaded = ""  # whatever', "        # whatever",
     hostile.test_a_run_that_is_refused_after_its_rows_were_read_leaves_none_of_them_to_another_run),
    (site, "if not are_finite(groups):", "if False:", partial(
        hostile.test_a_model_that_makes_the_losses_overflow_is_a_code_and_ends_no_site, bad=Stat(math.nan, 10.0))),
    (site_log, 'is_finite(news.loss) if shown == "losses" else None', "is_finite(news.loss)",
     hostile.test_the_loss_of_a_step_over_a_few_rows_stays_at_the_site),
    (site, "len(self.store.runs()) >= self.policy.max_runs", "False",
     hostile.test_a_coordinator_cannot_fill_the_disk_or_the_memory_of_a_site_with_cards),
    (groups, "names = names and not instead", "names = names",
     hostile.test_a_number_of_rows_that_is_stated_larger_cannot_be_seen_in_a_measure_or_by_the_size_of_its_groups),
    (task_policy, "return (work.rows, work.steps) == _work(card, rows)", "return True", partial(
        hostile.test_two_tasks_cannot_differ_by_a_row_since_rows_and_steps_of_a_round_follow_from_the_card,
        changed={"rows": 5})),
    (task_policy, "or _effective_rows(work) < policy.min_rows_round", "", partial(
        hostile.test_steps_without_a_learning_rate_do_not_hide_that_an_update_shows_a_few_rows, rates=(0.1, 0.0))),
    (task_policy, "and [view.local_modules for view in views] == local", "",
     hostile.test_modules_that_the_method_leaves_at_the_site_are_not_sent_because_a_task_asks_for_them),
    (coordinator, "if self.ledger.of(client).admitted:  # it may", "if True:  # it may",
     outsiders.test_a_site_that_leaves_right_after_its_last_answer_does_not_end_the_run),
    (coordinator, "len(self._usable[1] | task.work.keys())", "len(task.work)",
     outsiders.test_a_further_cohort_of_a_round_states_all_sites_of_the_round),
    (limits, "<= MOST_LOSS * weight", "< float('inf')", partial(
        outsiders.test_a_measure_that_cannot_be_is_left_out_with_a_line, kind="a loss that overflows")),
    (site_privacy, "return clipped(reply, _norm_of(own)) if", "return reply if",
     privacy.test_the_site_clips_its_update_itself),
    (site_privacy, "if after <= before:", "if False:", ledger),
    (site_privacy, 'if lines < store.record(run).get("released", 0):', "if False:", ledger),
    (site_privacy, "return replace(reply, metrics={}, num_tokens=task.work[reply.client].rows)", "return reply",
     ledger),
    (site_privacy, "return task.privacy == ExamplePrivacy(found.clip, found.noise_multiplier, ",
     "return bool(found.noise_multiplier) or (found.clip, ", partial(
        privacy.test_noise_and_clip_of_a_task_are_those_of_the_card, changes={"noise_multiplier": 0.0})),
    (site_privacy, 'return "" if epsilon <= limit and epsilon < math.inf else "epsilon"', 'return ""',
     privacy.test_the_promised_epsilon_is_that_of_the_cards_q_z_and_rounds),
    (site_privacy, "max(rows, policy.min_rows_tell)), found", "10**6), found",
     privacy.test_epsilon_of_a_site_is_that_of_the_rows_it_holds_and_of_all_rounds),
    (site_privacy, 'if find_spec("dp_accounting") is None:', "if False:",
     privacy.test_a_site_that_requires_privacy_takes_no_word_for_it),
    (site_privacy, "return min(most, drawn + REPEATS)", "return most",
     privacy.test_a_site_is_sampled_no_more_often_than_q_and_the_rounds_explain),
    (site_privacy, "move <= found.largest_move(round_number) * (1 + ROUNDING) and", "",
     privacy.test_an_adaptive_clip_moves_no_further_than_its_rule_can_move_it),
    (site, 'if card.privacy is not None and message.rows_of != "none":', "if False:", partial(
        privacy.test_a_site_measures_nothing_in_a_private_run, unit=privacy.EXAMPLE)),
]  # fmt: skip


def test_every_planted_fault_matches_the_source_of_its_module_exactly_once():
    assert texts_that_are_not_there_once(FAULTS) == {}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: re.sub(r"\W+", " ", fault[1])[:60].strip())
def test_the_law_beside_a_planted_fault_fails(fault, monkeypatch, tmp_path):
    notice(fault, monkeypatch, tmp_path, {})
