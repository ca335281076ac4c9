"""Sections of a page: losses of clients and categories, the partition, personal models, answers, data."""

from __future__ import annotations

import json
import re

import pytest

from report_runs import CATEGORIES, Page, change, check, write_run
from shepherd.errors import DataError
from shepherd.report import load_run, write_report
from shepherd.report.sections.verdict import verdict


def page(run, **options) -> Page:
    return Page(write_report(run, **options))


def test_clients_are_sorted_by_gain_and_those_who_lose_are_named(tmp_path):
    run = write_run(tmp_path / "demo", clients=("anna", "bert", "cleo"), categories=CATEGORIES[:3])

    def edit(metrics):
        for client, alone in (("anna", 2.0), ("bert", 2.5), ("cleo", 2.2)):
            metrics["arms"]["local"][client]["per_client"] = {client: {"loss": alone}}
        metrics["arms"]["federated"]["per_client"] = {c: {"loss": 2.1} for c in ("anna", "bert", "cleo")}

    change(run / "evaluation/metrics.json", edit)
    parsed = page(run)
    # federated − alone: bert 2.1 − 2.5 = −0.4, cleo −0.1, anna +0.1
    assert "for 2 of 3 clients" in parsed.text
    assert "Better alone on their own rows: anna." in parsed.text
    section = parsed.source.split('id="clients"')[1]
    table = section[section.index("<tbody>") :]
    assert table.index("bert") < table.index("cleo") < table.index("anna")
    assert "−0.400" in table
    assert "+0.100" in table


def test_the_facts_name_method_server_and_selection(tmp_path):
    settings = ("federation.method=ffa_lora", "server.optimizer=fedadam", "selection.name=oort")
    text = page(write_run(tmp_path / "demo", overrides=settings)).text
    assert "method ffa_lora" in text
    assert "server fedadam" in text
    assert "selection oort" in text
    assert "rows of seed" not in text
    assert "rows of seed 12" in page(write_run(tmp_path / "fixed", overrides=("data.seed=12",))).text


def test_a_model_and_data_in_a_folder_are_named_without_the_way_to_it(tmp_path):
    stopped = write_run(tmp_path / "stopped", overrides=("data.source=/home/someone/my.jsonl",), finished=False)
    source = page(stopped).source
    assert "<span>my.jsonl</span>" in source
    assert "someone" not in source[: source.index("<nav")]
    run = write_run(tmp_path / "run")
    change(run / "summary.json", lambda s: s["model"].update(name="/home/someone/models/small"))
    source = page(run).source
    facts = source[source.index('class="facts"') : source.index("<nav")]
    assert "<span>small</span>" in facts
    assert "someone" not in facts
    change(run / "summary.json", lambda s: s["model"].update(name="org/small"))
    assert "<span>org/small</span>" in page(run).source


def test_personal_models_say_who_gains_and_who_loses(tmp_path):
    run = write_run(tmp_path / "demo", clients=("ann", "bob", "<b>cy</b>"), personal=True)

    def edit(metrics):
        metrics["personal"] = {
            "ann": {"base": 3.0, "local": 2.5, "global": 2.4, "personal": 2.0, "rows": 7},
            "bob": {"base": 3.0, "local": {"loss": 2.0}, "global": {"loss": 2.1}, "personal": {"loss": 2.3}},
            "<b>cy</b>": {"personal": 1.9, "global": 2.0, "local": None},
        }

    change(run / "evaluation/metrics.json", edit)
    parsed = page(run)
    check(parsed)
    text = parsed.text
    assert (
        "Against the global model, the personal model has a lower loss for 2 of 3 clients. It is worse for bob." in text
    )
    assert "Against the client trained alone, the personal model has a lower loss for 1 of 2 clients." in text
    assert "\u22120.400" in text
    assert "+0.200" in text
    assert "<b>cy</b>" in text
    change(run / "evaluation/metrics.json", lambda metrics: metrics.update(personal={"ann": 3}))
    with pytest.raises(DataError, match=r"personal\.ann: expected a table"):
        write_report(run)


@pytest.mark.parametrize("arms", [("base",), ("centralised", "local"), ("base", "federated")])
def test_categories_have_their_rows_and_tokens_whichever_arm_was_measured(tmp_path, arms):
    text = page(write_run(tmp_path / "run", arms=arms, categories=("a", "b"))).text
    table = text[text.index("Loss and token accuracy of each category") :]
    assert table.split()[7:10] == ["Category", "Rows", "Tokens"]
    assert " a 10 515 " in table


def test_headings_over_columns_span_those_that_are_left(tmp_path):
    names = ("brainstorming", "open_qa")  # clients named after all they hold: the column of what they hold goes
    run = write_run(tmp_path / "run", clients=names, categories=names)
    change(run / "partition.json", lambda p: p["table"].update(counts=[[45, 0], [0, 45]]))
    for other in (run, write_run(tmp_path / "other")):
        source = page(other).source
        table = source[source.index("Loss of each client</caption>") :]
        over, columns = table.split("</tr>")[:2]
        spans = [int(span) for span in re.findall(r'colspan="(\d+)"', over)]
        assert sum(spans) == columns.count("<th ")
        assert spans[1:] == [5, 3]
        assert ("Main category" in columns) is (other is not run)


