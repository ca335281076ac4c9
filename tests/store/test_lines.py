"""Lines that survive: a checksum in each, a torn end is cut off, a damaged middle is named."""

from __future__ import annotations

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broken_disks import FailingDisk, QuickDisk
from shepherd.store import RunDirectory, read_journal
from shepherd.store.lines import Growing, append, cut_to, journal_line, line_of, mark, mend_journal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)))


@pytest.fixture
def journal(tmp_path):
    file = tmp_path / "journal.jsonl"
    for number in range(5):
        append(QuickDisk(), file, journal_line({"what": "committed", "round": number}))
    return file


def test_a_journal_line_is_plain_json_with_one_more_key(journal):
    for number, line in enumerate(journal.read_text().splitlines()):
        row = json.loads(line)
        assert row.keys() == {"what", "round", "crc"}
        assert row["round"] == number
        assert len(row["crc"]) == 8


@given(st.dictionaries(TEXT, st.integers() | TEXT | st.lists(TEXT, max_size=2), max_size=4))
def test_every_row_comes_back_without_its_checksum(tmp_path_factory, row):
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_bytes(journal_line(row) * 2)
    assert read_journal(file).rows == (row, row)
    assert not read_journal(file).damaged
    assert not read_journal(file).torn


def test_each_flipped_bit_in_the_middle_is_reported_with_the_number_of_its_line(journal):
    data = journal.read_bytes()
    length = data.index(b"\n") + 1
    for position in range(2 * length, 3 * length - 1):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            if flipped[position] == ord("\n"):
                continue  # two damaged lines
            journal.write_bytes(flipped)
            found = read_journal(journal)
            assert [number for number, _ in found.damaged] == [3]
            assert not found.torn
            assert [row["round"] for row in found.rows] == [0, 1, 3, 4]


def test_a_line_without_a_checksum_is_damaged(journal):
    journal.write_bytes(b'{"what": "written by hand"}\n' + journal.read_bytes())
    assert read_journal(journal).damaged == ((1, "has no checksum"),)


def test_an_end_torn_at_any_byte_is_cut_off_and_the_next_line_stands_alone(journal):
    data = journal.read_bytes()
    start = data[:-1].rindex(b"\n") + 1
    for tail in [data[start:end] for end in range(start + 1, len(data))] + [b"\0" * 40, b"\0" * 40 + b"\n"]:
        journal.write_bytes(data[:start] + tail)
        assert read_journal(journal).torn == len(tail)
        assert journal.read_bytes() == data[:start] + tail, "reading changes nothing"
        assert mend_journal(QuickDisk(), journal).torn == len(tail)
        append(QuickDisk(), journal, journal_line({"round": 9}))
        assert [row["round"] for row in read_journal(journal).rows] == [0, 1, 2, 3, 9]
        assert mend_journal(QuickDisk(), journal).torn == 0


def test_a_journal_that_is_not_there_is_empty(tmp_path):
    assert read_journal(tmp_path / "journal.jsonl").rows == () == mend_journal(QuickDisk(), tmp_path / "j").rows


def test_an_append_that_fails_leaves_the_lines_that_were_there(journal):
    before = journal.read_bytes()
    for at in range(2):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
            append(FailingDisk(at, errno.EIO, lasting=False), journal, journal_line({"round": 9}))
        assert caught.value.filename == str(journal)
        assert journal.read_bytes() == before


def test_half_a_line_that_could_not_be_taken_back_is_cut_off_by_the_next_append(journal):
    before = journal.read_bytes()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        append(FailingDisk(0, errno.EIO), journal, journal_line({"round": 9}))
    assert len(journal.read_bytes()) > len(before)
    append(QuickDisk(), journal, journal_line({"round": 5}))
    assert journal.read_bytes() == before + journal_line({"round": 5})


@pytest.mark.parametrize("length", [0, 10, 65535, 65536, 65537, 200_000])
def test_the_end_of_the_lines_is_found_however_long_the_torn_one_is(length, tmp_path):
    for start in (b"", b"{}\n", b"{}\n" * 30_000):
        file = tmp_path / "rows.jsonl"
        file.write_bytes(start + b"x" * length)
        append(QuickDisk(), file, b"{}\n")
        assert file.read_bytes() == start + b"{}\n"


def test_lines_after_a_mark_are_cut_away_and_what_is_wrong_with_the_others_is_said(tmp_path):
    file = tmp_path / "rounds.jsonl"
    assert mark(file)["bytes"] == 0
    assert cut_to(QuickDisk(), file, mark(file)) == ""
    assert not file.exists()
    append(QuickDisk(), file, line_of({"round": 1}))
    there = mark(file)
    append(QuickDisk(), file, line_of({"round": 2}))
    assert cut_to(QuickDisk(), file, there) == ""
    assert file.read_bytes() == b'{"round": 1}\n'
    assert cut_to(QuickDisk(), file, there) == ""
    assert mark(file) == there
    file.write_bytes(b'{"round": 3}\n')
    assert cut_to(QuickDisk(), file, there) == "rounds.jsonl was changed after it was written"
    file.unlink()
    assert cut_to(QuickDisk(), file, there) == "rounds.jsonl has lost its last 13 bytes"


@given(JSON)
def test_a_line_is_one_line_whatever_is_in_it(row):
    try:
        line = line_of(row)
    except UnicodeEncodeError:  # half a character has no UTF-8
        return
    assert line.count(b"\n") == 1
    assert json.loads(line) == row


def test_a_mark_reads_each_byte_once_and_is_that_of_the_whole_file(tmp_path):
    run = RunDirectory(tmp_path, QuickDisk())

    def commit(number, fail=False):
        with run.commit_round(number, {"round": number}) as folder:
            (folder / "weights").write_bytes(b"w")
            if fail:
                raise ValueError("of the caller")

    commit(1)
    with pytest.raises(ValueError, match="of the caller"):
        commit(2, fail=True)
    for number in (2, 3):
        commit(number)
        assert run.rounds.newest().checkpoint.facts["rounds.jsonl"] == mark(tmp_path / "rounds.jsonl")
    file = tmp_path / "rounds.jsonl"
    growing = Growing(file)
    first = growing.mark()
    file.write_bytes(b"x" * file.stat().st_size + b"\n")  # what was read is not read again
    assert growing.mark()["bytes"] == first["bytes"] + 1
    assert growing.mark() != mark(file)


def test_a_round_that_cannot_be_made_visible_leaves_no_bytes_in_the_marks_after_it(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path, QuickDisk())

    def commit(text):
        with run.commit_round(1, {"round": 1, "text": text}) as folder:
            (folder / "weights").write_bytes(b"w")

    with monkeypatch.context() as patch:
        patch.setattr(run.disk, "rename", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            commit("of the first attempt")
    commit("")
    assert (tmp_path / "rounds.jsonl").read_text() == '{"round": 1, "text": ""}\n'
    assert run.rounds.newest().checkpoint.facts["rounds.jsonl"] == mark(tmp_path / "rounds.jsonl")
