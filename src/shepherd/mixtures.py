"""FedDPA after the last round: what each client mixes by, and what its mixed model loses on its own rows."""

from __future__ import annotations

from collections.abc import Mapping

from shepherd.clients.personal.mixture import Mixture, hidden_states, prompt_of
from shepherd.evaluation.losses import RowLosses, row_losses_each
from shepherd.prepare import Learner, Rows
from shepherd.rng import stream
from shepherd.types import Adapter, ClientId


def mixtures(
    learner: Learner, rows: Rows, shared: Adapter, locals_: Mapping[ClientId, Adapter], seed: int
) -> dict[ClientId, Mixture]:
    """Each client's two adapters with the hidden states of some of its own training rows, drawn once and for all."""
    mix, found = learner.settings.personal.mix, {}
    for client, local in sorted(locals_.items()):
        own = rows.clients[client]
        drawn = sorted(stream(seed, "anchors", client).permutation(len(own))[: mix.samples])
        prompts = [prompt_of(own[i]) for i in drawn]
        anchors = hidden_states(learner.packed, learner.make_lora(), local, prompts, learner.settings.tokens_measured)
        found[client] = Mixture(shared, local, anchors, mix.weight)
    return found


def mixed_losses(
    learner: Learner, rows: Rows, models: Mapping[ClientId, Mixture]
) -> tuple[dict[ClientId, RowLosses], dict[ClientId, float]]:
    """Each mixed model on its client's own held-out rows, and its mean λ there; a client without any is left out."""
    losses, shares, most = {}, {}, learner.settings.tokens_measured
    for client, mixture in sorted(models.items()):
        own = [rows.held_out[i] for i in rows.held_out_of(client)]
        if own:
            lora = learner.make_lora()
            measured = mixture.measure(learner.packed, lora, [prompt_of(row) for row in own], most)
            lora = mixture.hold(lora, measured)
            losses[client] = row_losses_each(learner.packed, own, lora, most)
            shares[client] = float(measured.mean())
    return losses, shares
