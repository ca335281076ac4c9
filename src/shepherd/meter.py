"""Reports of clients -> progress events: a row per client, share of the planned tokens, tokens per second, ETA."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shepherd.clients.reports import Progress, StepReport
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
        self.planned: Mapping[str, float] = {
            arm: tokens
            for arm, tokens in {
                "federated": per_round * self.rounds,
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
        """The observer of one arm's rounds: a "step" event after steps, a "clients" event where only states changed."""
        rows: dict[str, tuple[int, Progress]] = {}  # of each client: the round of its last news, and what is known

        def observe(number: int, report: StepReport) -> None:
            stepped = False
            for client, news in report.items():
                told_in, known = rows.get(client, (number, Progress()))
                known = known if told_in == number else Progress()
                now = known._replace(state=news) if isinstance(news, str) else news
                rows[client] = number, now
                self.done += now.tokens - known.tokens
                stepped |= now.step != known.step or now.tokens != known.tokens
            event = {
                "event": "step" if stepped else "clients", "arm": arm, "round": number, "rounds": self.rounds,
                "clients": {client: _row(rows[client][1]) for client in report},
            }  # fmt: skip
            self.tell(event | self._pace() if stepped else event)

        return observe

    def _pace(self) -> dict[str, Any]:
        planned, rate = sum(self.planned.values()), self.done / (time.perf_counter() - self.begin)
        return {
            "tokens_per_second": rate,
            "fraction": min(1.0, (self.done + self.skipped) / planned),
            "eta_seconds": (planned - self.done - self.skipped) / rate if rate else None,
        }


def _row(progress: Progress) -> dict[str, Any]:
    """A client in an event. `tokens` are those that were learned, `seen_tokens` all that went through the base."""
    return {
        "step": progress.step, "steps": progress.steps,
        "loss": progress.loss if math.isfinite(progress.loss) else None,
        "tokens": progress.targets, "state": progress.state, "seen_tokens": progress.tokens,
        "tokens_per_second": progress.tokens / progress.seconds if progress.seconds else None,
    }  # fmt: skip
