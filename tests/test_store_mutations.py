"""Faults planted in the text of store/ and updates/gate.py: for each, the test that stands beside it has to fail.

A fault is a piece of a module's source and what stands in its place; where the source changes, so must the fault.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

import test_gate as gates
import test_store as runs
import test_store_lines as of_lines
import test_store_power as power
import test_store_rounds as of_rounds
from broken_disks import QuickDisk
from shepherd.store import Rounds, RunDirectory, disk, lines, rounds, run
from shepherd.store.lines import append, journal_line
from shepherd.updates import gate


def no_cut_loses_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law of test_store_power, which ends at the first loss."""
    judge = power.judge

    def strict(path, promised, losses):
        judge(path, promised, losses)
        assert not (losses.lost or losses.corrupt or losses.broken_lines or losses.lost_files or losses.unequal_ends)

    monkeypatch.setattr(power, "judge", strict)
    power.cut_power_everywhere(tmp_path)


flip = of_rounds.test_a_flipped_bit_in_any_file_rejects_that_round_by_name_and_no_other
torn = of_lines.test_an_end_torn_at_any_byte_is_cut_off_and_the_next_line_stands_alone
marks = of_lines.test_lines_after_a_mark_are_cut_away_and_what_is_wrong_with_the_others_is_said
kept = partial(runs.test_the_last_checkpoints_and_the_best_are_kept, rounds=5)
sealed = runs.test_a_flipped_bit_a_lost_byte_and_a_lost_file_of_a_committed_folder_are_named
manifest = of_rounds.test_a_manifest_with_other_things_in_it_is_rejected_and_crashes_nothing
WHOLE = 'whole = _encode({key: value for key, value in manifest.items() if key != "sha256"}) == data'
STORE = [
    (disk, "        disk.sync(beside)\n", "", no_cut_loses_a_round),
    (disk, "name.startswith(TEMPORARY)", "True", of_rounds.test_what_killed_processes_left_is_swept_and_only_that),
    (lines, "        disk.sync(file)\n        if new", "        if new", no_cut_loses_a_round),
    (lines, "    if not new and end != file.stat().st_size:", "    if False:",
     of_lines.test_half_a_line_that_could_not_be_taken_back_is_cut_off_by_the_next_append),
    (lines, "            disk.cut(file, end)\n        raise", "            pass\n        raise",
     of_lines.test_an_append_that_fails_leaves_the_lines_that_were_there),
    (lines, "if suffix != b", "if False and suffix != b",
     of_lines.test_each_flipped_bit_in_the_middle_is_reported_with_the_number_of_its_line),
    (lines, "if not rest and damaged", "if False and damaged", torn),
    (lines, "return start + found + 1", "return found + 1",
     partial(of_lines.test_the_end_of_the_lines_is_found_however_long_the_torn_one_is, length=200_000)),
    (lines, "if len(data) > size:", "if False:", marks),
    (lines, 'if hashlib.sha256(data[:size]).hexdigest() != there["sha256"]:', "if False:", marks),
    (lines, "stream.seek(self._bytes)", "stream.seek(0)",
     of_lines.test_a_mark_reads_each_byte_once_and_is_that_of_the_whole_file),
    (rounds, 'if _digest(folder / name) != entry["sha256"]:', "if False:",
     partial(flip, number=3, name="state.json")),
    (rounds, f"{WHOLE}\n        known", "whole = True\n        known", of_rounds.test_every_bit_of_a_manifest_counts),
    (rounds, f"{WHOLE}\n        files", "whole = True\n        files", sealed),
    (rounds, "found = os.lstat(file)", "found = os.stat(file)",
     of_rounds.test_links_and_pipes_are_not_followed_even_to_the_right_bytes),
    (rounds, "if found not in files and found != MANIFEST and", "if False and",
     of_rounds.test_files_that_nobody_committed_reject_a_round_but_not_what_a_desktop_leaves),
    (rounds, 'if manifest["round"] != number:', "if False:", partial(manifest, change={"round": 2})),
    (rounds, 'not in ("", manifest["prev"])', "is None",
     of_rounds.test_a_round_that_follows_another_history_is_rejected_while_its_predecessor_is_kept),
    (rounds, "name == MANIFEST:\n                raise _Damage", "False:\n                raise _Damage", partial(
        of_rounds.test_a_manifest_that_names_a_path_is_rejected_however_well_it_was_made, name="MANIFEST.json")),
    (rounds, "if not _FILE_NAME.fullmatch(name) or name == MANIFEST:\n                raise _Damage",
     "if name == MANIFEST:\n                raise _Damage", partial(
         of_rounds.test_a_manifest_that_names_a_path_is_rejected_however_well_it_was_made, name="../x")),
    (rounds, "numbers[: -max(2, last)]", "numbers[: -max(1, last)]", partial(kept, keep=1, best=1, left=[1, 4, 5])),
    (rounds, "if number != best:", "if True:", partial(kept, keep=2, best=2, left=[2, 4, 5])),
    (rounds, "or n > number]", "or n >= number]", of_rounds.test_rewinding_puts_later_rounds_aside_and_deletes_none),
    (rounds, "key=lambda name: (_number(name) or -1, name)", "key=str",
     of_rounds.test_beyond_ten_thousand_rounds_the_newest_is_still_the_one_with_the_largest_number),
    (rounds, "            self.disk.sync(folder / name)\n", "", no_cut_loses_a_round),
    (rounds, "                self.disk.rename(target, pending)\n                raise", "                raise",
     power.test_a_round_that_may_be_gone_after_a_power_cut_is_not_shown_either),
    (run, "        _sync_tree(disk, pending)\n", "", no_cut_loses_a_round),
    (run, "        _restore(disk, target)\n        if target", "        if target",
     runs.test_committing_again_replaces_the_folder_and_what_a_killed_process_left_beside_it),
    (run, "                _restore(self.disk, folder / former.name.removeprefix(_FORMER))\n", "                pass\n",
     runs.test_a_folder_whose_replacement_was_killed_half_way_comes_back),
    (run, "                        self.disk.cut(metrics, before)\n", "                        pass\n",
     of_lines.test_a_round_that_cannot_be_made_visible_leaves_no_bytes_in_the_marks_after_it),
]  # fmt: skip

