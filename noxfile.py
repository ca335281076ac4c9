"""The tests on several versions of Python, with the pinned and with the lowest dependencies.

    nox -l                  # the sessions
    nox -s lowest-3.11

CI runs `make test`, which is the session pinned-3.11. The package does not install nox and uv. On Linux the lowest set
takes a CUDA build of PyTorch, which is large, unless uv is configured to find PyTorch's CPU build.
"""

from __future__ import annotations

import nox

PYTHONS = ("3.11", "3.12", "3.13", "3.14")

nox.options.sessions = ("lint", "pinned-3.11")


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, format check and types, with the pinned tools."""
    session.install("-c", "constraints.txt", "-e", ".[test]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session(python=PYTHONS, venv_backend="venv")
def pinned(session: nox.Session) -> None:
    """All that `make test` does, by make, in the environment of this session."""
    session.run("make", "test", f"VENV={session.virtualenv.location}", *session.posargs, external=True)


@nox.session(python=PYTHONS, venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The default tests with the lowest versions that pyproject.toml allows, solved by uv."""
    session.install("--resolution", "lowest-direct", "-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)
