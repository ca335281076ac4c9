"""The adapters that a run directory holds, by name.

    RUN, RUN:federated     the global adapter after the last round
    RUN@3                  the global adapter after round 3, while its checkpoint is kept
    RUN:centralised        an arm of one model
    RUN:local/NAME         a client that trained alone, by its id or by its name in the data
    SITE:own               the model that a site made of its own, in its folder (`store.site_folder`)

RUN is a path. A directory whose own name looks like one of these is that directory.
"""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from shepherd.errors import ModelError, UsageError, did_you_mean
from shepherd.store.manifest import MANIFEST, check_sealed
from shepherd.store.reading import open_run, read_json
from shepherd.store.rounds import Rounds, checkpoint_name
from shepherd.store.site_folder import OWN, OWN_FOLDER, site_place
from shepherd.types import ClientId, client_id
from shepherd.updates.privacy.publication import place_of

FEDERATED = "federated"
_CONFIG = "adapter_config.json"


class ArmName(NamedTuple):
    """A model of a run by name: an arm, with a client where the arm has one model per client; or a round."""

    run: Path
    arm: str = FEDERATED
    client: str = ""
    round: int | None = None

    def __str__(self) -> str:
        if self.round is not None:
            return f"{self.run}@{self.round}"
        return str(self.run) if self.model == FEDERATED else f"{self.run}:{self.model}"

    @property
    def model(self) -> str:
        """ARM, or ARM/CLIENT."""
        return f"{self.arm}/{self.client}" if self.client else self.arm


@dataclass(frozen=True)
class KeptAdapter:
    """An adapter of a run directory. folder: a PEFT folder; that of a round also holds its remainder, see `load_state`.

    client: the id of the client that trained alone, label: its name in the data; both "" for an arm of one model.
    round: the round of a checkpoint.
    """

    folder: Path
    arm: str = FEDERATED
    client: ClientId = ""
    label: str = ""
    round: int | None = None

    def name(self, run: Path | str) -> str:
        """RUN, RUN:centralised, RUN:local/NAME or RUN@ROUND, with `run` for RUN."""
        return str(ArmName(Path(run), self.arm, self.label or self.client, self.round))


def arm_name(name: str | Path) -> ArmName:
    """Parse RUN, RUN:ARM, RUN:ARM/CLIENT or RUN@ROUND; what is not in the run is for `find_adapter` to refuse."""
    text = os.fspath(name)
    if Path(text).is_dir():
        return ArmName(Path(text))
    # A client's name may hold ":", and so may a path: C:\runs.
    cuts = [i for i, sign in enumerate(text) if sign == ":" and text[i + 1 : i + 2] not in ("/", "\\")]
    cut = next((i for i in cuts if Path(text[:i]).is_dir()), None)
    run, at, number = text.rpartition("@")
    if cut is None and at and number.isascii() and number.isdigit():
        return ArmName(Path(run), round=int(number))
    if cut is None and cuts:
        cut = cuts[-1]
    if cut is None:
        return ArmName(Path(text))
    arm, _, client = text[cut + 1 :].partition("/")
    return ArmName(Path(text[:cut]), arm, client)


def client_folder(arm: Path, client: ClientId) -> Path:
    """Where the folder of an arm with one model per client keeps that of a client."""
    return arm / "adapters" / client


def kept_adapters(run_dir: Path | str) -> tuple[KeptAdapter, ...]:
    """All adapters that a run directory holds: federated, arms of one model, clients that trained alone, rounds."""
    run = Path(run_dir)
    labels = _labels(run)
    found = [KeptAdapter(run / "adapter")] if (run / "adapter" / _CONFIG).is_file() else []
    found += [KeptAdapter(run / OWN_FOLDER, OWN)] if site_place(run) and (run / OWN_FOLDER / _CONFIG).is_file() else []
    arms = _trained(run)
    found += [KeptAdapter(path, path.name) for path in arms if (path / _CONFIG).is_file()]
    found += [
        KeptAdapter(own.parent, path.name, own.parent.name, labels.get(own.parent.name, own.parent.name))
        for path in arms
        for own in sorted((path / "adapters").glob(f"*/{_CONFIG}"))
    ]
    rounds = Rounds(place_of(run, "checkpoints"))
    return (*found, *(KeptAdapter(rounds.folder / checkpoint_name(n), round=n) for n in rounds.numbers()))


