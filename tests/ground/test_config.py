"""Recipes and overrides -> a config; mistakes -> every one of them, with the nearest known key."""

from __future__ import annotations

import tomllib

import pytest

from shepherd import config, recipe
from shepherd.errors import UsageError


def problems(settings: dict, *checks) -> list[str]:
    with pytest.raises(UsageError) as caught:
        recipe.resolve(settings, checks)
    first, *rest = caught.value.message.split("\n")
    assert first.startswith(f"{len(rest)} problem")
    assert "config show" in caught.value.hint
    return [line.strip() for line in rest]


def test_every_problem_of_a_recipe_is_reported_at_once():
    found = problems(
        {"run": {"name": "a b"}, "lora": {"r": "x", "dropout": 1.5}, "training": {"batch_size": 0, "learning_rat": 1}}
    )
    assert found == [
        "run.name: must be 1 to 64 letters, digits, '.', '_' or '-', not beginning with '.' or '-', got 'a b'",
        "lora.r: must be a whole number, got 'x'",
        "lora.dropout: must be less than 1.0, got 1.5",
        "training.batch_size: must be at least 1, got 0",
        "unknown key 'training.learning_rat'. Did you mean 'training.learning_rate'?",
    ]


def test_a_number_is_neither_true_nor_too_large_to_be_meant():
    assert problems({"lora": {"r": True}, "training": {"learning_rate": True}, "run": {"threads": 99_999}}) == [
        "run.threads: must be at most 1024, got 99999",
        "lora.r: must be a whole number, got True",
        "training.learning_rate: must be a number, got True",
    ]
    assert problems({"lora": {"alpha": 1e300}, "evaluation": {"local_clients": True}}) == [
        "lora.alpha: must be at most 1000000.0, got 1e+300",
        "evaluation.local_clients: must be 'all' or must be a whole number or must be a list, got True",
    ]
    assert problems({"run": {"seed": 2**63}}) == [
        "run.seed: must be less than 9223372036854775808, got 9223372036854775808"
    ]
    assert problems({"run": {"seed": 1e99}}) == ["run.seed: must be a whole number of fewer digits, got 1e+99"]


def test_ranks_that_are_no_ranks_are_answered_with_how_to_write_them():
    assert problems({"lora": {"ranks": ["4", "x"]}}) == [
        "lora.ranks: must be a whole number or must be a table such as {hospital-a = 4}, got ['4', 'x']"
    ]


def test_a_key_that_stands_in_the_wrong_table_is_named_with_its_own_table():
    # 'weights' is nearer to training.weight_decay in spelling, but exists as it is in another table.
    assert problems({"training": {"weights": "tokens"}}) == [
        "unknown key 'training.weights'. Did you mean 'federation.weights'?"
    ]


@pytest.mark.parametrize("name", config.OTHER_NAMES)
def test_the_name_that_other_tools_have_for_a_key_is_answered_with_ours(name):
    ours = config.OTHER_NAMES[name]
    assert config.keys()[ours].description
    assert problems({"training": {name: 1}}) == [f"unknown key 'training.{name}'. Did you mean {ours!r}?"]
    with pytest.raises(UsageError) as caught:
        recipe.parse_overrides([f"{name}=1"])
    assert caught.value.hint.endswith(f"--set {ours}=1")


def test_options_of_another_optimizer_are_refused_and_not_ignored():
    assert problems({"training": {"momentum": 0.9}}) == [
        'training.momentum needs training.optimizer = "sgd", got "adamw"'
    ]
    found = problems({"training": {"optimizer": "sgd", "betas": [0.8, 0.9]}})
    assert found == ['training.betas needs training.optimizer = "adamw" or "adam", got "sgd"']
    recipe.resolve({"training": {"optimizer": "sgd", "momentum": 0.9}})


def test_a_key_outside_of_every_table_is_named_with_its_table():
    assert problems({"rounds": 3}) == ["unknown key 'rounds' outside of the tables. Did you mean 'federation.rounds'?"]


def test_a_misspelt_table_is_answered_with_the_nearest_one_and_all_of_them():
    (found,) = problems({"lorra": {"r": 4}})
    assert found.startswith("unknown table [lorra]. Did you mean 'lora'? Tables: run, model, lora,")


def test_a_value_in_the_place_of_a_table_is_answered_with_how_to_write_one():
    assert problems({"lora": 16}) == ["[lora] is a table: write [lora] and its keys under it, got 16"]


