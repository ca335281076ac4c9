"""A run over two sites: the bytes of the simulation, also after a restart, and a directory without rows."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack

import pytest

from shepherd.errors import DataError, ModelError, UsageError
from shepherd.experiment.coordinate import coordinate, resume_coordination
from shepherd.experiment.estimate import plan
from shepherd.experiment.opened_run import evaluate, open_run
from shepherd.experiment.run import resume, run
from shepherd.experiment.site import open_site
from shepherd.experiment.site_attendance import Terms
from shepherd.federation.messages import Answer, read
from shepherd.federation.transport import Aborted
from shepherd.federation.transports.memory import Arrival, MemoryTransport
from shepherd.model.digest import model_digest
from shepherd.store.listing import entry
from sites import ROWS, SETTINGS, Sites, adapter_of, write_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def config(small_config, rows):
    return lambda *settings: small_config(f"data.source={rows}", *SETTINGS, *settings)


@pytest.fixture(scope="module")
def simulated(config, tmp_path_factory):
    return run(config(), lambda event: None, tmp_path_factory.mktemp("simulated"))


@pytest.fixture
def sites(rows, model_folder, tmp_path):
    return Sites(rows, model_folder("llama"), tmp_path / "sites")


@pytest.fixture
def begin(config, sites, tmp_path):
    """begin(*settings) -> the run over the sites, with its events in sites.events."""
    return lambda *settings, **terms: sites.coordinate(config(*settings), tmp_path / "runs", **terms)


def warnings(sites):
    return [event["message"] for event in sites.events if event["event"] == "warning"]


def test_a_run_over_sites_has_the_adapter_and_the_losses_of_the_simulation_and_holds_no_row(begin, sites, simulated):
    done = begin()
    assert adapter_of(done) == adapter_of(simulated)
    for arm, found in simulated.metrics["arms"].items():
        here = done.metrics["arms"][arm]
        assert here["loss"] == pytest.approx(found["loss"], rel=1e-6) and here["rows"] == found["rows"] > 0
        assert here["per_client"].keys() == found["per_client"].keys() == {"north", "south"}
        assert here["per_category"].keys() == found["per_category"].keys() == {"even", "odd"}
    lines, expected = done.rounds(), simulated.rounds()
    same = ("cohort", "weights", "train_loss", "steps", "examples", "tokens", "update_norm", "learning_rate")
    assert [{key: line[key] for key in same} for line in lines] == [
        {key: line[key] for key in same} for line in expected
    ]
    for key in ("bytes_up", "bytes_down"):  # of the messages, where a simulation counts the tensors
        assert done.summary[key] == sum(line[key] for line in lines)
        assert simulated.summary[key] < done.summary[key] < 2 * simulated.summary[key]
    assert done.summary["trained_rows"] == simulated.summary["trained_rows"]
    steps = [event for event in sites.events if event["event"] == "step"]
    assert {client for event in steps for client in event["clients"]} == {"north", "south"}
    stated = done.summary["sites"]
    assert {client: site["rows"] for client, site in stated.items()} == {"north": 5, "south": 3}
    assert len({site["digest"] for site in stated.values()}) == 2

    written = [path for path in done.path.rglob("*") if path.is_file()]
    assert not [path for path in written if b"plus" in path.read_bytes() or b"in the north" in path.read_bytes()]
    assert not [path for path in written if str(sites.rows).encode() in path.read_bytes()]
    assert not (done.path / "partition.json").exists()
    report = (done.path / "report.html").read_text()
    assert "stay at the sites" in report and "simulated its clients" not in report
    assert stated["north"]["digest"][:12] in report
    assert entry(done.path).state == "finished" and entry(done.path).losses.keys() == {"base", "federated"}
    assert open_run(done.path).adapters() and "federated" in open_run(done.path).metrics["arms"]
    assert resume_coordination(done.path, sites.transport).summary == json.loads(json.dumps(done.summary))
    for again in (lambda: evaluate(done.path), lambda: open_run(done.path).load() and evaluate(done.path, 1)):
        with pytest.raises(DataError, match="the rows of this run are at its sites"):
            again()


def test_a_run_whose_coordinator_was_stopped_between_rounds_goes_on_to_the_same_adapter(begin, sites, simulated):
    def stop(hop):
        if hop.way == "down" and len(sites.events) > 0 and any(e["event"] == "round" for e in sites.events):
            raise Aborted
        return [Arrival(0.0, hop.data)]

    usual, sites.transport.hop = sites.transport.hop, stop
    with pytest.raises(Aborted):
        begin()
    sites.transport.hop = usual
    (folder,) = (sites.folder.parent / "runs").iterdir()
    assert entry(folder).rounds == 1 and journal(folder)[-1]["state"] == "stopped"
    with pytest.raises(DataError, match="the rows of this run are at its sites"):
        resume(folder)
    sites.transport.restart("north")  # its private state and the digest of its rows outlast it
    done = resume_coordination(folder, sites.transport, terms=sites.terms())
    assert adapter_of(done) == adapter_of(simulated)
    eligible = [row for row in journal(folder) if row.get("event") == "eligible"]
    assert [(row["round"], row["clients"]) for row in eligible] == [(1, ["north", "south"]), (2, ["north", "south"])]


def journal(folder):
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_selection_knows_the_seconds_in_which_sites_answered_and_one_lost_answer_costs_a_round_only(begin, sites):
    def slow(hop):
        message = read(hop.data, 2**30)
        lost = hop.client == "south" and isinstance(message, Answer) and message.round == 2
        return [] if lost else [Arrival({"north": 2.0, "south": 5.0}[hop.client], hop.data)]

    sites.transport.hop = slow
    done = begin("federation.min_updates=1", "federation.deadline=30.0", "federation.rounds=3", step=1000.0)
    lines = done.rounds()
    assert [line["late"] for line in lines] == [[], ["south"], []]
    assert [sorted(line["weights"]) for line in lines] == [["north", "south"], ["north"], ["north", "south"]]
    states = [json.loads((done.path / f"checkpoints/round-000{n}/state.json").read_text()) for n in (2, 3)]
    seconds = [{client: memory["seconds"] for client, memory in state["history"].items()} for state in states]
    assert seconds == [{"north": 4.0, "south": 30.0}, {"north": 4.0, "south": 10.0}]
    assert states[-1]["strikes"] == {}


def test_check_counts_prompts_at_two_clients_and_names_them(small_config, tmp_path):
    write_rows(tmp_path / "apart")
    folder = write_rows(tmp_path / "shared", {"north": 6, "south": 6, "west": 6})
    lines = (folder / "north.jsonl").read_text().splitlines()
    with open(folder / "south.jsonl", "a") as file:
        file.write("\n".join(lines[:2]) + "\n")
    given = small_config(f"data.source={tmp_path / 'apart'}", *SETTINGS)
    assert not [line for line in plan(given).warnings if "prompt" in line]
    given = small_config(f"data.source={folder}", *SETTINGS)
    (line,) = [line for line in plan(given).warnings if "prompt" in line]
    assert line.startswith("2 prompts at two or more clients: north and south (2). As sites,")
    by_category = small_config(f"data.source={folder}", *SETTINGS, "partition.name=by_key")
    assert not [line for line in plan(by_category).warnings if "prompts at two" in line]


@pytest.mark.parametrize("name", ["ifca", pytest.param("finetune", marks=pytest.mark.slow), "feddpa"])
def test_models_of_sites_are_those_of_the_simulation_and_stay_there(name, begin, config, sites, tmp_path):
    settings = [f"personalization.name={name}", "federation.rounds=1", "federation.method=fedit"]
    settings += ["personalization.clusters=2"] if name == "ifca" else ["personalization.steps=2"]
    expected = run(config(*settings), lambda event: None, tmp_path / "simulated")
    done = begin(*settings)
    for client, losses in expected.metrics["personal"].items():
        assert done.metrics["personal"][client]["personal"] == pytest.approx(losses["personal"], rel=1e-6)
        assert done.metrics["personal"][client]["global"] == pytest.approx(losses["global"], rel=1e-6)
    assert not (done.path / "personal").exists() and not (done.path / "clusters").exists()
    for client in ("north", "south"):
        (kept,) = (sites.folder / client / "runs").glob("*/model")
        adapter = "adapter_model.safetensors"
        found = {path.relative_to(kept).as_posix(): path.read_bytes() for path in kept.rglob(adapter)}
        if name == "ifca":
            homes = [number for number, members in expected.metrics["clusters"].items() if client in members]
            there = expected.path / "clusters" / homes[0]
        else:
            there = expected.path / "personal" / client
        assert found == {path.relative_to(there).as_posix(): path.read_bytes() for path in there.rglob(adapter)}
        assert found


def test_rows_of_the_coordinator_are_measured_there_and_sites_hold_out_none(begin, config, tmp_path):
    own = write_rows(tmp_path / "own", {"own": 4}) / "own.jsonl"
    settings = ["federation.rounds=1", f"data.held_out_source={own}"]
    expected = run(config(*settings), lambda event: None, tmp_path / "simulated")
    done = begin(*settings)
    assert adapter_of(done) == adapter_of(expected)
    assert {client: site["rows"] for client, site in done.summary["sites"].items()} == {"north": 7, "south": 5}
    for arm in ("base", "federated"):
        assert done.metrics["arms"][arm]["loss"] == expected.metrics["arms"][arm]["loss"]
    (difference,) = done.metrics["differences"]
    assert difference == expected.metrics["differences"][0]


def test_a_coordinator_without_weights_runs_a_method_that_needs_none(config, sites, simulated, model_folder, tmp_path):
    whole, bare = model_folder("llama"), tmp_path / "bare"
    shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    given = config()
    given = given.model_copy(update={"model": given.model.model_copy(update={"base": str(bare)})})
    terms = sites.terms(digest=model_digest(whole))
    done = coordinate(given, sites.transport, lambda event: None, tmp_path / "runs", terms)
    assert adapter_of(done) == adapter_of(simulated)
    with pytest.raises(UsageError, match="has no weights, so the digest of the base is not known"):
        coordinate(given, sites.transport, lambda event: None, tmp_path / "more", sites.terms())
    federation = given.federation.model_copy(update={"method": "frlora"})
    given = given.model_copy(update={"federation": federation})
    with pytest.raises(ModelError, match="has no weights, and frlora begins from the weights of the base"):
        coordinate(given, sites.transport, None, tmp_path / "more", terms)


# What goes wrong


def test_each_reason_against_a_site_is_a_sentence_and_the_run_waits_and_goes_on(
    begin, sites, rows, simulated, tmp_path
):
    other = write_rows(tmp_path / "other", {"north": 9})
    usual = sites.rows
    sites.policy["north"] = {"methods": ("ffa_lora",)}
    sites.transport.restart("north")
    with pytest.raises(UsageError) as few:
        begin()
    assert few.value.message.splitlines() == [
        "round 1 waits for 2 sites, and 1 take part",
        "  north: refused: the policy does not allow the method, or it is none of the built-in ones",
    ]
    assert few.value.exit_code == 2 and "nothing is lost" in few.value.hint
    assert (
        sum("north does not take part: the policy does not allow the method" in line for line in warnings(sites)) == 1
    )
    (folder,) = (tmp_path / "runs").iterdir()
    audit = (sites.folder / "north" / "audit.jsonl").read_text()
    assert "ffa_lora" not in (folder / "journal.jsonl").read_text() and '"method"' in audit

    sites.policy["north"] = {"approve": "ask"}
    sites.transport.restart("north")
    again = lambda: resume_coordination(folder, sites.transport, sites.events.append, sites.terms())  # noqa: E731
    with pytest.raises(UsageError, match="north: a person at the site has not approved the card yet"):
        again()
    sites.transport.running["north"].approve(journal_run(folder))

    def stop(event):
        if event["event"] == "round":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume_coordination(folder, sites.transport, stop, sites.terms())
    sites.rows = other
    sites.transport.restart("north")
    with pytest.raises(UsageError, match="north: refused: the rows are others than at the start of the run"):
        again()
    sites.rows = usual
    sites.transport.restart("north")
    done = again()
    assert adapter_of(done) == adapter_of(simulated)


def test_another_base_or_version_and_a_site_without_rows_are_named_with_both_sides(
    begin, sites, model_folder, tmp_path
):
    base = sites.base
    sites.base = model_folder("qwen3")
    sites.transport.restart("north")
    sites.base = base
    sites.rows = tmp_path / "none"
    sites.rows.mkdir()
    (sites.rows / "south.jsonl").write_text('{"instruction": "What?", "response": ""}\n')
    sites.transport.restart("south")
    with pytest.raises(UsageError, match="2 sites, and 0 take part") as few:
        begin(enough=1.0)
    assert "south: refused: the site has no usable rows" in few.value.message
    there, here = model_digest(model_folder("qwen3")), model_digest(base)
    assert (
        "north does not take part: the site has another base model, or its policy allows another one only: "
        f"{there[:12]} there, {here[:12]} here" in warnings(sites)
    )


def test_settings_that_sites_cannot_carry_out_are_refused_or_named(begin, sites):
    with pytest.raises(UsageError, match=r"lora\.ranks is a list in the order of the clients, and sites come and go"):
        begin("lora.ranks=1,2", "federation.method=flexlora")
    with pytest.raises(UsageError):
        begin("evaluation.arms=base,federated,local", "data.rows_per_category=3", "data.source=nowhere", enough=0.0,
              sites=3)  # fmt: skip
    assert warnings(sites)[:2] == [
        "evaluation.arms: local need the rows of all sites and are left out",
        "data.rows_per_category: each site trains on all of its own rows",
    ]


def journal_run(folder):
    return json.loads((folder / "identity.json").read_text())["run"]


# Who takes part


def test_a_resumed_round_has_the_cohort_of_its_first_draw_whoever_has_come_since(small_config, model_folder, tmp_path):
    names = ("east", "north", "south", "west")
    rows = write_rows(tmp_path / "rows", dict.fromkeys(names, 6))
    given = small_config(f"data.source={rows}", *SETTINGS, "federation.clients_per_round=2", "evaluation.every=0",
                         "objective.scaffold=true", "training.optimizer=sgd")  # fmt: skip
    whole = Sites(rows, model_folder("llama"), tmp_path / "whole", names[1:])
    expected = coordinate(given, whole.transport, lambda event: None, tmp_path / "runs", whole.terms(sites=3))
    again = Sites(rows, model_folder("llama"), tmp_path / "again", names)
    again.transport.stop("east")
    again.transport.leases.end("east")

    def abort(hop):
        if hop.way == "up" and isinstance(message := read(hop.data, 2**30), Answer) and message.round == 2:
            raise Aborted
        return [Arrival(0.0, hop.data)]

    usual, again.transport.hop = again.transport.hop, abort
    with pytest.raises(Aborted):
        coordinate(given, again.transport, lambda event: None, tmp_path / "more", again.terms(sites=3))
    again.transport.hop = usual
    again.transport.start("east")
    (folder,) = (tmp_path / "more").iterdir()
    done = resume_coordination(folder, again.transport, lambda event: None, again.terms())
    assert [line["cohort"] for line in done.rounds()] == [line["cohort"] for line in expected.rounds()]
    assert adapter_of(done) == adapter_of(expected)
    assert "east" not in done.summary["sites"] or done.summary["clients"] == 3
    assert done.metrics["arms"]["federated"]["per_client"].keys() == set(names), "it measures all the same"


def test_a_site_that_comes_later_takes_part_from_the_next_round_on_but_under_scaffold(config, sites):
    sites.transport.stop("south")
    sites.transport.leases.end("south")

    def later(event):
        if event["event"] == "round" and event["round"] == 1:
            sites.transport.start("south")

    for number, settings in enumerate(((), ("objective.scaffold=true", "training.optimizer=sgd"))):
        done = coordinate(
            config("federation.min_updates=1", *settings), sites.transport, later,
            sites.folder / f"runs-{number}", sites.terms(sites=1),
        )  # fmt: skip
        assert [line["cohort"] for line in done.rounds()] == [["north"], ["north"] if settings else ["north", "south"]]
        sites.transport.stop("south")
        sites.transport.leases.end("south")


# The site


def test_a_site_holds_its_identity_while_it_is_open_and_reads_no_row_before_a_card_is_approved(
    rows, model_folder, tmp_path
):
    file = tmp_path / "site.toml"
    file.write_text(
        f'[site]\nname = "north"\n[data]\nsource = "{rows}/nowhere.jsonl"\n[model]\nbase = "{model_folder("llama")}"\n'
    )
    with open_site(file, tmp_path / "north") as site:
        assert site.own.base == model_digest(model_folder("llama")) and site.policy.approve == "ask"
        with pytest.raises(UsageError, match="another process is the site north"), open_site(file, tmp_path / "north"):
            pass
    with open_site(file, tmp_path / "north") as again:
        assert again.session != site.session


@pytest.mark.slow
def test_sites_with_trainers_in_processes_give_the_same_adapter(config, rows, simulated, model_folder, tmp_path):
    with ExitStack() as stack:
        opened = {}
        for name in ROWS:
            file = tmp_path / f"{name}.toml"
            file.write_text(
                f'[site]\nname = "{name}"\ndtype = "float32"\ndevice = "cpu"\nthreads = 1\ntokens_per_pass = 512\n'
                f'[data]\nsource = "{rows}/{name}.jsonl"\n[model]\nbase = "{model_folder("llama")}"\n[policy]\n'
                'approve = "policy"\nleast_cohort = 1\nleast_group = 1\nmin_rows_round = 1\n'
            )
            opened[name] = stack.enter_context(open_site(file, tmp_path / name))
        transport = MemoryTransport({name: lambda name=name: opened[name] for name in opened})
        terms = Terms(sites=2, clock=transport.clock, sleep=lambda seconds: None)
        done = coordinate(config(), transport, lambda event: None, tmp_path / "runs", terms)
    assert adapter_of(done) == adapter_of(simulated)