def find_adapter(name: ArmName | str | Path) -> KeptAdapter:
    """The adapter of this name, its files compared with their manifest.

    Raises UsageError where the run does not hold it, with what it holds and how to keep what is wanted; ModelError
    where it is not what was committed.
    """
    wanted = name if isinstance(name, ArmName) else arm_name(name)
    run = open_run(wanted.run)
    if wanted.round is not None:
        return KeptAdapter(_round(run, wanted.round), round=wanted.round)
    if wanted.arm == OWN and site_place(run):
        if (run / OWN_FOLDER / _CONFIG).is_file():
            return KeptAdapter(run / OWN_FOLDER, OWN)
        raise UsageError(f"{wanted}: the run makes no model of a single site", hint=f"{run}:{FEDERATED}")
    if wanted.arm == FEDERATED:
        if wanted.client:
            raise UsageError(
                f"{wanted}: the federated arm has one model, not one per client",
                hint=f"{run}, or a client that trained alone: {_held(run, per_client=True) or 'none was kept'}",
            )
        return KeptAdapter(_final(run))
    folder = next((path for path in _trained(run) if path.name == wanted.arm), None)
    if folder is None:
        if wanted.arm not in _arms(run) or wanted.arm == "base":
            _refuse_arm(run, wanted.arm)
        raise UsageError(
            f"{run} did not get as far as the {wanted.arm} arm", hint=f"shepherd resume {shlex.quote(str(run))}"
        )
    one_model = (folder / _CONFIG).is_file()
    if one_model and wanted.client:
        raise UsageError(f"{wanted}: the {wanted.arm} arm has one model, not one per client", f"{run}:{wanted.arm}")
    if one_model:
        return KeptAdapter(whole(folder), wanted.arm)
    return _of_client(run, wanted)


def whole(folder: Path, instead: str = "", *, below: str = "") -> Path:
    """`folder` again, each file that its manifest names read and found as it was committed: adapter/, personal/ and
    clusters/ of a run have one. A folder without a manifest, such as another tool's adapter, is taken as it is.

    below: a folder in it, "adapters/anna"; of the files only those are read.

    Raises ModelError that names the first file that is damaged; `instead` adds to the hint.
    """
    if not os.path.lexists(folder / MANIFEST):
        return folder
    try:
        check_sealed(folder, below)
    except (ValueError, OSError) as damage:
        raise ModelError(
            f"{folder} is damaged: {damage}",
            hint="restore it from a copy, or repeat the run with shepherd run and its config.toml; "
            f"if the change is meant, delete {folder / MANIFEST}{instead}",
        ) from None
    return folder


def _final(run: Path) -> Path:
    """The folder of the final federated adapter."""
    kept = ", ".join(map(str, Rounds(place_of(run, "checkpoints")).numbers()))
    if (run / "adapter").is_dir():
        return whole(run / "adapter", "; chat and evaluate take a round with --round: " + kept if kept else "")
    place, finished = shlex.quote(str(run)), (run / "summary.json").exists()
    again = f"shepherd run {shlex.quote(f'{run}/config.toml')}" if finished else f"shepherd resume {place}"
    raise UsageError(
        f"{run} has no adapter" + ("" if finished else ": the run did not get to its end"),
        hint=again + (f"; shepherd evaluate and chat take a round with --round: {kept}" if kept else ""),
    )


