"""Rounds on disk: committed exactly when the manifest and every byte that it names are there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest

from broken_disks import QuickDisk
from shepherd.store import Rounds, RunDirectory

FILES = ("adapter_config.json", "adapter_model.safetensors", "state.json")


@pytest.fixture
def rounds(tmp_path) -> Rounds:
    """Rounds 1, 2 and 3."""
    rounds = Rounds(tmp_path / "checkpoints", QuickDisk())
    for number in (1, 2, 3):
        add(rounds, number)
    return rounds


def add(rounds: Rounds, number: int) -> None:
    with rounds.commit(number, {"loss": 1 / number}) as folder:
        for name in FILES:
            (folder / name).write_bytes(f"{name} of round {number}".encode() * 5)


def newest(rounds: Rounds) -> tuple[int, list[tuple[str, str]]]:
    found = rounds.newest()
    return found.checkpoint.round if found.checkpoint else 0, [tuple(one) for one in found.rejected]


def rewrite(folder, **changes) -> None:
    """Change a manifest as somebody would who knows how it is made: its own checksum is right again."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    del manifest["sha256"]
    manifest |= changes
    text = json.dumps(manifest, indent=1) + "\n"
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "MANIFEST.json").write_text(json.dumps(manifest, indent=1) + "\n")


def test_a_round_is_visible_only_when_its_block_has_ended(tmp_path):
    rounds = Rounds(tmp_path / "checkpoints", QuickDisk())
    assert rounds.newest() == (None, ())
    assert rounds.numbers() == ()
    with rounds.commit(1) as folder:
        (folder / "a").write_text("1")
        assert newest(rounds) == (0, [])
        assert folder.parent == rounds.folder
    found = rounds.newest().checkpoint
    assert found.round == 1
    assert found.folder == rounds.folder / "round-0001"
    assert found.facts == {}
    assert found.files == {"a": hashlib.sha256(b"1").hexdigest()}


def test_the_manifest_names_every_file_and_the_manifest_before_it(rounds):
    manifests = [(rounds.folder / f"round-000{n}" / "MANIFEST.json").read_bytes() for n in (1, 2, 3)]
    parsed = [json.loads(data) for data in manifests]
    assert [m["prev"] for m in parsed] == ["", *(hashlib.sha256(data).hexdigest() for data in manifests[:2])]
    assert [m["round"] for m in parsed] == [1, 2, 3]
    assert {m["schema"] for m in parsed} == {1}
    data = (rounds.folder / "round-0002" / "state.json").read_bytes()
    assert parsed[1]["files"]["state.json"] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert sorted(parsed[1]["files"]) == sorted(FILES)
    found = rounds.newest().checkpoint
    assert found.digest == hashlib.sha256(manifests[2]).hexdigest()
    assert found.facts == {"loss": 1 / 3}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("name", [*FILES, "MANIFEST.json"])
def test_a_flipped_bit_in_any_file_rejects_that_round_by_name_and_no_other(number, name, rounds):
    file = rounds.folder / f"round-000{number}" / name
    data = file.read_bytes()
    step = 1 if name == "MANIFEST.json" else 7
    for position in range(0, len(data), step):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        file.write_bytes(flipped)
        valid, rejected = rounds.check_all()
        assert [one.round for one in valid] == [n for n in (3, 2, 1) if n != number], position
        assert [one.name for one in rejected] == [f"round-000{number}"]
        assert name in rejected[0].reason
        assert newest(rounds)[0] == (2 if number == 3 else 3)
    file.write_bytes(data)
    assert newest(rounds) == (3, [])


def test_every_bit_of_a_manifest_counts(rounds):
    file = rounds.folder / "round-0003" / "MANIFEST.json"
    data = file.read_bytes()
    for position in range(0, 8 * len(data), 11):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        file.write_bytes(flipped)
        assert newest(rounds)[0] == 2, position


