"""Updates beyond the memory limit are in a file: equal results, constant memory, and no file left behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import federations
from broken_disks import QuickDisk
from kill_runs import ending
from number_engine import NumberEngine
from shepherd.clients.selection import build_selection
from shepherd.errors import ResourceError
from shepherd.experiment.run import resume, run
from shepherd.round import Plan, Policy, run_round
from shepherd.server.methods import build_method, methods
from shepherd.store import Disk, RunDirectory
from shepherd.store.state import state_files
from shepherd.types import ClientUpdate, Objective, ServerState, Work
from shepherd.updates.spool import Spool


class Numbers(NumberEngine):
    """An engine whose clients reply with random numbers, one after another."""

    def __init__(self, size: float = 0.3) -> None:
        self.size = size

    def train(self, task, deadline, enough, observe):
        for number, client in enumerate(sorted(task.views), start=1):
            rng = np.random.default_rng([task.round, number])
            update = federations.random_update(
                task.views[client], client, task.round, rng, self.size, steps=number % 3 + 1
            )
            if task.objective.scaffold:
                control = {f"{name}.control": 2 * value for name, value in update.delta.items()}
                update = replace(update, delta=update.delta | control, private={"c": np.full(3, number, np.float32)})
            yield replace(update, num_examples=number)


def a_plan(method, clients: int, spool=Spool, r: int = federations.R, ranks=(), **changes) -> Plan:
    names = tuple(f"c{k:03}" for k in range(clients))
    each = dict(zip(names, (ranks or [r]) * clients, strict=False))
    usual = Plan(
        seed=3, clients=names, cohort_size=clients, select=build_selection("uniform"), method=method,
        weights="examples", min_updates=1, work=lambda client, number, first: Work(client, first, 1, (0.1,) * 4),
        rank=each.__getitem__, objective=Objective(), spool=spool,
    )  # fmt: skip
    return replace(usual, **changes)


def begin(method, **options) -> ServerState:
    return ServerState(0, federations.begin(method, dtype=np.float32, **options))


def spool_in(folder: Path, limit: int = 0, disk: Disk | None = None):
    return lambda: Spool(limit, RunDirectory(folder, disk or QuickDisk()).scratch)


# The same numbers


def rounds(plan: Plan, count: int = 2) -> list:
    """The result of each round: its record without times, and the bytes of its checkpoint."""
    state, found = begin(plan.method), []
    for _ in range(count):
        state, record = run_round(state, plan, Numbers())
        found.append((asdict(replace(record, seconds={})), state_files(state, base_name="none")))
    return found


@pytest.mark.parametrize("name", sorted(methods))
def test_a_round_has_the_same_bytes_for_every_memory_limit(name, tmp_path):
    method = build_method(name)
    ranks = [2, 4] if method.mixed_ranks else [4]
    some = sum(array.nbytes for array in list(begin(method).model.adapter.factors.values())[-1]) * 4
    usual = rounds(a_plan(method, 5, ranks=ranks))
    for limit in (0, some):
        assert rounds(a_plan(method, 5, spool_in(tmp_path, limit), ranks=ranks)) == usual
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": Objective(scaffold=True)},
        {"policy": Policy(over_select=0.5), "cohort_size": 4},
        {"policy": Policy(max_weight=0.2), "weights": "tokens"},
        {"method": build_method("fedit", {}, "fedadam")},
        {"method": build_method("flora", {"view": {"name": "svd"}, "split": "svd_left"})},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_a_round_with_other_settings_has_the_same_bytes_for_every_memory_limit(changes, tmp_path):
    method = changes.pop("method", build_method("fedit"))
    usual = rounds(a_plan(method, 12, **changes))
    assert rounds(a_plan(method, 12, spool_in(tmp_path), **changes)) == usual


def test_arrays_read_from_the_file_equal_those_written(tmp_path):
    odd = {
        "none": np.zeros((0, 3), np.float32), "one": np.full((), 2.5), "turned": np.arange(6.0).reshape(2, 3).T,
        "every other": np.arange(9, dtype=np.int16)[::2], "nan": np.array([np.nan, -0.0, np.inf], np.float32),
    }  # fmt: skip
    with spool_in(tmp_path)() as spool:
        update = ClientUpdate("a", 1, odd, 1, 1, 1)
        first, second = spool.keep(update), spool.keep(replace(update, delta={n: a + a for n, a in odd.items()}))
        assert list(first.delta) == list(odd) and len(first.delta) == 5 and first.nbytes == update.nbytes
        for name, array in odd.items():
            for got, expected in ((first.delta[name], array), (second.delta[name], array + array)):
                assert (got.shape, got.dtype, got.tobytes()) == (expected.shape, expected.dtype, expected.tobytes())
        assert first.delta["nan"] is not first.delta["nan"] and first.delta["nan"].flags.owndata
        with pytest.raises(KeyError):
            first.delta["other"]


def test_updates_stay_in_memory_as_long_as_they_fit(tmp_path):
    update = ClientUpdate("a", 1, {"x": np.ones(10, np.float32)}, 1, 1, 1, private={"kept": np.ones(99)})
    with spool_in(tmp_path, limit=100)() as spool:
        kept = [spool.keep(update) for _ in range(4)]
        assert [k is update for k in kept] == [True, True, False, False]
        assert (spool.held, spool.laid) == (80, 80)
        assert all(k.private is update.private for k in kept)  # a simulated client keeps it in the state


# Memory


def peaks(method, tmp_path, clients: int, spool=None) -> tuple[int, int, int]:
    """The peak memory of a round beyond the state before it, the size of the adapter, and of all updates, in bytes."""
    # Products of these are small enough for one BLAS thread: several wait for each other on a busy machine.
    state = begin(method, shapes={f"m{i:02}": (128, 64) for i in range(32)})
    plan = a_plan(method, clients, spool or spool_in(tmp_path))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        _, record = run_round(state, plan, Numbers())
        return tracemalloc.get_traced_memory()[1] - before, state.model.adapter.nbytes, record.bytes_up
    finally:
        tracemalloc.stop()


def test_the_memory_of_a_round_does_not_grow_from_4_clients_to_256(tmp_path):
    method = build_method("fedit")
    few, adapter, _ = peaks(method, tmp_path, 4)
    middle, _, _ = peaks(method, tmp_path, 64)
    many, _, sent = peaks(method, tmp_path, 256)
    assert sent == 256 * adapter
    assert many - middle < 192 * 2048 < 192 * adapter / 40  # a few numbers and names of each client
    # The diagnostics compare 32 clients at the most: Gram matrices of 2r columns of each, and a module's factors.
    pairs = 2 * 8 * (32 * 2 * federations.R) ** 2 + 8 * 32 * federations.R * (128 + 64) * 6
    assert few < 3 * adapter + 2**16 and many < 3 * adapter + pairs + 256 * 2048
    everything, _, _ = peaks(method, tmp_path, 64, Spool)
    assert everything > 64 * adapter  # the measurement sees updates where they are held


def test_a_merge_of_products_holds_one_module_of_all_clients_but_not_all_modules(tmp_path):
    many, _, sent = peaks(build_method("flexlora"), tmp_path, 128)
    module = 128 * federations.R * (128 + 64) * 8  # in float64
    assert module < many < sent / 2


def test_clients_of_one_rank_share_a_client_model_that_depends_on_the_rank_alone():
    for name, distinct in (("fedit", 1), ("hetlora", 2), ("flora", 2), ("fed_plora", 6)):
        method = build_method(name)
        model = federations.begin(method)
        ranks = {f"c{k}": 4 if distinct == 1 else 2 + 2 * (k % 2) for k in range(6)}
        views = method.views(model, ranks, 1, 0)
        assert len({id(view) for view in views.values()}) == distinct
        for client, rank in ranks.items():
            own = method.view(model, client, rank, 1, 0)
            assert views[client].adapter.r == own.adapter.r
            theirs, ours = views[client].tensors(), own.tensors()
            assert all(np.array_equal(theirs[name], ours[name]) for name in ours)
            assert (own.slots or {}).keys() == (views[client].slots or {}).keys()
            assert all(np.array_equal(own.slots[m], views[client].slots[m]) for m in own.slots or {})


# A disk that fails


class Failing(QuickDisk):
    """A disk that fails after this many tensors in scratch files."""

    def __init__(self, after: int, number: int = errno.ENOSPC) -> None:
        self.left, self.number = after, number

    def add(self, scratch, data):
        self.left -= 1
        if self.left < 0:
            scratch.write(data[: len(data) // 2])
            raise OSError(self.number, os.strerror(self.number))
        super().add(scratch, data)


def test_a_full_disk_is_an_error_with_the_file_and_what_is_intact(tmp_path):
    method = build_method("fedit")
    with pytest.raises(
        ResourceError, match=r"no space left on the disk: .*updates was not written; no round"
    ) as caught:
        run_round(begin(method), a_plan(method, 5, spool_in(tmp_path, disk=Failing(7))), Numbers())
    assert "free some space" in caught.value.hint
    assert os.listdir(tmp_path) == []


def test_the_file_is_closed_after_a_round_and_after_an_error(tmp_path):
    method, made = build_method("fedit"), []

    def spool(disk=None):
        store = RunDirectory(tmp_path, disk or QuickDisk())
        return Spool(0, lambda: made.append(store.scratch()) or made[-1])

    run_round(begin(method), a_plan(method, 5, spool), Numbers())
    with pytest.raises(ResourceError):
        run_round(begin(method), a_plan(method, 5, lambda: spool(Failing(7))), Numbers())
    assert [scratch.file.closed for scratch in made] == [True, True]


def test_a_truncated_file_is_an_error(tmp_path):
    class Torn(QuickDisk):
        def add(self, scratch, data):
            super().add(scratch, data)
            scratch.truncate(min(scratch.tell(), 3000))

    method = build_method("fedit")
    with pytest.raises(ResourceError, match=r"input/output error: .*updates was not read"):
        run_round(begin(method), a_plan(method, 5, spool_in(tmp_path, disk=Torn())), Numbers())


def test_a_run_stopped_by_a_full_disk_resumes_to_the_same_result(small_config, tmp_path, monkeypatch):
    config = small_config("federation.updates_in_memory_mib=0", "evaluation.arms=base,federated", "federation.rounds=3")
    added: list[int] = []
    real = Disk.add

    def add(self, scratch, data):
        added.append(len(data))
        if len(added) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, scratch, data)

    monkeypatch.setattr(Disk, "add", add)
    fails_at = 0
    in_memory = run(config.model_copy(update={"federation": config.federation.model_copy(
        update={"updates_in_memory_mib": 256})}), out_dir=tmp_path / "memory")  # fmt: skip
    assert added == []
    whole = run(config, out_dir=tmp_path / "whole")
    a_round, rest = divmod(len(added), 3)
    assert rest == 0 and ending(whole.path) == ending(in_memory.path)
    added.clear()
    fails_at = a_round + a_round // 2
    with pytest.raises(ResourceError, match=r"no space left on the disk.*rounds up to 1 are committed") as caught:
        run(config, out_dir=tmp_path / "full")
    left = tmp_path / "full" / "tiny"
    assert f"shepherd resume {left}" in caught.value.hint
    assert sorted(os.listdir(left / "checkpoints")) == ["round-0001"]
    assert len((left / "rounds.jsonl").read_text().splitlines()) == 1
    assert [name for name in os.listdir(left) if name.startswith(".tmp")] == []
    assert ending(resume(left).path) == ending(whole.path)


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from shepherd.store import RunDirectory
from shepherd.types import ClientUpdate
from shepherd.updates.spool import Spool
folder = Path(sys.argv[1])
with Spool(0, RunDirectory(folder).scratch) as spool:
    for client in "abc":
        kept = spool.keep(ClientUpdate(client, 1, {"x": np.ones(100000, np.float32)}, 1, 1, 1))
    assert kept.delta["x"].sum() == 100000
    print(sum(os.path.getsize(folder / name) for name in os.listdir(folder)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX: kill -9")
def test_a_killed_process_leaves_no_file_of_updates(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert done.stdout.strip() == "0" and os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX: a file without a name")
def test_the_file_is_readable_by_its_owner_alone_and_stale_names_are_removed(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    store = RunDirectory(tmp_path / "run", QuickDisk())
    scratch = store.scratch()
    assert os.fstat(scratch.file.fileno()).st_mode & 0o777 == 0o600
    scratch.close()
    # A system without nameless files, and a process that ends between the making of the file and the loss of its name.
    monkeypatch.setattr(tempfile, "_O_TMPFILE_WORKS", False, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda *_, **__: None)
        store.scratch().close()
    (name,) = os.listdir(store.path)
    assert store.recover().notes == (f"unfinished {name} was removed",) and os.listdir(store.path) == []


def test_a_run_may_be_resumed_with_another_memory_limit(small_config, tmp_path):
    config = small_config("evaluation.arms=base,federated", "federation.rounds=1")
    done = run(config, out_dir=tmp_path)
    (done.path / "summary.json").unlink()
    text = (done.path / "config.toml").read_text()
    assert "updates_in_memory_mib = 256" in text
    (done.path / "config.toml").write_text(text.replace("updates_in_memory_mib = 256", "updates_in_memory_mib = 0"))
    assert json.loads((resume(done.path).path / "summary.json").read_text())["forced"] == []