def _round(run: Path, number: int) -> Path:
    """The folder of a round's checkpoint, verified."""
    rounds = Rounds(place_of(run, "checkpoints"))
    kept = ", ".join(map(str, rounds.numbers()))
    folder = rounds.folder / checkpoint_name(number)
    if number not in rounds.numbers():
        raise UsageError(
            f"{run} has no checkpoint of round {number}",
            hint=f"rounds with a checkpoint: {kept or 'none'} (checkpoints.keep says how many stay)",
        )
    try:
        return rounds.verify(folder.name).folder
    except ValueError as damage:
        raise ModelError(
            f"the checkpoint {folder} is damaged: {damage}", hint=f"choose another round with --round: {kept}"
        ) from None


def _of_client(run: Path, wanted: ArmName) -> KeptAdapter:
    """The adapter of a client in an arm with one model per client."""
    arm, folder, labels = wanted.arm, place_of(run, f"arms/{wanted.arm}"), _labels(run)
    held = _held(run, per_client=True) or "none"
    if not wanted.client:
        raise UsageError(
            f"{wanted} is one model per client, so it needs a client: {run}:{arm}/NAME", hint=f"kept: {held}"
        )
    client = client_id(wanted.client, labels, labels)
    place = client_folder(folder, client)
    if client in labels and (place / _CONFIG).is_file():
        whole(folder, below=place.relative_to(folder).as_posix())
        return KeptAdapter(place, arm, client, labels[client])
    if client not in labels:
        near = did_you_mean(wanted.client, [*labels, *labels.values()])
        raise UsageError(f"{run} has no client {wanted.client!r}.{near}", hint=f"kept: {held}")
    again = f"shepherd run {shlex.quote(f'{run}/config.toml')} --set"
    outcome = read_json(folder / "arm.json")
    if detail := next((f.get("detail") for f in outcome.get("failures", ()) if f.get("client") == client), None):
        raise UsageError(f"{wanted}: the training of this client failed: {detail}", hint=f"kept: {held}")
    if client not in outcome.get("names", ()):
        raise UsageError(
            f"{wanted}: this client did not train alone: evaluation.local_clients left it out",
            hint=f"kept: {held}; {again} evaluation.local_clients=all --set evaluation.keep_local={client}",
        )
    raise UsageError(
        f"{wanted}: the adapter of this client was not kept",
        hint=f"kept: {held}; {again} evaluation.keep_local={client} keeps it, =all every one",
    )


def _refuse_arm(run: Path, arm: str) -> NoReturn:
    """Raise UsageError for an arm that a run does not have."""
    from shepherd.arms import registered

    arms = _arms(run)
    if arm == "base":
        raise UsageError(f"{run}:base is the bare base, which has no adapter", hint="shepherd chat RUN --compare base")
    if arm in registered():
        again = f"shepherd run {shlex.quote(f'{run}/config.toml')} --set evaluation.arms={','.join([*arms, arm])}"
        raise UsageError(f"{run} has no {arm} arm: evaluation.arms does not name it", hint=again)
    raise UsageError(
        f"{run} has no arm {arm!r}.{did_you_mean(arm, arms)}",
        hint=f"it has {', '.join(name for name in arms if name != 'base')}; a round is {run}@3",
    )


def _held(run: Path, per_client: bool) -> str:
    """The names of the adapters that a run holds, at most a dozen."""
    names = [kept.name(run) for kept in kept_adapters(run) if bool(kept.client) == per_client]
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")


def _trained(run: Path) -> list[Path]:
    """The folders of the arms that are trained."""
    return sorted(path for path in place_of(run, "arms").glob("*") if path.is_dir() and not path.name.startswith("."))


def _arms(run: Path) -> list[str]:
    """The names of the arms in the run's config.toml."""
    try:
        table = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
        return [str(name).rpartition(":")[2] for name in table["evaluation"]["arms"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _labels(run: Path) -> Mapping[ClientId, str]:
    """{client: its name in the data}."""
    try:
        document: Any = json.loads(place_of(run, "partition.json").read_text(encoding="utf-8"))
        labels = document.get("labels", {})
        return {client: str(labels.get(client, client)) for client in document["clients"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
