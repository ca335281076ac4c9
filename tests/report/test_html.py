"""The page of a run: whole, offline, escaped, readable in light and dark."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shepherd.report
from report_runs import ARMS, CATEGORIES, HOSTILE, Page, change, check, write_run
from shepherd.config import Config
from shepherd.errors import DataError
from shepherd.report import write_report

CSS = (Path(shepherd.report.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")


def page(run, **options) -> Page:
    return Page(write_report(run, **options))


def test_the_page_of_a_run_holds_every_section_in_order(tmp_path):
    parsed = page(write_run(tmp_path / "demo"))
    check(parsed)
    order = [a.get("id") for a in parsed.having("section")]
    assert order == [
        "headline", "budget", "rounds", "clients", "categories", "division", "samples", "traffic", "time",
        "participation", "diagnostics", "data", "privacy", "settings",
    ]  # fmt: skip


def test_every_picture_has_a_table_after_it_and_a_caption(tmp_path):
    parsed = page(write_run(tmp_path / "demo"))
    names = [name for name, _ in parsed.tags if name in ("figure", "table", "figcaption")]
    assert names.count("figure") == names.count("figcaption") == 15
    small = [
        i for i, (_, attributes) in enumerate(f for f in parsed.tags if f[0] == "figure") if attributes.get("class")
    ]
    assert small == [9, 10, 11, 12, 13, 14], "the six small ones share one table"
    figures = [i for i, name in enumerate(names) if name == "figure"]
    for number, i in enumerate(figures):
        assert names[i + 1 : i + 3] == ["figcaption", "figure" if number in small[:-1] else "table"]


def test_the_figures_of_the_run_are_on_the_page(tmp_path):
    run = write_run(tmp_path / "demo")
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    text = page(run).text
    for arm in ("base", "federated", "centralised"):
        assert f"{metrics['arms'][arm]['loss']:.3f}" in text
    assert "22.1 MB" in text  # 8 clients × 3 rounds × 921,600 bytes
    # bfloat16: 2 bytes × 134,515,008 parameters / 921,600 bytes of an adapter = 291.9 times
    assert "269 MB" in text and "292 times as much" in text
    assert "NaN in 3 of 240 modules" in text and "no reply" in text
    assert "shepherd run demo/config.toml" in text
    assert "Differential privacy none" in text and "Secure aggregation none" in text
    assert "lighthouse" in text and "transformers" in text and "empty response" in text
    assert str(tmp_path) not in text


def test_clients_are_sorted_by_gain_and_those_who_lose_are_named(tmp_path):
    run = write_run(tmp_path / "demo", clients=("anna", "bert", "cleo"), categories=CATEGORIES[:3])

    def edit(metrics):
        for client, alone in (("anna", 2.0), ("bert", 2.5), ("cleo", 2.2)):
            metrics["arms"]["local"][client]["per_client"] = {client: {"loss": alone}}
        metrics["arms"]["federated"]["per_client"] = {c: {"loss": 2.1} for c in ("anna", "bert", "cleo")}

    change(run / "evaluation/metrics.json", edit)
    parsed = page(run)
    # federated − alone: bert 2.1 − 2.5 = −0.4, cleo −0.1, anna +0.1
    assert "for 2 of 3 clients" in parsed.text and "Better alone on their own rows: anna." in parsed.text
    section = parsed.source.split('id="clients"')[1]
    table = section[section.index("<tbody>") :]
    assert table.index("bert") < table.index("cleo") < table.index("anna")
    assert "−0.400" in table and "+0.100" in table


@pytest.mark.parametrize(
    "options",
    [
        {"clients": 1, "rounds": 1},
        {"arms": ("base", "federated")},
        {"arms": ("base",)},
        {"arms": ("federated",)},
        {"arms": ("base", "local")},
        {"arms": ("centralised", "local")},
        {"every": 0},
        {"every": 2, "rounds": 5},
        {"generate": 0},
        {"categories": ("all",)},
        {"finished": False},
    ],
    ids=str,
)
def test_a_run_without_this_or_that_still_has_a_page(tmp_path, options):
    parsed = page(write_run(tmp_path / "demo", **options))
    check(parsed)
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan", "", parsed.text)
    assert "None" not in parsed.text.replace("None of", "")


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    run = tmp_path / "begun"
    run.mkdir()
    (run / "config.toml").write_text("[run]\nseed = 3\n")
    parsed = page(run)
    check(parsed)
    assert "unfinished" in parsed.text and "0 of" in parsed.text


def test_values_that_are_not_finite_are_written_as_absent(tmp_path):
    run = write_run(tmp_path / "demo")

    def edit(metrics):
        metrics["arms"]["centralised"].update(loss=float("nan"), perplexity=float("inf"))
        metrics["curves"]["federated"][1][1] = float("nan")
        metrics["differences"][0]["ci95"] = [None, float("nan")]

    change(run / "evaluation/metrics.json", edit)
    parsed = page(run)
    check(parsed)
    assert "n/a" in parsed.text and "NaN in 3" in parsed.text


def test_hostile_names_and_texts_are_shown_as_text(tmp_path):
    run = write_run(
        tmp_path / "demo", clients=HOSTILE[:8], categories=HOSTILE[:4], overrides=("data.source=" + HOSTILE[0],)
    )
    config = (run / "config.toml").read_text(encoding="utf-8")
    (run / "config.toml").write_text(config + "".join(f"# {text}\n" for text in HOSTILE[:5]), encoding="utf-8")
    entries = [
        {"id": text, "category": text, "prompt": [{"role": text, "content": text}] * 2, "reference": text,
         "answers": {"base": text, "federated": text, f"local:{text}": text, text: text}}
        for text in HOSTILE
    ]  # fmt: skip
    (run / "evaluation/generations.jsonl").write_text("\n".join(map(json.dumps, entries)))

    def edit(summary):
        summary["command"] = summary["model"]["name"] = summary["data"]["name"] = HOSTILE[4]
        summary["data"]["refused"] = {text: [1, [text]] for text in HOSTILE}
        summary["data"]["audit"] = [{"kind": text, "count": 1, "groups": [[text]]} for text in HOSTILE]
        summary["budget"] = {text: {text: 1} for text in HOSTILE}
        summary["seconds"] = {text: 1.0 for text in HOSTILE}
        summary["version"] = HOSTILE[0]

    change(run / "summary.json", edit)
    entry = {"a": HOSTILE[0], "b": HOSTILE[4], "difference": 1.0}
    change(run / "evaluation/metrics.json", lambda metrics: metrics["differences"].append(entry))
    change(run / "env.json", lambda env: env.update({text: text for text in HOSTILE}))
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    lines[0]["rejected"] = [{"client": text, "code": text, "detail": text} for text in HOSTILE]
    (run / "rounds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    parsed = page(run)
    check(parsed)
    assert "<script>alert(1)</script>" in parsed.text  # as text, once parsed
    assert "{{ 7 * 7 }}{% raw %}" in parsed.text and "]]></style></svg><img src=x onerror=alert(1)>" in parsed.text
    assert "[31m" not in parsed.text


def test_late_ignored_and_quarantined_clients_and_skipped_rounds_are_named(tmp_path):
    run = write_run(tmp_path / "demo", rounds=3)
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    first, second = lines[0]["cohort"][:2]
    lines[0] |= {"late": [first], "ignored": [{"client": second, "code": "duplicate", "detail": "has answered"}]}
    lines[2] |= {"skipped": True, "quarantined": [second], "weights": {}, "train_loss": {}, "update_norm": {}}
    lines[2] |= {"steps": {}, "examples": {}, "tokens": {}, "bytes_up": 0}
    (run / "rounds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    parsed = page(run)
    check(parsed)
    for text in ("1 late", "after the deadline, or after enough others", "duplicate", "not sampled from here on",
                 "so the model is unchanged in round 3."):  # fmt: skip
        assert text in parsed.text, text


def test_the_diagnostics_of_each_round_are_drawn_and_a_skipped_round_leaves_a_gap(tmp_path):
    run = write_run(tmp_path / "demo", rounds=4)
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    lines[1] |= {"skipped": True, "diagnostics": {}, "deviation": 0.0, "update_norm": {}}
    lines[3]["diagnostics"] |= {"cosine_mean": None, "cosine_min": None}  # one client alone
    (run / "rounds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    parsed = page(run)
    check(parsed)
    for text in ("Diagnostics", "Effective rank", "Skipped rounds leave a gap: 2.", "over 60 modules"):
        assert text in parsed.text, text
    assert "<desc>deviation ends at 0.120</desc>" in parsed.source.replace(".</desc>", "</desc>")
    gap = parsed.source.split("<title>Deviation per round</title>")[1].split("</svg>")[0]
    assert gap.count("<circle") == 4 and gap.count("<polyline") == 2, (
        "three rounds and the mark of the name; two pieces"
    )


def test_a_run_from_before_the_diagnostics_shows_what_it_has(tmp_path):
    run = write_run(tmp_path / "demo", diagnostics=False)
    config = (run / "config.toml").read_text()
    config = re.sub(r"\[(selection|server|method)\]\n(.+\n)*", "", config)
    config = config.replace('method = "fedit"', 'selection = "uniform"\naggregation = "fedit"')
    (run / "config.toml").write_text(config)
    parsed = page(run)
    check(parsed)
    assert "method fedit" in parsed.text and "selection uniform" in parsed.text and "Personal models" not in parsed.text
    assert "Norm of the increments" in parsed.text and "Effective rank" not in parsed.text
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    bare = [{"round": line["round"], "cohort": line["cohort"]} for line in lines]
    (run / "rounds.jsonl").write_text("\n".join(map(json.dumps, bare)))
    parsed = page(run)
    check(parsed)
    assert "No diagnostics were recorded" in parsed.text


def test_the_facts_name_method_server_and_selection(tmp_path):
    settings = ("federation.method=ffa_lora", "server.optimizer=fedadam", "selection.name=oort")
    text = page(write_run(tmp_path / "demo", overrides=settings)).text
    assert "method ffa_lora" in text and "server fedadam" in text and "selection oort" in text


def test_a_model_and_data_in_a_folder_are_named_without_the_way_to_it(tmp_path):
    stopped = write_run(tmp_path / "stopped", overrides=("data.source=/home/someone/my.jsonl",), finished=False)
    source = page(stopped).source
    assert "<span>my.jsonl</span>" in source and "someone" not in source[: source.index("<nav")]
    run = write_run(tmp_path / "run")
    change(run / "summary.json", lambda s: s["model"].update(name="/home/someone/models/small"))
    source = page(run).source
    facts = source[source.index('class="facts"') : source.index("<nav")]
    assert "<span>small</span>" in facts and "someone" not in facts
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
    assert "\u22120.400" in text and "+0.200" in text and "<b>cy</b>" in text
    change(run / "evaluation/metrics.json", lambda metrics: metrics.update(personal={"ann": 3}))
    with pytest.raises(DataError, match=r"personal\.ann: expected a table"):
        write_report(run)


def test_a_client_that_is_sampled_once_is_sampled_1_time(tmp_path):
    assert "each client was sampled 1 time in 1 round." in page(write_run(tmp_path / "demo", rounds=1)).text


def test_participation_counts_samplings_codes_and_rounds_without_a_cohort(tmp_path):
    run = write_run(tmp_path / "demo", rounds=3, overrides=("selection.name=poisson",))
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    lines[2] |= {"cohort": [], "skipped": True, "weights": {}, "diagnostics": {}}
    lines[0]["cohort"] = lines[0]["cohort"][1:]
    lines[0]["rejected"] = [{"client": lines[0]["cohort"][0], "code": "non-finite", "detail": ""}]
    (run / "rounds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    parsed = page(run)
    check(parsed)
    for text in (
        "With the selection poisson each client was sampled 1 to 2 times in 3 rounds.",
        "Updates that did not count, by code",
        "No client was sampled, so the model is unchanged in round 3.",
        "non-finite rejected 2 1 client-001",
    ):
        assert text in parsed.text, text


def test_headings_over_columns_span_those_that_are_left(tmp_path):
    names = ("brainstorming", "open_qa")  # clients named after all they hold: the column of what they hold goes
    run = write_run(tmp_path / "run", clients=names, categories=names)
    change(run / "partition.json", lambda p: p["table"].update(counts=[[45, 0], [0, 45]]))
    for other in (run, write_run(tmp_path / "other")):
        source = page(other).source
        table = source[source.index("Loss of each client</caption>") :]
        over, columns = table.split("</tr>")[:2]
        spans = [int(span) for span in re.findall(r'colspan="(\d+)"', over)]
        assert sum(spans) == columns.count("<th ") and spans[1:] == [5, 3]
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
    assert losses and all(float(loss) > 1 for loss in losses)  # without a base they are losses as they are


def alerts(parsed):
    text = parsed.text
    return text[text.index("Read with this in mind") :][:600] if "Read with this in mind" in text else ""


def test_who_reads_the_first_page_alone_learns_what_was_not_as_it_should_be(tmp_path):
    assert not alerts(page(write_run(tmp_path / "calm", clients=3, rounds=2)))
    run = write_run(tmp_path / "run", clients=5, rounds=3)  # the second of three rounds has one missing, one rejected
    change(run / "summary.json", lambda s: s.update(forced=["torch"], failed=[{"client": "x", "detail": "NaN"}]))
    change(run / "evaluation" / "metrics.json", lambda m: m["arms"]["centralised"].update(loss=float("nan")))
    told = alerts(page(run))
    assert "resumed with --force" in told
    assert "2 updates of 15 did not count" in told
    assert "Training alone failed for 1 client," in told
    assert "No finite held-out loss was measured for: Centralised." in told


def test_a_difference_of_losses_is_told_as_a_ratio_of_probabilities_with_its_interval_p_and_check(tmp_path):
    run = write_run(tmp_path / "run")
    entry = {
        "a": "base", "b": "federated", "difference": 0.6931, "ci95": [0.5, 0.9], "p": 2.4e-19, "stderr": 0.1,  # ln 2
        "rows": 80, "effective_rows": 61.5, "bootstrap95": [0.49, 0.91],
    }  # fmt: skip

    change(run / "evaluation" / "metrics.json", lambda metrics: metrics.update(differences=[entry]))
    text = page(run).text
    assert "the federated model assigns 2.00 times the base model's probability to each correct token" in text
    assert "federated − base −0.693 −0.900 to −0.500 2.4e−19 −0.910 to −0.490 better" in text
    assert (
        "a ratio of sums over 80 held-out rows" in text
        and "79 degrees of freedom" in text
        and "effective number is 62;" in text
    )
    assert "The bootstrap over rows disagrees" not in text
    change(run / "evaluation" / "metrics.json", lambda m: m["differences"][0].update(bootstrap95=[-0.1, 0.9], p=0.0))
    text = page(run).text
    assert "The bootstrap over rows disagrees about 0 for federated − base" in text and "< 1e−300" in text


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
    assert "<title>ann, a: −0.50</title>" in parsed.source and "<title>bob, b: +0.10</title>" in parsed.source
    assert "Blue, below 0: the federated model is better" in parsed.text
    assert "federated − mean alone −0.200 −0.300 to −0.100" in parsed.text
    assert "federated − ann alone −0.500 −0.600 to −0.400" in parsed.text
    assert "alone minus" not in parsed.text and "alone − fed" not in parsed.text


def test_answers_that_were_cut_off_are_marked_and_counted(tmp_path):
    parsed = page(write_run(tmp_path / "demo"))
    # Four samples; the base's first and third are cut off, by the field finish_reason of generations.jsonl.
    assert parsed.source.count("[cut off]") == 2
    assert parsed.source.index("The lighthouse on the northern cape</p>".replace("</p>", " <span")) > 0
    scores = parsed.source[parsed.source.index("Scores of the generated answers") :]
    assert '<th scope="col">Cut off</th>' in scores and "Base model" in scores
    old = write_run(tmp_path / "old")
    texts = (old / "evaluation/generations.jsonl").read_text().splitlines()
    entries = [{k: v for k, v in json.loads(text).items() if k != "finish_reason"} for text in texts]
    (old / "evaluation/generations.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert "[cut off]" not in page(old).source


def test_first_places_and_first_ids_are_filled_or_gone(tmp_path):
    run = write_run(tmp_path / "demo")
    text = page(run).text
    assert "Reason Rows First places empty response 3 rows:17, rows:90, rows:91" in text
    assert "duplicates within a client 4 rows:1 = rows:2; rows:3 = rows:5 " in text
    assert "over-long rows 9 rows:8; rows:9; …" in text
    change(run / "summary.json", lambda s: s["data"].update(refused={"empty response": 3}, audit={"over-long rows": 9}))
    text = page(run).text
    assert "empty response 3" in text and "over-long rows 9" in text
    assert "First places" not in text and "First ids" not in text


@pytest.mark.parametrize(
    "counts, said",
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
    assert said in parsed.text and "Training rows by client and category" in parsed.text
    assert ("Rows of each client in each category" in parsed.text) is (not said)


def test_rows_of_one_category_are_neither_drawn_by_category_nor_compared_by_it(tmp_path):
    parsed = page(write_run(tmp_path / "run", categories=("all",)))
    assert "All rows are of one category (all)." in parsed.text
    assert "Rows of each client in each category" not in parsed.text
    assert "Loss federated minus loss alone" not in parsed.text


def test_a_run_of_a_hundred_clients_is_shortened_and_says_by_how_much(tmp_path):
    parsed = page(write_run(tmp_path / "demo", clients=100, rounds=20))
    check(parsed)
    assert "60 clients in between are not drawn" in parsed.text
    assert "40 clients of 100 left out" in parsed.text


def test_a_page_never_passes_two_megabytes(tmp_path):
    names = tuple(f"client-{i}-" + "ż" * 200 for i in range(150))
    categories = tuple(f"category {i} " + "🐑" * 100 for i in range(60))
    run = write_run(tmp_path / "demo", clients=names, categories=categories, rounds=3)
    text = "日本" * 40_000
    prompt = [{"role": "user", "content": text}]
    entry = {"id": "x", "category": "c", "prompt": prompt, "reference": text, "answers": {"base": text}}
    (run / "evaluation/generations.jsonl").write_text("\n".join([json.dumps(entry)] * 20))
    parsed = page(run)
    check(parsed)
    assert "more characters in the run directory" in parsed.text


def test_the_same_run_gives_the_same_bytes(tmp_path):
    run = write_run(tmp_path / "demo")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_a_broken_run_leaves_the_old_page_alone(tmp_path):
    run = write_run(tmp_path / "demo")
    before = write_report(run).read_bytes()
    (run / "evaluation/metrics.json").write_text("{")
    with pytest.raises(DataError):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".*part"))


def test_the_privacy_statement_is_written_again_when_the_settings_learn_about_privacy():
    # The page says "none" for differential privacy and secure aggregation because no setting can turn them on.
    assert not {"privacy", "secure_aggregation", "security"} & set(Config.model_fields)


def test_the_report_needs_neither_torch_nor_numpy():
    code = "import sys, shepherd.report; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def themes() -> dict[str, dict[str, str]]:
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in CSS.split("@media screen", 1))
    return {"light": light, "dark": light | dark}


def contrast(a: str, b: str) -> float:
    """WCAG 2.2 contrast ratio of two colours #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_formula_gives_the_known_extremes():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_have_a_contrast_of_at_least_4_5_and_marks_of_at_least_3(theme):
    colours = themes()[theme]
    for text in ("ink", "soft", "accent"):
        for under in ("paper", "sheet"):
            assert contrast(colours[text], colours[under]) >= 4.5, (text, under)
    for mark in (*ARMS, "plain", *(f"s{i}" for i in range(1, 8))):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark
    for i in range(9):
        over = colours.get(f"in-h{i}", colours["in-dark" if i >= 7 else "in-light"])
        assert contrast(over, colours[f"h{i}"]) >= 4.5, f"h{i}"
    for i in range(-4, 5):
        over = colours.get(f"in-d{i}", colours["in-dark" if abs(i) == 4 else "in-light"])
        assert contrast(over, colours[f"d{i}"]) >= 4.5, f"d{i}"


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
        {"what": "refused", "reason": "empty answer", "groups": [[id] for id in ids]},
        {"what": "audit", "reason": "duplicates within a client", "groups": [["y:1", "y:2"], ["y:3", "y:4"]]},
    ]
    (run / "evaluation/left_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    at = page.index("All rows that were refused, changed")
    assert page.rindex("<details", 0, at) > page.index('id="data"')
    assert "; ".join(ids) in page and "y:1 = y:2; y:3 = y:4" in page
