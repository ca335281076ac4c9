"""Study files: what is refused, with the nearest name, and the settings, names and digests of runs."""

from __future__ import annotations

import pytest

from shepherd.arms import parts_of
from shepherd.errors import UsageError
from shepherd.experiment.study.commands import commands
from shepherd.experiment.study.design import load_study
from shepherd.experiment.study.variants import digest_of, portable, run_name
from study_runs import BASE, TWO, study_of

GRID = 'seeds = [0]\n[variants]\nfedit = []\nflora = ["federation.method=flora"]\n[grid]\n"lora.r" = [4, 8]\n'
MISTAKES = {
    "an unknown key": ("sedes = [0]\n" + TWO, "unknown key 'sedes'. Did you mean 'seeds'?"),
    "an unknown key of a comparison": (
        TWO + '[[compare]]\na = "fedit"\nb = "flora"\nmargn = 1\n', "unknown key 'margn' in [compare.1]. Did you mean "
        "'margin'?"),
    "an unknown key of the judge": (
        TWO + '[judge]\nmodel = "m"\nquestion = "vicuna"\n', "unknown key 'question' in [judge]. Did you mean "
        "'questions'?"),
    "no seeds": ("seeds = []\n", "seeds:"),
    "no seeds at all": ("[variants]\nfedit = []\n", "seeds is missing"),
    "a seed twice": ("seeds = [1, 1]\n", "seeds: names 1 twice"),
    "a text as a seed": ('seeds = ["1"]\n', "got '1'"),
    "an unknown setting": (
        'seeds = [0]\n[variants]\na = ["lora.rr=2"]\n', "variant 'a': unknown key 'lora.rr'. Did you mean 'lora.r'?"),
    "an unknown method": (
        'seeds = [0]\n[variants]\na = ["federation.method=fedti"]\n', "unknown method: 'fedti'. Did you mean 'fedit'?"),
    "a setting that the study determines": (
        'seeds = [0]\nbase = ["run.seed=3"]\n', "base: run.seed is not a setting of a study: it follows from seeds"),
    "equal variants": (
        'seeds = [0]\n[variants]\na = []\nb = ["lora.r=8"]\n', "variant 'b' has the same settings as 'a'"),
    "two variants in one folder": (
        'seeds = [0]\n[variants]\n"a b" = []\n"a-b" = ["lora.r=4"]\n', "would share the folder a-b.0: rename one"),
    "a variant called like an arm": (
        'seeds = [0]\n[variants]\nbase = []\n', "variant 'base' has the name of an arm"),
    "a comparison that names nobody": (
        TWO + '[[compare]]\na = "fedti"\nb = "flora"\n', "compare, entry 1: 'fedti' is neither a variant nor an arm. "
        "Did you mean 'fedit'?"),
    "a comparison with an arm that nobody has": (
        'seeds = [0]\nbase = ["evaluation.arms=base,federated"]\n[[compare]]\na = "federated"\nb = "local:best"\n',
        "no variant has the arm 'local' among its evaluation.arms"),
    "a comparison with an arm that this variant lacks": (
        'seeds = [0]\nbase = ["evaluation.arms=base,federated"]\n[variants]\na = []\n[[compare]]\na = "a"\n'
        'b = "a:centralised"\n', "'a' has no arm 'centralised': its evaluation.arms are base, federated"),
    "an unknown arm of a variant": (
        TWO + '[[compare]]\na = "fedit"\nb = "fedit:local:bst"\n',
        "'local:bst' is not an arm. Did you mean 'local:best'?"),
    "a comparison with itself": (
        TWO + '[[compare]]\na = "fedit"\nb = "fedit:federated"\n', "fedit:federated is compared with itself"),
    "a comparison twice, the other way round": (
        TWO + '[[compare]]\na = "fedit"\nb = "flora"\n[[compare]]\na = "flora"\nb = "fedit"\n', "is named twice"),
    "own rows without models of clients": (
        TWO + '[[compare]]\na = "federated"\nb = "base"\nrows = "own"\n', "name local:mean or local/NAME"),
    "a margin of nothing": (TWO + '[[compare]]\na = "fedit"\nb = "flora"\nmargin = 0\n', "compare.1.margin:"),
    "an unknown reference": ('reference = "flor"\n' + TWO, "reference: 'flor' is not a variant. Did you mean 'flora'?"),
    "a reference that is many points of a grid": (
        'reference = "fedit"\n' + GRID, "Name a point of the grid: fedit, r=4, fedit, r=8."),
    "a grid over no setting": (
        'seeds = [0]\n[grid]\n"lora" = [1]\n', "grid: 'lora' is not a setting."),
    "a grid with a value twice": ('seeds = [0]\n[grid]\n"lora.r" = [4, 4]\n', "grid: lora.r has the value 4 twice"),
    "an exclusion with an unknown key": (
        GRID + '[[exclude]]\nvarint = "fedit"\n', "exclude, rule 1: unknown key 'varint'. Did you mean 'variant'?"),
    "an exclusion that matches nothing": (
        GRID + '[[exclude]]\n"lora.r" = 16\n', "exclude, rule 1: lora.r is never 16. It is one of: 4, 8"),
    "exclusions that leave nothing": ('seeds = [0]\n[[exclude]]\nseed = 0\n', "exclude leaves no run"),
    "no TOML": ("seeds = [", "is not valid TOML"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_study_file_is_refused_with_what_is_meant(mistake, tmp_path):
    text, words = MISTAKES[mistake]
    with pytest.raises(UsageError) as error:
        study_of(tmp_path, text)
    assert words in error.value.message


def test_all_mistakes_are_reported_at_once(tmp_path):
    text = 'seeds = [0]\n[variants]\na = ["lora.rr=2"]\nb = ["lora.r=0"]\n'
    with pytest.raises(UsageError, match="2 problems") as error:
        study_of(tmp_path, text)
    assert "variant 'a'" in error.value.message and "variant 'b'" in error.value.message


def test_a_missing_study_file_is_named_with_the_nearest_one(tmp_path):
    study_of(tmp_path)
    with pytest.raises(UsageError, match=r"study file not found: .*stdy.toml\. Did you mean 'study.toml'\?"):
        load_study(tmp_path / "stdy.toml")


def test_a_grid_multiplies_variants_and_exclusions_take_runs_away(tmp_path):
    text = GRID + '[[exclude]]\nvariant = "flora"\n"lora.r" = 8\n'
    study = study_of(tmp_path, text)
    assert [v.name for v in study.variants] == ["fedit, r=4", "fedit, r=8", "flora, r=4"]
    assert [v.config.lora.r for v in study.variants] == [4, 8, 4]
    assert [run.name for run in study.runs] == ["fedit-r-4.0", "fedit-r-8.0", "flora-r-4.0"]


def test_families_are_compared_at_the_same_points_of_the_grid(tmp_path):
    study = study_of(tmp_path, GRID + '[[compare]]\na = "flora"\nb = "fedit"\nmargin = 0.1\n')
    assert [(p.a.variant, p.b.variant) for p in study.pairs] == [
        ("flora, r=4", "fedit, r=4"), ("flora, r=8", "fedit, r=8")]  # fmt: skip


def test_an_arm_without_a_variant_stands_for_that_of_every_variant(tmp_path):
    study = study_of(
        tmp_path, TWO + '[[compare]]\na = "federated"\nb = "local"\n[[compare]]\na = "flora"\nb = "base"\n'
    )
    assert [(p.a.variant, p.a.arm, p.b.variant, p.b.arm) for p in study.pairs] == [
        ("fedit", "federated", "fedit", "local:mean"), ("flora", "federated", "flora", "local:mean"),
        ("flora", "federated", "flora", "base")]  # fmt: skip


def test_without_comparisons_the_usual_ones_are_made(tmp_path):
    study = study_of(tmp_path)
    assert [p.label for p in study.pairs] == [
        "federated − base (fedit)", "federated − local:mean (fedit)", "federated − local:best (fedit)",
        "federated − centralised (fedit)", "flora − fedit"]  # fmt: skip


def test_settings_of_the_command_line_come_last_and_seeds_come_from_the_study(tmp_path):
    study = study_of(tmp_path, BASE + '[variants]\na = ["lora.r=4"]\n', overrides=["lora.r=2"])
    configs = [run.config(tmp_path) for run in study.runs]
    assert [(c.lora.r, c.run.seed, c.run.name) for c in configs] == [(2, 0, "a.0"), (2, 1, "a.1"), (2, 2, "a.2")]


def test_the_test_rows_are_fixed_unless_the_file_draws_them_by_seed(tmp_path):
    fixed, drawn = (study_of(tmp_path, text + TWO) for text in ("", 'test_rows = "by seed"\n'))
    assert {run.config(tmp_path).data_seed for run in fixed.runs} == {0}
    assert [run.config(tmp_path).data_seed for run in drawn.runs] == [0, 0, 1, 1, 2, 2]


def test_the_digest_of_a_run_ignores_its_machine_and_where_its_files_lie(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "rows.jsonl").write_text("")
    first = study_of(tmp_path, TWO, overrides=["data.source=rows.jsonl", "run.threads=1"])
    moved = study_of(tmp_path, TWO, overrides=[f"data.source={tmp_path / 'here' / 'rows.jsonl'}", "run.threads=2"])
    other = study_of(tmp_path, TWO, overrides=["data.source=others.jsonl", "run.threads=1"])
    digests = [[run.digest for run in study.runs] for study in (first, moved, other)]
    assert digests[0] == digests[1] and not set(digests[0]) & set(digests[2])
    assert len(set(digests[0])) == 6, "each run has its own"
    assert str(tmp_path) not in str(portable(moved.variants[0].config)) and digest_of({"a": 1}) != digest_of({"a": 2})


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_the_commands_of_published_outputs_name_files_and_no_place_on_this_machine(tmp_path, quote):
    study = study_of(tmp_path, TWO, overrides=[f"data.source={quote}{tmp_path / 'rows.jsonl'}{quote}", "lora.r=2"])
    lines = [line for _, line in commands(study)]
    assert lines[0] == "shepherd study run study.toml --set data.source=rows.jsonl --set lora.r=2"
    assert str(tmp_path) not in "".join(lines)


def test_long_names_of_runs_are_cut_and_stay_apart():
    names = {run_name("x" * 80 + end, 7) for end in ("a", "b")}
    assert len(names) == 2 and all(len(name) <= 64 and name.endswith(".7") for name in names)


@pytest.mark.parametrize("name, runs", [("dolly", 6), ("methods", 69), ("privacy", 9), ("small", 24)])
def test_the_published_studies_can_be_read(name, runs, pytestconfig):
    study = load_study(pytestconfig.rootpath / "docs" / "studies" / f"{name}.toml")
    assert len(study.runs) == runs


@pytest.mark.parametrize("text, parts", [
    ("base", ("base", "", "")), ("local:best", ("local", "best", "")), ("local/a", ("local", "", "a")),
    ("local/a:best", ("local", "", "a:best")), ("local/x/y", ("local", "", "x/y")),
])  # fmt: skip
def test_a_side_has_an_arm_and_a_pick_or_a_client_whose_name_may_hold_a_colon(text, parts):
    assert parts_of(text) == parts
