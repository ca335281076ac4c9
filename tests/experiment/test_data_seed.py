"""data.seed fixes the rows, run.seed everything else: starts of adapters, cohorts, order of rows."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import shepherd
from shepherd.experiment.identity import held_out_digest
from shepherd.recipe import load, parse_overrides, resolve, to_toml

FAST = {
    "dtype": "float32", "device": "cpu", "threads": 1, "rows_per_category": 6, "held_out_per_category": 2,
    "max_length": 128, "lora": {"r": 2, "alpha": 4}, "local_steps": 1, "batch_size": 2, "learning_rate": 1e-2,
    "rounds": 1, "clients": 4, "clients_per_round": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def simulated(model_folder):
    """(simulation, its only round) of a data.seed ("run" for none) and a run.seed."""

    def one(rows, seed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            federation = shepherd.simulate(base=str(model_folder()), seed=seed, **{**FAST, "data": {"seed": rows}})
            return federation, next(federation)

    return {key: one(*key) for key in ((7, 0), (7, 1), ("run", 7))}


def rows_of(simulation):
    data = simulation.inputs.data
    held = [row.id for row in data.held_out]
    return set(data.examples), held, held_out_digest(data), dict(data.partition.clients)


def test_runs_of_one_data_seed_hold_the_same_rows_and_partition_and_differ_in_the_rest(simulated):
    (one, first), (other, second), (run, _) = simulated.values()
    assert rows_of(one) == rows_of(other) == rows_of(run), "data.seed = 7 draws the rows that run.seed = 7 draws"
    assert one.inputs.plan.seed == 0 and other.inputs.plan.seed == 1
    starts = [simulation.inputs.start.model.adapter.factors for simulation in (one, other, run)]
    name = next(iter(starts[0]))
    assert not np.array_equal(starts[0][name].A, starts[1][name].A)
    assert not np.array_equal(starts[0][name].A, starts[2][name].A)
    assert not np.array_equal(first.adapter.factors[name].B, second.adapter.factors[name].B)


def test_another_data_seed_draws_other_rows():
    from shepherd.experiment.division import divide_rows, read_rows

    def divided(rows, seed=3):
        config = resolve({"run": {"seed": seed}, "data": {"rows_per_category": 9, "seed": rows},
                          "partition": {"name": "iid", "clients": 4}})  # fmt: skip
        drawn = read_rows(config).examples
        _, held_out, partition = divide_rows(config, drawn, None)
        return [e.id for e in drawn], [e.id for e in held_out], partition.clients

    first, second = divided(5), divided("run")
    assert first == divided(5, seed=9), "the run's seed does not move them"
    assert second == divided("run") != divided("run", seed=9)
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_a_seed_of_the_rows_is_written_where_it_is_set_and_read_back(tmp_path):
    assert "seed" not in to_toml(resolve({})).partition("[data]")[2].partition("[partition]")[0]
    config = resolve(parse_overrides(["data.seed=0", "run.seed=4"]))
    assert config.data_seed == 0 and resolve({"run": {"seed": 4}}).data_seed == 4
    (tmp_path / "recipe.toml").write_text(to_toml(config))
    assert load(tmp_path / "recipe.toml") == config
    with pytest.raises(shepherd.ShepherdError, match=r"data\.seed: must be 'run' or must be a whole number, got 'x'"):
        resolve({"data": {"seed": "x"}})
