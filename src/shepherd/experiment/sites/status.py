"""The federations and sites in the current folder, with who is connected: rows for `shepherd status`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shepherd.experiment.sites import folders
from shepherd.experiment.sites.presence import read_presence


def all_of(name: str | None) -> list[dict[str, Any]]:
    """The federation or site with this name; all of them without one. Raises UsageError for a name of none."""
    if name is not None:
        if name in folders.known(folders.SITES) and name not in folders.known(folders.FEDERATIONS):
            return [site(folders.SITES / name)]
        return [federation(folders.find(folders.FEDERATIONS, name))]
    return [
        *(federation(folders.FEDERATIONS / found) for found in folders.known(folders.FEDERATIONS)),
        *(site(folders.SITES / found) for found in folders.known(folders.SITES)),
    ]


def federation(folder: Path) -> dict[str, Any]:
    """Each member of a federation, with its last sign. away: the members that are not connected."""
    from shepherd.federation.enrolment import FederationFolder

    files, presence = FederationFolder(folder), read_presence(folder)
    rows = []
    for name, member in files.members.items():
        row = presence["sites"].get(name, {})
        rows.append({
            "site": name, "membership": member.state, "present": bool(row.get("present")),
            "state": row.get("state", ""), "reason": row.get("reason", ""), "last": row.get("last"),
            "expires": member.expires.date().isoformat() if member.expires else None,
        })  # fmt: skip
    away = [row["site"] for row in rows if row["membership"] != "removed" and not row["present"]]
    return {"name": files.name, "kind": folders.FEDERATIONS.name, **_facts(presence), "sites": rows, "away": away}


def site(folder: Path) -> dict[str, Any]:
    """A site on this machine: whether its process lives and is connected."""
    from shepherd.federation.enrolment import membership

    member, presence = membership(folder), read_presence(folder)
    present = presence["serving"] is not None and bool(presence.get("connected"))
    row = {
        "site": folder.name, "membership": "member" if member else "not yet a member", "present": present,
        "state": presence.get("state", ""), "reason": "", "last": presence.get("written"),
        "expires": member.expires.date().isoformat() if member else None,
    }  # fmt: skip
    away = [] if present else [folder.name]
    return {"name": f"site {folder.name}", "kind": folders.SITES.name, **_facts(presence), "sites": [row], "away": away}


def _facts(presence: dict[str, Any]) -> dict[str, Any]:
    state = presence.get("state", "never served") if presence["serving"] else "stopped"
    known = {key: presence.get(key) for key in ("serving", "run", "written")}
    return {**known, "round": presence.get("round", 0), "rounds": presence.get("rounds", 0), "state": state}
