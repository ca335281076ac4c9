"""Certificates that a coordinator does not accept: a sentence at the site, and a line in the coordinator's log."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from federation_kits import Authority, Kits
from network_sites import Events, ServedSite, until
from shepherd.federation.transports.serving import serve_federation

pytest.importorskip("nvflare")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NVFlare runs on Linux")


@dataclass
class Coordinator:
    """A coordinator that runs, with the members expired, early, foreign, other, swapped and b, and what it noted."""

    kits: Kits
    events: Events

    def noted(self) -> str:
        """The reasons in its log."""
        lines = (self.kits.folder / "server" / "audit.jsonl").read_text().splitlines()
        return "\n".join(json.loads(line).get("why", "") for line in lines)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    kits, events = Kits(tmp_path_factory.mktemp("coordinator")), Events()
    members = {"expired", "early", "foreign", "other", "swapped", "b"}
    with serve_federation(kits.server(), limit=2**20, members=lambda: members, on_event=events):
        yield Coordinator(kits, events)


def attempt(coordinator: Coordinator, kit, there: str, here: str) -> None:
    """Serve with a kit until both sides have named what is in the way."""
    site = ServedSite(kit)
    try:
        until(lambda: there in site.events.reasons("waiting") + str(site.error))
        until(lambda: here in coordinator.noted())
    finally:
        site.end()


@pytest.mark.parametrize(
    "name, days, begins, there, here",
    [
        ("expired", -1.0, -2.0, "this site's certificate expired on", "a peer's certificate has expired"),
        ("early", 3.0, 2.0, "this site's certificate is not valid yet", "a peer's certificate is not valid yet"),
    ],
    ids=["expired", "not valid yet"],
)
def test_a_certificate_out_of_its_time_is_named_on_both_sides(coordinator, name, days, begins, there, here):
    attempt(coordinator, coordinator.kits.site(name, days=days, begins=begins), there, here)


def test_a_kit_of_another_federation_is_named_on_both_sides(coordinator):
    kit = coordinator.kits.site("foreign", Authority("another"))
    there = "has a certificate of another federation"
    attempt(coordinator, kit, there, "a peer does not accept the coordinator's certificate")


def test_a_certificate_of_another_federation_in_a_kit_of_this_one_is_named_on_both_sides(coordinator):
    kit = coordinator.kits.site("other", Authority("another"))
    own = coordinator.kits.site("b")
    (kit / "startup" / "rootCA.pem").write_bytes((own / "startup" / "rootCA.pem").read_bytes())
    there = "this site's certificate is that of another federation"
    attempt(coordinator, kit, there, "a peer's certificate is that of another authority")


def test_a_certificate_of_another_site_is_named_on_both_sides(coordinator):
    kit = coordinator.kits.site("swapped", subject="b")
    there = "this site's certificate is that of 'b', and the kit is that of 'swapped'"
    attempt(coordinator, kit, there, "a process with the certificate of 'b' wanted the name 'swapped'")


def test_a_site_that_is_not_or_no_longer_a_member_is_named_on_both_sides(coordinator):
    here = "not, or no longer, a member of the federation"
    attempt(coordinator, coordinator.kits.site("removed"), here, here)
    assert coordinator.events.of("refused")[-1]["site"] == "removed"