def test_a_wrong_choice_is_answered_with_all_choices_and_the_nearest():
    assert problems({"federation": {"weights": "example"}}) == [
        "federation.weights: must be 'examples', 'tokens' or 'uniform' (Did you mean 'examples'?), got 'example'"
    ]


def test_a_key_that_takes_two_kinds_of_value_names_both():
    assert problems({"lora": {"targets": 5}}) == ["lora.targets: must be 'all-linear' or must be a list, got 5"]


def test_a_cohort_larger_than_the_number_of_clients_is_refused_before_anything_is_loaded():
    assert problems({"partition": {"clients": 3}, "federation": {"clients_per_round": 5}}) == [
        "federation.clients_per_round = 5 is more than partition.clients = 3"
    ]


def test_problems_of_further_checks_join_those_of_the_types():
    found = problems({"lora": {"r": 0}}, lambda settings: [f"partition.name: no {settings['lora']['r']}"])
    assert found == ["lora.r: must be at least 1, got 0", "partition.name: no 0"]


@pytest.mark.parametrize("name", recipe.recipes())
def test_every_packaged_recipe_loads_and_reads_back_from_its_resolved_form(name):
    loaded = recipe.load(name)
    assert loaded.run.name == name
    assert recipe.resolve(tomllib.loads(recipe.to_toml(loaded))) == loaded


def test_the_paper_recipe_has_the_shape_of_the_paper():
    loaded = recipe.load("fedit-dolly")
    assert (loaded.partition.name, loaded.partition.clients, loaded.federation.clients_per_round) == ("shards", 100, 5)
    assert (loaded.federation.rounds, loaded.lora.r, loaded.training.local_epochs) == (20, 8, 1.0)
    assert loaded.training.local_steps == 0 and loaded.data.held_out_per_category == 10


def test_each_packaged_recipe_says_in_its_first_line_what_it_is_for():
    assert {"demo", "fedit-dolly", "laptop", "own-data"} <= set(recipe.recipes())
    assert all(len(about) > 20 and not about.startswith("#") for about in recipe.recipes().values())


def test_a_recipe_that_is_not_there_is_answered_with_the_nearest_name(tmp_path):
    with pytest.raises(UsageError, match=r"recipe not found: dmeo\. Did you mean 'demo'") as caught:
        recipe.load("dmeo")
    assert [name for name in recipe.recipes() if name not in caught.value.hint] == []
    (tmp_path / "clinics.toml").write_text("")
    with pytest.raises(UsageError, match=r"clinic\.toml.*Did you mean '.*clinics\.toml'"):
        recipe.load(tmp_path / "clinic.toml")


def test_a_file_in_the_current_folder_does_not_hide_a_packaged_recipe_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("not TOML at all")
    assert recipe.load("demo").run.name == "demo"


def test_a_recipe_that_is_not_toml_says_the_file_and_the_line(tmp_path):
    (tmp_path / "x.toml").write_text("[run]\nname = demo\n")
    with pytest.raises(UsageError, match=r"x\.toml is not valid TOML.*line 2"):
        recipe.load(tmp_path / "x.toml")


