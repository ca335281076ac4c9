"""`shepherd site renew`: at once, over the network and by files, and why not; a site that begins to serve looks too."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from console import Shell
from enrolment_tool import run_here
from federation_kits import free_port
from shepherd.experiment.sites import folders, joining, renewal, site_file
from shepherd.federation import enrolment
from shepherd.federation.enrolment import members

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
        (("north.signed",), "has no request that north.signed could answer"),
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
