"""After a run over sites: the report of it, every command on its directory, and what a site has in its own folder."""

from __future__ import annotations

import io
import json
import shutil
import sys
from types import SimpleNamespace

import pytest

from console import Shell
from report_runs import Page, check
from shepherd.experiment.coordinate import coordinate, resume_coordination
from shepherd.experiment.opened_run import load_tuned
from shepherd.experiment.run import run
from shepherd.federation.messages import Answer, Bye, Finish, pack, read
from shepherd.federation.transports.memory import Arrival
from shepherd.model.adapter import digest, load_adapter
from shepherd.store import read_journal
from sites import SETTINGS, Sites, site_file, write_rows

COUNTS = {"east": 6, "north": 7, "south": 5}
SITE_TOML = (
    '[site]\nname = "{name}"\n[data]\nsource = "rows.jsonl"\n[model]\nbase = "base"\n[policy]\nmin_rows_tell = 9\n'
)


@pytest.fixture(scope="module")
def world(small_config, model_folder, tmp_path_factory):
    """Four rounds: east is refused until round 3, south is late in round 2 and away in round 4; west never comes."""
    folder = tmp_path_factory.mktemp("world")
    rows = write_rows(folder / "rows", COUNTS)
    sites = Sites(rows, model_folder("llama"), folder / "sites", COUNTS)
    sites.policy["east"] = {"methods": ("ffa_lora",)}
    sites.transport.restart("east")
    sent: list = []

    def hop(hop):
        message = read(hop.data, 2**30)
        sent.append((hop.client, hop.way, message, len(hop.data)))
        if isinstance(message, Answer) and (hop.client, message.round) == ("south", 2):
            return []
        return [Arrival({"east": 1.0, "north": 2.0, "south": 5.0}[hop.client] if hop.way == "up" else 0.0, hop.data)]

    def change(event):
        if event["event"] == "round" and event["round"] == 2:
            sites.policy["east"] = {}
            sites.transport.restart("east")
        if event["event"] == "round" and event["round"] == 3:
            sites.transport.stop("south")
            sites.transport.leases.end("south")

    sites.transport.hop = hop
    config = small_config(
        f"data.source={rows}", *SETTINGS, "federation.rounds=4", "federation.min_updates=1", "federation.deadline=30.0"
    )
    terms = sites.terms(sites=2, expected=("north", "west"))
    done = coordinate(config, sites.transport, change, folder / "runs", terms)
    for client, _, message, _ in sent:
        if isinstance(message, Bye):  # is on its way when the transport ends
            sites.transport.running[client].handle(pack(message))
    (folder / "sites" / "north" / "site.toml").write_text(SITE_TOML.format(name="north"))
    return SimpleNamespace(done=done, path=done.path, sites=sites, folder=folder / "sites", sent=sent, config=config)


