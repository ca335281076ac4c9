"""Clients that settings name, by ids or by names in the data: of the local arm, with kept adapters, with their rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from shepherd.arms import Arm
from shepherd.config import Config, LoraTable
from shepherd.errors import UsageError, did_you_mean
from shepherd.types import ClientId, client_id


def client_ranks(
    lora: LoraTable, clients: Sequence[ClientId], labels: Mapping[ClientId, str] = {}
) -> dict[ClientId, int]:
    """The rank of each client, which lora.ranks names by its id or label. Raises UsageError for one that is neither."""
    if not isinstance(lora.ranks, Mapping):
        return {client: lora.ranks[i % len(lora.ranks)] if lora.ranks else lora.r for i, client in enumerate(clients)}
    given = {client_id(name, clients, labels): rank for name, rank in lora.ranks.items()}
    unknown = sorted(set(given) - set(clients))
    if unknown:
        near = did_you_mean(unknown[0], [*clients, *labels.values()])
        raise UsageError(f"lora.ranks names {unknown[0]!r}, which is not a client.{near}", hint=_some(clients))
    return {client: given.get(client, lora.r) for client in clients}


def local_names(
    config: Config, clients: Sequence[ClientId], labels: Mapping[ClientId, str] = {}
) -> tuple[ClientId, ...]:
    """The clients of the local arm: all, a number of them spread over their names, or those named by id or label.

    Raises UsageError, with the nearest name, for one that is not a client.
    """
    return _chosen("evaluation.local_clients", config.evaluation.local_clients, clients, labels)


def kept_names(
    config: Config, baselines: Sequence[Arm], clients: Sequence[ClientId], labels: Mapping[ClientId, str] = {}
) -> tuple[ClientId, ...]:
    """The clients of the local arm whose adapters stay in the run directory, chosen among those as these among all.

    Raises UsageError, with the nearest name, for one that is not a client, and for one that does not train alone.
    """
    alone, wanted = local_names(config, clients, labels), config.evaluation.keep_local
    if not any(arm.per_client for arm in baselines):
        if config.evaluation.sets_keep_local and wanted:
            raise UsageError(
                f"evaluation.keep_local = {wanted!r} would have no effect: no arm of evaluation.arms has a model per "
                "client",
                hint="add local to evaluation.arms, or leave evaluation.keep_local out",
            )
        return ()
    if isinstance(wanted, int) or wanted == "all":
        return _chosen("evaluation.keep_local", wanted, alone, labels)
    given = tuple(dict.fromkeys(_chosen("evaluation.keep_local", wanted, clients, labels)))
    if out := sorted(set(given) - set(alone)):
        raise UsageError(
            f"evaluation.keep_local names {out[0]!r}, which evaluation.local_clients leaves out: it does not train "
            "alone",
            hint=f"name it in both; {_some(alone)} train alone",
        )
    return given


def audited_clients(
    config: Config, clients: Sequence[ClientId], labels: Mapping[ClientId, str] = {}
) -> tuple[ClientId, ...]:
    """The clients whose rows get canaries: those of privacy.audit.clients, by id or label, else all, sorted by name.

    Raises UsageError, with the nearest name, for one that is not a client.
    """
    named = config.privacy.audit.clients or "all"
    return _chosen("privacy.audit.clients", named, clients, labels)


def _chosen(
    key: str, wanted: Literal["all"] | int | Sequence[str], clients: Sequence[ClientId], labels: Mapping[ClientId, str]
) -> tuple[ClientId, ...]:
    """All of the clients, a number of them spread over their names, or those named by id or label."""
    names = sorted(clients)
    if wanted == "all":
        return tuple(names)
    if isinstance(wanted, int):
        picks = np.linspace(0, len(names) - 1, min(wanted, len(names))).round().astype(int)
        return tuple(names[i] for i in picks)
    given = tuple(client_id(name, names, labels) for name in wanted)
    if unknown := sorted(set(given) - set(names)):
        near = did_you_mean(unknown[0], [*names, *labels.values()])
        raise UsageError(f"{key} names {unknown[0]!r}, which is not a client.{near}", hint=_some(names))
    return given


def _some(clients: Sequence[ClientId]) -> str:
    return f"clients: {', '.join(clients[:12])}{', …' if len(clients) > 12 else ''}"
