"""Sites that are away, removed or not approved yet: the run waits, and computes what it would have computed."""

from __future__ import annotations

import json

import pytest

from shepherd.errors import ClientError
from shepherd.experiment.coordinate import coordinate
from shepherd.experiment.run import run
from shepherd.experiment.sites.decisions import decide, find_offer
from shepherd.federation.messages import Answer, read
from shepherd.federation.transports.memory import Arrival
from sites import SETTINGS, Sites, adapter_of, write_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def config(small_config, rows):
    return lambda *settings: small_config(f"data.source={rows}", *SETTINGS, *settings)


@pytest.fixture
def sites(rows, model_folder, tmp_path):
    return Sites(rows, model_folder("llama"), tmp_path / "sites")


@pytest.fixture
def begin(config, sites, tmp_path):
    """begin(*settings) -> the run over the sites, with its events in sites.events."""
    return lambda *settings, **terms: sites.coordinate(config(*settings), tmp_path / "runs", **terms)


def journal(folder, **wanted):
    rows = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [row for row in rows if wanted.items() <= row.items()]


def answer_of(hop):
    """The answer that a hop carries up, or None."""
    message = read(hop.data, 2**30) if hop.way == "up" else None
    return message if isinstance(message, Answer) else None


def details(sites):
    return [event["detail"] for event in sites.events if event["event"] == "phase" and event["detail"]]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_round_that_lost_a_site_below_the_least_pauses_and_is_done_again_to_the_same_bytes(
    policy, begin, sites, config, tmp_path
):
    lost = []

    def cut(hop):
        answer = answer_of(hop)
        if hop.client == "south" and answer is not None and answer.round == 2 and not lost:
            lost.append(hop)
            sites.transport.stop("south")
            sites.transport.leases.end("south")
            return []
        return [Arrival(0.0, hop.data)]

    sites.transport.hop = cut

    def back(event):
        sites.events.append(event)
        if event["event"] == "phase" and "round 2 waits for 2 sites" in event["detail"]:
            sites.transport.start("south")

    done = coordinate(
        config("federation.deadline=30.0", f"federation.on_too_few={policy}"), sites.transport, back,
        tmp_path / "runs", sites.terms(),
    )  # fmt: skip
    expected = run(config(), lambda event: None, tmp_path / "simulated")
    assert lost and adapter_of(done) == adapter_of(expected)
    assert [line["skipped"] for line in done.rounds()] == [False, False]
    assert "round 2 waits for 2 sites, and 1 take part; south: not there" in details(sites)
    assert journal(done.path, event="run", state="paused")
    assert len(journal(done.path, event="attempt", **{"for": "train", "round": 2})) == 2
    first, second = (line["bytes_up"] for line in done.rounds())
    assert second > first, "the bytes of the round that was lost are counted"


def test_a_present_site_whose_training_fails_is_a_matter_of_on_too_few_and_its_lost_trainer_has_retries(begin, sites):
    from shepherd.types import ClientFailure

    asked = []

    def fail(code):
        def train(task, private, observe):
            asked.append(code)
            return ClientFailure("south", task.round, code, "")

        sites.transport.running["south"].trainer.train = train

    fail("diverged")
    with pytest.raises(ClientError, match="south"):
        begin()
    assert asked == ["diverged"]
    fail("lost")
    with pytest.raises(ClientError, match="south"):
        begin("federation.retries=2")
    assert asked[1:] == ["lost"] * 3


@pytest.mark.parametrize("expelled_before", [False, True])
def test_a_site_that_is_no_member_any_more_is_removed_and_the_run_goes_on_without_it(begin, sites, expelled_before):
    members = {"north", "south"}

    def remove(hop):
        answer = answer_of(hop)
        if hop.client == "south" and answer is not None and answer.round == 1:
            members.discard("south")
            if expelled_before:
                sites.transport.expel("south")  # as the hub of NVFlare does by itself, each second
            return []
        return [Arrival(0.0, hop.data)]

    sites.transport.hop = remove
    done = begin("federation.min_updates=1", allowed=lambda: members, expected=("north", "south"))
    assert [sorted(line["weights"]) for line in done.rounds()] == [["north"], ["north"]]
    assert journal(done.path, event="site", client="south", state="removed")
    assert "south" in sites.transport.expelled
    last = [event for event in sites.events if event["event"] == "sites"][-1]["sites"]
    assert (last["south"]["state"], last["south"]["present"], last["north"]["present"]) == ("removed", False, True)


def test_a_first_round_does_not_wait_for_a_member_that_is_removed_before_it(begin, sites):
    sites.policy["east"] = {"approve": "ask"}
    sites.transport.starts = {**sites.transport.starts, "east": sites.starter("east")}
    sites.transport.start("east")
    members, clock = {"north", "south", "east"}, sites.transport.clock

    def sleep(seconds):
        clock.now += seconds
        if clock() > 20.0:
            members.discard("east")

    done = begin(sites=3, sleep=sleep, allowed=lambda: members, expected=("north", "south", "east"))
    assert any("round 1 waits for 3 sites" in line for line in details(sites))
    assert clock() > 20.0 and done.rounds()[0]["cohort"] == ["north", "south"]


def test_an_approval_from_another_process_is_seen_within_16_seconds_and_nobody_restarts(begin, sites):
    sites.policy["north"] = {"approve": "ask"}
    sites.transport.restart("north")
    folder, clock, approved = sites.folder / "north", sites.transport.clock, []

    def observe(event):
        sites.events.append(event)
        if event["event"] == "start":
            assert approved and clock() - approved[0] <= 16.0

    def approve(seconds):
        clock.now += seconds
        if clock() > 100.0 and not approved:
            approved.append(clock())
            decide(folder, find_offer(folder, None), approve=True)

    done = begin(sleep=approve, enough=1000.0)
    assert approved and done.rounds()[0]["cohort"] == ["north", "south"]
    assert any("north: a person at the site has not approved the card yet" in line for line in details(sites))
    offers = journal(done.path, event="attempt", **{"for": "offer"})
    assert len(offers) < 20, "a run that waits for hours does not fill its journal"


def test_a_site_that_connects_is_offered_the_card_within_a_second(begin, sites):
    sites.transport.stop("south")
    sites.transport.leases.end("south")
    clock, came = sites.transport.clock, []

    def sleep(seconds):
        clock.now += seconds
        if clock() > 50.0 and not came:
            came.append(clock())
            sites.transport.start("south")

    began = []
    sites.transport.hop = lambda hop: began.append(clock()) or [Arrival(0.0, hop.data)]
    begin("federation.rounds=1", sleep=sleep)
    first = min(at for at in began if at >= came[0])
    assert first - came[0] <= 1.0
