"""A site of a round's cohort that leaves for good, or for a while, where further sites were not drawn."""

from __future__ import annotations

import json

import pytest

from shepherd.errors import ClientError, UsageError
from shepherd.experiment import coordination
from shepherd.experiment.coordinate import resume_coordination
from shepherd.experiment.run import run
from shepherd.federation.messages import Answer, read
from shepherd.federation.transports.memory import Arrival
from sites import SETTINGS, Sites, adapter_of, write_rows

COUNTS = {"north": 7, "south": 5, "east": 6}
THREE = (*SETTINGS, "federation.clients_per_round=2", "federation.rounds=3")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"), COUNTS)


@pytest.fixture
def sites(rows, model_folder, tmp_path):
    return Sites(rows, model_folder("llama"), tmp_path / "sites", COUNTS)


@pytest.fixture
def config(small_config, rows):
    return lambda *settings: small_config(f"data.source={rows}", *THREE, *settings)


def at_the_answer_of_round_2(sites, then, lost=True, number=2):
    """`then(client)` with the first site that answers in round 2, or `number`; its answer may be lost on the way."""
    struck = []

    def hop(hop):
        message = read(hop.data, 2**30) if hop.way == "up" else None
        if isinstance(message, Answer) and message.round == number and not struck:
            struck.append(hop.client)
            then(hop.client)
            return [] if lost else [Arrival(0.0, hop.data)]
        return [Arrival(0.0, hop.data)]

    sites.transport.hop = hop
    return struck


def cohorts_of(done):
    return [line["cohort"] for line in done.rounds()]


def drawn(folder, number):
    lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return [line["clients"] for line in lines if line.get("event") == "eligible" and line["round"] == number]


@pytest.mark.parametrize("how", ["removed", "left"])
def test_a_round_whose_site_is_gone_for_good_is_drawn_anew_from_the_others(how, sites, config, tmp_path):
    members = set(COUNTS)

    def go(client):
        if how == "removed":
            members.discard(client)
        else:
            leave(sites, client)

    struck = at_the_answer_of_round_2(sites, go)
    done = sites.coordinate(config("federation.deadline=30.0"), tmp_path / "runs", sites=3, allowed=lambda: members)
    (gone,) = struck
    others = sorted(set(COUNTS) - {gone})
    assert cohorts_of(done)[1:] == [others, others] and len(done.rounds()) == 3
    assert drawn(done.path, 2) == [sorted(COUNTS), others] and drawn(done.path, 3) == [others]
    assert all(sorted(line["weights"]) == line["cohort"] for line in done.rounds())


def leave(sites, client):
    run_id = next((sites.folder / client / "runs").iterdir()).name
    sites.transport.send_up(client, sites.transport.running[client].leave(run_id))


def test_a_first_round_that_a_site_left_is_drawn_anew_from_the_others_of_those_that_it_waited_for(
    sites, config, tmp_path
):
    struck = at_the_answer_of_round_2(sites, lambda client: leave(sites, client), number=1)
    done = sites.coordinate(config("federation.deadline=30.0"), tmp_path / "runs", sites=3)
    others = sorted(set(COUNTS) - {*struck})
    assert cohorts_of(done) == [others] * 3 and drawn(done.path, 1) == [sorted(COUNTS), others]


def test_a_round_is_drawn_anew_also_where_its_retries_are_used_up(sites, config, tmp_path):
    members, attempts, away, clock = set(COUNTS), [], [], sites.transport.clock

    def hop(hop):
        message = read(hop.data, 2**30) if hop.way == "up" else None
        again = isinstance(message, Answer) and message.round == 2 and message.attempt not in attempts
        if not again or len(attempts) == 2:
            return [Arrival(0.0, hop.data)]
        attempts.append(message.attempt)
        if len(attempts) == 1:  # away for a while: the one retry
            sites.transport.stop(hop.client)
            sites.transport.leases.end(hop.client)
            away.append(hop.client)
        else:
            members.discard(hop.client)
        return []

    def sleep(seconds):
        clock.now += seconds
        while away:
            sites.transport.start(away.pop())

    sites.transport.hop = hop
    recipe = config("federation.deadline=30.0", "federation.retries=1")
    done = sites.coordinate(recipe, tmp_path / "runs", sites=3, sleep=sleep, allowed=lambda: members)
    assert len(attempts) == 2 and cohorts_of(done)[1:] == [sorted(members)] * 2


