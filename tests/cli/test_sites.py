"""The commands of a federation, with a transport in memory in place of the network."""

from __future__ import annotations

import io
import json
import queue
import shutil
import stat
import sys
import threading
import time
import tomllib
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import pytest

from console import Shell
from shepherd.experiment.opened_run import open_run
from shepherd.experiment.run import run
from shepherd.experiment.run_card import run_card
from shepherd.experiment.sites import folders, joining, links, site_file
from shepherd.experiment.sites.attend import Attending
from shepherd.experiment.sites.coordinator import FILE
from shepherd.experiment.sites.presence import Presence, read_presence
from shepherd.federation import enrolment
from shepherd.federation.cards import Policy, read_site
from shepherd.federation.messages import Bye, Offer, pack
from shepherd.federation.site_store import Folder, SiteStore
from shepherd.model.digest import model_digest, tokenizer_digest
from shepherd.recipe import load, to_toml
from shepherd.types import SiteFacts
from sites import SETTINGS, Sites, write_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a federation of two invited sites: its authority takes a second to make."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        folder = enrolment.new_federation(folders.FEDERATIONS / "lab", host="localhost", port=7100, enrolment_port=7101)
        for site in ("north", "south"):
            Path(f"{site}.invite").write_bytes(enrolment.invite(folder, site))
    return place


@pytest.fixture
def shell(capsys, monkeypatch, made, tmp_path):
    """A shell in a folder with a copy of the federation."""
    place = tmp_path / "work"
    shutil.copytree(made, place)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return Shell(capsys, monkeypatch)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def sites(rows, model_folder, tmp_path):
    return Sites(rows, model_folder("llama"), tmp_path / "at-sites")


@pytest.fixture
def network(monkeypatch, sites):
    """The transport of `sites` in place of the network: what the coordinator opened, in order."""
    opened = []

    def open_transport(kit, limit, members, on_event):
        opened.append((kit, limit, members()))
        on_event("up")
        for _ in range(2):
            on_event("refused", site="west", why="it has been removed")
        return nullcontext(sites.transport)

    both = frozenset({"north", "south"})
    monkeypatch.setattr(enrolment.FederationFolder, "allowed", lambda self: both)  # nobody enrols here
    monkeypatch.setattr(links, "open_transport", open_transport)
    monkeypatch.setattr(links, "open_desk", lambda folder, say: nullcontext(say("Enrolment is open.")))
    return opened


@pytest.fixture
def recipe(small_config, rows):
    path = Path("recipe.toml")
    path.write_text(to_toml(small_config(f"data.source={rows}", *SETTINGS, "run.out=runs")), encoding="utf-8")
    return path


def test_a_run_over_a_federation_is_that_of_the_simulation_and_the_other_commands_open_it(
    shell, network, sites, recipe, small_config, rows, tmp_path
):
    outcome = shell("run", recipe, "--federation", "lab", "--plain")
    assert outcome.status == 0, outcome.err
    assert "wait for sites: lab is served at localhost:7100" in outcome.err
    assert "wait for sites: Enrolment is open." in outcome.err
    assert outcome.err.count("warning: west: a connection was refused: it has been removed") == 1
    assert "north is connected\nsouth is connected\n" in outcome.err
    ((kit, limit, members),) = network
    assert (kit, sorted(members)) == (Path("federations/lab/server"), ["north", "south"]) and limit > 2**20
    expected = run(small_config(f"data.source={rows}", *SETTINGS), lambda event: None, tmp_path / "simulated")
    adapter = Path("adapter/adapter_model.safetensors")
    assert (Path("runs/tiny") / adapter).read_bytes() == (expected.path / adapter).read_bytes()
    assert tomllib.loads(Path("runs/tiny/config.toml").read_text())["federation"]["min_updates"] == 2

    presence = json.loads(Path("federations/lab/presence.json").read_text())
    assert (presence["run"], presence["round"], presence["rounds"], presence["state"]) == ("runs/tiny", 2, 2, "stopped")
    assert presence["sites"]["north"]["bytes_up"] > 1000
    for command in (("report", "runs/tiny"), ("runs", "ls"), ("compare", "runs/tiny"), ("resume", "runs/tiny"),
                    ("export", "runs/tiny", "--to", "peft", "--out", "exported")):  # fmt: skip
        assert shell(*command).status == 0, command
    with folders.serving(Path("federations/lab"), "lab"):  # by another run
        outcome = shell("resume", "runs/tiny")
    assert outcome.status == 0 and "runs/tiny is already finished; nothing to resume" in outcome.err
    shutil.move("federations", "moved")
    assert shell("resume", "runs/tiny").status == 0
    assert len(network) == 1, "a finished run is not served again"
    outcome = shell("evaluate", "runs/tiny")
    assert outcome.status == 3 and "the rows of this run are at its sites" in outcome.err