fault = partial(partial, gates.test_an_update_with_a_fault_becomes_a_failure_that_names_it, from_="memory")
message = partial(partial, gates.test_a_message_with_a_fault_becomes_a_failure_that_names_it)
memory = partial(partial, gates.test_tensors_in_memory_are_plain_float32_arrays)
choice = partial(partial, gates.test_a_choice_with_a_fault_is_refused_by_name, from_="memory")
first = gates.test_the_first_usable_update_of_a_client_wins_and_a_refused_one_takes_no_place
bound = gates.test_a_control_variate_changes_by_no_more_than_its_delta_over_its_rates_and_the_server_s
GATE = [
    ("if not _asked(answer.client, task):", "if False:",
     gates.test_a_client_that_was_not_asked_is_uninvited_whatever_it_sends),
    ("if (task.round, client) in self._seen:", "if False:", first),
    ("        self._seen.add((task.round, client))\n        return passed", "        return passed", first),
    ("        except Exception:\n", "        except ValueError:\n", partial(
        gates.test_hostile_answers_are_refused_without_an_exception_and_without_their_words, index=8)),
    ("if len(sealed.data) > limit:", "if len(sealed.data) > limit + 1:",
     gates.test_a_message_larger_than_its_view_can_need_is_not_read),
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
    ('if "loss" not in plain or not all(map(math.isfinite, plain.values())):', 'if "loss" not in plain:', partial(
        gates.test_an_update_without_finite_metrics_is_refused, metrics={"loss": float("nan")})),
    ("if len(metrics) > most:", "if False:", fault(fault="too many metrics")),
    ("if theirs.keys() != ours.keys():", "if not theirs.keys() <= ours.keys():", fault(fault="a tensor too few")),
    ("if theirs.keys() != ours.keys():", "if not theirs.keys() >= ours.keys():", fault(fault="a tensor too many")),
    ("if theirs[name] != shape:", "if len(theirs[name]) != len(shape):", fault(fault="another rank")),
    ("if update.delta[name].dtype != np.float32:", "if update.delta[name].dtype.itemsize != 4:",
     memory(fault="integers")),
    ("if not square <= LARGEST**2:", "if square > LARGEST**2:", fault(fault="NaN")),
    ("LARGEST = 1e15", "LARGEST = 1e16", fault(fault="a norm beyond float32's squares")),
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
    ("view = _answered(task.views[update.client], update.slots)", "view = task.views[update.client]",
     choice(fault="a slot more than the budget")),
    ("reverse=True)[: view.choice.budget]", "reverse=False)[: view.choice.budget]",
     gates.test_the_largest_message_of_a_choice_is_that_of_the_dearest_slots),
    ("len(failure.detail) <= 200 and failure.detail.isprintable()", "len(failure.detail) <= 200",
     gates.test_a_failure_keeps_no_detail_that_is_not_a_short_line),
]  # fmt: skip


