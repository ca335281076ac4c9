"""`shepherd site renew`: at once, over the network and by files, and why not; a site that begins to serve looks too."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from contextlib import nullcontext
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from console import Shell
from enrolment_tool import run_here
from federation_kits import free_port
from shepherd.errors import NetworkError, UsageError
from shepherd.experiment.sites import attend, folders, joining, renewal, site_file
from shepherd.federation import enrolment
from shepherd.federation.enrolment import members
from shepherd.federation.enrolment import place as place_of

SITE = folders.SITES / "north"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="federations of sites need Linux")


@pytest.fixture(autouse=True)
def tool_here(monkeypatch):
    monkeypatch.setattr("shepherd.federation.enrolment.authority.subprocess", SimpleNamespace(
        run=run_here, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired))  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a federation, and its member north in sites/, with a certificate of one day; later ones have 90."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        ports = {"port": free_port(), "enrolment_port": free_port()}
        folder = enrolment.new_federation(folders.FEDERATIONS / "lab", host="localhost", certificate_days=1, **ports)
        Path("north.invite").write_bytes(enrolment.invite(folder, "north"))
        joining.write_site(SITE, site_file.NewSite("north", "rows.jsonl", "base"))
        asked = enrolment.request(enrolment.read_invitation("north.invite"), SITE)
        enrolment.complete(SITE, enrolment.approve(folder, asked))
        settings = folder.path / "federation.toml"
        settings.write_text(settings.read_text().replace("certificate_days = 1", "certificate_days = 90"))
    return place


@pytest.fixture
def shell(capsys, monkeypatch, made, tmp_path):
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return Shell(capsys, monkeypatch)


@pytest.fixture
def federation(shell):
    return enrolment.FederationFolder(folders.FEDERATIONS / "lab")


def in_days(monkeypatch, days):
    """Both machines some days later."""
    later = members.now() + timedelta(days=days)
    for module in ("desk", "listener", "place", "folder"):
        monkeypatch.setattr(import_module(f"shepherd.federation.enrolment.{module}"), "now", lambda: later)


def key():
    return (SITE / "kit/startup/client.key").read_bytes()


def test_before_its_time_the_coordinator_has_to_allow_it_and_to_listen(shell, federation):
    before, until = key(), enrolment.membership(SITE).expires
    outcome = shell("site", "renew")
    assert outcome.status == 7 and "the certificate is valid until" in outcome.err
    assert f"error: nothing listens at localhost:{federation.settings.enrolment_port}" in outcome.err
    assert "ask it for `shepherd federation renew north`" in outcome.err
    Path("south.invite").write_bytes(enrolment.invite(federation, "south"))  # for which the port is open
    with enrolment.listener(federation, lambda line: None):
        outcome = shell("site", "renew")
        assert outcome.status == 2 and "lab refuses north: the certificate has too much time left" in outcome.err
        assert key() == before
        outcome = shell("federation", "renew", "north")
        assert outcome.out.endswith("there: shepherd site renew\n")
        outcome = shell("site", "renew", "--wait", "5")
    renewed = enrolment.membership(SITE).expires
    assert (outcome.status, outcome.out) == (0, f"north is renewed: a member until {renewed:%Y-%m-%d}\n")
    assert key() != before and renewed >= until and federation.members["north"].is_renewed


@pytest.mark.parametrize(
    ("days", "state", "advice"),
    [
        (0.9, "is valid until", "or renew by files: shepherd site renew --site north --request north.request"),
        (14, "; it can be renewed", "or renew by files: shepherd site renew --site north --request north.request"),
        (16, "more than 14 days ago", "ask it for `shepherd federation renew north`"),
    ],
)
def test_why_nobody_answers_goes_with_what_to_ask_for(shell, monkeypatch, days, state, advice):
    in_days(monkeypatch, days)
    outcome = shell("site", "renew")
    assert outcome.status == 7 and state in outcome.err and advice in outcome.err


@pytest.mark.parametrize("days", [14, 16])
def test_an_expired_certificate_is_renewed_by_files_and_after_14_days_with_leave(shell, monkeypatch, days):
    in_days(monkeypatch, days)
    outcome = shell("site", "renew", "--request", "to-the-lab")
    assert "shepherd federation approve to-the-lab; the answer is for: shepherd site renew north.signed" in outcome.out
    if days == 16:
        outcome = shell("federation", "approve", "to-the-lab")
        assert outcome.status == 2 and "a renewal more than 14 days after the end of the certificate" in outcome.err
        shell("federation", "renew", "north")
    outcome = shell("federation", "approve", "to-the-lab")
    assert outcome.out == "north.signed: send it back; there: shepherd site renew north.signed\n"
    before = key()
    outcome = shell("site", "renew", "north.signed")
    assert outcome.status == 0 and key() != before and enrolment.membership(SITE).stage == "early"


def test_what_is_no_answer_to_a_request_is_refused(shell):
    for arguments, words in (
        (("north.invite",), "shepherd site join is for an invitation"),
        (("north.signed", "--request", "x"), "give one of the two"),
        (("north.signed", "--wait", "5"), "with north.signed none is"),
        (("--request", "x", "--wait", "5"), "with --request none is"),
        (("north.signed",), "has no request that north.signed could answer"),
        (("norht.signed",), "norht.signed cannot be read: No such file"),
        (("--site", "south"), "no site south in sites/ here"),
    ):
        outcome = shell("site", "renew", *arguments)
        assert outcome.status == 2 and words in outcome.err, outcome.err
    shutil.rmtree(SITE / "enrolment")
    outcome = shell("site", "renew")
    assert outcome.status == 2 and "sites/north is not the site of a member yet" in outcome.err


def test_a_site_that_serves_renews_what_is_due_and_goes_on_where_nobody_answers(shell, federation, monkeypatch):
    lines: list[str] = []
    assert not renewal.renew_if_due(SITE, lines.append) and lines == []
    in_days(monkeypatch, 5)
    assert not renewal.renew_if_due(SITE, lines.append)
    assert lines[-1].startswith("the certificate is due and was not renewed: nothing listens at localhost:")
    with enrolment.listener(federation, lambda line: None):
        assert renewal.renew_if_due(SITE, lines.append)
    assert lines[-1] == f"the certificate was renewed: it is valid until {enrolment.membership(SITE).expires:%Y-%m-%d}"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), UsageError("the key and the certificate")])
@pytest.mark.parametrize("name", ["renewal_due", "renew_site"])
def test_neither_a_full_disk_nor_a_kit_that_is_being_replaced_ends_a_site_that_serves(shell, monkeypatch, name, error):
    def failing(*given, **more):
        raise error

    in_days(monkeypatch, 5)
    monkeypatch.setattr(enrolment, name, failing)
    why = getattr(error, "strerror", None) or str(error)
    lines: list[str] = []
    assert not renewal.renew_if_due(SITE, lines.append)
    assert lines == [f"the certificate is due and was not renewed: {why}; the next try is in an hour"]


def test_between_attempts_of_a_renewal_that_waits_other_processes_settle_the_folder(shell, monkeypatch):
    in_days(monkeypatch, 5)
    settled: list[float] = []

    def meanwhile(seconds):
        enrolment.settle(SITE)
        settled.append(seconds)

    monkeypatch.setattr("shepherd.federation.enrolment.joining.time", SimpleNamespace(
        monotonic=iter(range(100)).__next__, sleep=meanwhile))  # fmt: skip
    with pytest.raises(NetworkError, match="nothing listens"):
        renewal.renew(SITE, 3.0, lambda line: None)
    assert settled


def test_a_site_that_serves_completes_a_renewal_that_was_killed_before_its_kit_was_whole(
    shell, federation, monkeypatch
):
    def killed(*given):
        raise KeyboardInterrupt

    in_days(monkeypatch, 5)
    before, serves = key(), []
    with enrolment.listener(federation, lambda line: None), monkeypatch.context() as patch:
        patch.setattr(place_of, "install", killed)
        with pytest.raises(KeyboardInterrupt):
            enrolment.renew_site(SITE, lambda line: None)
    assert enrolment.is_unsettled(SITE)
    kept = shutil.copytree(SITE / place_of.ENROLMENT / place_of.IDENTITY, "kept")

    def served(kit, attending, stop, *given):
        serves.append(enrolment.is_unsettled(SITE))
        if len(serves) == 1:  # as where the renewal was killed after the first connection
            shutil.copytree(kept, SITE / place_of.ENROLMENT / place_of.IDENTITY)
            raise UsageError("the kit is damaged")
        attending.stop()

    monkeypatch.setattr(attend.links, "serve_site", served)
    monkeypatch.setattr(attend, "open_site", lambda *given: nullcontext(SimpleNamespace(session="s")))
    attend.Attending(SITE, lambda event: None).serve()
    assert serves == [False, False] and not enrolment.is_unsettled(SITE) and key() != before


def test_a_request_goes_to_the_file_or_the_folder_that_is_named_and_to_no_other(shell, monkeypatch):
    in_days(monkeypatch, 5)
    Path("north.request").write_text("mine")
    Path("out").mkdir()
    for given, made in ("other.txt", "other.txt"), ("out", "out/north.request"):
        assert shell("site", "renew", "--request", given).out.startswith(f"{made}: send it to the coordinator")
        assert Path(made).read_bytes()
    assert Path("north.request").read_text() == "mine"


def test_what_a_join_does_not_use_is_named(shell, federation):
    Path("south.invite").write_bytes(enrolment.invite(federation, "south"))
    joining.write_site(folders.SITES / "south", site_file.NewSite("south", "rows.jsonl", "base"))
    join = ("site", "join", "south.invite", "--request", "asked")
    outcome = shell(*join, "--yes", "--json", "--columns", "instruction=question")
    assert outcome.status == 0 and "--yes is not used" in outcome.err and "--json is not used" in outcome.err
    assert "sites/south/site.toml stays as it is" in outcome.err and "--once" not in outcome.err
    refused = shell(*join, "--wait", "5")
    assert refused.status == 2 and "--wait is for a coordinator that is called" in refused.err
