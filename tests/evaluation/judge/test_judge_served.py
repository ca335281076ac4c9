"""`shepherd judge` with a real server: transformers serve and the built-in small model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from answered_runs import a_run, recorded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # minutes on a busy machine
QUESTIONS = 20


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def served(tmp_path):
    """(address, model) of a server with the small model."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason="transformers serve is not at hand: it needs fastapi and uvicorn")
    from shepherd.model.fetch import resolve

    model, port = str(resolve("smollm2-135m")), free_port()
    (tmp_path / "home" / "hub").mkdir(parents=True)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, "--device", "cpu", "--host",
               "127.0.0.1", "--port", str(port)]  # fmt: skip
    with (
        open(tmp_path / "server.log", "wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            deadline = time.monotonic() + 240
            while True:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1", model
        finally:
            server.kill()


def test_twenty_questions_in_both_orders_through_a_kill(served, tmp_path):
    url, model = served
    run = a_run(tmp_path, arms=("base", "federated"), count=QUESTIONS)
    command = [sys.executable, "-m", "shepherd", "judge", "runs/demo", "--judge", model, "--endpoint", url, "--pair",
               "base", "federated", "--max-tokens", "12", "--threads", "2", "--timeout", "120"]  # fmt: skip

    def command_line() -> subprocess.Popen:
        return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with command_line() as first:
        while first.poll() is None and len(recorded(run)) < 7:
            time.sleep(0.1)
        first.kill()
        first.communicate()
    before = recorded(run)
    assert first.returncode == -9 and 7 <= len(before) < QUESTIONS
    with command_line() as second:
        out, err = second.communicate(timeout=1800)
    print(out, err)
    rows = recorded(run)
    assert rows[: len(before)] == before and len({row["key"] for row in rows}) == len(rows)
    firsts = {(row["question"], row["order"]) for row in rows if row["ask"] == 0}
    assert len(firsts) == 2 * QUESTIONS == sum(row["ask"] == 0 for row in rows)
    assert {row["outcome"] for row in rows} == {"answered"} and all(row["tokens_in"] > 100 for row in rows)
    # Such a model seldom ends with the line that the prompt requires; then that is the error.
    assert second.returncode == 0 or (
        second.returncode == 8 and "ends with the line that the prompt requires" in err
    ), err
