"""The suite's own report: a skip for a missing package is a failure, and seconds are counted by room."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from suite_report import room_of

HELPERS = Path(__file__).parents[1] / "helpers"


def suite(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "suite_report", "-q", "-p", "no:cacheprovider", str(folder)],
        capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(HELPERS)},
    )  # fmt: skip


def test_a_skip_for_a_missing_package_fails_the_suite_in_a_test_and_in_a_file(tmp_path):
    (tmp_path / "test_file.py").write_text("import pytest\npytest.importorskip('no_such_package')\n")
    done = suite(tmp_path, "import pytest\ndef test_it():\n    pytest.importorskip('no_such_package')\n")
    assert done.returncode == 1 and done.stdout.count("skipped for a missing package") == 2, done.stdout


def test_another_skip_does_not(tmp_path):
    done = suite(tmp_path, "import pytest\ndef test_it():\n    pytest.skip('no network')\n")
    assert done.returncode == 0, done.stdout


def test_tests_without_their_data_are_named_in_the_summary(tmp_path):
    skip = "import pytest\npytestmark = pytest.mark.skipif(True, reason='Dolly is not at hand')\n"
    done = suite(tmp_path, f"{skip}def test_it():\n    pass\ndef test_more():\n    pass\n")
    assert done.returncode == 0 and "NOT RUN, 2 tests: Dolly is not at hand" in done.stdout, done.stdout


def test_tests_are_counted_by_their_folder():
    assert room_of("tests/data/test_hub.py::test_it[a/b]") == "data" and room_of("tests/conftest.py") == "tests"
