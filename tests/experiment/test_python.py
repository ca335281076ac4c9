"""The Python API: the numbers of the command line, nothing written, and what is wrong or unused named at once."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from click.testing import CliRunner

import shepherd
from shepherd.cli.commands import cli
from shepherd.model.adapter import load_adapter
from shepherd.types import ClientFailure

FAST = {
    "dtype": "float32", "device": "cpu", "threads": 1, "rows_per_category": 6, "held_out_per_category": 2,
    "max_length": 128, "lora": {"r": 2, "alpha": 4}, "local_steps": 1, "batch_size": 2, "learning_rate": 1e-2,
}  # fmt: skip
"""The settings of `SMALL_RUN` as arguments of `simulate`."""


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """An empty working directory, which must stay so."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.iterdir())


def rows(n: int, word: str = "sheep") -> list[dict[str, str]]:
    return [{"instruction": f"What is {word} number {i}?", "response": f"It is {word} {i}, of {n}."} for i in range(n)]


@pytest.fixture(scope="module")
def simulated(model_folder):
    """All rounds of the run of `tiny_run`, simulated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        federation = shepherd.simulate(base=str(model_folder()), rounds=2, **FAST)
        return federation, list(federation)


def test_a_simulation_gives_the_adapter_and_the_losses_of_the_run(simulated, tiny_run):
    federation, rounds = simulated
    assert [r.number for r in rounds] == [1, 2]
    adapter = load_adapter(tiny_run.path / "adapter")
    for module, (A, B) in adapter.factors.items():
        assert rounds[-1].adapter.factors[module].A.tobytes() == A.tobytes()
        assert rounds[-1].adapter.factors[module].B.tobytes() == B.tobytes()
    run = shepherd.open_run(tiny_run.path)
    for line, r in zip(run.rounds(), rounds, strict=True):
        assert dict(r.losses) == line["train_loss"] and dict(r.record.weights) == line["weights"]
        assert r.evaluate().loss == line["held_out_loss"] and r.evaluate() is r.evaluate()
        assert dict(r.evaluate().per_category) == line["held_out_per_category"]
    metrics = json.loads((tiny_run.path / "evaluation" / "metrics.json").read_text())
    assert federation.base.loss == metrics["arms"]["base"]["loss"]
    assert sum(federation.clients.values()) == sum(len(r) for r in tiny_run_rows(tiny_run))


def tiny_run_rows(run):
    return json.loads((run.path / "partition.json").read_text())["clients"].values()


def test_the_mean_training_loss_is_by_the_weights_of_the_round(simulated):
    _, rounds = simulated
    record = rounds[0].record
    expected = np.average(list(record.train_loss.values()), weights=[record.weights[c] for c in record.train_loss])
    assert rounds[0].train_loss == pytest.approx(expected, rel=1e-12)


def test_a_round_saves_its_adapter_as_a_peft_folder_and_overwrites_nothing(simulated, tmp_path):
    _, rounds = simulated
    saved = rounds[0].save(tmp_path / "adapter")
    again = load_adapter(saved)
    assert again.factors.keys() == rounds[0].adapter.factors.keys() and (saved / "tokenizer.json").exists()
    assert all((again.factors[m].B == pair.B).all() for m, pair in rounds[0].adapter.factors.items())
    with pytest.raises(shepherd.ShepherdError, match="exists already"):
        rounds[0].save(saved)


def test_the_command_line_and_python_write_the_same_bytes(small_config, tmp_path, model_folder):
    config = small_config("federation.rounds=1", "evaluation.arms=base,federated", "evaluation.generate=0")
    run = shepherd.run(config, out_dir=tmp_path / "python")
    recipe = tmp_path / "recipe.toml"
    from shepherd.recipe import to_toml

    recipe.write_text(to_toml(config))
    done = CliRunner().invoke(cli, ["run", str(recipe), "--out", str(tmp_path / "line"), "--plain"])
    assert done.exit_code == 0, done.output
    (theirs,) = (tmp_path / "line").iterdir()
    for name in ("adapter/adapter_model.safetensors", "partition.json", "evaluation/metrics.json"):
        assert (run.path / name).read_bytes() == (theirs / name).read_bytes(), name
    assert strip(run.rounds()) == strip(shepherd.open_run(theirs).rounds())


def strip(lines):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_run_is_opened_measured_again_and_compared(tiny_run):
    run = shepherd.open_run(tiny_run.path)
    assert shepherd.open_run(run) is run and run.summary == tiny_run.summary
    assert run.adapter_path.is_dir() and len(run.rounds()) == 2
    measured = shepherd.evaluate(run)
    assert measured["federated"]["loss"] == pytest.approx(run.rounds()[-1]["held_out_loss"], rel=1e-6)
    assert len(shepherd.compare([run.path, run.path]).rows) == 2
    assert len(run.load().logits([1, 2, 3])) == 3


def test_a_rule_from_a_notebook_is_used_by_name_or_as_the_function(model_folder, nowhere):
    seen = []

    @shepherd.aggregators
    def midrange():
        """Half of the largest and the smallest delta."""

        def rule(stacked, weights):
            seen.append(len(stacked))
            return (stacked.max(axis=0) + stacked.min(axis=0)) / 2

        return rule

    try:
        adapters = []
        for given in ("midrange", midrange):
            (only,) = shepherd.simulate(
                rows(12),
                base=str(model_folder()),
                clients=3,
                rounds=1,
                aggregator=given,
                held_out=rows(3, "goat"),
                **FAST,
            )
            adapters.append(only.adapter)
        assert set(seen) == {3}
        assert all((adapters[0].factors[m].B == pair.B).all() for m, pair in adapters[1].factors.items())
        with pytest.raises(shepherd.ShepherdError, match="is not registered"):
            shepherd.simulate(rows(12), base=str(model_folder()), aggregator=lambda: None, **FAST)
    finally:
        shepherd.aggregators._factories.pop("midrange")


def test_rows_by_client_are_those_clients(model_folder, nowhere):
    given = {"hospital a": rows(5, "leg"), "b": [{**row, "source": "x"} for row in rows(4, "arm")]}
    with pytest.warns(shepherd.ShepherdWarning, match="the field 'source' of 4 rows is ignored"):
        federation = shepherd.simulate(
            given, base=str(model_folder()), held_out=rows(2, "eye"), rounds=1, **FAST | {"rows_per_category": 0}
        )
    assert federation.clients == {"b": 4, "hospital-a": 5}
    assert len(federation.inputs.data.held_out) == 2
    (only,) = federation
    assert set(only.losses) == {"b", "hospital-a"}


class Frame:
    """What a data frame shows of itself."""

    columns = ("question", "answer")

    def to_dict(self, orient):
        assert orient == "records"
        return [{"question": row["instruction"], "answer": row["response"]} for row in rows(6)]


def test_a_data_frame_is_read_like_rows():
    dataset = shepherd.load_dataset(Frame(), columns={"instruction": "question", "response": "answer"})
    assert len(dataset) == 6 and dataset.examples[0].messages[-1].content == "It is sheep 0, of 6."
    divided = shepherd.partition(dataset, "iid", clients=2)
    assert sorted(map(len, divided.clients.values())) == [3, 3]


def test_a_dataset_that_was_loaded_can_be_simulated(model_folder, nowhere):
    dataset = shepherd.load_dataset("builtin:instructions", rows_per_category=6)
    settings = {key: value for key, value in FAST.items() if key != "rows_per_category"}
    federation = shepherd.simulate(dataset, base=str(model_folder()), rounds=1, **settings)
    assert sum(federation.clients.values()) + len(federation.inputs.data.held_out) == len(dataset)


def test_rows_that_are_refused_are_a_warning():
    with pytest.warns(shepherd.ShepherdWarning, match=r"1 row refused.*rows:3"):
        shepherd.load_dataset([*rows(3), {"instruction": "What?", "response": None}])


WRONG = {
    "rows: rows are an iterable of dicts, got int": lambda base: shepherd.simulate(7, base=base),
    "rows: row 1 is str, expected a dict": lambda base: shepherd.simulate([*rows(1), "what"], base=base),
    "b: there are no rows": lambda base: shepherd.simulate({"a": rows(3), "b": []}, base=base),
    "unknown setting: 'learning_rat'. Did you mean 'learning_rate'": lambda base: shepherd.simulate(learning_rat=1),
    "unknown setting: 'lr'. Did you mean 'training.learning_rate'": lambda base: shepherd.simulate(lr=1),
    "'optimizer' is a key of several tables: server.optimizer, training.optimizer": lambda base: shepherd.simulate(
        optimizer="adam"),
    "a simulation writes nothing and trains one arm, so [evaluation] has no effect": lambda base: shepherd.simulate(
        generate=3),
    "training is a table of a recipe": lambda base: shepherd.simulate(training=3),
    "unknown method: 'fedt'": lambda base: shepherd.simulate(base=base, method="fedt"),
    "federation.rounds: must be at least 1, got 0": lambda base: shepherd.simulate(base=base, rounds=0),
    "unknown table [federatoin]": lambda base: shepherd.load_config("demo", federatoin={"rounds": 3}),
    "no run directory at": lambda base: shepherd.open_run("runs/none"),
    "held_out is given as rows in Python, and the rows": lambda base: shepherd.simulate(base=base, held_out=rows(2)),
    "data.rows_per_category has no effect on a Dataset": lambda base: shepherd.simulate(
        shepherd.load_dataset(rows(9)), base=base, rows_per_category=4),
    "partition.key = 'region' names a column, and a Dataset": lambda base: shepherd.simulate(
        shepherd.load_dataset(rows(9)), base=base, partition={"name": "by_key", "key": "region"}),
    "held_out is a Dataset, and the rows to train on are not": lambda base: shepherd.simulate(
        rows(9), base=base, held_out=shepherd.load_dataset(rows(2))),
    "the mapping names parts of a dataset and not clients: train, test": lambda base: shepherd.simulate(
        {"train": rows(9), "test": rows(3)}, base=base),
    "two clients are called 'x'": lambda base: shepherd.simulate({"x": rows(9), " x ": rows(3)}, base=base),
    "two clients are called '1'": lambda base: shepherd.simulate({1: rows(9), "1": rows(3)}, base=base),
    "held_out goes with rows in Python": lambda base: shepherd.load_dataset("some.jsonl", held_out=rows(2)),
    "partition.clients is given twice": lambda base: shepherd.simulate(
        base=base, clients=3, partition={"name": "iid", "clients": 5}),
    "run.seed is given twice": lambda base: shepherd.simulate(base=base, seed=5, run={"seed": 7}),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_is_answered_before_anything_is_trained(words, model_folder):
    with pytest.raises(shepherd.ShepherdError) as caught:
        WRONG[words](str(model_folder()))
    assert words in caught.value.message


class Deaf:
    """An engine that loses one client in every round."""

    def __init__(self, inner, lost):
        self.inner, self.lost = inner, lost

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def train(self, task, deadline, enough, observe):
        for reply in self.inner.train(task, deadline, enough, observe):
            yield (
                ClientFailure(self.lost, task.round, "lost", "its line was cut") if reply.client == self.lost else reply
            )


def test_an_engine_of_ones_own_trains_the_clients_in_simulations_and_runs(model_folder, small_config, tmp_path):
    lost = "open_qa"
    with pytest.warns(shepherd.ShepherdWarning, match="round 1: 1 client lost: open_qa"):
        rounds = list(
            shepherd.simulate(base=str(model_folder()), rounds=1, engine=lambda inner: Deaf(inner, lost), **FAST)
        )
    assert lost in rounds[0].record.cohort and lost not in rounds[0].losses
    config = small_config("federation.rounds=1", "evaluation.arms=base,federated", "evaluation.generate=0")
    run = shepherd.run(config, out_dir=tmp_path, engine=lambda inner: Deaf(inner, lost))
    assert run.rounds()[0]["train_loss"] == dict(rounds[0].losses)


def test_settings_are_those_of_a_recipe_with_tables_on_top():
    config = shepherd.load_config("demo", ["federation.rounds=4"], federation={"rounds": 7}, lora={"r": 4})
    assert (config.federation.rounds, config.lora.r) == (7, 4)


def test_every_public_name_is_documented_and_listed():
    assert sorted(shepherd.__all__) == sorted(shepherd._HOMES)
    for name in shepherd.__all__:
        value = getattr(shepherd, name)
        assert getattr(value, "__doc__", None) or hasattr(value, "kind"), name


def test_a_resumed_run_needs_the_engine_that_it_was_started_with(small_config, tmp_path):
    def lossy(inner):
        return Deaf(inner, "open_qa")

    class Stop(Exception):
        pass

    def stop(event):
        if event["event"] == "round":
            raise Stop

    config = small_config("federation.rounds=2", "evaluation.arms=base,federated", "evaluation.generate=0")
    with pytest.raises(Stop):
        shepherd.run(config, stop, tmp_path, engine=lossy)
    (folder,) = tmp_path.iterdir()
    with pytest.raises(shepherd.ShepherdError, match=r"engine: .*lossy then, nothing now"):
        shepherd.resume(folder)
    run = shepherd.resume(folder, engine=lossy)
    assert ["open_qa" in line["train_loss"] for line in run.rounds()] == [False, False]


def test_a_recipes_partition_stays_with_another_number_of_clients(model_folder, tmp_path):
    recipe = tmp_path / "skewed.toml"
    recipe.write_text('[partition]\nname = "dirichlet"\nalpha = 0.5\nclients = 4\n')
    federation = shepherd.simulate(base=str(model_folder()), recipe=recipe, clients=3, **FAST)
    assert federation.config.partition.name == "dirichlet" and len(federation.clients) == 3


def test_held_out_rows_may_share_the_names_of_clients_and_come_from_a_file_or_beside_a_dataset(model_folder, tmp_path):
    held = {"a": rows(2, "eye"), "b": rows(2, "ear")}
    given = {"a": rows(5, "leg"), "b": rows(5, "arm")}
    settings = {**FAST, "rows_per_category": 0}
    both = shepherd.simulate(given, base=str(model_folder()), held_out=held, **settings)
    assert len(both.base.per_client) == 2 and len(both.inputs.data.held_out) == 4
    (tmp_path / "held.jsonl").write_text("\n".join(map(json.dumps, rows(3, "nose"))))
    file = shepherd.simulate(given, base=str(model_folder()), held_out=tmp_path / "held.jsonl", **settings)
    del settings["rows_per_category"]
    dataset = shepherd.load_dataset(given)
    beside = shepherd.simulate(dataset, base=str(model_folder()), held_out=rows(3, "nose"), **settings)
    assert len(file.inputs.data.held_out) == len(beside.inputs.data.held_out) == 3
    divided = shepherd.partition(shepherd.load_dataset(given, held_out=held), key="source")
    assert sorted(divided.clients) == ["a", "b"]


def test_columns_of_lists_in_a_data_frame_are_read(model_folder):
    turns = [{"role": "user", "content": "Name a sheep."}, {"role": "assistant", "content": "Dolly."}]
    dataset = shepherd.load_dataset([{"messages": np.array(turns, dtype=object)} for _ in range(2)])
    assert [message.content for message in dataset.examples[0].messages] == ["Name a sheep.", "Dolly."]


def test_the_same_warning_is_shown_in_a_second_simulation():
    bad = [*rows(3), {"instruction": "What?", "response": None}]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        shepherd.load_dataset(bad)
        shepherd.load_dataset(bad)
    assert sum("refused" in str(warning.message) for warning in seen) == 2


def test_a_method_takes_a_table_with_its_options(model_folder):
    federation = shepherd.simulate(base=str(model_folder()), method={"name": "fedper_lora", "blocks": 0}, **FAST)
    assert federation.config.method.options == {"blocks": 0}