def test_clients_and_categories_are_drawn_against_the_base_on_the_same_rows(tmp_path):
    run = write_run(tmp_path / "run", clients=2, categories=("a", "b"))

    def edit(metrics):
        for arm, loss in (("base", 3.0), ("federated", 2.75)):
            metrics["arms"][arm]["per_client"]["client-000"]["loss"] = loss
            metrics["arms"][arm]["per_category"]["b"]["loss"] = loss + 1

    change(run / "evaluation" / "metrics.json", edit)
    source = page(run).source
    assert "<title>client-000, federated: \N{MINUS SIGN}0.250</title>" in source
    assert "<title>b, federated: \N{MINUS SIGN}0.250</title>" in source
    plain = page(write_run(tmp_path / "plain", arms=("federated", "local"), clients=2)).source
    losses = re.findall(r"<title>client-000, federated: ([^<]*)</title>", plain)
    assert losses
    assert all(float(loss) > 1 for loss in losses)  # without a base they are losses as they are


def test_a_difference_of_losses_is_given_as_a_ratio_of_probabilities_with_its_interval_p_and_check(tmp_path):
    run = write_run(tmp_path / "run")
    entry = {
        "a": "base", "b": "federated", "difference": 0.6931, "ci95": [0.5, 0.9], "p": 2.4e-19, "stderr": 0.1,  # ln 2
        "rows": 80, "effective_rows": 61.5, "bootstrap95": [0.49, 0.91],
    }  # fmt: skip

    change(run / "evaluation" / "metrics.json", lambda metrics: metrics.update(differences=[entry]))
    text = page(run).text
    assert "the federated model assigns 2.00 times the base model's probability to each correct token" in text
    assert "federated − base −0.693 −0.900 to −0.500 2.4e−19 −0.910 to −0.490 better" in text
    assert "a ratio of sums over 80 held-out rows" in text
    assert "79 degrees of freedom" in text
    assert "effective number is 62;" in text
    assert "The bootstrap over rows disagrees" not in text
    change(run / "evaluation" / "metrics.json", lambda m: m["differences"][0].update(bootstrap95=[-0.1, 0.9], p=0.0))
    text = page(run).text
    assert "The bootstrap over rows disagrees about 0 for federated − base" in text
    assert "< 1e−300" in text


def test_a_negative_difference_is_in_favour_of_federated_in_every_figure_and_table(tmp_path):
    run = write_run(tmp_path / "run", clients=("ann", "bob"), categories=("a", "b"))

    def edit(metrics):
        arms = metrics["arms"]
        arms["federated"]["per_category"] = {c: {"loss": 2.0} for c in "ab"}
        for client, loss in (("ann", 2.5), ("bob", 1.9)):
            arms["local"][client]["per_category"] = {c: {"loss": loss} for c in "ab"}
        metrics["differences"] = [
            {"a": "local mean", "b": "federated", "difference": 0.2, "ci95": [0.1, 0.3]},
            {"a": "federated", "b": "local:ann", "difference": -0.5, "ci95": [-0.6, -0.4]},
        ]

    change(run / "evaluation" / "metrics.json", edit)
    parsed = page(run)
    assert "<title>ann, a: −0.50</title>" in parsed.source
    assert "<title>bob, b: +0.10</title>" in parsed.source
    assert "Blue, below 0: the federated model is better" in parsed.text
    assert "federated − mean alone −0.200 −0.300 to −0.100" in parsed.text
    assert "federated − ann alone −0.500 −0.600 to −0.400" in parsed.text
    assert "alone minus" not in parsed.text
    assert "alone − fed" not in parsed.text


