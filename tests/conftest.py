"""What several test files share: tiny models, and one tiny run whose directory nobody changes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tiny import tiny_model

# OpenMP reads it as torch loads. Threads that spin for each other, a few processes with one for each core, cost a busy
# machine ten times the CPU seconds of those that sleep; a run sets the same (shepherd.model.threads).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A job that a shell started in the background ignores Ctrl-C, and so would each process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["suite_report"]
USERS_CACHE = os.environ.get("SHEPHERD_CACHE")
SMALL_RUN = (
    "model.dtype=float32",
    "model.device=cpu",
    "run.threads=1",
    "run.name=tiny",
    "data.rows_per_category=6",
    "data.held_out_per_category=2",
    "data.max_length=128",
    "lora.r=2",
    "lora.alpha=4",
    "federation.rounds=2",
    "training.local_steps=1",
    "training.batch_size=2",
    "training.learning_rate=1e-2",
    "evaluation.generate=2",
    "evaluation.max_new_tokens=3",
)
"""Settings of a run of about half a second: the built-in instructions, eight clients with one category each."""


class TinyRun(NamedTuple):
    """A finished run: its config, directory, summary, and the events that were told."""

    config: Any
    path: Path
    summary: dict[str, Any]
    events: list[dict[str, Any]]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the session's own: tests neither read nor write the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHEPHERD_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _the_users_cache_for_slow_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow tests want the real model, which lies there."""
    if request.node.get_closest_marker("slow"):
        if USERS_CACHE is None:
            monkeypatch.delenv("SHEPHERD_CACHE")
        else:
            monkeypatch.setenv("SHEPHERD_CACHE", USERS_CACHE)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """model_folder("qwen3") -> the folder of a tiny random model, made once. Do not write to it."""
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str = "llama") -> Path:
        return root / kind if (root / kind).exists() else tiny_model(kind, root)

    return folder


@pytest.fixture(scope="session")
def small_config(model_folder: Callable[[str], Path]) -> Callable[..., Any]:
    """small_config("lora.r=4", kind="gpt2", recipe=None) -> the config of a tiny run, with these overrides."""
    from shepherd.recipe import load

    def config(*overrides: str, kind: str = "llama", recipe: str | None = None) -> Any:
        return load(recipe, [f"model.base={model_folder(kind)}", *SMALL_RUN, *overrides])

    return config


@pytest.fixture(scope="session")
def run_small(tmp_path_factory: pytest.TempPathFactory, small_config: Callable[..., Any]) -> Callable[..., TinyRun]:
    """run_small("lora.r=4", …) -> a finished run of `small_config(…)` in a folder of its own."""
    from shepherd.experiment.run import run

    def finish(*overrides: str, **options: Any) -> TinyRun:
        config, events = small_config(*overrides, **options), []
        done = run(config, observer=events.append, out_dir=tmp_path_factory.mktemp("runs"))
        return TinyRun(config, done.path, dict(done.summary), events)

    return finish


@pytest.fixture(scope="session")
def tiny_run(run_small: Callable[..., TinyRun]) -> TinyRun:
    """One finished run with every arm, shared by all who only read it."""
    return run_small()
