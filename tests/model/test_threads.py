"""The CPU configuration: settings of the user are kept, limits of the machine respected, measurements cached."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch

from shepherd import network
from shepherd.model import threads


@pytest.fixture(autouse=True)
def forgotten():
    """Each test measures again and restores torch's thread count."""
    before = torch.get_num_threads()
    for measured in (threads._faster, threads.bfloat16_speedup):
        measured.cache_clear()
    yield
    for measured in (threads._faster, threads.bfloat16_speedup):
        measured.cache_clear()
    torch.set_num_threads(before)


def stopwatch(monkeypatch, seconds):
    """Replace the measurement by a table {thread count or dtype: seconds}; returns the list of measurements."""
    measured = []

    def product_seconds(dtype, count, budget):
        measured.append((dtype, count))
        return seconds.get(count) or seconds[dtype]

    monkeypatch.setattr(threads, "_product_seconds", product_seconds)
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    return measured


def test_the_environment_gets_defaults_and_keeps_what_the_user_set(monkeypatch):
    monkeypatch.setattr(network, "_ours", False)
    for name in (*threads._DEFAULTS, "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.prepare_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert os.environ["HF_HUB_OFFLINE"] == "1" and os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert network.offline_by_default()
    threads.prepare_environment()  # A second call must not take our values for the user's.
    assert network.offline_by_default()


@pytest.mark.parametrize("theirs", ["0", "1"])
def test_network_settings_of_the_user_are_kept(monkeypatch, theirs):
    monkeypatch.setattr(network, "_ours", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", theirs)
    threads.prepare_environment()
    assert os.environ["HF_HUB_OFFLINE"] == theirs and not network.offline_by_default()


def test_preparing_the_environment_does_not_import_torch():
    code = (
        "import sys; from shepherd.model.threads import prepare_environment; prepare_environment(); "
        "sys.exit('torch' in sys.modules or 'psutil' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "nonsense"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({}, math.inf),
    ],
)
def test_the_quota_of_a_container_is_read_in_both_versions(tmp_path, files, cpus):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads._quota(tmp_path) == cpus


def test_cores_are_the_least_of_affinity_quota_and_physical_cores(monkeypatch):
    import psutil

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
    monkeypatch.setattr(threads, "_quota", lambda cgroup: math.inf)
    assert threads.available_cores() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert threads.available_cores() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(threads, "_quota", lambda cgroup: 2)
    assert threads.available_cores() == 2
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
    assert threads.available_cores() == 2


@pytest.mark.parametrize(("alone", "together", "chosen"), [(1.0, 0.5, 8), (1.0, 2.0, 1), (1.0, 1.05, 8)])
def test_one_thread_is_picked_only_when_it_is_clearly_faster(monkeypatch, alone, together, chosen):
    stopwatch(monkeypatch, {1: alone, 8: together})
    assert threads.pick_threads() == chosen


def test_the_thread_probe_runs_once_in_a_process(monkeypatch):
    measured = stopwatch(monkeypatch, {1: 1.0, 8: 0.5})
    assert threads.pick_threads() == threads.pick_threads() == 8
    assert len(measured) == 6


def test_a_limit_is_kept_and_a_limit_of_one_needs_no_measurement(monkeypatch):
    measured = stopwatch(monkeypatch, {1: 1.0, 3: 0.5})
    assert threads.pick_threads(1) == 1 and not measured
    assert threads.pick_threads(3) == 3


def test_use_threads_sets_the_count_or_probes_for_zero(monkeypatch):
    stopwatch(monkeypatch, {1: 1.0, 8: 3.0})
    assert threads.use_threads(2) == 2 == torch.get_num_threads()
    assert threads.use_threads() == 1 == torch.get_num_threads()


def test_the_bfloat16_speedup_is_the_ratio_of_times(monkeypatch):
    stopwatch(monkeypatch, {torch.float32: 3.0, torch.bfloat16: 2.0})
    assert threads.bfloat16_speedup() == 1.5


def test_measuring_leaves_the_thread_count_alone():
    torch.set_num_threads(1)
    assert 0 < threads._product_seconds(torch.float32, 2, budget=0.01) < 10
    assert threads.matmul_peak(seconds=0.01, size=128) > 0.01
    assert threads.matmul_peak(torch.bfloat16, seconds=0.01, size=128) > 0.01
    assert torch.get_num_threads() == 1
