"""An engine without a model, for rounds of plain numbers: what clients reply is up to `train`."""

from __future__ import annotations

from shepherd.types import ClientId, Tensors


class NumberEngine:
    """All of `round.Engine` but `train`. `private` is what the clients kept, as the last round left it."""

    private: dict[ClientId, Tensors] = {}  # noqa: RUF012 - replaced, never changed

    def describe(self):
        return {}

    def restore(self, private):
        self.private = private

    def measure(self, model, cohort):
        raise AssertionError("a round does not measure")

    def evaluate(self, model, rows):
        raise AssertionError("a round does not evaluate")
