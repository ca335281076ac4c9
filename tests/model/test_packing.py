"""Packing of rows into passes."""

from __future__ import annotations

import numpy as np
import pytest

from packed_rows import some_rows
from shepherd.model.packing import Row, cut, pack
from shepherd.model.slots import Segment
from shepherd.types import Tokens


def test_rows_are_laid_end_to_end_and_only_targets_are_predicted():
    a = Tokens("a", np.array([5, 6, 7], np.int32), np.array([True, False, True]))  # position 0 is never a target
    b = Tokens("b", np.array([8, 9], np.int32), np.array([False, True]))
    c = Tokens("c", np.array([4, 4, 3, 2], np.int32), np.array([False, False, True, True]))
    batch = pack([Row(2, a, 11), Row(2, b, 12), Row(0, c, 13)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 4, 4, 3, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]
    assert batch.bounds == (0, 3, 5, 9)
    assert batch.predictors.tolist() == [1, 3, 6, 7] and batch.labels.tolist() == [7, 9, 3, 2]
    assert batch.sequence_of.tolist() == [0, 1, 2, 2]
    assert batch.segments == (Segment(2, 0, 5), Segment(0, 5, 9))
    assert batch.target_segments == (Segment(2, 0, 2), Segment(0, 2, 4))
    assert batch.seeds == (11, 12, 13)


def test_a_sequence_without_targets_has_no_target_segment_and_shifts_no_other():
    mute = Tokens("m", np.array([5, 6, 7], np.int32), np.zeros(3, bool))
    heard = Tokens("h", np.array([8, 9], np.int32), np.array([False, True]))
    batch = pack([Row(0, mute), Row(1, heard)])
    assert batch.target_segments == (Segment(1, 0, 1),) and batch.sequence_of.tolist() == [1]


@pytest.mark.parametrize("limit", [1, 10, 40, 41, 91, 1000])
def test_a_cut_keeps_the_rows_in_order_and_only_a_single_row_exceeds_the_limit(limit):
    rows = some_rows()
    parts = list(cut(rows, limit))
    assert [row for part in parts for row in part] == rows
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        total = sum(len(row.tokens.input_ids) for row in part)
        assert total <= limit or len(part) == 1
        if following:  # not shorter than needed either
            assert total + len(following[0].tokens.input_ids) > limit


def test_a_cut_never_divides_a_slots_block_so_a_block_depends_on_its_own_slot_alone():
    lengths = (6, 6, 6, 3, 3, 8, 2)
    rows = some_rows(lengths, slots=(0, 0, 0, 1, 1, 2, 2))
    parts = [[len(r.tokens.input_ids) for r in part] for part in cut(rows, 14)]
    assert parts == [[6, 6], [6, 3, 3], [8, 2]]
    assert [[len(r.tokens.input_ids) for r in part] for part in cut(rows, 11)] == [[6], [6], [6], [3, 3], [8, 2]]
    for limit in (1, 9, 14, 30, 100):
        together = list(cut(rows, limit))
        for slot in range(3):
            alone = list(cut([row for row in rows if row.slot == slot], limit))
            assert [b for p in together if (b := [row for row in p if row.slot == slot])] == alone
