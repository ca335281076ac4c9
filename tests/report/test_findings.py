"""The sentences of the headline follow from the numbers, and say no more than they do."""

from __future__ import annotations

import pytest

from report_runs import change, write_run
from shepherd.report import findings, load_run
from shepherd.report.comparison.page import compare
from shepherd.report.sections.alerts import alerts
from shepherd.report.sections.cards import cards, measure
from shepherd.report.sections.verdict import verdict


def record_with(tmp_path, *entries, losses=None, **options):
    """A run whose measured differences are `entries` (a, b, value, ci95) and whose arms have the given losses."""
    run = write_run(tmp_path / "demo", **options)

    def edit(metrics):
        metrics["differences"] = [{"a": a, "b": b, "difference": v, "ci95": ci, "p": 0.5} for a, b, v, ci in entries]
        for arm, loss in (losses or {}).items():
            if arm == "local":
                metrics.pop("own_rows", None)
                metrics["arms"]["local"] = {client: {"loss": value} for client, value in loss.items()}
            else:
                metrics["arms"][arm]["loss"] = loss

    change(run / "evaluation" / "metrics.json", edit)
    return load_run(run)


def test_better_is_said_when_the_whole_interval_is_below_zero(tmp_path):
    record = record_with(tmp_path, ("federated", "local", -0.084, [-0.13, -0.04]))
    assert verdict(record)[0] == (
        "Federated is better than the mean of the clients that trained alone: −0.084 nats per token "
        "(95\xa0% interval −0.130 to −0.040)."
    )


def test_worse_is_said_as_plainly_as_better(tmp_path):
    record = record_with(tmp_path, ("federated", "local", 0.084, [0.04, 0.13]))
    assert verdict(record)[0].startswith("Federated is worse than the mean of the clients")


@pytest.mark.parametrize("interval", [[-0.02, 0.03], [-0.02, 0.0], [0.0, 0.02]])
def test_nothing_is_claimed_when_the_interval_includes_zero(tmp_path, interval):
    record = record_with(tmp_path, ("federated", "local", 0.005, interval))
    first = verdict(record)[0]
    assert first.startswith(
        "The difference between federated and the mean of the clients that trained alone is too small"
    )
    assert "+0.005 nats per token" in first
    assert "includes 0" in first
    assert "better" not in first
    assert "worse" not in first


def test_a_difference_measured_the_other_way_round_is_turned(tmp_path):
    record = record_with(tmp_path, ("local", "federated", 0.084, [0.04, 0.13]))
    turned = findings.difference(record, "federated", "local")
    assert turned.value == -0.084
    assert turned.interval == (-0.13, -0.04)
    assert "better" in verdict(record)[0]


def test_without_an_interval_the_sentence_says_that_it_may_be_chance(tmp_path):
    record = record_with(tmp_path, losses={"federated": 2.0, "local": {"a": 2.2, "b": 2.4}})
    # mean alone = (2.2 + 2.4) / 2 = 2.3, so the difference is 2.0 − 2.3 = −0.3
    first = verdict(record)[0]
    assert "by 0.300" in first
    assert "may be chance" in first


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"difference": -0.2, "no_interval": "a single row has no spread"},
            "as a single row has no spread, so this may",
        ),
        ({"difference": 0.0, "no_interval": "the two are equal on every row"}, "have the same held-out loss"),
        ({"difference": None, "no_interval": "there is nothing to compare on"}, "higher held-out loss"),
    ],
)
def test_where_no_interval_exists_the_reason_is_said(tmp_path, entry, said):
    run = write_run(tmp_path / "demo", arms=("base", "federated", "centralised"))
    entry = {"a": "federated", "b": "centralised", "ci95": [None, None], "p": None, **entry}
    change(run / "evaluation/metrics.json", lambda m: m.update(differences=[entry]))
    (sentence,) = (text for text in verdict(load_run(run)) if "pooling" in text)
    assert said in sentence
    assert "better" not in sentence
    assert "worse" not in sentence


def own_rows(tmp_path, **differences):
    """The sentence on own rows of a run where clients differ by (value, ends of the interval)."""
    run = write_run(tmp_path / "demo", clients=tuple(differences))
    entries = {
        c: {"difference": value, "ci95": [value - half, value + half]} for c, (value, half) in differences.items()
    }
    change(run / "evaluation/metrics.json", lambda m: m.update(own_rows=entries))
    (sentence,) = (text for text in verdict(load_run(run)) if "own held-out rows" in text)
    return sentence


