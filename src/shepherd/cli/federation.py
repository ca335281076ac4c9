"""`shepherd federation`: make a federation of sites, invite and remove sites, try all of it on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from shepherd.cli import output
from shepherd.cli.completion import complete_federation, complete_recipe
from shepherd.cli.group import Commands
from shepherd.cli.settings import gather, recipe_options
from shepherd.errors import UsageError

named = click.option("--federation", "name", metavar="NAME", shell_complete=complete_federation,
                     help="Federation; needed where federations/ has several.")  # fmt: skip
days_option = click.option("--days", type=click.FloatRange(0, 90, min_open=True), default=7.0, show_default=True,
                           help="Days until an invitation expires.")  # fmt: skip


@click.group(cls=Commands)
def federation() -> None:
    """Make federations of sites, invite and remove sites.

    The rows of a site stay on its machine. Linux only; extra federation.

    \b
    shepherd federation new lab --invite a,b     federations/lab, and an invitation for each site
    shepherd site join a.invite --data a.jsonl   at the site a; b likewise
    shepherd run recipe.toml --federation lab    the run, over the sites
    """


@federation.command()
@click.argument("name")
@click.option(
    "--host", default="localhost", show_default=True, help="Name or address at which sites reach this machine."
)
@click.option("--port", type=click.IntRange(1, 65535), default=7100, show_default=True, help="Port for sites.")
@click.option("--enrolment-port", type=click.IntRange(1, 65535), help="Port for enrolment.  [default: port + 1]")
@click.option("--invite", "sites", metavar="SITE,…", help="Sites to invite.")
@days_option
def new(name: str, host: str, port: int, enrolment_port: int | None, sites: str | None, days: float) -> None:
    """Make the federation NAME in federations/NAME.

    Makes its certificate authority and the server's certificate; the folder is private to you. Whoever has its key can
    make members: keep a backup of the folder, and no copy elsewhere. Each invitation is a file SITE.invite in the
    current folder."""
    from shepherd.experiment.sites import folders, links

    links.check_machine()
    from shepherd.federation.enrolment import new_federation

    folder = new_federation(folders.FEDERATIONS / name, host=host, port=port, enrolment_port=enrolment_port or port + 1)
    settings = folder.settings
    click.echo(f"{folder.path}: sites connect to {settings.host}:{settings.port}, enrolment is at port "
               f"{settings.enrolment_port}")  # fmt: skip
    click.echo(f"fingerprint of its authority: {folder.fingerprint}")
    if settings.host in ("localhost", "127.0.0.1"):
        output.note("only sites on this machine reach it: give --host for others")
    for site in dict.fromkeys(filter(None, (part.strip() for part in (sites or "").split(",")))):
        _invite(folder, site, days)


@federation.command()
@click.argument("site")
@named
@days_option
def invite(site: str, name: str | None, days: float) -> None:
    """Write an invitation for SITE to SITE.invite.

    It has the address, the authority's certificate and a one-time code, and no key. Who has the file can join as SITE
    until it expires or is used: send it on a way that only the site reads. A former invitation of SITE ends."""
    _invite(_folder(name), site, days)


@federation.command()
@click.argument("file", type=click.Path(path_type=Path))
@named
def approve(file: Path, name: str | None) -> None:
    """Sign the request in FILE, of a site that cannot call.

    The answer is written next to it, as SITE.signed: send it back, for `shepherd site join SITE.signed`."""
    folder = _folder(name)
    from shepherd.federation.enrolment import approve as sign

    signed = sign(folder, file)
    member = folder.members.get(signed.stem)
    verb = "renew" if member is not None and member.is_renewed else "join"
    click.echo(f"{signed}: send it back; there: shepherd site {verb} {signed.name}")


@federation.command()
@click.argument("site")
@named
def renew(site: str, name: str | None) -> None:
    """Allow SITE a new certificate before its time.

    Sites renew in the last third of a certificate's time, and up to 14 days after its end, without this. Before and
    after that it is allowed for 7 days; the site renews by shepherd site renew, while the federation is served."""
    folder = _folder(name)
    from shepherd.federation.enrolment import renew as allow

    allow(folder, site)
    click.echo(
        f"{site} may renew its certificate within 7 days, while the federation is served; there: shepherd site renew"
    )


@federation.command()
@click.argument("site")
@named
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def remove(site: str, name: str | None, yes: bool) -> None:
    """Remove SITE: it may not connect from now on.

    A run that is served drops it within seconds, and goes on without it if enough sites are left. Its updates of
    committed rounds stay in the model. The name is free again when its last certificate has expired."""
    folder = _folder(name)
    from shepherd.federation.enrolment import remove as drop

    if yes or output.confirm(f"remove {site} from {folder.name}?", "removed"):
        drop(folder, site)
        click.echo(f"{site} is no member of {folder.name} from now on")


@federation.command(name="try")
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@click.option("--sites", type=click.IntRange(2, 64), default=3, show_default=True, help="Number of sites.")
@click.option("--dir", "folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Folder for all of it.  [default: a new one among temporary files]")  # fmt: skip
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.option("--plain", is_flag=True, help="Print plain lines instead of the live table.")
def try_(recipe: str | None, sites: int, folder: Path | None, as_json: bool, plain: bool, **flags: Any) -> None:
    """Try a federation on this machine: RECIPE over N sites.

    Divides the rows of RECIPE by its [partition] among the sites, writes them to files, makes a federation, and joins
    each site in a process, which approves what its policy allows. Then the run, as with shepherd run --federation. All
    processes end with this command; all files stay. A demonstration: the rows are yours to see."""
    from shepherd.cli import printed_result, progress
    from shepherd.experiment.sites import links, trial

    links.check_machine()
    if flags["out"] is not None:
        raise UsageError("the runs of a trial are in its folder", hint="use --dir in place of --out")
    settings = gather(recipe, **flags)
    for line in settings.notes:
        output.note(line)
    observer = progress.observer(as_json=as_json, plain=plain)
    with observer:
        result, place = trial.try_federation(settings.config, sites, folder, observer, output.note)
    if not as_json:
        printed_result.print_result(Path(result.path), result.summary)
    output.note(f"rows, federation and sites are in {place}; delete the folder when you have seen enough")


def _folder(name: str | None) -> Any:
    from shepherd.experiment.sites import folders, links

    links.check_machine()
    from shepherd.federation.enrolment import FederationFolder

    return FederationFolder(folders.find(folders.FEDERATIONS, name))


def _invite(folder: Any, site: str, days: float) -> None:
    from shepherd.federation.enrolment import invite

    data, path = invite(folder, site, days), Path(f"{site}.invite")
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)
    click.echo(f"{path}: send it to {site}; there: shepherd site join {path} --data ROWS")
