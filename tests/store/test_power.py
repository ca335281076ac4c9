"""Power is cut after every operation of a run, and the disk fails at every one: no acknowledged round is lost."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from broken_disks import FailingDisk, QuickDisk, RecordingDisk, crash_trees, lay_out, read_tree
from shepherd.errors import ResourceError
from shepherd.store import Disk, RunDirectory, read_journal

ROUNDS = 3


def payload(number: int) -> dict[str, bytes]:
    names = ("adapter_config.json", "adapter_model.safetensors", "state.json", "state.safetensors")
    return {name: b"%s of round %d" % (name.encode(), number) for name in names}


def commit(run: RunDirectory, number: int) -> None:
    with run.commit_round(number, {"round": number, "loss": 1 / number}) as folder:
        for name, data in payload(number).items():
            run.disk.write(folder / name, data)


def short_run(disk, out: Path, promise=lambda _: None) -> None:
    """Three rounds, of which the last two and the first (as the best) are kept, then what comes at a run's end.

    `promise` is told what was written when the call that wrote it has returned.
    """
    run = RunDirectory.create(out, "demo", disk)
    run.write_text("config.toml", "seed = 0\n")
    promise("config.toml")
    run.journal("started")
    promise("journal")
    for number in range(1, ROUNDS + 1):
        commit(run, number)
        promise(number)
        run.prune_checkpoints(keep=2, best=0)
        run.journal("committed", round=number)
        promise("journal")
    with run.commit_folder("adapter") as folder:
        disk.write(folder / "weights", b"w" * 50)
    promise("adapter/weights")
    run.write_json("evaluation/metrics.json", {"loss": 0.5})
    promise("evaluation/metrics.json")


WHOLE = {"config.toml": b"seed = 0\n", "adapter/weights": b"w" * 50,
         "evaluation/metrics.json": b'{\n "loss": 0.5\n}\n'}  # fmt: skip


@dataclass
class Losses:
    """What the crash states of one way to write have cost; `distinct` counts those that differ from all before."""

    states: int = 0
    distinct: int = 0
    lost: int = 0
    corrupt: int = 0
    rejected: int = 0
    broken_lines: int = 0
    lost_files: int = 0
    unequal_ends: int = 0


def cut_power_everywhere(
    tmp_path: Path, forgets: tuple[str, ...] = (), full: bool = False, enough: float = math.inf
) -> Losses:
    """The losses over all crash states; counting may end when `enough` rounds are lost."""
    disk = RecordingDisk(tmp_path / "disk", forgets)
    disk.root.mkdir()
    promises = []
    short_run(disk, disk.root / "new" / "runs", lambda what: promises.append((len(disk.operations), what)))
    losses, judged = Losses(), set()
    for count in range(len(disk.operations) + 1):
        promised = tuple(what for when, what in promises if when <= count)
        for tree in crash_trees(disk.operations[:count], full):
            losses.states += 1
            state = (promised, tuple(sorted(tree.items(), key=lambda item: item[0])))
            if state in judged:
                continue
            judged.add(state)
            losses.distinct += 1
            after = tmp_path / "after"
            lay_out(tree, after)
            judge(after / "new" / "runs" / "demo", promised, losses)
            shutil.rmtree(after)
            if losses.lost >= enough:
                return losses
    return losses


def judge(path: Path, promised: tuple, losses: Losses) -> None:
    """Recover, count what is wrong, then go on to the end of the run."""
    least = max((what for what in promised if isinstance(what, int)), default=0)
    if not path.is_dir():
        losses.lost += bool(promised)
        return
    run = RunDirectory(path, QuickDisk())
    found = run.recover()
    reached = found.checkpoint.round if found.checkpoint else 0
    losses.lost += reached < least
    losses.rejected += bool(found.rejected or run.rounds.check_all()[1])
    if found.checkpoint:
        read = {name: (found.checkpoint.folder / name).read_bytes() for name in found.checkpoint.files}
        losses.corrupt += read != payload(reached)
    journal = read_journal(path / "journal.jsonl")
    written = rounds_in(path)
    losses.broken_lines += bool(journal.damaged or journal.torn) or written != list(range(1, reached + 1))
    losses.lost_files += len(journal.rows) < promised.count("journal")
    for name, data in WHOLE.items():
        there = (path / name).read_bytes() if (path / name).exists() else None
        losses.lost_files += there != data and (there is not None or name in promised)
    for number in range(reached + 1, ROUNDS + 1):
        commit(run, number)
    again = RunDirectory(path, QuickDisk()).recover()
    wrong = again.notes != () or again.lines != ""
    losses.unequal_ends += again.checkpoint.round != ROUNDS or rounds_in(path) != [1, 2, 3] or wrong


def rounds_in(path: Path) -> list[int] | None:
    """The rounds that have a line in rounds.jsonl; None when a line is damaged."""
    file = path / "rounds.jsonl"
    try:
        return [json.loads(line)["round"] for line in file.read_text().splitlines()] if file.exists() else []
    except ValueError:
        return None


def test_a_power_cut_after_any_operation_loses_no_acknowledged_round_and_loads_no_broken_one(tmp_path):
    losses = cut_power_everywhere(tmp_path)
    assert losses.distinct >= 240, "different trees or promises"
    assert losses == Losses(losses.states, losses.distinct)


@pytest.mark.slow
def test_a_power_cut_that_spares_or_hits_any_two_operations_loses_nothing_either(tmp_path):
    losses = cut_power_everywhere(tmp_path, full=True)
    assert losses.distinct >= 600
    assert losses == Losses(losses.states, losses.distinct)


@pytest.mark.parametrize("left_out", ["sync", "sync_folder"])
def test_without_syncing_files_or_folders_the_same_power_cuts_lose_rounds(left_out, tmp_path):
    losses = cut_power_everywhere(tmp_path, forgets=(left_out,), enough=15)
    assert losses.lost >= 15
    assert losses.corrupt == 0, "the hashes still keep what is broken from being loaded"
    assert left_out != "sync" or losses.rejected >= 5


def test_a_power_cut_during_recovery_costs_nothing_and_the_next_recovery_ends_the_same(tmp_path):
    run = RunDirectory.create(tmp_path / "disk", "demo", QuickDisk())
    for number in range(1, ROUNDS + 1):
        commit(run, number)
        run.journal("committed", round=number)
    (run.rounds.folder / "round-0003" / "state.json").write_bytes(b"damaged")
    (run.rounds.folder / "rejected-round-0003").mkdir()
    (run.rounds.folder / "rejected-round-0003" / "old").write_bytes(b"x")
    (run.rounds.folder / ".tmp-round-0004-1").mkdir()
    (run.path / ".old-adapter").mkdir()
    (run.path / ".old-adapter" / "weights").write_bytes(b"w" * 50)
    with open(run.path / "journal.jsonl", "ab") as file:
        file.write(b'{"torn')
    start = read_tree(tmp_path / "disk")
    disk, states = RecordingDisk(tmp_path / "disk"), set()
    RunDirectory(run.path, disk).recover()
    for count in range(len(disk.operations) + 1):
        for tree in crash_trees(disk.operations[:count], start=start):
            states.add(str(sorted(tree.items(), key=lambda item: item[0])))
            after = tmp_path / "after"
            lay_out(tree, after)
            losses = Losses()
            judge(after / "demo", (1, 2, "journal", "journal", "journal", "adapter/weights"), losses)
            assert replace(losses, rejected=0) == Losses(), "round 3 is rejected as long as it stands there"
            shutil.rmtree(after)
    assert len(states) >= 15


def test_a_round_that_recovery_put_aside_does_not_come_back_after_a_power_cut(tmp_path):
    run = RunDirectory.create(tmp_path / "disk", "demo", QuickDisk())
    for number in range(1, ROUNDS + 1):
        commit(run, number)
    (run.rounds.folder / "round-0003" / "state.json").write_bytes(b"damaged")
    start, disk = read_tree(tmp_path / "disk"), RecordingDisk(tmp_path / "disk")
    assert "rejected-round-0003 was put aside" in RunDirectory(run.path, disk).recover().notes
    for tree in crash_trees(disk.operations, full=True, start=start):
        lay_out(tree, tmp_path / "after")
        names = sorted(path.name for path in (tmp_path / "after" / "demo" / "checkpoints").iterdir())
        assert names == ["rejected-round-0003", "round-0001", "round-0002"]
        shutil.rmtree(tmp_path / "after")


# A disk that is full or fails


def operations_of_a_run(tmp_path: Path) -> int:
    disk = FailingDisk(1 << 60, errno.EIO)
    short_run(disk, tmp_path / "counted")
    return disk.count


@pytest.mark.parametrize(("number", "lasting"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, True),
                                                 (errno.EIO, False)])  # fmt: skip
def test_a_disk_that_fails_at_any_operation_is_named_and_costs_no_acknowledged_round(number, lasting, tmp_path):
    count, struck = operations_of_a_run(tmp_path), set()
    for at in range(count):
        out, promised = tmp_path / f"at-{at}", []
        disk = FailingDisk(at, number, lasting)
        try:
            short_run(disk, out, promised.append)
        except ResourceError as error:
            said = error
        else:
            assert not disk.struck or not lasting, "a failure was kept quiet"
            continue
        struck.add(disk.struck)
        path = out / "demo"
        if not (path / "config.toml").exists():
            assert "run directory" in said.message or "config.toml" in said.message
            continue
        assert str(path) in said.message
        assert said.exit_code == 5
        visible = RunDirectory(path).rounds.check_all()
        assert visible[1] == (), "something half-made is visible"
        newest = max((checkpoint.round for checkpoint in visible[0]), default=0)
        if not (number == errno.EIO and lasting):
            assert rounds_in(path) == list(range(1, newest + 1)), "a line of a round that is not there"
        if newest:
            assert f"rounds up to {newest} are committed and intact" in said.message
            assert f"shepherd resume {path}" in said.hint
        losses = Losses()
        judge(path, tuple(promised), losses)
        assert losses == Losses()
    assert {"make_folder", "write", "append"} <= struck
    assert number != errno.EIO or {"sync", "sync_folder", "rename"} <= struck


def test_a_round_that_may_be_gone_after_a_power_cut_is_not_shown_either(tmp_path):
    class LosingNames(QuickDisk):
        def sync_folder(self, folder):
            if folder.name == "checkpoints" and (folder / "round-0002").exists():
                raise OSError(errno.EIO, "Input/output error", str(folder))

    run = RunDirectory.create(tmp_path, "demo", LosingNames())
    commit(run, 1)
    with pytest.raises(ResourceError, match=r"input/output error: .*checkpoints was not written; rounds up to 1 are"):
        commit(run, 2)
    assert sorted(p.name for p in run.rounds.folder.iterdir()) == ["round-0001"]
    assert rounds_in(run.path) == [1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="wants the device that is always full")
def test_a_real_full_device_is_named():
    for write in (Disk().write, Disk().append):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
            write(Path("/dev/full"), b"x")
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == "/dev/full"


def test_after_a_full_disk_the_same_process_can_commit_the_round_when_there_is_space_again(tmp_path):
    disk = FailingDisk(1 << 60, errno.ENOSPC)
    run = RunDirectory.create(tmp_path, "demo", disk)
    commit(run, 1)
    disk.at = disk.count
    for _ in range(3):
        with pytest.raises(ResourceError, match="no space left on the disk"):
            commit(run, 2)
        assert sorted(p.name for p in run.rounds.folder.iterdir()) == ["round-0001"]
        assert rounds_in(run.path) == [1]
    disk.heal()
    commit(run, 2)
    assert run.rounds.newest().checkpoint.round == 2
    assert rounds_in(run.path) == [1, 2]


def test_a_full_disk_under_code_that_does_not_know_the_store_is_explained_too(tmp_path):
    run = RunDirectory.create(tmp_path, "demo", QuickDisk())
    commit(run, 1)
    for error in (OSError(errno.ENOSPC, "No space left on device"), Exception("No space left on device (os error 28)")):
        with pytest.raises(ResourceError, match="no space left"), run.commit_round(2, {"round": 2}) as folder:
            (folder / "half").write_bytes(b"x")
            raise error
    with pytest.raises(ZeroDivisionError), run.commit_round(2, {"round": 2}) as folder:
        (folder / "half").write_bytes(b"x")
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError), run.commit_round(2, {"round": 2}) as folder:
        (folder / "missing").read_bytes()
    assert sorted(p.name for p in run.rounds.folder.iterdir()) == ["round-0001"]
    assert rounds_in(run.path) == [1]


def test_a_run_directory_that_was_deleted_under_the_run_is_said_to_be_gone(tmp_path):
    run = RunDirectory.create(tmp_path, "demo", QuickDisk())
    shutil.rmtree(run.path)
    with pytest.raises(ResourceError, match="demo is gone: it was deleted or moved"):
        run.journal("committed", round=1)
