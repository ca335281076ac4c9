"""Before a run: Python and the command line find the same mistakes, and what clearly does not fit is refused."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

import shepherd
from console import Shell
from shepherd.errors import ResourceError, ShepherdError
from shepherd.experiment import capacity, inputs, pipeline
from shepherd.experiment.estimate import plan
from shepherd.model import catalogue, fetch
from stopped_runs import stopped

PYTHON = """
import sys, shepherd
try:
    shepherd.run(shepherd.load_config("demo", sys.argv[1:]))
except shepherd.ShepherdError as error:
    print(error.exit_code, "torch" in sys.modules, error.message, sep="\\n")
"""


@pytest.mark.parametrize(
    ("setting", "status", "said"),
    [
        ("data.source=/nowhere.jsonl", 3, "/nowhere.jsonl"),
        ("model.base=lab/absent", 4, "nor a model in the cache"),
        ("federation.method=fedt", 2, "Did you mean"),
        ("selection.name=oort_", 2, "Did you mean 'oort'"),
    ],
)
def test_python_finds_what_the_command_line_finds_before_pytorch_loads(
    setting, status, said, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", PYTHON, setting, "run.out=runs"]
    if "model.base" not in setting:
        command.append(f"model.base={tmp_path}")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    code, torch, message = done.stdout.rstrip("\n").split("\n", 2)
    assert (int(code), torch) == (status, "False") and said in message, done.stderr
    outcome = Shell(capsys, monkeypatch)("run", "demo", *(f"--set={s}" for s in command[3:]))
    assert outcome.status == status and message in outcome.err
    assert not (tmp_path / "runs").exists()


PROGRAM = """
import multiprocessing, shepherd
if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=print)
    worker.start()
    worker.join()
else:
    shepherd.run(shepherd.load_config("demo", ["run.workers=2"]))