def test_rows_in_the_place_of_a_recipe_are_answered_with_the_flag_for_them(tmp_path):
    (tmp_path / "my.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    for given in (tmp_path / "my.jsonl", tmp_path):
        with pytest.raises(UsageError) as caught:
            recipe.load(given)
        assert f"--data {given}" in caught.value.hint


def test_a_recipe_may_begin_with_a_byte_order_mark_and_is_told_when_it_is_not_utf_8(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("[lora]\nr = 5\n", encoding="utf-8-sig")  # as Notepad saves it
    assert recipe.load(file).lora.r == 5
    file.write_text("[lora]\nr = 5\n", encoding="utf-16")  # as PowerShell's > does
    with pytest.raises(UsageError) as caught:
        recipe.load(file)
    assert caught.value.hint == "save it as UTF-8"


def test_overrides_are_toml_or_text_and_lists_may_be_written_with_commas():
    written = ["lora.r=16", "lora.targets=q_proj,v_proj", "run.name=2024", "evaluation.arms=base", "model.base=org/m"]
    assert recipe.parse_overrides(written) == {
        "lora": {"r": 16, "targets": ["q_proj", "v_proj"]},
        "run": {"name": "2024"},
        "evaluation": {"arms": ["base"]},
        "model": {"base": "org/m"},
    }
    assert recipe.parse_overrides(["lora.targets=all-linear"]) == {"lora": {"targets": "all-linear"}}
    assert recipe.parse_overrides(["data.columns.instruction=q"]) == {"data": {"columns": {"instruction": "q"}}}


def test_a_template_typed_after_set_has_its_line_breaks_and_tabs():
    def template(text):
        return recipe.parse_overrides([f"data.template={text}"])["data"]["template"]

    assert template(r"Q: {instruction}\nA:\t{response}") == "Q: {instruction}\nA:\t{response}"
    assert template(r"{instruction} \\n \d") == r"{instruction} \n \d"
    assert template(r'"Q: {instruction}\nA:"') == "Q: {instruction}\nA:"  # TOML says the same
    assert template(r"'Q: {instruction}\nA:'") == r"Q: {instruction}\nA:"  # and here that nothing is escaped
    assert recipe.parse_overrides([r"data.source=C:\new"]) == {"data": {"source": r"C:\new"}}


def test_an_override_without_its_table_is_answered_with_the_full_key():
    with pytest.raises(UsageError, match="cannot read the setting 'rounds=3'") as caught:
        recipe.parse_overrides(["rounds=3"])
    assert "--set federation.rounds=3" in caught.value.hint


def test_later_layers_win_and_each_value_remembers_its_layer():
    settings, origins = recipe.merge(
        [("a", {"lora": {"r": 4, "alpha": 8}}), ("b", {"lora": {"r": 16}, "run": {"seed": 1}})]
    )
    assert settings == {"lora": {"r": 16, "alpha": 8}, "run": {"seed": 1}}
    assert origins == {"lora.r": "b", "lora.alpha": "a", "run.seed": "b"}


def test_another_partitioner_does_not_inherit_the_options_of_the_former_one():
    former = {"partition": {"name": "by_key", "key": "source", "clients": 8}}
    settings, origins = recipe.merge([("recipe", former), ("--set", {"partition": {"name": "dirichlet"}})])
    assert settings["partition"] == {"name": "dirichlet", "clients": 8}
    assert origins == {"partition.clients": "recipe", "partition.name": "--set"}
    same, _ = recipe.merge([("recipe", former), ("--set", {"partition": {"name": "by_key"}})])
    assert same["partition"] == former["partition"]


def test_columns_given_in_two_layers_add_up():
    settings, _ = recipe.merge(
        [("a", {"data": {"columns": {"instruction": "q"}}}), ("b", {"data": {"columns": {"response": "a"}}})]
    )
    assert settings["data"]["columns"] == {"instruction": "q", "response": "a"}


def test_the_resolved_config_survives_toml_with_odd_keys_and_texts():
    odd = {
        "partition": {"name": "x:y", "a b": {"c d": [1, 2.5, 'e"f\n\x7f']}},
        "data": {"template": "{instruction}\t→"},
    }
    loaded = recipe.resolve(odd)
    assert recipe.resolve(tomllib.loads(recipe.to_toml(loaded))) == loaded
    assert loaded.partition.options == {"a b": {"c d": [1, 2.5, 'e"f\n\x7f']}}


def test_every_key_has_a_meaning_to_print():
    assert [key for key, field in config.keys().items() if not field.description] == []


def test_a_number_of_local_clients_below_one_is_refused():
    with pytest.raises(UsageError, match="local_clients"):
        recipe.load(None, ["evaluation.local_clients=-1"])


# Methods


def check(settings: dict) -> list[str]:
    from shepherd.cli.settings import registry_problems

    return problems(settings, registry_problems)


def test_a_method_its_pieces_and_the_server_s_optimizer_are_read_and_written_back():
    settings = {
        "federation": {"method": "fedmomentum"},
        "method": {"energy": 0.99, "view": {"name": "prefix", "scale": "own"}},
        "server": {"optimizer": "fedavgm", "momentum": 0.5},
        "lora": {"ranks": [4, 8]},
    }
    loaded = recipe.resolve(settings)
    assert loaded.method.options == settings["method"] and loaded.server.options == {"momentum": 0.5}
    assert recipe.resolve(tomllib.loads(recipe.to_toml(loaded))) == loaded
    from shepherd.experiment.method import prepare_method

    method = prepare_method(loaded)
    assert (method.pieces.remainder.energy, method.pieces.view.name, method.optimizer.name) == (
        0.99, "prefix", "fedavgm",
    )  # fmt: skip


def test_mistakes_in_a_method_are_told_with_everything_else():
    found = check({"lora": {"r": 0}, "federation": {"method": "fedexlora"}, "server": {"optimizer": "fedadm"}})
    assert len(found) == 3 and found[0].startswith("lora.r")
    assert any("unknown method: 'fedexlora'. Did you mean 'fedex_lora'?" in line for line in found)
    assert any("unknown server optimizer: 'fedadm'. Did you mean 'fedadam'?" in line for line in found)
    (found,) = check({"method": {"splt": "mean"}})
    assert found.startswith("federation.method: method 'fedit' has no option 'splt'")
    (found,) = check({"method": {"split": "svd_lefft"}})
    assert "Did you mean 'svd_left'" in found


@pytest.fixture
def nothing_is_fetched(monkeypatch):
    """The base of these settings is the built-in model, which the tests' cache does not have."""
    monkeypatch.setattr("shepherd.model.fetch.pull", lambda *a, **o: pytest.fail("the base was fetched first"))


def test_a_method_and_an_optimizer_that_do_not_fit_are_refused_by_a_check_and_by_a_run(nothing_is_fetched):
    settings = {"federation": {"method": "fedsvd"}, "server": {"optimizer": "fedadam"}}
    (found,) = check(settings)
    assert 'server.optimizer "fedadam" and split "regauge" do not fit' in found
    import shepherd

    with pytest.raises(UsageError, match=r'server.optimizer "fedadam" and split "regauge" do not fit'):
        shepherd.run(recipe.resolve(settings))


def test_ranks_that_a_method_cannot_take_are_refused_before_anything_is_loaded(nothing_is_fetched):
    import shepherd

    with pytest.raises(UsageError, match="fedit gives all clients the rank 8") as caught:
        shepherd.run(recipe.resolve({"lora": {"ranks": {"a": 4}}}))
    assert "hetlora" in caught.value.hint
    assert problems({"lora": {"r": 8, "ranks": [4, 16]}}) == ["lora.ranks has 16, more than the global rank lora.r = 8"]
    assert "lora.ranks" in problems({"lora": {"ranks": [0]}})[0]


def test_a_cap_on_weights_that_a_method_does_not_look_at_is_refused(nothing_is_fetched):
    import shepherd

    settings = {"federation": {"method": "hetlora", "max_weight": 0.5}}
    with pytest.raises(UsageError, match=r"max_weight = 0\.5 cannot hold"):
        shepherd.run(recipe.resolve(settings))


def test_ranks_are_dealt_over_the_clients_by_name_or_given_by_name():
    from shepherd.experiment.named_clients import client_ranks

    def ranks(value):
        return client_ranks(recipe.resolve({"lora": {"ranks": value}}).lora, ["a", "b", "c"])

    assert ranks([2, 4]) == {"a": 2, "b": 4, "c": 2}
    assert ranks({"b": 4}) == {"a": 8, "b": 4, "c": 8} and ranks([]) == dict.fromkeys("abc", 8)
    with pytest.raises(UsageError, match=r"lora.ranks names 'bb', which is not a client"):
        ranks({"bb": 4})


def test_a_layer_that_chooses_another_method_or_optimizer_drops_the_options_of_the_former_one():
    chosen = {"federation": {"method": "fedex_lora"}, "server": {"optimizer": "fedavgm", "momentum": 0.5}}
    first = ("recipe", {**chosen, "method": {"rank": 4}})
    settings, origins = recipe.merge([first, ("--set", {"federation": {"method": "flora"}})])
    assert settings["method"] == {} and settings["server"] == {"optimizer": "fedavgm", "momentum": 0.5}
    assert "method.rank" not in origins
    settings, _ = recipe.merge([first, ("--set", {"server": {"optimizer": "fedavg"}, "method": {"rank": 2}})])
    assert settings["server"] == {"optimizer": "fedavg"} and settings["method"] == {"rank": 2}
    settings, _ = recipe.merge([first, ("--set", {"federation": {"method": "fedex_lora", "rounds": 2}})])
    assert settings["method"] == {"rank": 4}


@pytest.mark.parametrize("name", [".", "..", ".hidden", "-x", "--json", "a/b", "", "a b", "a" * 65])
def test_a_name_that_makes_an_odd_folder_or_reads_as_an_option_is_refused(name):
    with pytest.raises(UsageError, match=r"run\.name: must be 1 to 64 letters, digits, .* not beginning with"):
        recipe.resolve({"run": {"name": name}})


@pytest.mark.parametrize("name", ["_", "a", "0", "v1.2-final_", "a" * 64])
def test_names_of_letters_digits_and_joints_are_taken(name):
    assert recipe.resolve({"run": {"name": name}}).run.name == name
