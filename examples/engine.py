"""Clients that drop out at random: an engine around the local one.

python examples/engine.py
"""

import shepherd
from shepherd.rng import stream


class Flaky:
    """The local engine, but each update is lost with a probability."""

    def __init__(self, local, probability=0.3, seed=0):
        self.local, self.probability, self.seed = local, probability, seed

    def __getattr__(self, name):  # everything but training is the local engine's
        return getattr(self.local, name)

    def train(self, task, *arguments):
        """A reply for every client of the task: an update, or the failure that stands for it."""
        for reply in self.local.train(task, *arguments):
            # A stream is a function of its names alone, so every repetition loses the same updates.
            if stream(self.seed, "flaky", reply.client, task.round).random() < self.probability:
                reply = shepherd.ClientFailure(reply.client, task.round, "lost", "the connection broke")
            yield reply


# A round goes on with the updates that arrived; what was lost is in its record, and a warning.
federation = shepherd.simulate(recipe="demo", engine=Flaky)
print(f"base: held-out loss {federation.base.loss:.3f}")
for r in federation:
    lost = sorted(set(r.record.cohort) - set(r.losses))
    print(f"round {r.number}: held-out loss {r.evaluate().loss:.3f}, lost: {', '.join(lost) or 'none'}")