def test_the_headline_counts_the_clients_that_do_better_and_worse_on_their_own_rows(tmp_path):
    sentence = own_rows(tmp_path / "a", a=(-0.3, 0.1), b=(-0.1, 0.2), c=(0.2, 0.1), d=(0.1, 0.2), e=(0.0, 0.1))
    assert (
        "2 of 5 clients do better with the federated model than alone, and 2 do worse (c, d); 1 does equally"
        in sentence
    )
    assert "excludes 0 for 1 better and 1 worse; for the other 3 the difference is too small to tell." in sentence
    sentence = own_rows(tmp_path / "b", a=(-0.3, 0.1), b=(-0.3, 0.2))
    assert "2 of 2 clients do better" in sentence
    assert sentence.endswith("excludes 0 for 2 better and 0 worse.")
    sentence = own_rows(tmp_path / "c", a=(-0.3, 0.4), b=(0.3, 0.4))
    assert "1 of 2 clients does better" in sentence
    assert "1 does worse (b); for every single client the difference is too" in sentence


def test_clients_are_counted_of_those_that_trained_alone_where_these_are_not_all(tmp_path):
    run = write_run(tmp_path / "demo", clients=("a", "b", "c"))
    own = {"a": {"difference": -0.3, "ci95": [-0.4, -0.2]}, "b": {"difference": 0.1, "ci95": [-0.1, 0.3]}}
    change(run / "evaluation/metrics.json", lambda m: (m.update(own_rows=own), m["arms"]["local"].pop("c")))
    (sentence,) = (text for text in verdict(load_run(run)) if "own held-out rows" in text)
    assert "1 of the clients that trained alone (2 of 3 clients) does better" in sentence
    assert "1 does worse (b)" in sentence


def test_clients_are_counted_by_their_losses_where_a_run_has_no_intervals_of_them(tmp_path):
    run = write_run(tmp_path / "demo")
    change(run / "evaluation/metrics.json", lambda m: m.pop("own_rows"))
    record = load_run(run)
    federated = record.metrics["arms"]["federated"]["per_client"]
    alone = record.metrics["arms"]["local"]
    better = sum(federated[c]["loss"] < alone[c]["per_client"][c]["loss"] for c in alone)
    (sentence,) = (text for text in verdict(record) if "own held-out rows" in text)
    assert f"{better} of 8 clients" in sentence
    assert "no intervals" in sentence


@pytest.mark.parametrize(
    ("ends", "said"), [([-0.09, -0.01], "−9.0 to −1.0 points)."), ([-0.15, 0.05], "too few answers")]
)
def test_answers_further_from_the_references_than_the_base_s_are_said_beside_the_success(tmp_path, ends, said):
    run = write_run(tmp_path / "demo")

    def edit(metrics):
        metrics["arms"]["base"]["generation"]["rouge_l"] = 0.30
        metrics["arms"]["federated"]["generation"]["rouge_l"] = 0.25
        entry = {"metric": "rouge_l", "a": "federated", "b": "base", "difference": -0.05, "ci95": ends, "p": 0.1}
        metrics["generation_differences"] = [{**entry, "metric": "token_f1"}, entry]

    change(run / "evaluation/metrics.json", edit)
    success, answers = verdict(load_run(run))[-2:]
    assert "untuned base model" in success
    assert "ROUGE-L 25.0\xa0% against 30.0\xa0% over 4 rows" in answers
    assert said in answers
    change(run / "evaluation/metrics.json", lambda m: m.pop("generation_differences"))
    assert "without an interval" in verdict(load_run(run))[-1]
    change(run / "evaluation/metrics.json", lambda m: m["arms"]["base"]["generation"].update(rouge_l=0.2))
    assert not any("ROUGE" in text for text in verdict(load_run(run)))


def described(label: str, higher_is_better: bool, bounds: list) -> dict:
    return {"label": label, "higher_is_better": higher_is_better, "bounds": bounds, "options": {}}


def test_worse_answers_follow_the_direction_of_the_metric(tmp_path):
    run = write_run(tmp_path / "demo")

    def edit(federated, base, interval):
        def change_metrics(metrics):
            for arm, score in (("federated", federated), ("base", base)):
                metrics["arms"][arm]["generation"] = {"mine:off": score, "token_f1": 0.5, "rows": 4, "cut_off": 0}
            metrics["generation_metrics"] = {
                "mine:off": described("Length off", False, [0.0, None]),
                "token_f1": described("Token F1", True, [0.0, 1.0]),
            }
            entry = {"metric": "mine:off", "a": "federated", "b": "base", "difference": federated - base, "p": 0.1}
            metrics["generation_differences"] = [{**entry, "ci95": interval}]

        change(run / "evaluation/metrics.json", change_metrics)
        return verdict(load_run(run))[-1]

    # Fewer characters off are better: 12.5 of federated against 3 of the base is worse, 3 against 12.5 is not.
    worse = edit(12.5, 3.0, [2.0, 17.0])
    assert "answers of federated score worse than those of base: Length off 12.500 against 3.000 over 4 rows" in worse
    assert "difference +2.000 to +17.000)." in worse
    assert "Length off" not in edit(3.0, 12.5, [-17.0, -2.0])