def test_a_run_that_is_stopped_while_it_waits_is_resumed_with_its_federation_and_with_no_other(
    shell, network, sites, recipe, monkeypatch
):
    sites.transport.stop("south")
    sites.transport.leases.end("south")

    def interrupted(seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shepherd.experiment.site_attendance.time.sleep", interrupted)
        patch.setattr("shepherd.experiment.site_attendance.Attendance._sleep", lambda self, s: interrupted(s))
        outcome = shell("run", recipe, "--federation", "lab", "--plain")
    assert outcome.status == 130
    assert "stopped; to resume from the last committed round: shepherd resume runs/tiny" in outcome.err
    assert "wait for sites: round 1 waits for 2 sites, and 1 take part; south: not there" in outcome.err
    outcome = shell("status", "lab", "--json")
    (found,) = json.loads(outcome.out)
    assert outcome.status == 7 and found["away"] == ["north", "south"] and found["serving"] is None
    assert "nobody serves lab" in outcome.err

    identity = json.loads(Path("runs/tiny", FILE).read_text())
    Path("runs/tiny", FILE).write_text(json.dumps({**identity, "fingerprint": "0" * 64}))
    outcome = shell("resume", "runs/tiny")
    assert outcome.status == 2 and "belongs to another federation lab than the one in" in outcome.err
    Path("runs/tiny", FILE).write_text(json.dumps({**identity, "folder": "/moved/away"}))
    sites.transport.start("south")
    outcome = shell("resume", "runs/tiny", "--json")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out.splitlines()[-1])["event"] == "end"
    assert len(open_run("runs/tiny").rounds()) == 2


@pytest.mark.parametrize(
    ("arguments", "begin", "go_on"),
    [((), 2, 2), (("--min-sites", "1"), 1, 1), (("--set", "federation.min_updates=1"), 2, 1)],
)
def test_all_members_begin_and_two_go_on_unless_it_is_said_otherwise(
    shell, network, monkeypatch, arguments, begin, go_on
):
    given = []

    def begin_over(config, carrier, observer, terms):
        given.append((terms.sites, config.federation.min_updates, terms.expected))
        raise KeyboardInterrupt

    monkeypatch.setattr("shepherd.experiment.coordinate.begin_over", begin_over)
    assert shell("run", "demo", "--federation", "lab", *arguments).status == 130
    assert given == [(begin, go_on, ("north", "south"))]


def test_more_clients_per_round_than_members_are_named(shell, network, monkeypatch):
    def begin_over(config, carrier, observer, terms):
        raise KeyboardInterrupt

    monkeypatch.setattr("shepherd.experiment.coordinate.begin_over", begin_over)
    for wanted, named in ((9, True), (2, False)):
        err = shell("run", "demo", "--federation", "lab", "--set", f"federation.clients_per_round={wanted}").err
        said = "federation.clients_per_round = 9, and lab has 2 members: at most those take part"
        assert (said in " ".join(err.split())) is named


