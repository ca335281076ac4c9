"""Token presence: the update of one client, trained again from a checkpoint, and the tokens that it gives away.

The attacker knows the model of the round, the template's tokens and how many others there are; it sees one update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shepherd.clients.pool import Draw, Selection
from shepherd.clients.row_order import next_rows
from shepherd.engines.local import LocalEngine
from shepherd.errors import ClientError, EvaluationError, UsageError, did_you_mean
from shepherd.evaluation.attacks.tokens import matching_pursuit, most_frequent, recall, template_tokens
from shepherd.experiment.inputs import Inputs
from shepherd.model.first_layers import TokenInputs, token_inputs
from shepherd.round import sample_cohort, task_of
from shepherd.store.rounds import Rounds
from shepherd.store.state import load_state
from shepherd.types import ClientId, ClientModel, ClientUpdate, ServerState, client_id
from shepherd.updates.privacy.publication import place_of
from shepherd.updates.replies import Replies
from shepherd.updates.rules import update_norm


@dataclass(frozen=True)
class Replay:
    """An update of a committed round, trained again. exact: loss and norm equal those of the round's record to the bit,
    None where the record withholds them. rows: those of its local steps, as token ids."""

    update: ClientUpdate
    view: ClientModel
    rows: tuple[np.ndarray, ...]
    exact: bool | None


def attack_tokens(
    inputs: Inputs,
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    round_number: int,
    client: ClientId,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """The share of the content tokens of one update's rows that the update gives away, beside a guess by frequency.

    Round 0 and client "": the last round that can be trained again, the first client of it. Raises UsageError where no
    checkpoint allows that round or that client, or steps drew their rows in secret, EvaluationError where the adapter
    says nothing of tokens.
    """
    if inputs.plan.examples is not None:
        raise UsageError(
            "with privacy.unit = example a client draws rows and noise of its steps in secret, so its update cannot be "
            "trained again",
            hint="audit the same recipe without privacy",
        )
    layers = {name: inputs.base.model.get_submodule(name) for name in inputs.trainer.adapter.factors}
    groups = token_inputs(inputs.base.model, layers)
    if not groups:
        raise EvaluationError(
            "no adapted layer reads the embeddings of tokens alone, so this attack does not apply",
            hint="it applies to adapters on the query, key or value of the first block, without absolute positions",
        )
    state, line = _round(inputs, folder, lines, round_number)
    name = _client(inputs, line, client)
    note(f"tokens: round {line['round']}, {inputs.data.partition.label(name)}, trained again")
    played = replay(inputs, state, line, name)
    held_out = [row.input_ids for row in inputs.data.held_out]
    template = template_tokens(held_out)
    present = {int(token) for row in played.rows for token in row} - template
    if not present:
        raise EvaluationError("the rows of this update hold no token beside those of the template")
    part, observed, atoms = observations(groups, played)
    found = matching_pursuit(observed, atoms, len(present), template)
    guessed = most_frequent(held_out, len(present), template)
    training = inputs.config.training
    return {
        "round": line["round"],
        "client": name,
        "replayed_exactly": played.exact,
        "attacked": f"Δ{part}",
        "layers": [layer for group in groups for layer in group.layers],
        "rows": len(played.rows),
        "steps": played.update.steps,
        "optimizer": training.optimizer,
        "batch_size": training.batch_size,
        "template_tokens": len(template),
        "tokens": len(present),
        "found": len(set(found) & present),
        "recall": recall(found, present),
        "guessed_by_frequency": recall(guessed, present),
    }


def replay(inputs: Inputs, state: ServerState, line: Mapping[str, Any], client: ClientId) -> Replay:
    """Train one client in the round after a state once more. Raises ClientError where it fails."""
    alone = Selection(lambda pool, size, rng: Draw((client,)), random=False)
    plan = replace(inputs.plan, clients=(client,), cohort_size=1, select=alone)
    if plan.privacy is not None:  # which draws its cohorts itself
        plan = replace(plan, privacy=replace(plan.privacy, clients=(client,), sampling_rate=1.0))
    plan = replace(plan, policy=replace(plan.policy, over_select=0.0, deadline=0.0))
    cohort = sample_cohort(state, plan, Replies(), 1)
    if cohort is None:
        raise UsageError(f"{client} was in quarantine in round {state.round + 1}")
    task = task_of(state, plan, cohort)
    engine = LocalEngine(inputs.trainer.host({client: inputs.data.clients[client]}))
    engine.restore(state.clients)
    (reply,) = engine.train(task)
    if not isinstance(reply, ClientUpdate):
        raise ClientError(f"{client} failed when its round was trained again: {reply.code}: {reply.detail}")
    exact = None
    if client in line.get("train_loss", {}) and client in line.get("update_norm", {}):
        exact = (reply.metrics["loss"], update_norm(reply)) == (line["train_loss"][client], line["update_norm"][client])
    work = task.work[client]
    rows = next_rows(inputs.data.clients[client], client, work.first_row, work.rows_of(reply.steps), task.seed)
    return Replay(reply, task.views[client].chosen(reply.slots), tuple(row.input_ids for row in rows), exact)


def observations(groups: Sequence[TokenInputs], played: Replay) -> tuple[str, list[np.ndarray], list[np.ndarray]]:
    """("A" or "B", what was observed of each layer float[rows, d], the vector of each token there float[V, d]).

    ΔA where it moved, its rows spanned by inputs; else, as after one step from B = 0, ΔB, its rows by A·input. Raises
    EvaluationError where neither factor is sent.
    """
    delta, view = played.update.delta, played.view
    for part in "AB":
        observed, atoms = [], []
        for group in groups:
            sent = {layer: delta[f"{layer}.{part}"] for layer in group.layers if f"{layer}.{part}" in delta}
            sent = {layer: change for layer, change in sent.items() if change.any()}
            first_step = part == "A" and played.update.steps == 1
            if first_step:  # without B there is no gradient of A, and what moved it is weight decay
                sent = {layer: change for layer, change in sent.items() if view.adapter.factors[layer].B.any()}
            if part == "A" and sent:
                observed.append(np.concatenate(list(sent.values())))
                atoms.append(group.inputs)
            for layer, change in sent.items() if part == "B" else ():
                name = f"{layer}.A"
                observed.append(change)
                atoms.append(group.inputs @ view.gather({name: view.adapter.factors[layer].A})[name].T)
        if observed:
            return part, observed, atoms
    raise EvaluationError(
        "the update holds no change of A or B of a layer that reads the embeddings, so this attack does not apply",
        hint="methods that send other tensors, such as fed_sb, are not attacked by it",
    )


def _round(
    inputs: Inputs, folder: Path, lines: Sequence[Mapping[str, Any]], wanted: int
) -> tuple[ServerState, Mapping[str, Any]]:
    """The state before a committed round, and the round's line: the last such round, or the one that is wanted."""
    valid, _ = Rounds(place_of(folder, "checkpoints")).check_all()
    before = {checkpoint.round: checkpoint.folder for checkpoint in valid}
    possible = {line["round"]: line for line in lines if line["round"] == 1 or line["round"] - 1 in before}
    if not possible:
        raise UsageError("the run has no committed round", hint="audit a run with the arm federated")
    number = wanted or max(possible)
    if number not in possible:
        raise UsageError(
            f"round {number} cannot be trained again: the checkpoint before it was not kept",
            hint=f"rounds that can: {', '.join(map(str, sorted(possible)))}",
        )
    state = inputs.start if number == 1 else load_state(before[number - 1])
    return state, possible[number]


def _client(inputs: Inputs, line: Mapping[str, Any], wanted: ClientId) -> ClientId:
    """A client whose update counted in the round: the first, or the one that is named by id or label."""
    took_part = sorted(line.get("train_loss") or inputs.data.clients)
    if not wanted:
        if not took_part:
            raise UsageError(f"no update counted in round {line['round']}", hint="choose another with --round")
        return took_part[0]
    labels = inputs.data.partition.labels
    name = client_id(wanted, took_part, labels)
    if name not in took_part:
        near = did_you_mean(wanted, [*took_part, *map(inputs.data.partition.label, took_part)])
        raise UsageError(
            f"{wanted!r} has no update in round {line['round']}.{near}", hint=f"clients: {', '.join(took_part[:12])}"
        )
    return name
