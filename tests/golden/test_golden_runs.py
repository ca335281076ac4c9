"""Two dozen small runs leave the bytes that they left before: every file, times and places apart."""

from __future__ import annotations

import json

import pytest

from golden import runs
from golden.command import shepherd
from golden.recipes import RECIPES
from golden.record import problems
from shepherd.experiment.plan import prepare_plan, with_transforms
from tiny_transforms import spec

AGAIN = "where the change is meant: python tests/golden/rewrite.py, and read the diff"


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_leaves_the_bytes_that_it_left_before(name, tmp_path):
    kept = runs.kept(name)
    tolerance = None if runs.same_machine() else RECIPES[name].tolerance
    found = problems(kept["files"], runs.now(name, tmp_path), tolerance)
    assert not found, "\n".join([*found, f"the files are in {tmp_path}, masked in {tmp_path / 'masked'}", AGAIN])


def test_transforms_that_change_nothing_leave_the_same_bytes(tmp_path, monkeypatch):
    name, plans = "fedsvd sampled as privacy assumes", []

    def prepared(config, *parts):
        plans.append(with_transforms(prepare_plan(config, *parts), [spec("identity")], config.lora.r))
        return plans[-1]

    monkeypatch.setattr("shepherd.experiment.inputs.prepare_plan", prepared)
    tolerance = None if runs.same_machine() else RECIPES[name].tolerance
    assert not problems(runs.kept(name)["files"], runs.now(name, tmp_path), tolerance)
    assert [plan.transforms.sent for plan in plans] == [(spec("identity"),)]


def test_each_recipe_has_its_golden_and_was_not_changed_since():
    assert {path.name for path in runs.GOLDENS.iterdir()} == {
        runs.FINGERPRINT.name, *(runs.path_of(name).name for name in RECIPES)
    }  # fmt: skip
    for name in RECIPES:
        assert runs.kept(name)["recipe"] == json.loads(runs.to_json(name, {}))["recipe"], f"{name}: {AGAIN}"


NAMED_BY = {
    "partitioners": ("partition.name", "by_key"), "selections": ("selection.name", "uniform"),
    "methods": ("federation.method", "fedit"), "optimizers": ("server.optimizer", "fedavg"),
    "personalizations": ("personalization.name", "none"), "datasets": ("data.source", "builtin:instructions"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMED_BY)
def test_each_name_of_a_registry_is_in_some_recipe(kind, tmp_path):
    key, default = NAMED_BY[kind]
    used = {default.removeprefix("builtin:")}
    for recipe in RECIPES.values():
        used |= {s.partition("=")[2].removeprefix("builtin:") for s in recipe.settings if s.startswith(f"{key}=")}
    listed = {row["name"] for row in json.loads(shepherd(tmp_path, "list", kind, "--json").out)[kind]}
    assert listed and not listed - used
