"""`shepherd site`: join a federation with the rows of this machine, serve, approve runs, leave."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shepherd.cli import output
from shepherd.cli.completion import complete_site
from shepherd.cli.group import Commands
from shepherd.errors import UsageError

if TYPE_CHECKING:
    from shepherd.experiment.sites.decisions import Offered
    from shepherd.federation.cards import SiteFile

named = click.option("--site", "name", metavar="NAME", shell_complete=complete_site,
                     help="Site; needed where sites/ has several.")  # fmt: skip
yes_option = click.option(
    "--yes", is_flag=True,
    help='Approve what the policy allows, as long as this process runs. For good: approve = "policy" in site.toml.',
)  # fmt: skip
once_option = click.option("--once", is_flag=True, help="End when a run is over, in place of waiting for the next one.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")


@click.group(cls=Commands)
def site() -> None:
    """Join a federation with rows of this machine, and serve.

    The rows stay here. Linux only; extra federation."""


@site.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", "rows", metavar="ROWS", help="File or folder of rows; it is read here and stays here.")
@click.option("--columns", multiple=True, metavar="FIELD=COLUMN",
              help="Map fields to columns, e.g. instruction=question,response=answer.")  # fmt: skip
@click.option("--base", metavar="BASE", help="Base model on this machine: built-in name, folder or hub id.")
@yes_option
@click.option("--wait", type=click.FloatRange(min=0), metavar="S",
              help="Seconds to wait for the coordinator.  [default: until it answers]")  # fmt: skip
@click.option("--request", metavar="FILE", type=click.Path(path_type=Path),
              help="Do not call: write a request to FILE, for shepherd federation approve.")  # fmt: skip
@click.option("--no-start", is_flag=True, help="Join only; shepherd site start serves.")
@once_option
@json_option
def join(
    file: Path, rows: str | None, columns: tuple[str, ...], base: str | None, wait: float | None, request: Path | None,
    no_start: bool, **serving: Any,
) -> None:  # fmt: skip
    """Join a federation by the invitation FILE, and serve.

    Makes the site in sites/NAME: a private key that never leaves it, its certificate, and site.toml with a strict
    policy to read and change. An existing site.toml is kept. If the coordinator does not answer, the reason is printed
    within 30 s, and the command keeps trying; a coordinator answers while shepherd run --federation serves.

    Then the site serves. Each run's card is shown in plain words, with what would leave this machine, and a person
    answers yes or no; without a terminal the run waits for shepherd site approve RUN. Ctrl-C ends the site, and
    shepherd site start serves again. Where the coordinator cannot be called, FILE may also be the SITE.signed that
    answers a request."""
    from shepherd.cli.settings import columns_of
    from shepherd.experiment.sites import joining, links

    links.check_machine()
    from shepherd.federation import enrolment

    signed = joining.is_signed(file)
    _check_call(file, signed, request, wait)
    if no_start or request is not None:
        for flag in (name for name, given in serving.items() if given):
            output.note(f"warning: --{flag.removeprefix('as_')} is not used: this command does not serve")
    needs = joining.Needs(rows or "", columns_of(columns), base or "")
    place = joining.settle_in(joining.site_of(file), needs, output.note)
    if signed:
        expires = enrolment.complete(place, file)
    elif request is not None:
        _requested(enrolment.request(enrolment.read_invitation(file), place, request), "join", place.name)
        return
    else:
        expires = joining.enrol(place, enrolment.read_invitation(file), wait, output.note)
    output.note(f"{place.name} is a member until {expires:%Y-%m-%d}, and renews before that while it serves")
    if not no_start:
        _serve(place, **serving)


@site.command()
@named
@yes_option
@once_option
@json_option
def start(name: str | None, **serving: Any) -> None:
    """Serve as a site that has joined, until it is stopped.

    As under a service manager after a reboot. Runs that were approved before stay approved."""
    from shepherd.experiment.sites import folders, links

    links.check_machine()
    _serve(folders.find(folders.SITES, name), **serving)


@site.command()
@click.argument("file", required=False, metavar="[SITE.signed]", type=click.Path(path_type=Path))
@named
@click.option("--wait", type=click.FloatRange(min=0), metavar="S",
              help="Seconds to wait for the coordinator.  [default: one attempt]")  # fmt: skip
@click.option("--request", metavar="FILE", type=click.Path(path_type=Path),
              help="Do not call: write a request to FILE, for shepherd federation approve.")  # fmt: skip
def renew(file: Path | None, name: str | None, wait: float | None, request: Path | None) -> None:
    """Renew the certificate of a site now.

    A site that serves does so by itself, in the last third of the certificate's time and up to 14 days after its end.
    This command does it at once and prints the result. Outside of that time the coordinator has to allow it, by
    shepherd federation renew SITE. The coordinator answers while it serves a run. The key is made anew, too, and stays
    here. A process that serves goes on, and connects with the new certificate from the next time on.

    Where the coordinator cannot be called, write a request to a file, have it signed by shepherd federation approve,
    and give the answer, SITE.signed, to this command."""
    from shepherd.experiment.sites import folders, joining, links, renewal

    links.check_machine()
    _check_call(file, file is not None, request, wait)
    if file is not None and file.is_file() and not joining.is_signed(file):
        raise UsageError(f"{file} is not the answer to a request", hint="shepherd site join is for an invitation")
    place = folders.find(folders.SITES, name or (joining.site_of(file) if file is not None else None))
    if request is not None:
        _requested(renewal.request(place, request, output.note), "renew", place.name)
        return
    expires = renewal.take(place, file) if file is not None else renewal.renew(place, wait or 0.0, output.note)
    click.echo(f"{place.name} is renewed: a member until {expires:%Y-%m-%d}")


@site.command()
@click.argument("run", required=False)
@named
@click.option("--yes", "answer", flag_value="yes", help="Approve without a question.")
@click.option("--no", "answer", flag_value="no", help="Decline without a question.")
def approve(run: str | None, name: str | None, answer: str | None) -> None:
    """Approve or decline RUN, by its card in plain words.

    Shows what is computed, what would leave this machine and what stays. RUN is the name of the run, its id or the
    beginning of it; without it, the only one that waits. Works beside the process of the site, which goes on within
    seconds. A run that was declined can be approved later."""
    from shepherd.experiment.sites import decisions, folders
    from shepherd.federation.cards import read_site

    place = folders.find(folders.SITES, name)
    offer, file = decisions.find_offer(place, run), read_site(place / "site.toml")
    _show_card(offer, file)
    if not decisions.needs_person(file.policy):
        output.note('the policy of this site approves by itself (approve = "policy")')
    approved = answer == "yes" if answer else _sure(offer)
    decisions.decide(place, offer, approved)
    click.echo(f"{_name(offer)}: {'approved' if approved else 'declined'}")


@site.command()
@named
@click.option("--now", is_flag=True, help="Drop the task at work; by default it is finished and answered.")
@click.option("--delete-key", is_flag=True, help="Delete the key, too: to come back takes an invitation.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def leave(name: str | None, now: bool, delete_key: bool, yes: bool) -> None:
    """Leave the runs of the federation, and stop serving.

    The site's models in sites/NAME/runs and its log stay; so do key and certificate, for shepherd site start and later
    runs, unless they are to be deleted. A run that was left is left for good."""
    from shepherd.experiment.sites import folders, leaving
    from shepherd.federation.cards import read_site

    place = folders.find(folders.SITES, name)
    what = "leave, and delete its key" if delete_key else "leave"
    if not (yes or output.confirm(f"{place.name}: {what}?", "left")):
        return
    if leaving.is_served(place):
        leaving.wish(place, leaving.Wish(now))
        output.note("waiting until the site's process has ended …")
        while leaving.is_served(place):
            time.sleep(0.5)
    leaving.leave_alone(place, read_site(place / "site.toml").site.name, delete_key=delete_key)
    kept = "its key is deleted" if delete_key else "its key stays"
    click.echo(f"{place.name} has left; its models stay in {place / 'runs'}, {kept}")


def _serve(place: Path, *, yes: bool, once: bool, as_json: bool) -> None:
    from shepherd.cli.site_view import SiteView
    from shepherd.experiment.sites.attend import Attending

    ask = _asked if sys.stdin.isatty() and sys.stderr.isatty() and not as_json else None
    view = SiteView(place, as_json=as_json, asks=yes or ask is not None)
    try:
        Attending(place, view, yes=yes, once=once, ask=ask).serve()
    finally:
        view.close()


def _check_call(file: Path | None, signed: bool, request: Path | None, wait: float | None) -> None:
    """Raise UsageError for a choice that would not be used. signed: FILE is the answer to a request."""
    if signed and request is not None:
        raise UsageError(
            f"{file} is the answer to a request, and --request makes a new one", hint="give one of the two"
        )
    if wait is not None and (signed or request is not None):
        raise UsageError(
            f"--wait is for a coordinator that is called, and with {file if signed else '--request'} none is",
            hint="leave --wait out",
        )


def _requested(made: Path, command: str, site: str) -> None:
    """Print what becomes of a request in a file."""
    click.echo(f"{made}: send it to the coordinator, for shepherd federation approve {made.name}; the answer "
               f"is for: shepherd site {command} {site}.signed")  # fmt: skip


def _asked(offer: Offered, file: SiteFile) -> bool:
    _show_card(offer, file)
    return _sure(offer)


def _show_card(offer: Offered, file: SiteFile) -> None:
    from shepherd.experiment.sites.card_text import card_lines

    lines = card_lines(offer.card, file.policy, file.data.source)
    width = max(len(what) for what, _ in lines)
    for what, words in lines:
        output.note(f"{what:<{width}}  {_line(words)}")


def _name(offer: Offered) -> str:
    return _line(offer.card.name) or offer.run


def _line(words: str) -> str:
    """Words of a coordinator as a part of one line: none of them can look like a line of this program."""
    return " ".join(output.clean(words).split())


def _sure(offer: Offered) -> bool:
    try:
        return click.confirm(f"take part in {_name(offer)}?", err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise UsageError("no terminal to ask on; nothing was decided", hint="decide with --yes or --no") from None
