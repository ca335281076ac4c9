"""The gate: checks of every reply of a client, as bytes or from memory, before any other use.

    gate = Gate(Limits(norm=100.0), run="0f3a…")
    reply = gate.admit(reply, task)           # a ClientUpdate in order, or a ClientFailure with its reason

Checks are ordered by cost: size, fields, sender, round and base, counts, cluster, names, shapes, checksum, values,
duplicates. `admit` never raises, and its messages contain no text of a client, just our names, shapes and counts.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shepherd.types import (
    CONTROL,
    REASONS,
    ClientFailure,
    ClientId,
    ClientUpdate,
    TrainTask,
)
from shepherd.updates import wire
from shepherd.updates.layout import WireError
from shepherd.updates.rules import (
    _INTEGERS,
    LARGEST,
    _arrays,
    _check_controls,
    _check_shapes,
    _cluster,
    _count,
    _fits_float,
    _is,
    _kind,
    _metrics,
    _norm,
    _shown,
    _square,
    _with_choice,
    expected_shapes,
    update_norm,
)
from shepherd.updates.tensors import cluster_part
from shepherd.updates.wire import Envelope, Sealed

UNKNOWN = "(unknown)"
"""The client of a failure whose sender is not a client of the task."""

_NONCE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ERROR = re.compile(r"error:[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Limits:
    """Limits on an update. norm: of the delta (`update_norm`); 0 for no limit."""

    norm: float = 0.0
    examples: int = 10**9
    tokens: int = 10**12
    metrics: int = 32


class Gate:
    """The checks of a round or a whole run, with the updates admitted so far.

    run (an id) and tokenizer (a digest) are compared with those of messages; an empty tokenizer is not compared.
    """

    def __init__(self, limits: Limits = Limits(), run: str = "", tokenizer: str = "") -> None:
        self.limits, self.run, self.tokenizer = limits, run, tokenizer
        self._seen: set[tuple[int, ClientId]] = set()

    def admit(self, reply: Any, task: TrainTask) -> ClientUpdate | ClientFailure:
        """The valid update, else a failure; a ClientFailure from the engine passes if it is of a client of the task.

        The first usable update of a client in a round counts, with any nonce: every other is a "duplicate".
        """
        client = UNKNOWN
        try:
            if not _is(reply, ClientUpdate, Sealed, ClientFailure):
                raise WireError("not-an-update", "the answer is neither an update nor a failure")
            # A name from the transport may be shown; a name inside a reply only if it is that of a sampled client.
            named = _is(reply, Sealed) and _is(reply.client, str)
            client = reply.client if named or _is_sampled(reply.client, task) else UNKNOWN
            if not _is_sampled(reply.client, task):
                raise WireError("uninvited", "the client is not in this round's cohort")
            if (task.round, client) in self._seen:
                raise WireError("duplicate", "the client has answered this round already")
            if _is(reply, ClientFailure):
                passed: ClientUpdate | ClientFailure = _failure(reply, task)
            else:
                passed = self._checked(self._opened(reply, task) if _is(reply, Sealed) else reply, task)
        except WireError as refusal:
            return ClientFailure(client, task.round, refusal.code, refusal.detail)
        except Exception:
            return ClientFailure(client, task.round, "fields", "the update cannot be read")
        self._seen.add((task.round, client))
        return passed

    def _opened(self, sealed: Sealed, task: TrainTask) -> ClientUpdate:
        """The update in a message, whose largest possible size follows from the client model."""
        header_limit, values_limit = largest_message(task, sealed.client)
        limit = 8 + header_limit + values_limit
        if not _is(sealed.data, bytes):
            raise WireError("format", "the message is not bytes")
        if len(sealed.data) > limit:
            raise WireError("too-large", f"{len(sealed.data)} bytes, the limit is {limit}")
        header = wire.read_header(sealed.data, header_limit)
        if header.fields["client"] != sealed.client:
            raise WireError("impostor", "the message names another client than the one that sent it")
        _check_round(header.fields["round"], task)
        self._check_envelope(wire.envelope_of(header), task, sealed.client)
        view = task.views[sealed.client]
        if view.choice is None:  # else the shapes follow from values that are not read yet
            theirs = {name: entry.shape for name, entry in header.entries.items()}
            _check_shapes(theirs, expected_shapes(view, task, sealed.client))
        return replace(wire.read_update(sealed.data, header), private=sealed.private)

    def _check_envelope(self, envelope: Envelope, task: TrainTask, client: ClientId) -> None:
        adapter = task.views[client].adapter
        if envelope.run != self.run:
            raise WireError("other-run", "the update belongs to another run")
        if not _NONCE.fullmatch(envelope.nonce):
            raise WireError("fields", "nonce is not 1 to 64 letters, digits, '.', '_' or '-'")
        if envelope.base != adapter.base_digest:
            raise WireError("base", f"another base model than {adapter.base_digest[:12]}")
        if self.tokenizer and envelope.tokenizer != self.tokenizer:
            raise WireError("tokenizer", f"another tokenizer or chat template than {self.tokenizer[:12]}")
        if envelope.rank != adapter.r:
            raise WireError("rank", f"rank {_shown(envelope.rank)}, expected {adapter.r}")
        # `not <=` refuses NaN as well; an integer of hundreds of digits has no float.
        if not _fits_float(envelope.scale) or not abs(envelope.scale - adapter.scale) <= 1e-9 * adapter.scale:
            raise WireError("scale", f"another scale than {adapter.scale:g}")

    def _checked(self, update: ClientUpdate, task: TrainTask) -> ClientUpdate:
        _check_round(update.round, task)
        limits = {
            "num_examples": self.limits.examples,
            "num_tokens": self.limits.tokens,
            "steps": task.work[update.client].steps,
        }
        counts = {name: _count(name, getattr(update, name), limit) for name, limit in limits.items()}
        cluster = _cluster(update.cluster, len(task.clusters.get(update.client, ())))
        metrics = _metrics(update.metrics, self.limits.metrics, task.privacy is not None)
        _arrays("delta", update.delta)
        _arrays("private", update.private)
        _arrays("slots", update.slots)
        view = _with_choice(task.views[update.client], update.slots)
        shapes = expected_shapes(view, task, update.client)
        _check_shapes({name: array.shape for name, array in update.delta.items()}, shapes)
        for name, shape in shapes.items():
            if update.delta[name].dtype != np.float32:
                dtype = update.delta[name].dtype
                order = "" if dtype.isnative else " of the other byte order"
                raise WireError("shape", f"{name}: {dtype.name}{list(shape)}{order}, expected float32{list(shape)}")
        for name in shapes:
            square = _square(update.delta[name])
            if not square <= LARGEST**2:  # NaN is refused as well
                count = int((~np.isfinite(update.delta[name])).sum())
                large = f"L2 norm {math.sqrt(square) if not count else 0:.6g}, float32 has no room beyond {LARGEST:g}"
                raise WireError("non-finite", f"{name}: {f'{count} values are not finite' if count else large}")
        norm = max(update_norm(update), _norm(cluster_part(update.delta)))
        if self.limits.norm and norm > self.limits.norm:
            raise WireError("norm", f"L2 norm {norm:.6g}, the limit is {self.limits.norm:g}")
        _check_controls(update, task, counts["steps"])
        if update.slots and view.slots is not None:
            update = replace(update, slots=view.slots)
        plain: dict[str, Any] = {"round": int(update.round), **counts, "metrics": metrics, "cluster": cluster}
        same = all(type(getattr(update, name)) is type(value) for name, value in plain.items()) and all(
            type(value) is float for value in update.metrics.values()
        )
        if list(update.delta) != list(shapes):  # sums over tensors depend on their order: it is ours
            return replace(update, **plain, delta={name: update.delta[name] for name in shapes})
        return update if same else replace(update, **plain)


def largest_message(task: TrainTask, client: ClientId) -> tuple[int, int]:
    """The largest possible sizes of the header and of the values of a client's message, in bytes."""
    view = task.views[client]
    sizes = {name: math.prod(shape) for name, shape in expected_shapes(view, task, client).items()}
    names, values = list(sizes), 4 * sum(sizes.values())
    if view.choice is not None:
        modules, r = list(view.adapter.factors), view.adapter.r
        names += [f"{module}.slots" for module in modules]
        slot = dict.fromkeys(modules, 0)  # numbers of one slot
        for name, size in sizes.items():
            slot[name.removesuffix(CONTROL).rsplit(".", 1)[0]] += size // r
        dearest = sorted(r * list(slot.values()), reverse=True)[: view.choice.budget]
        values = 4 * sum(dearest) + r * len(modules)
    return 16_384 + sum(len(name.encode()) + 128 for name in names), values


def _failure(failure: ClientFailure, task: TrainTask) -> ClientFailure:
    """A failure reported by an engine, with a code of REASONS; detail that is not one short line is dropped."""
    if not _is(failure.code, str) or not (failure.code in REASONS or _ERROR.fullmatch(failure.code)):
        raise WireError("fields", "a failure with a code that is not known")
    if not _is(failure.round, int) or failure.round != task.round:
        raise WireError("stale-round", f"a failure of another round, this is round {task.round}")
    if _is(failure.detail, str) and len(failure.detail) <= 200 and failure.detail.isprintable():
        return failure
    return replace(failure, detail="")


def _is_sampled(client: Any, task: TrainTask) -> bool:
    return _is(client, str) and client in task.work and client in task.views


def _check_round(number: Any, task: TrainTask) -> None:
    if not _is(number, *_INTEGERS):
        raise WireError("fields", f"round is {_kind(number)}, expected int")
    if number != task.round:
        raise WireError("stale-round", f"the update is of round {_shown(number)}, this is round {task.round}")
