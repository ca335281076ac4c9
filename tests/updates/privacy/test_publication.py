"""Every field of every record of a run has a class: released, withheld, or never."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest

from shepherd.experiment import events
from shepherd.store.records import RoundRecord
from shepherd.types import ServerState
from shepherd.updates.privacy.publication import (
    ARMS,
    EVENTS,
    FILES,
    IN_PART,
    KEYS,
    NEVER,
    PAIRS,
    RELEASED,
    ROUND,
    STATE,
    SUMMARY,
    WHETHER,
    WITHHELD,
    class_of,
    released,
)


def leaves(table: Mapping[str, Any]) -> Iterator[Any]:
    for value in table.values():
        if isinstance(value, Mapping):
            yield from leaves(value)
        else:
            yield value


def test_every_class_is_one_that_is_known():
    assert set(FILES.values()) == {RELEASED, WITHHELD, NEVER, IN_PART}
    assert {name for name, kind in FILES.items() if kind == IN_PART} == KEYS.keys()
    for table in (*KEYS.values(), STATE, *EVENTS.values()):
        assert set(leaves(table)) <= {RELEASED, WITHHELD, NEVER, WHETHER, PAIRS}


def test_every_field_of_a_round_and_of_its_line_has_a_class():
    written = {field.name for field in fields(RoundRecord)}
    line = set(get_type_hints(events.RoundLine))
    assert written | line == ROUND.keys()


def test_every_field_of_the_servers_state_has_a_class():
    assert {field.name for field in fields(ServerState)} == STATE.keys()


def test_every_field_of_every_event_has_a_class():
    found = {}
    for event in get_args(events.Event):
        hints = get_type_hints(event)
        (name,) = get_args(hints.pop("event"))
        found[name] = set(hints)
    assert found == {name: set(table) for name, table in EVENTS.items()}


@pytest.mark.parametrize("name", ["cohort", "train_loss", "steps", "examples", "tokens", "weights", "update_norm"])
def test_what_depends_on_rows_or_on_who_took_part_is_not_released(name):
    assert released("rounds.jsonl", {"round": 1, name: {"anna": 1}}) == {"round": 1}


def test_what_has_no_class_is_withheld():
    assert class_of("a-new-file.json") == WITHHELD
    assert class_of("evaluation/new.jsonl") == WITHHELD
    assert released("summary.json", {"rounds": 1, "new": 2, "data": {"name": "x", "new": 3}}) == {
        "rounds": 1,
        "data": {"name": "x"},
    }


def test_a_file_in_a_folder_has_the_class_of_the_folder():
    assert class_of("adapter/README.md") == RELEASED
    assert class_of("arms/local/adapters/anna/adapter_model.safetensors") == NEVER


def test_arms_without_noise_and_comparisons_with_them_are_not_released():
    assert {"base", "federated"} == ARMS
    figures = {"loss": 1.0, "per_category": {"qa": 1.0}, "per_client": {"anna": 1.0}}
    metrics = {
        "arms": {"base": figures, "federated": figures, "local": {"anna": figures}, "centralised": figures},
        "curves": {"federated": [[0, 1.0]], "local": {"anna": [[0, 1.0]]}},
        "differences": [{"a": "federated", "b": "base", "value": 1}, {"a": "federated", "b": "local:anna"}],
    }
    kept = {"loss": 1.0, "per_category": {"qa": 1.0}}
    assert released("evaluation/metrics.json", metrics) == {
        "arms": {"base": kept, "federated": kept},
        "curves": {"federated": [[0, 1.0]]},
        "differences": [{"a": "federated", "b": "base", "value": 1}],
    }


def test_that_a_run_was_forced_is_released_and_what_differed_is_not():
    assert SUMMARY["forced"] == WHETHER
    assert released("summary.json", {"forced": ["data: 1 then, 2 now"]}) == {"forced": [WITHHELD]}
    assert released("summary.json", {"forced": []}) == {"forced": []}