def test_the_best_client_alone_is_named_and_compared(tmp_path):
    record = record_with(
        tmp_path,
        ("federated", "local:b", 0.06, [0.01, 0.11]),
        losses={"federated": 2.06, "local": {"a": 2.4, "b": 2.0, "c": 2.8}},
        clients=3,
    )
    assert findings.best_and_worst_local(record) == ("b", "c")
    text = "Federated is worse than the best client alone (b, chosen on the same rows, which favours it)"
    assert text in verdict(record)[1]


def test_the_share_of_the_pooled_gain_is_the_ratio_of_the_two_gains_over_the_base(tmp_path):
    record = record_with(
        tmp_path,
        ("federated", "base", -0.3, [-0.4, -0.2]),
        ("federated", "centralised", 0.1, [0.05, 0.15]),
        ("centralised", "base", -0.4, [-0.5, -0.3]),
        losses={"base": 2.6, "federated": 2.3, "centralised": 2.2},
    )
    # gains over the base: federated 2.6 − 2.3 = 0.3, centralised 2.6 − 2.2 = 0.4, share 75 %
    assert any("75\xa0% of the gain" in sentence for sentence in verdict(record))


def test_no_share_of_the_gain_is_given_when_federated_is_not_distinguishable_from_the_base(tmp_path):
    record = record_with(
        tmp_path,
        ("federated", "base", -0.01, [-0.05, 0.03]),
        ("federated", "centralised", 0.1, [0.05, 0.15]),
        losses={"base": 2.6, "federated": 2.59, "centralised": 2.5},
    )
    assert not any("of the gain" in sentence for sentence in verdict(record))


def test_without_local_arms_the_report_does_not_say_that_federating_pays(tmp_path):
    record = load_run(write_run(tmp_path / "demo", arms=("base", "federated")))
    assert "does not show whether federation pays" in verdict(record)[0]


def test_without_a_federated_arm_nothing_is_said_about_federation(tmp_path):
    record = load_run(write_run(tmp_path / "demo", arms=("base", "local")))
    assert verdict(record) == ["This run has no federated arm, so it does not show what federation gains."]


def test_a_federated_arm_whose_loss_nobody_measured_is_not_taken_for_a_missing_one(tmp_path):
    record = record_with(tmp_path, losses={"base": 2.6, "federated": None})
    expected = "This run has no held-out loss of the federated model, so it does not show what federation gains."
    assert verdict(record) == [expected]


def test_one_client_alone_is_neither_a_mean_nor_the_best_of_several(tmp_path):
    record = load_run(write_run(tmp_path / "demo", clients=1))
    sentences = " ".join(verdict(record))
    assert "the client that trained alone" in sentences
    assert "best client" not in sentences
    assert "mean of" not in sentences


def test_an_unfinished_run_says_how_far_it_is(tmp_path):
    record = load_run(write_run(tmp_path / "demo", finished=False))
    sentence, hint = verdict(record)
    assert "2 of 3 rounds" in sentence
    assert "missing" not in sentence
    assert "better" not in sentence
    assert "shepherd resume" in hint
    done = load_run(write_run(tmp_path / "done", finished=False, overrides=("federation.rounds=2",)))
    assert "2 of 2 rounds are committed, but the steps after the last round are missing" in verdict(done)[0]


def test_the_local_arm_is_the_mean_over_clients_and_its_perplexity_the_exponential_of_that_mean(tmp_path):
    record = record_with(tmp_path, losses={"local": {"a": 2.0, "b": 3.0}})
    local = next(arm for arm in findings.arms(record) if arm.key == "local")
    assert local.loss == 2.5
    assert local.perplexity == pytest.approx(12.182, abs=1e-3)  # e^2.5


@pytest.mark.parametrize("alone", [1, 3])
def test_where_not_all_clients_trained_alone_every_comparison_with_them_says_of_how_many_it_is(tmp_path, alone):
    losses = {name: 2.0 + i for i, name in enumerate("abc"[:alone])}
    record = record_with(tmp_path, losses={"local": losses}, clients=8)
    of = f"{alone} of 8 clients"
    sentences = [sentence for sentence in verdict(record) if "alone" in sentence]
    assert len(sentences) == min(alone, 2)
    assert all(f"the {of} that trained alone" in sentence for sentence in sentences)
    assert any(of in card["extra"] for card in cards(record))
    assert of in measure(record)
    assert any(of in line for line in alerts(record))
    assert f"the mean alone is over {of}" in compare([record.path]).to_text()
