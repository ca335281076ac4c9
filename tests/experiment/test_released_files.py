"""What leaves a private run: its files are searched for what they must not hold, and exported."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shepherd.errors import DataError, UsageError
from shepherd.experiment import run as experiment
from shepherd.recipe import load
from shepherd.report import load_run
from shepherd.serving.export import export
from shepherd.serving.released import check_released
from shepherd.store.adapters import ArmName, find_adapter
from shepherd.store.listing import entry
from shepherd.store.records import read_rounds
from shepherd.updates.privacy.publication import (
    EVENTS,
    FILES,
    KEYS,
    NEVER,
    PRIVATE,
    RELEASED,
    ROUND,
    WITHHELD,
    class_of,
    place_of,
    released,
)

CLIENTS = tuple(f"ward-{name}-7f3a" for name in ("ash", "birch", "cedar", "elm", "fir", "hazel"))
CANARY = "zebrafinch"
"""In every training row; the model's vocabulary decides nothing here, as files are searched for the text."""
SETTINGS = (
    "data.rows_per_category=0", "data.held_out_per_category=0", "data.max_length=96", "partition.name=by_key",
    "partition.key=ward", "partition.clients=0",
    "federation.method=fedit", "federation.clients_per_round=4", "federation.weights=uniform",
    "federation.on_too_few=skip", "federation.quarantine_after=0", "selection.name=poisson",
    "personalization.name=ditto", "evaluation.generate=2", "evaluation.keep_local=all",
    "privacy.unit=client", "privacy.clip=0.1", "privacy.noise_multiplier=1", "privacy.delta=0.01",
    "privacy.repeatable_noise=true", "privacy.publish_nothing=true",
)  # fmt: skip
"""Every feature that writes files, with noise that repeats so that two runs differ in rows alone."""


def rows(count: int, word: str) -> str:
    """Three rows of each client, of the last one `count` with `word`."""
    lines = [
        {"instruction": f"Describe the {CANARY} number {n}{client[5]}.", "response": f"The {CANARY} sings {word} {n}.",
         "ward": client, "category": "qa"}
        for client in CLIENTS for n in range(count if client == CLIENTS[-1] else 3)
        for word in ([word] if client == CLIENTS[-1] else ["loudly"])
    ]  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("private-runs")


@pytest.fixture(scope="module")
def carried_out(place, model_folder):
    """carried_out(count, word) -> a finished private run and its events; of one client `count` rows with `word`."""
    held = [{"instruction": f"Name a colour {n}.", "response": "Blue.", "ward": CLIENTS[n], "category": "qa"}
            for n in range(4)]  # fmt: skip
    (place / "held.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held))

    def carry_out(name: str, count: int, word: str, *more: str) -> tuple[Path, list[dict[str, Any]]]:
        (place / "rows.jsonl").write_text(rows(count, word))
        config = load(None, [
            f"model.base={model_folder()}", "model.dtype=float32", "model.device=cpu", "run.threads=1", "lora.r=2",
            "lora.alpha=4", "federation.rounds=3", "training.local_steps=1", "training.batch_size=2",
            "training.learning_rate=1e-2", "evaluation.max_new_tokens=3", f"run.name={name}",
            f"data.source={place / 'rows.jsonl'}", f"data.held_out_source={place / 'held.jsonl'}", *SETTINGS, *more,
        ])  # fmt: skip
        events: list[dict[str, Any]] = []
        return experiment.run(config, observer=events.append, out_dir=place).path, events

    return carry_out


@pytest.fixture(scope="module")
def finished(carried_out):
    return carried_out("one", 3, "softly")


@pytest.fixture(scope="module")
def run(finished) -> Path:
    return finished[0]


def files(folder: Path) -> dict[str, Path]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}


def public(run: Path) -> dict[str, Path]:
    return {name: path for name, path in files(run).items() if not name.startswith(f"{PRIVATE}/")}