def test_answers_that_were_cut_off_are_marked_and_counted(tmp_path):
    parsed = page(write_run(tmp_path / "demo"))
    # Four samples; the base's first and third are cut off, by the field finish_reason of generations.jsonl.
    assert parsed.source.count("[cut off]") == 2
    assert parsed.source.index("The lighthouse on the northern cape</p>".replace("</p>", " <span")) > 0
    scores = parsed.source[parsed.source.index("Scores of the generated answers") :]
    assert '<th scope="col">Cut off</th>' in scores
    assert "Base model" in scores
    old = write_run(tmp_path / "old")
    texts = (old / "evaluation/generations.jsonl").read_text().splitlines()
    entries = [{k: v for k, v in json.loads(text).items() if k != "finish_reason"} for text in texts]
    (old / "evaluation/generations.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert "[cut off]" not in page(old).source


def test_scores_are_shown_on_the_scale_and_with_the_direction_that_the_run_states(tmp_path):
    run = write_run(tmp_path / "demo")
    about = {"label": "Length off", "higher_is_better": False, "bounds": [0.0, None], "options": {}}

    def edit(metrics):
        metrics["arms"]["base"]["generation"] |= {"mine:off": 12.5}
        metrics["generation_metrics"] = {"mine:off": about, "token_f1": {**about, "label": "F1", "bounds": [0, 1]}}

    assert "Higher is closer to the reference." in page(run).text
    change(run / "evaluation/metrics.json", edit)
    text = page(run).text
    assert "12.500" in text and "ROUGE-L" in text
    assert "Higher is better, but for F1, Length off, where lower is better." in text

    def only(metrics):
        for arm in ("base", "federated", "centralised"):
            metrics["arms"][arm]["generation"] = {"mine:off": 3.25, "rows": 4, "cut_off": 0}

    change(run / "evaluation/metrics.json", only)
    assert "Lower is better. These scores are coarse" in page(run).text


def test_first_places_and_first_ids_are_filled_or_gone(tmp_path):
    run = write_run(tmp_path / "demo")
    text = page(run).text
    assert "Reason Rows First places empty response 3 rows:17, rows:90, rows:91" in text
    assert "duplicates within a client 4 rows:1 = rows:2; rows:3 = rows:5 " in text
    assert "over-long rows 9 rows:8; rows:9; …" in text
    change(run / "summary.json", lambda s: s["data"].update(refused={"empty response": 3}, audit={"over-long rows": 9}))
    text = page(run).text
    assert "empty response 3" in text
    assert "over-long rows 9" in text
    assert "First places" not in text
    assert "First ids" not in text


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([[45, 0], [0, 45]], "Each client holds rows of one category; no two clients share one."),
        ([[45, 0], [12, 0]], "Each client holds rows of one category; some clients share one."),
        ([[1, 1], [0, 1]], "No client holds more than one row of a category; there are 2 categories."),
        ([[45, 3], [0, 45]], ""),
    ],
)
def test_the_division_is_drawn_only_where_a_sentence_does_not_say_it(tmp_path, counts, said):
    run = write_run(tmp_path / "run", clients=2, categories=("a", "b"))
    change(run / "partition.json", lambda p: p["table"].update(counts=counts))
    parsed = page(run)
    check(parsed)
    assert said in parsed.text
    assert "Training rows by client and category" in parsed.text
    assert ("Rows of each client in each category" in parsed.text) is (not said)


def test_rows_of_one_category_are_neither_drawn_by_category_nor_compared_by_it(tmp_path):
    parsed = page(write_run(tmp_path / "run", categories=("all",)))
    assert "All rows are of one category (all)." in parsed.text
    assert "Rows of each client in each category" not in parsed.text
    assert "Loss federated minus loss alone" not in parsed.text


def test_a_fold_of_the_report_has_every_case_of_a_warning_that_names_a_few(tmp_path):
    run = write_run(tmp_path / "demo")
    cases = [f"category 'c{i}': 1 of 3 rows are held out, 10 were asked for" for i in range(500)]
    change(run / "summary.json", lambda summary: summary["data"].update(details={"fewer than 10: c0 and more": cases}))
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count("rows are held out, 10 were asked for") == 500
    folded = page.index("<details", page.index('id="data"'))
    assert folded < page.index("category &#39;c499&#39;: 1 of 3 rows")


def test_a_fold_of_the_report_has_every_row_that_was_refused_changed_or_found(tmp_path):
    run = write_run(tmp_path / "run")
    ids = [f"x:{number}" for number in range(500)]
    lines = [
        {"what": "refused", "reason": "empty answer", "groups": [[row] for row in ids]},
        {"what": "audit", "reason": "duplicates within a client", "groups": [["y:1", "y:2"], ["y:3", "y:4"]]},
    ]
    (run / "evaluation/left_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    at = page.index("All rows that were refused, changed")
    assert page.rindex("<details", 0, at) > page.index('id="data"')
    assert "; ".join(ids) in page
    assert "y:1 = y:2; y:3 = y:4" in page


def test_a_best_client_that_other_rows_chose_is_named_so_everywhere(tmp_path):
    run = write_run(tmp_path / "demo", clients=("ann", "bob", "cleo"))

    def cross_fitted(clients, same_rows=False):
        def edit(metrics):
            (entry,) = (d for d in metrics["differences"] if d["b"] == "local best")
            entry.update(clients=clients, same_rows=same_rows, rows=30 if same_rows else 80)

        change(run / "evaluation/metrics.json", edit)
        found = load_run(run)
        return " ".join(verdict(found)), page(run).text

    said, text = cross_fitted(["ann", "cleo"])
    assert "than the best client alone (ann or cleo, chosen on the other half of the rows): " in said
    assert "best: ann, cleo" in text and "federated − best client alone (ann, cleo)" in text
    assert "compared on the other, both ways (cross-fitting)" in text and "which favours it" not in text
    said, text = cross_fitted(["bob"], same_rows=True)
    assert "the best client alone (bob, chosen on the same rows, which favours it): " in said
    assert "chosen on the same rows, which favours it. There are too few held-out rows to choose on one half" in text
    assert "cross-fitting" not in text
    change(run / "partition.json", lambda p: p.update(labels={"bob": "Ward 3"}))
    assert "best client alone (Ward 3, chosen" in " ".join(verdict(load_run(run)))