FAULTS = [*STORE, *((gate, *planted) for planted in GATE)]
HELD: list[Any] = []
"""Laws that were seen to hold without a fault."""


def test_every_fault_has_one_place_in_the_source_of_today():
    found = {text: inspect.getsource(module).count(text) for module, text, *_ in FAULTS}
    assert {text: times for text, times in found.items() if times != 1} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "text", "instead", "law"),
    FAULTS,
    ids=lambda value: value[:60].strip() if isinstance(value, str) else "",
)
def test_a_planted_fault_is_noticed(module, text, instead, law, monkeypatch, tmp_path):
    if law not in HELD:  # once: some take seconds
        call(law, tmp_path / "whole")
        HELD.append(law)
    plant(monkeypatch, module, text, instead)
    with pytest.raises((Exception, pytest.fail.Exception)) as caught:
        call(law, tmp_path / "faulty")
    assert not isinstance(caught.value, NameError), "the fault itself is broken"


def plant(patch: pytest.MonkeyPatch, module: ModuleType, text: str, instead: str) -> None:
    """Give the module's functions and constants what they would be with `instead` in place of `text`.

    Functions keep their identity, so that it does not matter who has imported them already.
    """
    source = inspect.getsource(module)
    assert source.count(text) == 1, f"{text!r} stands {source.count(text)} times in {module.__name__}"
    code = compile(source.replace(text, instead), module.__file__, "exec", dont_inherit=True)
    other: dict[str, Any] = {"__name__": module.__name__}
    changed = dict(codes(code))
    for function in functions(module):
        new = changed[function.__code__.co_qualname]
        if (new.co_code, new.co_consts, new.co_names) != (
            function.__code__.co_code, function.__code__.co_consts, function.__code__.co_names,
        ):  # fmt: skip
            patch.setattr(function, "__code__", new)
    exec(code, other)
    for name, value in vars(module).items():
        if isinstance(value, int | float | str | tuple) and not name.startswith("__") and other[name] != value:
            patch.setattr(module, name, other[name])


def codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner.co_qualname, inner
            yield from codes(inner)


def functions(module: ModuleType) -> Iterator[FunctionType]:
    """What is defined in the module, methods too, without what decorators put around it."""
    for value in vars(module).values():
        for found in (value, *(vars(value).values() if isinstance(value, type) else ())):
            found = inspect.unwrap(getattr(found, "__func__", getattr(found, "fget", found)))
            if isinstance(found, FunctionType) and found.__code__.co_filename == module.__file__:
                yield found


def call(law, folder: Path) -> None:
    """Run a test with fixtures of its own."""
    folder.mkdir()
    wanted = inspect.signature(law).parameters.keys() - getattr(law, "keywords", {}).keys()
    with pytest.MonkeyPatch.context() as patch:
        fixtures = {"tmp_path": lambda: folder, "monkeypatch": lambda: patch}
        made = {name: (fixtures | BUILT)[name] for name in wanted}
        law(**{name: make() if name in fixtures else make(folder) for name, make in made.items()})


def three_rounds(folder: Path) -> Rounds:
    made = Rounds(folder / "checkpoints", QuickDisk())
    for number in (1, 2, 3):
        of_rounds.add(made, number)
    return made


def five_lines(folder: Path) -> Path:
    for number in range(5):
        append(QuickDisk(), folder / "journal.jsonl", journal_line({"what": "committed", "round": number}))
    return folder / "journal.jsonl"


BUILT = {
    "rounds": three_rounds,
    "journal": five_lines,
    "run": lambda folder: RunDirectory.create(folder / "runs", "demo"),
}
