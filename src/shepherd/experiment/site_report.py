"""The report of a site from its folder: its own log, its runs and its policy; nothing of it leaves the site."""

from __future__ import annotations

from typing import Any

from shepherd.experiment.site_accounts import site_account
from shepherd.federation.cards import read_site
from shepherd.federation.policy_words import policy_words
from shepherd.report.sites.site_log import read_site_log
from shepherd.report.sites.site_page import site_facts, site_text, write_site_report
from shepherd.store.site_folder import LOG, SitePlace


def site_report(place: SitePlace) -> tuple[str, dict[str, Any]]:
    """Write report.html of a site, or of one of its runs; (the text for a terminal, the same as JSON values).

    Raises UsageError for a site.toml with mistakes and DataError for a log that cannot be read.
    """
    settings = place.folder / "site.toml"
    file = read_site(settings) if settings.is_file() else None
    name = file.site.name if file else place.folder.resolve().name
    policy = policy_words(file.policy) if file else ()
    runs = place.runs()
    found = read_site_log(runs, place.folder / LOG, whole=not place.run)
    for run in runs:
        found["runs"][run.name]["privacy"] = site_account(run, found["runs"][run.name])
    path = (runs[0] if place.run else place.folder) / "report.html"
    write_site_report(path, f"{name}, {runs[0].name[:12]}" if place.run else name, found, policy)
    return site_text(found, policy), site_facts(name, path, found, policy)