def test_a_run_over_sites_names_what_it_lacks(shell, recipe, network):
    for arguments, words in {
        ("--federation", "lba"): "no federation lba in federations/ here. Did you mean 'lab'?",
        ("--min-sites", "2"): "--min-sites is for sites, and no federation is named",
        ("--federation", "lab", "--min-sites", "3"): "3 sites cannot take part: lab has 2 members",
    }.items():
        outcome = shell("run", recipe, *arguments)
        assert outcome.status == 2 and words in outcome.err, outcome.err
    with folders.serving(Path("federations/lab"), "lab"):
        outcome = shell("run", recipe, "--federation", "lab")
    assert outcome.status == 2 and "the federation lab is served by process" in outcome.err
    outcome = shell("run", "--resume", "x", "--federation", "lab")
    assert outcome.status == 2 and "--resume takes no recipe and no other settings" in outcome.err
    assert not Path("runs").exists() and not network


def test_a_federation_is_made_with_private_files_and_an_invitation_for_each_site(shell, monkeypatch):
    outcome = shell("federation", "new", "other", "--invite", "east,west", "--port", "7400")
    assert outcome.status == 0, outcome.err
    assert "federations/other: sites connect to localhost:7400, enrolment is at port 7401" in outcome.out
    assert "only sites on this machine reach it: give --host for others" in outcome.err
    assert "there: shepherd site join east.invite --data ROWS" in outcome.out
    modes = [stat.S_IMODE(Path(path).stat().st_mode) for path in ("federations/other", "east.invite", "west.invite")]
    assert modes == [0o700, 0o600, 0o600]
    outcome = shell("status", "other")
    assert outcome.status == 7 and "error: not connected: other: east, west" in outcome.err
    assert [line.split()[:3] for line in outcome.out.splitlines()[1:]] == [
        ["east", "invited", "no"], ["west", "invited", "no"],
    ]  # fmt: skip
    before = Path("east.invite").read_bytes()
    assert shell("federation", "invite", "east", "--federation", "other").status == 0
    monkeypatch.setattr(enrolment, "approve", lambda folder, file: file.with_name("east.signed"))
    outcome = shell("federation", "approve", "from-the-mail.txt", "--federation", "other")
    assert outcome.out == "east.signed: send it back; there: shepherd site join east.signed\n"
    assert Path("east.invite").read_bytes() != before
    outcome = shell("federation", "invite", "east")
    assert outcome.status == 2 and "there are 2 federations here" in outcome.err
    outcome = shell("federation", "remove", "east", "--federation", "other")
    assert outcome.status == 2 and "no terminal to confirm on; nothing was removed" in outcome.err
    assert shell("federation", "remove", "east", "--federation", "other", "--yes").status == 0
    assert enrolment.FederationFolder("federations/other").members["east"].state == "removed"


@pytest.mark.parametrize("command", [("federation", "new", "x"), ("site", "start"), ("run", "--federation", "lab")])
def test_elsewhere_than_on_linux_and_without_the_extra_it_is_said_plainly(shell, monkeypatch, command):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        outcome = shell(*command)
        assert outcome.status == 2 and "federations of sites need Linux" in outcome.err
    monkeypatch.setattr(links.importlib.util, "find_spec", lambda name: None)
    outcome = shell(*command)
    assert outcome.status == 2 and "pip install 'shepherd-fedit[federation]'" in outcome.err


# A site


@pytest.fixture
def enrolled(monkeypatch):
    """Enrolment over the network in place of which the answer is there at once; serving is over at once."""
    monkeypatch.setattr(enrolment, "enrol", lambda *given: datetime(2030, 1, 2, tzinfo=UTC))
    monkeypatch.setattr(enrolment, "settle", lambda folder: None)
    monkeypatch.setattr(enrolment, "membership", lambda folder: "a member")


