"""Losses by row of a run directory: what is written is read back with its ids, anything else is refused."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from shepherd.errors import DataError
from shepherd.evaluation.row_losses import LOSSES, HeldOutLosses, RowLosses, losses_bytes, read_losses
from shepherd.model.arrays import from_file, to_bytes

TOKENS = np.array([3, 4, 5, 6], np.int64)


def of(seed: int) -> RowLosses:
    return RowLosses(np.random.default_rng(seed).normal(size=4), TOKENS, np.arange(4) + seed)


def held_out() -> HeldOutLosses:
    models = ("base", "federated", "local/anna", "local/client-001", "centralised")
    return HeldOutLosses(
        ("x:1", "x:2", "Schaf 🐑", "x:4"),
        ("qa", "qa", "écrire", "sums"),
        {"anna": ("qa", "sums"), "client-001": ("écrire",), "cleo": ("nothing held out",)},
        {name: of(number) for number, name in enumerate(models)},
    )


def written(folder, losses: HeldOutLosses):
    (folder / "evaluation").mkdir(parents=True)
    (folder / LOSSES).write_bytes(losses_bytes(losses))
    return folder


def test_losses_are_read_as_they_were_written(tmp_path):
    before = held_out()
    after = read_losses(written(tmp_path, before))
    assert (after.ids, after.groups, after.holds) == (before.ids, before.groups, before.holds)
    assert list(after.models) == list(before.models)
    for name, losses in before.models.items():
        for part in ("nll", "tokens", "hits"):
            expected, got = getattr(losses, part), getattr(after.models[name], part)
            assert got.tobytes() == expected.tobytes() and got.dtype == expected.dtype
    assert losses_bytes(after) == losses_bytes(before)
    assert load_file(tmp_path / LOSSES)["nll"].shape == (5, 4), "any reader of safetensors has them"


def test_arms_and_own_rows_are_distinguished():
    losses = held_out()
    assert list(losses.pooled) == ["base", "federated", "centralised"]
    assert {arm: list(models) for arm, models in losses.each.items()} == {"local": ["anna", "client-001"]}
    assert losses.local["anna"] is losses.models["local/anna"]
    assert [losses.own(client).tolist() for client in losses.holds] == [[0, 1, 3], [2], []]


@pytest.mark.parametrize("damage", ["cut", "schema", "ids", "models", "no tokens", "names"])
def test_damaged_losses_are_named(damage, tmp_path):
    file = written(tmp_path, held_out()) / LOSSES
    arrays, named = from_file(file)
    if damage == "no tokens":
        del arrays["tokens"]
    change = {
        "schema": {"schema": "2"},
        "ids": {"ids": '["x"]'},
        "models": {"models": '["a"]'},
        "names": {"holds": "{"},
    }
    data = to_bytes(arrays, named | change.get(damage, {}))
    file.write_bytes(data[:-9] if damage == "cut" else data)
    with pytest.raises(DataError, match=r"losses\.safetensors is damaged") as caught:
        read_losses(tmp_path)
    assert caught.value.hint


def test_a_run_from_before_says_why_it_has_no_losses(tmp_path):
    with pytest.raises(DataError, match="is of a version that did not write it") as caught:
        read_losses(tmp_path)
    assert "shepherd run" in caught.value.hint
