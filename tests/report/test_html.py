"""The page of a run: complete, offline, escaped, within its size."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from report_runs import HOSTILE, Page, change, check, write_run
from shepherd.config import Config
from shepherd.errors import DataError
from shepherd.report import write_report


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
    assert "269 MB" in text
    assert "292 times as much" in text
    assert "NaN in 3 of 240 modules" in text
    assert "no reply" in text
    assert "shepherd run demo/config.toml" in text
    assert "Differential privacy none" in text
    assert "Secure aggregation none" in text
    assert "lighthouse" in text
    assert "transformers" in text
    assert "empty response" in text
    assert str(tmp_path) not in text


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
    assert "unfinished" in parsed.text
    assert "0 of" in parsed.text


def test_values_that_are_not_finite_are_written_as_absent(tmp_path):
    run = write_run(tmp_path / "demo")

    def edit(metrics):
        metrics["arms"]["centralised"].update(loss=float("nan"), perplexity=float("inf"))
        metrics["curves"]["federated"][1][1] = float("nan")
        metrics["differences"][0]["ci95"] = [None, float("nan")]

    change(run / "evaluation/metrics.json", edit)
    parsed = page(run)
    check(parsed)
    assert "n/a" in parsed.text
    assert "NaN in 3" in parsed.text


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
        summary["seconds"] = dict.fromkeys(HOSTILE, 1.0)
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
    assert "{{ 7 * 7 }}{% raw %}" in parsed.text
    assert "]]></style></svg><img src=x onerror=alert(1)>" in parsed.text
    assert "[31m" not in parsed.text


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


def test_a_run_without_privacy_has_no_guarantee_on_its_page(tmp_path):
    text = page(write_run(tmp_path / "run")).text
    assert "This run neither adds noise to updates nor hides them from the server." in text
    assert "ε" not in text
    # Secure aggregation is "none" on every page because no setting can turn it on.
    assert not {"secure_aggregation", "secure", "security"} & set(Config.model_fields)


def test_the_report_needs_neither_torch_nor_numpy():
    code = "import sys, shepherd.report; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
