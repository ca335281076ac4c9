"""`shepherd status`: who is there, for people and for scripts."""

from __future__ import annotations

import time
from typing import Any

import click

from shepherd.cli import output
from shepherd.cli.completion import complete_federation
from shepherd.errors import NetworkError, UsageError


@click.command()
@click.argument("name", required=False, shell_complete=complete_federation)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(name: str | None, as_json: bool) -> None:
    """Show who is there: the sites of the federation NAME.

    State, last sign and end of certificate of each site; run and round. In the folder of a site, its connection and its
    run. Without NAME: all that is in federations/ and sites/ here. Exit status 0 where each site is connected, 7 where
    one is not."""
    from shepherd.experiment.sites import folders, status

    found = status.all_of(name)
    if not found:
        raise UsageError("there is no federation and no site here", hint="see shepherd federation and shepherd site")
    if as_json:
        output.print_json(found)
    else:
        for place in found:
            _print(place)
    away = [f"{place['name']}: {', '.join(place['away'])}" for place in found if place["away"]]
    if away:
        raise NetworkError(f"not connected: {'; '.join(away)}", hint=_hint(found, folders.FEDERATIONS.name))


def _hint(found: list[dict[str, Any]], federations: str) -> str:
    idle = [place["name"] for place in found if place["kind"] == federations and not place["serving"]]
    return f"nobody serves {', '.join(idle)}; shepherd run RECIPE --federation {idle[0]} does" if idle else ""


def _print(place: dict[str, Any]) -> None:
    run = f", run {place['run']}, round {place['round']}/{place['rounds']}" if place["run"] else ""
    by = f"served by {place['serving']}" if place["serving"] else "not served"
    output.note(f"{place['name']}: {by}{run}, {place['state']}")
    output.print_table(
        ("site", "is", "connected", "state", "last sign", "certificate until"),
        [
            (row["site"], row["membership"], "yes" if row["present"] else "no", row["state"], _time(row["last"]),
             row["expires"] or "")
            for row in place["sites"]
        ],
    )  # fmt: skip


def _time(last: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last)) if last else ""
