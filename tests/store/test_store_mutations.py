"""Faults planted in the text of store/: for each, the test that stands beside it has to fail.

A fault is a piece of a module's source and what stands in its place; where the source changes, so must the fault.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import test_lines as of_lines
import test_power as power
import test_rounds as of_rounds
import test_store as runs

from broken_disks import QuickDisk
from planted import notice, texts_that_are_not_there_once
from shepherd.store import Rounds, RunDirectory, disk, folders, lines, rounds, run
from shepherd.store import manifest as manifests
from shepherd.store.lines import append, journal_line


def no_cut_loses_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law of test_store_power, which ends at the first loss."""
    judge = power.judge

    def strict(path, promised, losses):
        judge(path, promised, losses)
        assert not (losses.lost)
        assert not (losses.corrupt)
        assert not (losses.broken_lines)
        assert not (losses.lost_files)
        assert not (losses.unequal_ends)

    monkeypatch.setattr(power, "judge", strict)
    power.cut_power_everywhere(tmp_path)


flip = of_rounds.test_a_flipped_bit_in_any_file_rejects_that_round_by_name_and_no_other
torn = of_lines.test_an_end_torn_at_any_byte_is_cut_off_and_the_next_line_stands_alone
marks = of_lines.test_lines_after_a_mark_are_cut_away_and_what_is_wrong_with_the_others_is_said
kept = partial(runs.test_the_last_checkpoints_and_the_best_are_kept, rounds=5)
sealed = runs.test_a_flipped_bit_a_lost_byte_and_a_lost_file_of_a_committed_folder_are_named
manifest = of_rounds.test_a_manifest_with_other_things_in_it_is_rejected_and_crashes_nothing
WHOLE = 'whole = encode({key: value for key, value in manifest.items() if key != "sha256"}) == data'
FAULTS = [
    (disk, "        disk.sync(pending)\n", "", no_cut_loses_a_round),
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
    (manifests, 'if _digest(folder / name) != entry["sha256"]:', "if False:",
     partial(flip, number=3, name="state.json")),
    (manifests, f"{WHOLE}\n        known", "whole = True\n        known",
     of_rounds.test_every_bit_of_a_manifest_counts),
    (manifests, f"{WHOLE}\n        files", "whole = True\n        files", sealed),
    (manifests, "found = os.lstat(file)", "found = os.stat(file)",
     of_rounds.test_links_and_pipes_are_not_followed_even_to_the_right_bytes),
    (rounds, "if found not in files and found != MANIFEST and", "if False and",
     of_rounds.test_files_that_nobody_committed_reject_a_round_but_not_what_a_desktop_leaves),
    (rounds, 'if manifest["round"] != number:', "if False:", partial(manifest, change={"round": 2})),
    (rounds, 'not in ("", manifest["prev"])', "is None",
     of_rounds.test_a_round_that_follows_another_history_is_rejected_while_its_predecessor_is_kept),
    (manifests, "name == MANIFEST:\n                raise Damage", "False:\n                raise Damage", partial(
        of_rounds.test_a_manifest_that_names_a_path_is_rejected_however_well_it_was_made, name="MANIFEST.json")),
    (manifests, "if not FILE_NAME.fullmatch(name) or name == MANIFEST:\n                raise Damage",
     "if name == MANIFEST:\n                raise Damage", partial(
         of_rounds.test_a_manifest_that_names_a_path_is_rejected_however_well_it_was_made, name="../x")),
    (rounds, "numbers[: -max(2, last)]", "numbers[: -max(1, last)]", partial(kept, keep=1, best=1, left=[1, 4, 5])),
    (rounds, "if number != best:", "if True:", partial(kept, keep=2, best=2, left=[2, 4, 5])),
    (rounds, "or n > number]", "or n >= number]", of_rounds.test_rewinding_puts_later_rounds_aside_and_deletes_none),
    (rounds, "key=lambda name: (_number(name) or -1, name)", "key=str",
     of_rounds.test_beyond_ten_thousand_rounds_the_newest_is_still_the_one_with_the_largest_number),
    (rounds, "            self.disk.sync(folder / name)\n", "", no_cut_loses_a_round),
    (rounds, "                self.disk.rename(target, pending)\n                raise", "                raise",
     power.test_a_round_that_may_be_gone_after_a_power_cut_is_not_shown_either),
    (folders, "        sync_tree(disk, pending)\n", "", no_cut_loses_a_round),
    (folders, "        restore(disk, target)\n        if target", "        if target",
     runs.test_committing_again_replaces_the_folder_and_what_a_killed_process_left_beside_it),
    (run, "                restore(self.disk, folder / former.name.removeprefix(FORMER))\n", "                pass\n",
     runs.test_a_folder_whose_replacement_was_killed_half_way_comes_back),
    (run, "                        self.disk.cut(metrics, before)\n", "                        pass\n",
     of_lines.test_a_round_that_cannot_be_made_visible_leaves_no_bytes_in_the_marks_after_it),
]  # fmt: skip


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


def test_every_fault_matches_the_current_source_exactly_once():
    assert texts_that_are_not_there_once(FAULTS) == {}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[1][:60].strip())
def test_a_planted_fault_is_detected(fault, monkeypatch, tmp_path):
    notice(fault, monkeypatch, tmp_path, BUILT)
