"""A pytest plug-in: the seconds that each room's tests took, and a failure where a test was skipped for a package.

A skip for a package that is not installed would let a whole room pass untested. Tests of data that are not in the
repository may be skipped, and the summary names them.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

MISSING = re.compile(r"could not import|No module named|is not installed|not available: install")
_seconds: Counter[str] = Counter()
_tests: Counter[str] = Counter()
_missing: dict[str, str] = {}
ABSENT = re.compile(r"not at hand")
_absent: Counter[str] = Counter()


def room_of(nodeid: str) -> str:
    """The folder of a test below tests/."""
    parts = nodeid.split("::")[0].split("/")
    return parts[1] if len(parts) > 2 else parts[0]


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test or a file was skipped."""
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


def note(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Remember a skip for a missing package or for absent data."""
    if report.skipped and MISSING.search(reason := reason_of(report)):
        _missing[report.nodeid] = reason
    elif report.skipped and ABSENT.search(reason):
        _absent[reason.removeprefix("Skipped: ")] += 1


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[room_of(report.nodeid)] += report.duration
    _tests[room_of(report.nodeid)] += report.when == "call"
    note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    note(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _missing and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if sum(_tests.values()) > 100:  # a whole suite, not a file that is being worked on
        terminalreporter.section("seconds by room", "-")
        for room, seconds in _seconds.most_common():
            terminalreporter.line(f"{seconds:8.1f} s  {_tests[room]:5d} tests  {room}")
    for reason, tests in _absent.items():
        terminalreporter.line(f"NOT RUN, {tests} tests: {reason}", yellow=True)
    for where, reason in _missing.items():
        terminalreporter.line(f"FAILED: skipped for a missing package: {where}: {reason}", red=True)