def test_a_site_joins_with_a_strict_policy_that_explains_each_key_and_an_older_site_toml_stays(
    shell, enrolled, rows, model_folder
):
    join = ("site", "join", "north.invite", "--no-start")
    for arguments, status, words in (
        ((), 2, "a new site needs its rows"),
        (("--data", "nowhere.jsonl"), 3, "nowhere.jsonl"),
        (("--data", rows / "north.jsonl", "--base", "smollm3"), 4, "smollm3"),
    ):
        outcome = shell(*join, *arguments)
        assert outcome.status == status and words in outcome.err
        assert not Path("sites").exists(), "nothing is written before rows and base are there"
    outcome = shell(*join, "--data", rows / "north.jsonl", "--base", model_folder("llama"))
    assert outcome.status == 0 and "north is a member until 2030-01-02" in outcome.err, outcome.err
    place = Path("sites/north")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place, place / "site.toml")] == [0o700, 0o600]
    file, text = read_site(place / "site.toml"), (place / "site.toml").read_text()
    assert file.policy.approve == "ask" and file.policy.require == ("tls1.3",) and file.policy.least_cohort == 2
    strict = {key: value for key, (value, _) in site_file.STRICT.items()}
    assert json.loads(file.policy.model_dump_json()) == strict and strict.keys() == Policy.model_fields.keys()
    lines = text.partition("[policy]\n")[2].splitlines()
    assert len(lines) == len(strict) and all("# " in line for line in lines)
    (place / "site.toml").write_text(text.replace('approve = "ask"', 'approve = "policy"'))
    outcome = shell(*join, "--data", rows / "south.jsonl")
    assert outcome.status == 0 and "sites/north/site.toml stays as it is" in outcome.err
    assert read_site(place / "site.toml").policy.approve == "policy"


class Line:
    """The questions of a coordinator, given to a site by hand, with what is waited for between them; the answers."""

    def __init__(self, *questions):
        self.questions, self.answers = questions, []

    def __call__(self, kit, site, stop, outbox, on_event, limit):
        on_event("connected")
        for question in self.questions:
            while callable(question) and not question():
                time.sleep(0.05)
            if callable(question):
                continue
            self.answers.append(site.handle(question, lambda progress: None))
        stop.wait(20)
        while not outbox.empty():
            self.answers.append(outbox.get())


@pytest.fixture
def a_site(rows, model_folder):
    """sites/north with the policy of a new site, and the card of a run for it."""
    base = model_folder("llama")
    new = site_file.NewSite("north", str(rows / "north.jsonl"), str(base), policy={"min_rows_round": 1})
    joining.write_site(folders.SITES / "north", new)
    config = load(None, ["run.name=demo", "federation.min_updates=2", "federation.rounds=2"])
    digests = {"base": model_digest(base), "tokenizer": tokenizer_digest(base)}
    card = run_card(config, "a1b2c3", **digests, parameters=1000)
    return folders.SITES / "north", card


def offer(card, attempt):
    return pack(Offer(card.run, 0, attempt, "north", card.to_json()))


def test_a_card_is_shown_in_plain_words_and_decided_beside_the_process_of_the_site(
    shell, enrolled, a_site, monkeypatch
):
    place, card = a_site
    line = Line(offer(card, 1))
    monkeypatch.setattr(links, "serve_site", line)
    seen: queue.SimpleQueue = queue.SimpleQueue()
    site = Attending(place, seen.put)
    thread = threading.Thread(target=site.serve)
    thread.start()
    try:
        while (event := seen.get(timeout=20))["event"] != "offer":
            pass
        assert event["verdict"] == "approval"
        assert read_presence(place)["serving"] is not None
        outcome = shell("site", "approve")
        assert outcome.status == 2 and "no terminal to ask on; nothing was decided" in outcome.err
        for words in ("demo, id a1b2c3", "fedit, 2 rounds, each with 2 sites or more", "each round an update of the",
                      "the rows in", "The coordinator sees each update of this site"):  # fmt: skip
            assert words in outcome.err
        outcome = shell("site", "approve", "dmo", "--yes")
        assert outcome.status == 2 and "Did you mean 'demo'?" in outcome.err
        assert shell("site", "approve", "demo", "--no").out == "demo: declined\n"
        assert site.site.store.decision("a1b2c3", card.digest) == "declined"
        assert shell("site", "approve", "a1b2", "--yes").out == "demo: approved\n"
        assert site.site.store.decision("a1b2c3", card.digest) == "admitted"
        outcome = shell("site", "leave", "--yes", "--delete-key")
        assert outcome.status == 0 and "its models stay in sites/north/runs, its key is deleted" in outcome.out
    finally:
        site.stop()
        thread.join()
    assert [b"left" in answer for answer in line.answers] == [False, True], "the goodbye is the last message"
    assert site.site.store.record("a1b2c3")["left"] is True
    outcome = shell("site", "approve")
    assert outcome.status == 2 and "no run waits for approval" in outcome.err


