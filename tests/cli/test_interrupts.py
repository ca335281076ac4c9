"""Ctrl-C and SIGTERM: a run ends at once and in order, says how to go on, and goes on to the same bytes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from console import Shell
from number_workers import CLIENTS, a_task, numbers
from shepherd.cli import interrupts
from shepherd.engines.workers import Workers
from shepherd.experiment import run as experiment
from shepherd.updates.wire import Sealed

ROUNDS, SECONDS_TO_END = 12, 10.0
SETTINGS = (
    f"federation.rounds={ROUNDS}", "evaluation.arms=base,federated", "evaluation.generate=0", "evaluation.every=0",
    "data.held_out_per_category=1", "objective.scaffold=true",
)  # fmt: skip
posix = pytest.mark.skipif(sys.platform == "win32", reason="sends signals as POSIX systems do")


@pytest.fixture(scope="module")
def config(small_config):
    return small_config(*SETTINGS)


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    return experiment.run(config, out_dir=tmp_path_factory.mktemp("uninterrupted"))


@contextmanager
def put_back():
    """The way in which this process hears Ctrl-C is put back after the block."""
    former = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def started(config, out: Path) -> subprocess.Popen:
    """A real `python -m shepherd run` of that config, in a session of its own."""
    from shepherd.recipe import to_toml

    recipe = out / "recipe.toml"
    recipe.write_text(to_toml(config))
    command = [sys.executable, "-m", "shepherd", "run", str(recipe), "--plain", "--out", str(out)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(what, process: subprocess.Popen) -> None:
    """Until `what()` holds; the process must not end before."""
    until = time.monotonic() + 120
    while not what():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.01)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@posix
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_within_ten_seconds_and_it_goes_on_to_the_same_bytes(
    config, uninterrupted, tmp_path, capsys, monkeypatch, number, status
):
    run = tmp_path / config.run.name
    process = started(config, tmp_path)
    try:
        wait_for(lambda: len(list(run.glob("checkpoints/round-*"))) >= 2, process)
        sent = time.monotonic()
        os.killpg(process.pid, number)
        if number == signal.SIGINT:  # the impatient press it again and again, also when it is ending already
            while process.poll() is None and time.monotonic() < sent + SECONDS_TO_END:
                time.sleep(0.02)
                os.killpg(process.pid, number)
        _, said = process.communicate(timeout=SECONDS_TO_END)
        took = time.monotonic() - sent
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status, said
    assert took < SECONDS_TO_END
    assert "Traceback" not in said and "Exception ignored" not in said, said
    assert said.splitlines()[-1] == ("error: interrupted" if status == 130 else "error: terminated")
    (path,) = re.findall(r"^stopped; to resume from the last committed round: shepherd resume (.+)$", said, re.M)
    assert path == str(run)
    if number == signal.SIGTERM:  # one signal leaves nothing behind; of many, one may strike the sweeping up itself
        assert [name for name in names(run) if ".tmp-" in name or name == ".writer.json"] == []
    assert not (run / "summary.json").exists() and not (run / "adapter").exists()

    monkeypatch.setenv("SHEPHERD_CACHE", os.environ["SHEPHERD_CACHE"])
    outcome = Shell(capsys, monkeypatch)("resume", path, "--plain")
    assert outcome.status == 0, outcome.err
    rounds = [line for line in outcome.err.splitlines() if line.startswith("round ")]
    done = [line for line in rounds if "(before)" in line]
    assert done and 2 < len(rounds) - len(done) < ROUNDS - 1, "it went on, it did not begin again"
    digest = lambda folder: (folder / "adapter" / "adapter_model.safetensors").read_bytes()  # noqa: E731
    assert digest(run) == digest(uninterrupted.path)
    assert experiment.resume(run).summary["adapter_sha256"] == uninterrupted.summary["adapter_sha256"]
    assert [name for name in names(run) if ".tmp-" in name] == []


@posix
def test_a_worker_process_that_is_only_beginning_does_not_meet_ctrl_c(capfd):
    with Workers(1, numbers, {client: ["fine"] for client in CLIENTS}, here=None) as engine:
        (worker,) = engine._workers
        worker.start()
        os.kill(worker.process.pid, signal.SIGINT)
        answers = list(engine.train(a_task()))
    assert [type(answer) for answer in answers] == [Sealed] * len(CLIENTS), answers
    assert capfd.readouterr().err == ""
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


class Finalised:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)


@posix
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_finaliser_swallowed_is_raised_at_the_next_event():
    from shepherd.cli.progress import PlainLines

    watch, event = PlainLines(), {"event": "phase", "phase": "train", "arm": None, "detail": ""}
    with interrupts.handled(last=False):
        Finalised()  # what is raised there goes to sys.unraisablehook and no further
        with pytest.raises(SystemExit) as caught:
            watch(event)
        assert caught.value.code == 143
    watch(event)


@posix
def test_what_was_there_before_is_there_again_and_who_ignores_ctrl_c_goes_on_doing_so():
    with put_back():
        before = [signal.getsignal(number) for number in interrupts.SIGNALS]
        with interrupts.handled(last=False):
            interrupts.no_more()
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with interrupts.handled(last=False):
            os.kill(os.getpid(), signal.SIGINT)
