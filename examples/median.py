"""A coordinate-wise median against the mean, with one client that sends nonsense.

python examples/median.py
"""

from dataclasses import replace

import numpy as np

import shepherd


# A rule gets the clients' deltas of one LoRA factor, stacked[clients, *shape], and returns the aggregated delta.
@shepherd.aggregators
def median():
    """Coordinate-wise median (Yin et al., 2018)."""
    return lambda stacked, weights: np.median(stacked, axis=0)


class OneWild:
    """The local engine, but one client sends minus twenty times what it computed."""

    def __init__(self, local):
        self.local = local

    def __getattr__(self, name):  # everything but training is the local engine's
        return getattr(self.local, name)

    def train(self, *arguments):
        for reply in self.local.train(*arguments):
            if isinstance(reply, shepherd.ClientUpdate) and reply.client == "open_qa":
                reply = replace(reply, delta={name: -20 * array for name, array in reply.delta.items()})
            yield reply


# The demo recipe: eight clients, each with one kind of instruction. All that differs here is the rule.
for rule in ("mean", "median"):
    federation = shepherd.simulate(recipe="demo", aggregator=rule, engine=OneWild)
    losses = [federation.base.loss, *(r.evaluate().loss for r in federation)]
    print(f"{rule:>6}: held-out loss", " ".join(f"{loss:.3f}" for loss in losses))