@pytest.mark.parametrize("verdict, state", [("admitted", "taking part"), ("rounds", "refused")])
def test_a_site_takes_part_in_what_it_was_admitted_to_only(shell, a_site, monkeypatch, verdict, state):
    site = Attending(a_site[0], print)
    monkeypatch.setattr(site, "_presence", Presence(a_site[0]), raising=False)
    site._note({"event": "offer", "run": "a1b2c3", "verdict": verdict})
    assert read_presence(a_site[0])["state"] == state


def test_a_name_of_the_coordinator_can_neither_add_lines_to_a_card_nor_control_the_terminal(shell, a_site):
    place, card = a_site
    card = card.model_copy(update={"name": "demo\nprotection   updates are secret\x1b[2J"})
    SiteStore(Folder(place)).keep_card(card.run, card.to_json())
    outcome = shell("site", "approve", "--yes")
    assert outcome.out == "demo protection updates are secret: approved\n"
    assert not [line for line in outcome.err.splitlines() if line.startswith("protection   updates")]


def test_an_answer_to_a_request_names_no_folder_beyond_sites(shell, rows, tmp_path):
    for name in ("../outside", str(tmp_path / "outside"), "a/b", "."):
        file = Path("x.signed")
        file.write_text(json.dumps({"site": name, "certificate": ""}))
        outcome = shell("site", "join", "x.signed", "--data", str(rows / "north.jsonl"))
        assert outcome.status == 2 and "it is for no name of a site" in outcome.err
    assert not (tmp_path / "outside").exists()


def test_yes_approves_as_long_as_the_process_runs_and_once_ends_with_the_run(shell, enrolled, a_site, monkeypatch):
    place, card = a_site
    over = pack(Bye(card.run, 0, 9, "", "finished"))
    shown = []
    monkeypatch.setattr(links, "serve_site", line := Line(offer(card, 1), over))
    facts = SiteFacts(12, "d" * 64)
    load = lambda self, card: shown.append(card) or facts  # noqa: E731
    monkeypatch.setattr("shepherd.engines.site_process.ProcessTrainer.load_rows", load)
    outcome = shell("site", "start", "--yes", "--once")
    assert outcome.status == 0, outcome.err
    assert "run a1b2c3: this site takes part" in outcome.err and "run a1b2c3 is over" in outcome.err
    assert "waits for you" not in outcome.err
    assert shown == [card], "the rows were read once the card was approved"
    assert read_site(place / "site.toml").policy.approve == "ask", "the policy stays"
    assert len(line.answers) == 2


def test_a_site_that_is_no_member_yet_does_not_serve(shell, a_site):
    outcome = shell("site", "start")
    assert outcome.status == 2 and "sites/north is not the site of a member yet" in outcome.err
    assert "shepherd site join SITE.invite" in outcome.err
    outcome = shell("status", "north")
    assert outcome.status == 7 and "not yet a member" in outcome.out


@contextmanager
def terminal(monkeypatch, answer):
    """A person at a terminal, who answers each question so."""
    with monkeypatch.context() as patch:
        patch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        patch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        patch.setattr("click.confirm", lambda question, **options: print(question, file=sys.stderr) or answer)
        yield


@pytest.mark.parametrize("answer", [True, False])
def test_on_a_terminal_the_person_is_asked_once_with_the_card_in_sight(shell, enrolled, a_site, monkeypatch, answer):
    _, card = a_site
    over = pack(Bye(card.run, 0, 9, "", "finished"))
    decided = Path("sites/north/runs/a1b2c3/decision.json")
    monkeypatch.setattr(links, "serve_site", Line(offer(card, 1), offer(card, 2), decided.exists, over))
    with terminal(monkeypatch, answer):
        outcome = shell("site", "start", "--once")
    assert outcome.status == 0 and outcome.err.count("take part in demo?") == 1, outcome.err
    assert outcome.err.index("stays here") < outcome.err.index("take part in demo?")
    assert json.loads(decided.read_text())["verdict"] == ("admitted" if answer else "declined")
