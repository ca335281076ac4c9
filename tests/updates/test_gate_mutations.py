"""Faults planted in the source of the gate: for each, the registered test must fail."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest
import test_gate as gates

from planted import notice, texts_that_are_not_there_once
from shepherd.updates import gate, rules

fault = partial(partial, gates.test_an_invalid_update_becomes_a_failure_with_the_reason, from_="memory")
message = partial(partial, gates.test_an_invalid_message_becomes_a_failure_with_the_reason)
memory = partial(partial, gates.test_tensors_in_memory_are_plain_float32_arrays)
choice = partial(partial, gates.test_an_invalid_choice_is_rejected_with_the_reason, from_="memory")
first = gates.test_the_first_usable_update_of_a_client_counts_and_a_rejected_one_does_not_block_it
bound = gates.test_the_change_of_a_control_variate_is_bounded_by_the_delta_over_its_rates_and_that_of_the_server
GATE: list[tuple[str, str, Any]] = [
    ("if not _is_sampled(reply.client, task):", "if False:",
     gates.test_every_reply_of_a_client_that_was_not_sampled_is_uninvited),
    ("if (task.round, client) in self._seen:", "if False:", first),
    ("        self._seen.add((task.round, client))\n        return passed", "        return passed", first),
    ("        except Exception:\n", "        except ValueError:\n", partial(
        gates.test_hostile_replies_are_rejected_without_an_exception_and_without_their_text, index=8)),
    ("if len(sealed.data) > limit:", "if len(sealed.data) > limit + 1:",
     gates.test_a_message_larger_than_its_client_model_allows_is_not_read),
    ('if header.fields["client"] != sealed.client:', "if False:", message(fault="another client")),
    ("if envelope.run != self.run:", "if False:", message(fault="another run")),
    ("if envelope.base != adapter.base_digest:", "if envelope.base and envelope.base != adapter.base_digest:",
     message(fault="no base")),
    ("if self.tokenizer and envelope.tokenizer != self.tokenizer:", "if False:", message(fault="another tokenizer")),
    ("if envelope.rank != adapter.r:", "if envelope.rank < adapter.r:", message(fault="another rank")),
    ("<= 1e-9 * adapter.scale:", "<= 1e-6 * adapter.scale:", message(fault="another scale")),
    ("if not _NONCE.fullmatch(envelope.nonce):", "if not _NONCE.match(envelope.nonce + 'x'):",
     message(fault="an empty nonce")),
    ("if number != task.round:", "if number > task.round:", fault(fault="an earlier round")),
    ("if number != task.round:", "if number < task.round:", fault(fault="a later round")),
    ("if not 1 <= value <= limit:", "if not 0 <= value <= limit:", fault(fault="no examples")),
    ("task.work[update.client].steps,", "task.work[update.client].steps + 1,",
     fault(fault="a step more than was asked for")),
    ("_INTEGERS = (int,", "_INTEGERS = (bool, int,", fault(fault="a bool for a count")),
    ('if ("loss" not in plain and not private) or not all(map(math.isfinite, plain.values())):',
     'if "loss" not in plain and not private:', partial(
        gates.test_an_update_without_finite_metrics_is_refused, metrics={"loss": float("nan")})),
    ("if len(metrics) > most:", "if False:", fault(fault="too many metrics")),
    ("if theirs.keys() != ours.keys():", "if not theirs.keys() <= ours.keys():", fault(fault="a tensor too few")),
    ("if theirs.keys() != ours.keys():", "if not theirs.keys() >= ours.keys():", fault(fault="a tensor too many")),
    ("if theirs[name] != shape:", "if len(theirs[name]) != len(shape):", fault(fault="another rank")),
    ("if update.delta[name].dtype != np.float32:", "if update.delta[name].dtype.itemsize != 4:",
     memory(fault="integers")),
    ("if not square <= LARGEST**2:", "if square > LARGEST**2:", fault(fault="NaN")),
    ("if not square <= LARGEST**2:", "if not square <= 100 * LARGEST**2:",
     fault(fault="a norm beyond float32's squares")),
    ("if not _is(array, np.ndarray):", "if not isinstance(array, np.ndarray):", memory(fault="a masked array")),
    ('if array.dtype.kind not in "biuf":', "if False:", memory(fault="objects")),
    ("norm > self.limits.norm:", "norm > self.limits.norm + 1e-8:",
     gates.test_the_norm_is_over_all_factors_in_float64_and_has_a_limit),
    ("values = array.astype(np.float64).ravel()", "values = array.ravel()",
     gates.test_the_norm_is_over_all_factors_in_float64_and_has_a_limit),
    ('total *= 1.0 if part == "A" else task.objective.rate_ratio', "total *= 1.0", bound),
    ("/ total + before)", "/ total)", bound),
    ("most = 1.02 *", "most = 1.05 *", bound),
    ("if list(update.delta) != list(shapes):", "if False:",
     gates.test_scaffold_sends_a_control_variate_with_each_tensor),
    ("view = _with_choice(task.views[update.client], update.slots)", "view = task.views[update.client]",
     choice(fault="a slot more than the budget")),
    ("reverse=True)[: view.choice.budget]", "reverse=False)[: view.choice.budget]",
     gates.test_the_largest_message_of_a_choice_is_that_of_the_largest_slots),
    ("len(failure.detail) <= 200 and failure.detail.isprintable()", "len(failure.detail) <= 200",
     gates.test_a_failure_keeps_no_detail_that_is_not_a_short_line),
]  # fmt: skip
FAULTS = [(gate if text in inspect.getsource(gate) else rules, text, *rest) for text, *rest in GATE]


def test_every_fault_matches_the_current_source_exactly_once():
    assert texts_that_are_not_there_once(FAULTS) == {}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[1][:60].strip())
def test_a_planted_fault_is_detected(fault, monkeypatch, tmp_path):
    notice(fault, monkeypatch, tmp_path, {})