"""


def test_a_program_that_its_workers_would_run_again_is_refused_in_the_first_of_them(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True, cwd=tmp_path)
    assert "UsageError: run.workers = 2, and shepherd.run stands at the top level" in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "program.py"]


def test_a_built_in_model_that_is_not_here_is_fetched_by_python_too(monkeypatch, small_config):
    fetched, events = [], []
    entry = catalogue.ModelEntry("toy", None, 0, "mit", "toy==1.0")
    monkeypatch.setattr(fetch, "list_models", lambda: [entry])
    monkeypatch.setattr(fetch, "pull", lambda name, progress: fetched.append(name))
    with pytest.raises(ShepherdError, match="toy"):  # it is not really there
        shepherd.run(small_config("model.base=toy"), events.append)
    assert fetched == ["toy"]
    assert [(e["phase"], "fetching toy once" in e["detail"]) for e in events][:1] == [("fetch model", True)]


# Memory and disk


@pytest.fixture
def needed(small_config):
    return plan(small_config())


def test_a_run_that_clearly_does_not_fit_is_refused_before_the_model_loads_and_one_that_may_fit_is_not(
    monkeypatch, small_config, needed, tmp_path
):
    from shepherd.experiment import run as experiment

    class Loaded(Exception): ...

    def load(**settings):
        raise Loaded

    monkeypatch.setattr(inputs, "load_base", load)
    monkeypatch.setattr(capacity, "available_memory", lambda: needed.memory_bytes // 2 - 1)
    with pytest.raises(ResourceError, match=r"of memory, .* are free") as caught:
        experiment.run(small_config(), out_dir=tmp_path / "runs")
    assert caught.value.exit_code == 5 and "training.tokens_per_pass" in caught.value.hint
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(capacity, "available_memory", lambda: needed.memory_bytes // 2 + 1)
    with pytest.raises(Loaded):
        experiment.run(small_config(), out_dir=tmp_path / "runs")
    with pytest.raises(ResourceError):  # a plan is stricter than a run
        capacity.fits_here({"memory_bytes": needed.memory_bytes}, tmp_path)


def test_what_a_run_took_is_less_than_the_margin_allows_it(tiny_run):
    assert plan(tiny_run.config).memory_bytes < capacity.MARGIN * tiny_run.summary["peak_memory_bytes"]


def test_a_disk_that_is_far_too_small_is_refused_with_its_folder(monkeypatch, tmp_path):
    free = namedtuple("usage", "free")
    monkeypatch.setattr("psutil.disk_usage", lambda path: free(100))
    capacity.fits_here({"disk_bytes": 200}, tmp_path / "not" / "yet", capacity.MARGIN)
    with pytest.raises(ResourceError, match=r"on the disk of .*yet, 100 B are free"):
        capacity.fits_here({"disk_bytes": 201}, tmp_path / "not" / "yet", capacity.MARGIN)


def test_memory_on_a_gpu_is_not_held_against_the_machines(monkeypatch, tmp_path):
    monkeypatch.setattr(capacity, "available_memory", lambda: 1)
    capacity.fits_here({"memory_bytes": 10**12, "device": "cuda:0"}, tmp_path)


def container(folder: Path, version: int, limit: str) -> Path:
    names = ("memory.max", "memory.current", "memory.stat", "inactive_file") if version == 2 else (
        "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file",
    )  # fmt: skip
    for name, text in zip(names, (limit, "700", f"anon 1\n{names[3]} 200\nfile 9"), strict=False):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_leaves_what_is_not_used_and_what_can_be_dropped(tmp_path, monkeypatch, version):
    monkeypatch.setattr(capacity, "_CGROUP", container(tmp_path, version, "1000"))
    assert capacity.available_memory() == 1000 - 700 + 200


@pytest.mark.timeout(20)  # it went up for ever
def test_a_missing_drive_is_refused_as_the_place_of_a_run(monkeypatch):
    with monkeypatch.context() as windows, pytest.raises(ResourceError, match="no run directory can be made") as caught:
        windows.setattr(Path, "exists", lambda path: False)
        windows.setattr(Path, "is_dir", lambda path: False)
        capacity.fits_here({}, Path("/away/runs"))
    assert "--out" in caught.value.hint


def test_without_a_limit_memory_is_the_machines(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "_CGROUP", container(tmp_path / "max", 2, "max"))
    assert capacity.available_memory() > 10**8
    monkeypatch.setattr(capacity, "_CGROUP", tmp_path)
    assert capacity.available_memory() > 10**8


def test_a_stopped_run_is_checked_before_pytorch_loads(small_config, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"instruction": "Say {i}.", "response": "{i}."}}\n' for i in range(9)))
    config = small_config(f"data.source={rows}", "partition.name=iid", "partition.clients=2")
    folder = stopped(config, tmp_path / "runs", lambda event: event["event"] == "start")
    rows.unlink()
    code = (
        f"import sys, shepherd\ntry:\n    shepherd.resume({str(folder)!r})\nexcept shepherd.ShepherdError as error:\n"
        "    print(error)\nprint([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "data not found" in done.stdout and done.stdout.endswith("[]\n"), done.stdout + done.stderr


@pytest.mark.parametrize(("number", "explained"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False)])
def test_a_disk_that_is_full_in_any_stage_is_answered_with_how_to_go_on(
    small_config, tmp_path, monkeypatch, number, explained
):
    def full(*_):
        raise OSError(number, os.strerror(number), "losses.safetensors")

    monkeypatch.setattr(pipeline, "train_baselines", full)
    with pytest.raises(OSError if not explained else ResourceError) as caught:
        shepherd.run(small_config("federation.rounds=1"), out_dir=tmp_path)
    if explained:
        assert caught.value.message == f"{os.strerror(number)}: losses.safetensors was not written"
        assert "shepherd resume" in caught.value.hint


@pytest.mark.parametrize("text", ["", "CUDA out of memory.\nTried to allocate 2 GiB"])
def test_memory_that_runs_out_in_any_stage_is_answered_with_what_to_lower(small_config, tmp_path, monkeypatch, text):
    def exhausted(*_):
        raise (pipeline.torch.OutOfMemoryError if text else MemoryError)(text)

    monkeypatch.setattr(pipeline, "train_baselines", exhausted)
    with pytest.raises(ResourceError) as caught:
        shepherd.run(small_config("federation.rounds=1"), out_dir=tmp_path)
    assert caught.value.message == f"out of memory: {text.partition(chr(10))[0] or 'the system gave no more'}"
    assert "training.tokens_per_pass" in caught.value.hint
