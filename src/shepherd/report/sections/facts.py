"""Facts of a run: settings, versions, commands, privacy."""

from __future__ import annotations

import shlex
from pathlib import Path

from shepherd.arms import registered
from shepherd.report.findings import at_sites
from shepherd.report.load import RunRecord
from shepherd.report.page import Section, Table
from shepherd.report.wording import (
    ABSENT,
    clean,
    count,
    digits,
    number,
    plain,
    plural,
    shorten,
    significant,
    size,
)


def forced(record: RunRecord) -> Section:
    """Notice that the run was resumed although something differed, with the differences."""
    text = (
        "This run was resumed with --force although its inputs or its recorded rounds had changed. Its results are not "
        "those of an uninterrupted run."
    )
    lines = [shorten(str(line), 300) for line in record.summary["forced"]]
    return Section("forced", "Resumed with differences", [text, *lines])


def facts(record: RunRecord) -> list[str]:
    """Model, data, clients, rounds, method, server optimizer, selection and seeds, for the head of the page."""
    summary = record.summary
    model = summary.get("model", {}).get("name") or record.setting("model", "base", "")
    clients = number(summary.get("clients")) or len(record.partition.get("clients", {}))
    done = len(record.rounds)
    planned = record.setting("federation", "rounds", done)
    rounds = plural(planned, "round") if done in (planned, 0) else f"{done} of {plural(planned, 'round')}"
    data = summary.get("data", {}).get("name") or record.setting("data", "source", "")
    found = [
        _without_folder(str(model)),
        _without_folder(str(data)),
        plural(int(clients), "client") if clients else "",
        rounds,
        f"method {record.setting('federation', 'method', record.setting('federation', 'aggregation', ABSENT))}",
        f"server {record.setting('server', 'optimizer', 'fedavg')}",
        f"selection {record.setting('selection', 'name', record.setting('federation', 'selection', ABSENT))}",
        f"seed {record.seed}",
        f"rows of seed {rows}" if (rows := record.setting("data", "seed", "run")) != "run" else "",
    ]
    return [shorten(fact, 60) for fact in found if fact]


def _without_folder(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


def privacy(record: RunRecord) -> Section:
    """Data that leave a client, and protections in use."""
    adapter = record.summary.get("adapter") or {}
    how = (
        f" ({count(adapter['parameters'])} numbers, {size(adapter.get('bytes'))})"
        if number(adapter.get("parameters"))
        else ""
    )
    rows = [
        [
            "Leaves a client in each round",
            f"its update of the LoRA adapter{how}; its counts of rows, tokens and steps; its training loss and "
            "the norm of its update",
        ],
        ["Stays with a client", "its instructions and responses"],
        ["Differential privacy", "none"],
        ["Secure aggregation", "none: the server sees each client's update"],
    ]
    if at_sites(record):
        rows[0][1] += "; sums of the losses on the rows that it holds out"
        where = (
            "The rows stay at the sites: the coordinator, which wrote this page, has none of them. It sees each site's "
            "update and its number of rows as the site states it, which say something about the rows."
        )
    else:
        baselines = ", ".join(arm.title[:1].lower() + arm.title[1:] for arm in registered().values() if arm.train)
        where = (
            "This run simulated its clients in one process that held all rows. The table lists what would leave a "
            f"client in a deployment of the same run. The comparison arms ({baselines}) and "
            "the samples on this page use rows directly; a page made from private rows is itself private."
        )
    text = [
        "An update can reveal information about its training rows. This run neither adds noise to updates nor hides "
        "them from the server.",
        where,
    ]
    return Section("privacy", "Privacy", text, [Table("What leaves a client", ("", ""), rows, texts=(0, 1))])


def commands(record: RunRecord) -> list[tuple[str, str]]:
    """The command that repeats the run. Reports are passed on: only a path below the folder of the start is shown.

    None for a run over sites, whose rows a command does not find.
    """
    if at_sites(record):
        return []
    where, path = "the folder that holds this run's folder", Path(clean(record.name)) / "config.toml"
    words = clean(str(record.summary.get("command") or ""))
    try:
        *start, given = shlex.split(words)
    except ValueError:
        start, given = [], ""
    config = Path(given)
    inside = not (config.is_absolute() or ".." in config.parts)
    if start == ["shepherd", "run"] and config.parts[-2:] == path.parts and inside:
        where, path = "the folder that the run was started in", config
    return [(f"Repeat with exactly these settings, from {where}:", shlex.join(["shepherd", "run", str(path)]))]


def versions(record: RunRecord) -> list[Table]:
    """Model, adapter and library versions, and the loss of the saved adapter, loaded again."""
    summary = record.summary
    rows = [[f"model {k}", plain(v)] for k, v in (summary.get("model") or {}).items()]
    rows += [[f"adapter {k}", plain(v)] for k, v in (summary.get("adapter") or {}).items()]
    if summary.get("adapter_sha256"):
        rows.append(["adapter sha256", str(summary["adapter_sha256"])])
    if check := summary.get("reload_check"):
        rows.append(
            [
                "adapter loaded again from disk",
                f"loss {digits(check.get('loss'), 6)}, difference {significant(check.get('difference'))}",
            ]
        )
    if summary.get("version"):
        rows.append(["shepherd", str(summary["version"])])
    rows += [[str(k), plain(v)] for k, v in record.environment.items()]
    if not rows:
        return []
    return [Table("Model, adapter and versions", ("", ""), rows[:200], texts=(0, 1))]