def test_a_run_that_stopped_over_a_removed_site_goes_on_with_the_others(sites, config, tmp_path):
    """As a run of an earlier version did: its journal has the round with the removed site only."""
    members = set(COUNTS)

    def crash(client):
        members.discard(client)
        raise KeyboardInterrupt

    struck = at_the_answer_of_round_2(sites, crash)
    with pytest.raises(KeyboardInterrupt):
        sites.coordinate(config("federation.deadline=30.0"), tmp_path / "runs", sites=3, allowed=lambda: members)
    (folder,) = (tmp_path / "runs").iterdir()
    done = resume_coordination(folder, sites.transport, sites.events.append, sites.terms(allowed=lambda: members))
    assert members == set(COUNTS) - {*struck} and cohorts_of(done)[1:] == [sorted(members)] * 2


def test_a_site_of_the_cohort_that_is_away_for_a_while_is_waited_for(sites, config, tmp_path):
    clock, left = sites.transport.clock, []

    def go(client):
        sites.transport.stop(client)
        sites.transport.leases.end(client)
        left.append(clock())

    def sleep(seconds):
        clock.now += seconds
        if left and clock() > left[0] + 30.0 and struck[0] not in sites.transport.running:
            sites.transport.start(struck[0])

    struck = at_the_answer_of_round_2(sites, go)
    done = sites.coordinate(config("federation.deadline=30.0"), tmp_path / "runs", sites=3, sleep=sleep)
    assert adapter_of(done) == adapter_of(run(config(), lambda event: None, tmp_path / "simulated"))
    warnings = [event["message"] for event in sites.events if event["event"] == "warning"]
    assert f"waits up to 60 s for {struck[0]}: they took part before" in warnings
    assert drawn(done.path, 2) == [sorted(COUNTS)], "the same cohort"


def test_a_site_of_the_cohort_that_stays_away_ends_the_run_after_the_retries_by_on_too_few(sites, config, tmp_path):
    def go(client):
        sites.transport.stop(client)
        sites.transport.leases.end(client)

    struck, clock = at_the_answer_of_round_2(sites, go), sites.transport.clock
    with pytest.raises(ClientError, match=r"round 2: .* usable update"):
        sites.coordinate(config("federation.deadline=30.0"), tmp_path / "runs", sites=3)
    assert struck and 180.0 <= clock() <= 300.0, "three retries, each after a wait of 60 s"


def test_a_run_that_waits_says_who_was_removed(sites, config, tmp_path):
    members = set(COUNTS)

    def go(client):
        members.clear()
        members.add(client)

    struck = at_the_answer_of_round_2(sites, go)
    with pytest.raises(UsageError, match="round 2 waits for 2 sites, and 1 take part") as error:
        sites.coordinate(config("federation.deadline=30.0"), tmp_path / "runs", sites=3, allowed=lambda: members)
    gone = sorted(set(COUNTS) - {*struck})
    assert error.value.message.splitlines()[1:] == [f"  {client}: removed" for client in gone]


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_killed_after_an_idle_site_was_removed_repeats_its_cohort(killed, small_config, model_folder, tmp_path):
    counts = {**COUNTS, "west": 7}
    rows = write_rows(tmp_path / "rows", counts)
    sites = Sites(rows, model_folder("llama"), tmp_path / "sites", counts)
    recipe = small_config(f"data.source={rows}", *THREE, "federation.deadline=30.0", "run.seed=2")
    members, cohorts = set(counts), []

    def go(client):
        (folder,) = (tmp_path / "runs").iterdir()
        lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
        cohorts.append([line["clients"] for line in lines if line.get("for") == "train" and line["round"] == 2][-1])
        members.discard(min(members - {*cohorts[0]}))

    at_the_answer_of_round_2(sites, go, lost=False)
    with pytest.MonkeyPatch.context() as patch:
        if killed:
            patch.setattr(coordination, "commit_round", killed_at_round_2(coordination.commit_round))
            with pytest.raises(KeyboardInterrupt):
                sites.coordinate(recipe, tmp_path / "runs", sites=4, allowed=lambda: members)
            (folder,) = (tmp_path / "runs").iterdir()
            done = resume_coordination(folder, sites.transport, sites.events.append,
                                       sites.terms(sites=4, allowed=lambda: members))  # fmt: skip
        else:
            done = sites.coordinate(recipe, tmp_path / "runs", sites=4, allowed=lambda: members)
    assert cohorts_of(done)[1] == cohorts[0] and drawn(done.path, 2) == [sorted(counts)]
    assert drawn(done.path, 3) == [sorted(members)] and len(members) == 3


def killed_at_round_2(commit):
    """`commit`, but once for an interruption in its place in round 2."""
    struck = []

    def committed(state, *rest):
        if state.round == 2 and not struck:
            struck.append(state)
            raise KeyboardInterrupt
        return commit(state, *rest)

    return committed