@pytest.mark.parametrize("name", [*FILES, "MANIFEST.json"])
def test_a_file_that_is_shorter_longer_or_gone_rejects_its_round(name, rounds):
    file = rounds.folder / "round-0003" / name
    data = file.read_bytes()
    for changed in (b"", data[:1], data[: len(data) // 2], data[:-1], data + b"\n"):
        file.write_bytes(changed)
        number, ((rejected, reason),) = newest(rounds)
        assert (number, rejected) == (2, "round-0003")
        assert name in reason
    file.unlink()
    assert newest(rounds) == (2, [("round-0003", f"{name} is missing")])


def test_files_that_nobody_committed_reject_a_round_but_not_what_a_desktop_leaves(rounds):
    folder = rounds.folder / "round-0003"
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._state.json"):
        (folder / name).write_bytes(b"icon positions")
    assert newest(rounds) == (3, [])
    (folder / "adapter_model.bin").write_bytes(b"a pickle")
    assert newest(rounds) == (2, [("round-0003", "adapter_model.bin is not in the manifest")])
    (folder / "adapter_model.bin").unlink()
    (folder / "more").mkdir()
    assert newest(rounds) == (2, [("round-0003", "more is not in the manifest")])


def test_links_and_pipes_are_not_followed_even_to_the_right_bytes(rounds, tmp_path):
    folder = rounds.folder / "round-0003"
    shutil.move(folder / "state.json", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / "state.json")
    assert newest(rounds) == (2, [("round-0003", "state.json is a symbolic link")])
    (folder / "state.json").unlink()
    os.mkfifo(folder / "state.json")
    assert newest(rounds) == (2, [("round-0003", "state.json is not a plain file")])
    (folder / "state.json").unlink()
    shutil.move(tmp_path / "elsewhere", folder / "state.json")
    shutil.move(folder, tmp_path / "round")
    os.symlink(tmp_path / "round", folder)
    assert newest(rounds) == (2, [("round-0003", "is a symbolic link")])


@pytest.mark.parametrize("name", ["../round-0002/state.json", "/etc/passwd", "a/b", "..", ".hidden", "", "a\x00b",
                                  "x" * 65, "MANIFEST.json", "ü"])  # fmt: skip
def test_a_manifest_that_names_a_path_is_rejected_however_well_it_was_made(name, rounds):
    folder = rounds.folder / "round-0003"
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    data = (rounds.folder / "round-0002" / "state.json").read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    rewrite(folder, files=manifest["files"] | {name: entry})
    number, ((rejected, reason),) = newest(rounds)
    assert (number, rejected) == (2, "round-0003")
    assert "names a file that no round has" in reason


@pytest.mark.parametrize("change", [{"round": 2}, {"round": "3"}, {"round": True}, {"files": []}, {"files": {"a": 1}},
                                    {"files": None}, {"facts": None}, {"schema": 0}, {"schema": "1"}, {"prev": 3},
                                    {"after": -1}, {"files": {"a": {"sha256": 3, "bytes": 1}}}])  # fmt: skip
def test_a_manifest_with_other_things_in_it_is_rejected_and_crashes_nothing(change, rounds):
    rewrite(rounds.folder / "round-0003", **change)
    number, ((rejected, reason),) = newest(rounds)
    assert (number, rejected) == (2, "round-0003")
    assert "MANIFEST.json" in reason


def test_a_manifest_of_a_later_version_says_so(rounds):
    rewrite(rounds.folder / "round-0003", schema=2)
    assert newest(rounds)[1] == [("round-0003", "was written by a newer version (schema 2, this one knows 1)")]


@pytest.mark.parametrize("data", [b"[]", b"3", b"null", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"round": 1e999}'])
def test_a_manifest_that_is_something_else_is_rejected(data, rounds):
    (rounds.folder / "round-0003" / "MANIFEST.json").write_bytes(data)
    assert newest(rounds)[0] == 2


def test_a_round_that_follows_another_history_is_rejected_while_its_predecessor_is_kept(rounds):
    second = rounds.folder / "round-0002"
    rewrite(second, facts={"loss": 0.0})  # whole in itself, but not the one that round 3 was committed after
    assert newest(rounds) == (2, [("round-0003", "does not follow the present round-0002")])
    (second / "MANIFEST.json").write_text("damaged")
    assert newest(rounds) == (3, []), "the damage of a predecessor is its own"
    shutil.rmtree(second)
    assert newest(rounds) == (3, [])


def test_the_chain_goes_on_over_rounds_that_were_deleted_or_damaged(rounds):
    rounds.keep(2)
    (rounds.folder / "round-0003" / "state.json").unlink()
    rounds.rewind(2)
    add(rounds, 3)
    add(rounds, 4)
    assert [one.round for one in rounds.check_all()[0]] == [4, 3, 2]
    assert rounds.check_all()[1] == ()


def test_beyond_ten_thousand_rounds_the_newest_is_still_the_one_with_the_largest_number(tmp_path):
    rounds = Rounds(tmp_path / "checkpoints", QuickDisk())
    for number in (9_998, 9_999, 10_000, 10_001):
        add(rounds, number)
    assert newest(rounds) == (10_001, [])
    assert rounds.rewind(9_999)[0] == "rejected-round-10001"
    assert newest(rounds) == (9_999, [])


def test_when_every_round_is_damaged_each_is_named_and_none_is_loaded(rounds):
    for number in (1, 2, 3):
        (rounds.folder / f"round-000{number}" / "state.json").unlink()
    number, rejected = newest(rounds)
    assert number == 0
    assert [name for name, _ in rejected] == ["round-0003", "round-0002", "round-0001"]


@pytest.mark.parametrize("name", ["round-7", "round-00007", "round-abc", "round-0009 copy", "round-"])
def test_folders_with_a_name_like_a_round_are_reported_and_nothing_else_is_looked_at(name, rounds):
    shutil.copytree(rounds.folder / "round-0003", rounds.folder / name)
    (rounds.folder / "notes.txt").write_text("mine")
    found = rounds.newest()
    assert found.checkpoint.round == 3
    assert [tuple(one) for one in rounds.check_all()[1]] == [(name, "is not named like a round")]


@pytest.mark.parametrize("name", ["MANIFEST.json", ".hidden", "x" * 65, "with space", "ü"])
def test_files_with_names_that_no_manifest_may_hold_are_refused_at_the_commit(name, rounds):
    with pytest.raises(ValueError, match="cannot be called"), rounds.commit(4) as folder:
        (folder / name).write_text("x")
    assert sorted(p.name for p in rounds.folder.iterdir()) == ["round-0001", "round-0002", "round-0003"]


def test_an_empty_round_a_folder_and_a_link_are_refused_at_the_commit(rounds):
    with pytest.raises(ValueError, match="no files"), rounds.commit(4):
        pass
    with pytest.raises(ValueError, match="sub is not a plain file"), rounds.commit(4) as folder:
        (folder / "sub").mkdir()
    with pytest.raises(ValueError, match="link is a symbolic link"), rounds.commit(4) as folder:
        os.symlink("/etc/hostname", folder / "link")
    assert newest(rounds) == (3, [])
    assert sorted(p.name for p in rounds.folder.iterdir()) == ["round-0001", "round-0002", "round-0003"]


@pytest.mark.parametrize("number", [1, 3])
def test_no_round_is_committed_over_another(number, rounds):
    with pytest.raises(ValueError, match="cannot follow round 3: rewind first"), rounds.commit(number):
        pytest.fail("it must be refused before anything is written")
    assert newest(rounds) == (3, [])


def test_rewinding_puts_later_rounds_aside_and_deletes_none(rounds):
    (rounds.folder / "round-0003" / "state.json").unlink()
    (rounds.folder / "round-0009 copy").mkdir()
    assert sorted(rounds.rewind(2)) == ["rejected-round-0003", "rejected-round-0009 copy"]
    assert newest(rounds) == (2, [])
    assert (rounds.folder / "rejected-round-0003" / "MANIFEST.json").exists()
    add(rounds, 3)
    assert rounds.rewind(2) == ("rejected-round-0003",)
    assert (rounds.folder / "rejected-round-0003" / "state.json").exists(), "the last one is kept"
    assert rounds.rewind(2) == ()
    assert rounds.rewind(0) == ("rejected-round-0002", "rejected-round-0001")
    assert newest(rounds) == (0, [])


def test_what_killed_processes_left_is_swept_and_only_that(rounds):
    for name in (".tmp-round-0004-123", ".tmp-round-0001-77"):
        (rounds.folder / name).mkdir()
        (rounds.folder / name / "half").write_text("x")
    (rounds.folder / "mine").mkdir()
    os.symlink(rounds.folder / "mine", rounds.folder / ".tmp-link")
    assert rounds.sweep() == (".tmp-link", ".tmp-round-0001-77", ".tmp-round-0004-123")
    assert sorted(p.name for p in rounds.folder.iterdir()) == ["mine", "round-0001", "round-0002", "round-0003"]
    assert rounds.sweep() == () == Rounds(rounds.folder / "none").sweep()


def test_recovery_cuts_the_lines_of_rounds_that_are_not_there_and_names_what_it_mended(tmp_path):
    run = RunDirectory.create(tmp_path, "demo", QuickDisk())
    for number in (1, 2, 3):
        with run.commit_round(number, {"round": number}, loss=0.5) as folder:
            (folder / "state.json").write_text(str(number))
        run.journal("committed", round=number)
    assert run.recover().notes == ()
    (run.rounds.folder / "round-0003" / "state.json").write_text("9")
    with open(run.path / "journal.jsonl", "ab") as file:
        file.write(b'{"what": "comm')
    recovered = run.recover()
    assert recovered.checkpoint.round == 2
    assert recovered.checkpoint.facts["loss"] == 0.5
    assert [one.name for one in recovered.rejected] == ["round-0003"]
    assert recovered.notes == (
        "journal.jsonl: an unfinished last line of 14 bytes was cut off",
        "rejected-round-0003 was put aside",
    )
    assert (run.path / "rounds.jsonl").read_text() == '{"round": 1}\n{"round": 2}\n'
    assert run.recover().notes == ()
    assert run.recover().lines == ""
    (run.path / "rounds.jsonl").write_text('{"round": 1}\n{"round": 7}\n')
    assert run.recover().lines == "rounds.jsonl was changed after it was written"
    (run.path / "rounds.jsonl").write_text('{"round": 1}\n')
    assert run.recover().lines == "rounds.jsonl has lost its last 13 bytes"