@pytest.fixture
def shell(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Shell(capsys, monkeypatch)


# The coordinator


def test_the_journal_says_who_took_part_in_each_round_with_bytes_and_seconds(world):
    found = world.done.summary["federation"]
    rounds = {name: list(site["rounds"].values()) for name, site in found["sites"].items()}
    assert rounds == {
        "east": ["refused", "refused", "trained", "trained"],
        "north": ["trained"] * 4,
        "south": ["trained", "late", "trained", "absent"],
        "west": ["absent"] * 4,
    }
    assert found["sites"]["east"]["reasons"] == {"1": "method", "2": "method"}
    states = {name: (site["state"], site["present"]) for name, site in found["sites"].items()}
    assert states["west"] == ("never there", False) and not states["south"][1] and states["north"][1]
    for name in COUNTS:
        site = found["sites"][name]
        questions = sum(size for client, way, message, size in world.sent
                        if client == name and way == "down" and type(message).__name__ != "Bye")  # fmt: skip
        assert site["bytes_down"] == questions == sum(down for _, down in site["by_round"].values())
        lost = sum(size for client, way, message, size in world.sent
                   if (client, way) == (name, "up") and name == "south"
                   and isinstance(message, Answer) and message.round == 2)  # fmt: skip
        answers = sum(size for client, way, _, size in world.sent if (client, way) == (name, "up"))
        progress = site["bytes_up"] - (answers - lost)
        assert 0 <= progress < 10_000, "messages of progress make no hop of an answer"
    assert found["sites"]["north"]["seconds"] == {"1": 2.0, "2": 2.0, "3": 2.0, "4": 2.0}
    assert found["sites"]["south"]["seconds"] == {"1": 5.0, "3": 5.0}
    assert found["pauses"] == [] and found["began"] >= found["opened"] > 0
    # the journal is enough for it
    lines = [{k: v for k, v in row.items() if k != "crc"} for row in read_journal(world.path / "journal.jsonl").rows]
    assert {row["event"] for row in lines if row["what"] == "sites"} >= {"exchanged", "eligible", "attempt"}


def test_the_page_has_a_section_of_the_sites_with_what_did_not_count_and_why(world):
    page = Page(world.path / "report.html")
    check(page)
    for text in (
        "west was expected and never came.", "What each site stated", "Rounds of each site", "never came",
        "the policy does not allow the method", "connected, and without an answer at the deadline",
        "Bytes of each site by round", "Time until the answer of each site", "3 sites trained in 4 rounds.",
    ):  # fmt: skip
        assert text in page.text, text
    assert page.source.count("<title>Sites by round</title>") == 1
    assert page.text.count("1–2") == 1, "rounds with one reason are one line"


def test_report_prints_the_sites_and_json_has_them(world, shell):
    outcome = shell("report", str(world.path))
    assert outcome.status == 0 and outcome.out.splitlines()[-1] == str(world.path / "report.html")
    assert "Rounds of each site" in outcome.out and "west" in outcome.out and "\x1b" not in outcome.out
    facts = json.loads(shell("report", str(world.path), "--json").out)
    assert facts["federation"]["sites"]["south"]["rounds"]["2"] == "late" and facts["state"] == "finished"


def test_lines_of_an_earlier_version_have_no_bytes_and_the_page_is_written(world, tmp_path):
    from shepherd.report import write_report
    from shepherd.report.sites.history import read_history

    old = tmp_path / "old"
    shutil.copytree(world.path, old)
    lines = (old / "journal.jsonl").read_text().splitlines()
    kept = [line for line in lines if '"exchanged"' not in line and "expected sites" not in line]
    (old / "journal.jsonl").write_text("\n".join([*kept, '{"what": "sites", "event": "si']))
    (old / "summary.json").write_text(json.dumps({k: v for k, v in world.done.summary.items() if k != "federation"}))
    page = Page(write_report(old))
    check(page)
    assert "Bytes of each site" not in page.text and "Rounds of each site" in page.text
    assert read_history(old)["sites"]["north"]["bytes_up"] is None


@pytest.mark.parametrize(
    ("command", "status", "text"),
    [
        (["evaluate"], 3, "the rows of this run are at its sites"),
        (["resume"], 0, ""),
        (["answer", "--questions", "held-out"], 3, "the rows of this run are at its sites"),
        (["benchmark"], 3, "the rows of this run are at its sites"),
    ],
)
def test_a_command_that_needs_rows_is_refused_in_a_sentence(command, status, text, world, shell):
    outcome = shell(command[0], str(world.path), *command[1:])
    assert (outcome.status, "Traceback" in outcome.err) == (status, False), outcome.err
    assert text in outcome.err


def test_chat_answer_export_and_runs_take_the_run_of_sites(world, shell, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is 1 plus 1 in the north?\n"))
    assert shell("chat", str(world.path), "--max-new-tokens", "3").status == 0
    (tmp_path / "questions.jsonl").write_text('{"question_id": 1, "category": "x", "turns": ["What is 2?"]}\n')
    run = tmp_path / "run"
    shutil.copytree(world.path, run)
    answered = shell("answer", str(run), "--questions", "questions.jsonl", "--max-new-tokens", "3", "--json")
    assert {one["name"] for one in json.loads(answered.out)["answers"]} == {"run:federated", "run:base"}
    (questions,) = (path.name for path in (run / "answers").iterdir())
    judged = shell("judge", str(run), "--questions", questions, "--judge", "some", "--dry-run")
    assert judged.status == 0 and "2 calls to make" in judged.err, "federated against base, in both orders"
    exported = shell("export", str(world.path), "--out", "adapter")
    assert exported.status == 0 and digest(load_adapter(tmp_path / "adapter")) == world.done.summary["adapter_sha256"]
    merged = shell("export", str(world.path), "--to", "merged", "--out", "merged")
    assert merged.status == 0 and "rows of the sites" in (tmp_path / "merged" / "README.md").read_text()
    listed = json.loads(shell("runs", "ls", "--out", str(world.path.parent), "--json").out)
    assert [(entry["state"], entry["rounds"], entry["planned"]) for entry in listed] == [("finished", 4, 4)]
    assert shell("runs", "du", str(world.path)).status == 0


def test_compare_of_the_simulation_and_the_federation_says_what_differs(world, shell, tmp_path):
    simulated = run(world.config, lambda event: None, tmp_path / "simulated")
    outcome = shell("compare", str(simulated.path), str(world.path), "--html", "both.html")
    assert outcome.status == 0
    assert "data.source" in outcome.out and "sites:rows" in outcome.out
    assert "measured by its sites on rows that stay there" in outcome.out
    assert (tmp_path / "both.html").is_file()


# A site


def test_a_site_has_the_last_global_model_to_chat_with_and_to_export(world, shell, monkeypatch, tmp_path):
    north = world.folder / "north"
    (kept,) = (north / "runs").iterdir()
    assert digest(load_adapter(kept / "adapter")) == world.done.summary["adapter_sha256"], "the final one"
    assert load_tuned(kept).adapter.r == load_tuned(world.path).adapter.r
    for place in (north, kept):
        monkeypatch.setattr(sys, "stdin", io.StringIO("What is 1 plus 1 in the north?\n"))
        outcome = shell("chat", str(place), "--compare", "base", "--max-new-tokens", "3")
        assert outcome.status == 0 and outcome.out.strip()
    assert shell("export", str(north), "--out", "peft").status == 0
    assert digest(load_adapter(tmp_path / "peft")) == world.done.summary["adapter_sha256"]
    assert shell("export", str(kept), "--to", "merged", "--out", "merged").status == 0
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "rows of sites, which stayed there" in card and str(north) not in card and "rows.jsonl" not in card
    refused = shell("chat", f"{north}:own")
    assert refused.status == 2 and "the run makes no model of a single site" in refused.err
    assert "a site has no such model" in shell("chat", f"{north}:centralised").err


def test_the_report_of_a_site_says_what_left_it_by_round(world, shell):
    north = world.folder / "north"
    (kept,) = (north / "runs").iterdir()
    outcome = shell("report", str(north))
    assert outcome.status == 0 and outcome.out.splitlines()[-1] == str(north / "report.html"), outcome.err
    for text in (
        "Runs of this site",
        "By round",
        "Policy of this site",
        "fewer than 9 are stated as 9",
        "Training loss",
    ):
        assert text in outcome.out, text
    page = Page(north / "report.html")
    check(page)
    assert "left this site" in page.text and "a person approves each run" in page.text
    facts = json.loads(shell("report", str(kept), "--json").out)
    about = facts["runs"][kept.name]
    assert facts["report"] == str(kept.resolve() / "report.html") and (kept / "report.html").is_file()
    up = sum(size for client, way, _, size in world.sent if (client, way) == ("north", "up"))
    down = sum(size for client, way, _, size in world.sent if (client, way) == ("north", "down"))
    assert about["bytes_in"] == down
    assert about["bytes_out"] == world.done.summary["federation"]["sites"]["north"]["bytes_up"] >= up
    lines = world.done.rounds()
    assert [about["rounds"][f"{line['round']}"]["train_loss"] for line in lines] == [
        pytest.approx(line["train_loss"]["north"]) for line in lines
    ]
    per_client = {arm: found["per_client"]["north"]["loss"] for arm, found in world.done.metrics["arms"].items()}
    assert about["base_loss"] == pytest.approx(per_client["base"])
    assert about["rounds"]["4"]["loss"] == pytest.approx(per_client["federated"])
    assert about["state"] == "over" and about["models"] == ["global"]
    east = json.loads(shell("report", str(world.folder / "east"), "--json").out)
    verdicts = next(iter(east["runs"].values()))["kinds"]["offer"]["verdicts"]
    assert verdicts.keys() == {"method", "admitted"} and verdicts["admitted"] == 1


@pytest.mark.parametrize("command", ["resume", "evaluate", "compare", "benchmark"])
def test_other_commands_say_that_the_folder_is_a_sites(command, world, shell):
    (kept,) = (world.folder / "north" / "runs").iterdir()
    for place in (world.folder / "north", kept):
        outcome = shell(command, str(place))
        assert outcome.status == 2 and "is the folder of a site" in outcome.err, outcome.err
    assert shell("runs", "rm", "--yes", str(kept)).status == 2 and kept.is_dir()


def test_a_site_without_a_run_has_a_report_and_no_model(shell, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "site.toml").write_text(SITE_TOML.format(name="new"))
    assert "No run was offered to this site." in shell("report", "new").out
    outcome = shell("chat", "new")
    assert outcome.status == 2 and "has no model" in outcome.err


def test_a_site_keeps_its_own_model_and_the_last_global_one_where_the_coordinator_measures(
    small_config, model_folder, shell, tmp_path
):
    rows = write_rows(tmp_path / "rows", {"north": 7, "south": 5})
    own = write_rows(tmp_path / "own", {"own": 4}) / "own.jsonl"
    sites = Sites(rows, model_folder("llama"), tmp_path / "sites")
    config = small_config(
        f"data.source={rows}", *SETTINGS, f"data.held_out_source={own}", "federation.rounds=1",
        "personalization.name=finetune", "personalization.steps=2",
    )  # fmt: skip
    asked = []

    def slow(hop):  # an own model is trained, so it may take longer than a measure
        asked.append(type(read(hop.data, 2**30)))
        return [Arrival(900.0 if hop.way == "up" and Finish in asked else 0.0, hop.data)]

    sites.transport.hop = slow
    done = coordinate(config, sites.transport, lambda event: None, tmp_path / "runs", sites.terms(measure=600.0))
    rows = [row for row in read_journal(done.path / "journal.jsonl").rows if row["what"] == "sites"]
    (attempt,) = (row["attempt"] for row in rows if row.get("for") == "finish")
    (seconds,) = (row["seconds"] for row in rows if row["event"] == "exchanged" and row["attempt"] == attempt)
    assert seconds == {"north": 900.0, "south": 900.0}
    (kept,) = (tmp_path / "sites" / "north" / "runs").iterdir()
    assert digest(load_adapter(kept / "adapter")) == done.summary["adapter_sha256"]
    for name, folder in (("sites/north", "model"), ("sites/north:own", "model"), ("sites/north:federated", "adapter")):
        out = name.replace("/", "-").replace(":", "-")
        assert shell("export", name, "--out", out).status == 0
        assert digest(load_adapter(tmp_path / out)) == digest(load_adapter(kept / folder))
    facts = json.loads(shell("report", "sites/north", "--json").out)
    assert facts["runs"][kept.name]["models"] == ["own", "global"]


# Waiting


def test_a_resumed_run_waits_for_the_sites_that_took_part_and_goes_on_without_them_after_a_while(
    small_config, model_folder, tmp_path
):
    rows = write_rows(tmp_path / "rows", {"north": 7, "south": 5})
    sites = Sites(rows, model_folder("llama"), tmp_path / "sites")
    clock = sites.transport.clock
    config = small_config(
        f"data.source={rows}", *SETTINGS, "federation.rounds=4", "federation.min_updates=1", "federation.deadline=30.0",
        "evaluation.every=0",
    )  # fmt: skip

    def stop_after(number):
        def observe(event):
            if event["event"] == "round" and event["round"] == number:
                raise KeyboardInterrupt

        return observe

    def away(name):
        sites.transport.stop(name)
        sites.transport.leases.end(name)

    with pytest.raises(KeyboardInterrupt):
        coordinate(config, sites.transport, stop_after(1), tmp_path / "runs", sites.terms())
    (folder,) = (tmp_path / "runs").iterdir()
    away("south")
    begin = clock()

    def sleep(seconds):  # the site comes back while the run waits for it
        clock.now += seconds
        if clock() - begin > 10.0 and "south" not in sites.transport.running:
            sites.transport.start("south")

    warned = []

    def observe(event):
        warned.extend([event["message"]] if event["event"] == "warning" else [])
        stop_after(2)(event)

    with pytest.raises(KeyboardInterrupt):
        resume_coordination(folder, sites.transport, observe, sites.terms(sleep=sleep, back=50.0))
    assert "waits up to 50 s for south: they took part before" in " ".join(warned)
    assert 10.0 < clock() - begin < 50.0
    away("south")
    begin = clock()
    done = resume_coordination(folder, sites.transport, lambda event: None, sites.terms(back=20.0))
    assert 20.0 <= clock() - begin < 200.0
    assert [line["cohort"] for line in done.rounds()] == [["north", "south"], ["north", "south"], ["north"], ["north"]]


def test_a_site_file_without_a_folder_is_no_site(tmp_path):
    from shepherd.store.site_folder import site_place

    assert site_place(tmp_path) is None and site_place(tmp_path / "nowhere") is None
    assert site_file("north", tmp_path, tmp_path).policy.min_rows_tell == 0