def keys(value: Any, path: str = "") -> Iterator[str]:
    """The paths of all keys in a JSON value, and the lengths of lists."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from keys(inner, f"{path}.{key}")
    elif isinstance(value, list):
        yield f"{path}[{len(value)}]"
        for inner in value:
            yield from keys(inner, f"{path}[]")
    else:
        yield path


def unclassed(value: Any, shape: Any, path: str) -> Iterator[str]:
    """The paths of keys that have no class."""
    if isinstance(value, Mapping) and isinstance(shape, Mapping):
        for key, inner in value.items():
            if key not in shape and "*" not in shape:
                yield f"{path}.{key}"
            else:
                yield from unclassed(inner, shape.get(key, shape.get("*")), f"{path}.{key}")


def test_every_file_of_a_run_with_every_feature_has_a_class_of_its_own(run):
    names = {name.removeprefix(f"{PRIVATE}/") for name in files(run)}
    known = [name for name in names if any(name == file or name.startswith(f"{file}/") for file in FILES)]
    assert sorted(names - set(known)) == []
    wanted = {"arms", "personal", "checkpoints", "partition.json", "evaluation/generations.jsonl", "privacy.json"}
    assert all(any(name == file or name.startswith(f"{file}/") for name in names) for file in wanted)


def test_every_key_of_every_record_and_event_has_a_class(finished):
    run, events = finished
    for name in KEYS:
        for line in place_of(run, name).read_text().splitlines() if name == "rounds.jsonl" else [""]:
            record = json.loads(line or place_of(run, name).read_text())
            assert list(unclassed(record, KEYS[name], name)) == []
    for event in events:
        assert event.keys() - {"event"} <= EVENTS[event["event"]].keys(), event["event"]


def test_what_is_not_released_lies_in_private_alone_for_its_owner(run):
    for name, path in public(run).items():
        assert class_of(name) == RELEASED or name in KEYS, name
        if name in KEYS and name != "rounds.jsonl":
            record = json.loads(path.read_text())
            assert record == released(name, json.loads((run / PRIVATE / name).read_text())), name
    for path in (run / PRIVATE, *(run / PRIVATE).rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    for name, kind in FILES.items():
        if kind in (WITHHELD, NEVER):
            assert not (run / name).exists(), name


def test_no_released_file_holds_a_row_a_client_or_a_number_of_a_client(run):
    seen = {client for line in read_rounds(run) for client in line["cohort"]}
    losses = {f"{loss}" for line in read_rounds(run) for loss in line["train_loss"].values()}
    assert len(seen) > 2 and len(losses) > 2
    hidden = (CANARY, *CLIENTS, *losses, '"train_loss"', '"update_norm"', '"cohort": [', '"per_client"')
    for name, path in public(run).items():
        text = path.read_bytes().decode("utf-8", "replace")
        assert not [word for word in hidden if word in text], name
    assert CANARY in (place_of(run, "partition.json").parent.parent.parent / "rows.jsonl").read_text()


def test_rounds_are_published_by_their_released_keys_alone(run):
    allowed = {key for key, kind in ROUND.items() if kind == RELEASED}
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line.keys() == allowed


def test_two_runs_that_differ_in_the_rows_of_one_client_publish_the_same_structure(run, carried_out):
    other, _ = carried_out("two", 9, "softly and for a much longer while than before")
    assert public(run).keys() == public(other).keys()
    for name in (*KEYS, "privacy.json", "privacy.jsonl", "env.json"):
        one, two = ([json.loads(line) for line in folder.joinpath(name).read_text().splitlines()]
                    if name.endswith("l") else json.loads(folder.joinpath(name).read_text())
                    for folder in (run, other))  # fmt: skip
        assert list(keys(one)) == list(keys(two)), name
    assert (run / "privacy.jsonl").read_bytes() == (other / "privacy.jsonl").read_bytes()
    page, page_of_other = ((folder / "report.html").read_text() for folder in (run, other))
    assert page.count("<tr") == page_of_other.count("<tr")
    whole, whole_of_other = (json.loads(place_of(r, "summary.json").read_text()) for r in (run, other))
    assert whole["data"]["rows"] != whole_of_other["data"]["rows"]


def test_operators_find_their_run_as_before(run):
    found = entry(run)
    assert (found.state, found.rounds, found.planned) == ("finished", 3, 3)
    assert {"federated", "base", "local", "centralised"} <= found.losses.keys()
    assert find_adapter(f"{run}:local/{CLIENTS[0]}").folder.is_relative_to(run / PRIVATE)
    assert find_adapter(f"{run}@3").folder.is_relative_to(run / PRIVATE)
    assert load_run(run).summary["privacy"]["private"] is False


def test_an_export_takes_the_adapter_and_the_guarantee_and_nothing_else(run, tmp_path):
    notes: list[str] = []
    export(run, "peft", tmp_path / "out", note=notes.append)
    expected = {name.removeprefix("adapter/") for name in files(run) if name.startswith("adapter/")}
    assert files(tmp_path / "out").keys() - {"MANIFEST.json"} == expected - {"MANIFEST.json"} | {"privacy.json"}
    stated = json.loads((tmp_path / "out" / "privacy.json").read_text())
    assert stated["private"] is False and stated["releases"] == 3 and stated["clients"] == len(CLIENTS)
    assert stated["accountant_package"].startswith("dp-accounting ") and stated["not_covered"]
    assert any(note.startswith("warning: Not private: cohorts and noise follow") for note in notes)
    for name, path in files(tmp_path / "out").items():
        assert CANARY.encode() not in path.read_bytes() and b"ward-" not in path.read_bytes(), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not private" in card and "training rows that stayed with their clients" in card and "18 " not in card


def test_an_export_whose_ledger_gives_another_epsilon_is_refused(run, tmp_path):
    ledger = (run / "privacy.jsonl").read_text()
    try:
        for text in (ledger + ledger.splitlines(keepends=True)[-1], ledger.replace('"noise_multiplier": 1.0',
                     '"noise_multiplier": 9.0')):  # fmt: skip
            (run / "privacy.jsonl").write_text(text)
            with pytest.raises(DataError, match="cannot go on as private"):
                export(run, "peft", tmp_path / "out")
            assert not (tmp_path / "out").exists()
    finally:
        (run / "privacy.jsonl").write_text(ledger)


def test_a_model_without_noise_is_exported_by_no_run_that_publishes(run):
    config = load(run / "config.toml")
    wanted, notes = ArmName(run, "local", CLIENTS[0]), []
    check_released(wanted, config, notes.append)
    assert "was trained without noise" in notes[0] and "not for publication" in notes[0]
    publishing = config.model_copy(update={"privacy": config.privacy.model_copy(update={"publish_nothing": False})})
    check_released(ArmName(run), publishing, notes.append)
    with pytest.raises(UsageError, match=r"was trained without noise: the guarantee of .* does not cover it"):
        check_released(wanted, publishing, notes.append)
    with pytest.raises(UsageError, match="is a checkpoint"):
        export(ArmName(run, round=3), "peft", run.parent / "out")


def test_a_run_whose_private_folder_is_gone_does_not_go_on(run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns(PRIVATE))
    (copy / "summary.json").unlink()
    with pytest.raises(DataError, match="what a private run withholds is gone"):
        experiment.resume(copy, observer=lambda event: None, force=True)
