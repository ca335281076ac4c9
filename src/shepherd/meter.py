"""Step reports -> progress events: share of the planned tokens, tokens per second, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shepherd.clients.training import StepReport
from shepherd.config import Config
from shepherd.prepare import Rows
from shepherd.round import Plan


class Meter:
    """What a run has done of what it has to do. `skip` says what was done before this process began."""

    def __init__(
        self, tell: Callable[[dict[str, Any]], None], config: Config, rows: Rows, plan: Plan, local: tuple[str, ...]
    ) -> None:
        self.tell, self.rounds = tell, config.federation.rounds
        length = {c: float(np.mean([len(t.input_ids) for t in held])) for c, held in rows.clients.items()}
        cost = {c: plan.work(c, 1, 0).rows * length[c] for c in rows.clients}
        per_round = plan.asked * float(np.mean(list(cost.values())))
        probes = plan.asked * float(np.mean([plan.probed.get(c, 0) * length[c] for c in rows.clients]))
        self.planned: Mapping[str, float] = {
            arm: tokens
            for arm, tokens in {
                "federated": (per_round + probes) * self.rounds,
                "local": sum(cost[c] for c in local) * self.rounds,
                "centralised": per_round * self.rounds,
            }.items()
            if arm in (*config.evaluation.arms, "federated")
        }
        self.skipped = self.done = 0.0
        self.begin = time.perf_counter()

    def skip(self, arm: str, share: float = 1.0) -> None:
        """So much of an arm was there already."""
        self.skipped += share * self.planned.get(arm, 0.0)

    def steps(self, arm: str) -> Callable[[int, StepReport], None]:
        """The observer of one arm's steps."""
        former = [0, StepReport({}, frozenset(), 0)]

        def observe(number: int, report: StepReport) -> None:
            last = former[1]
            anew = number != former[0] or report.tokens < last.tokens or last.clients.keys().isdisjoint(report.clients)
            self.done += report.tokens - (0 if anew else last.tokens)  # another round or cohort counts from 0
            former[:] = number, report
            elapsed = time.perf_counter() - self.begin
            planned = sum(self.planned.values())
            fraction = min(1.0, (self.done + self.skipped) / planned)
            rate = self.done / elapsed
            self.tell(
                {
                    "event": "step", "arm": arm, "round": number, "rounds": self.rounds,
                    "clients": {
                        client: {
                            "step": step, "steps": steps, "loss": loss, "tokens": tokens,
                            "state": "failed" if client in report.failed else "done" if step == steps else "training",
                        }
                        for client, (step, steps, loss, tokens) in report.clients.items()
                    },
                    "tokens_per_second": rate, "fraction": fraction,
                    "eta_seconds": (planned - self.done - self.skipped) / rate if rate else None,
                }
            )  # fmt: skip

        return observe
