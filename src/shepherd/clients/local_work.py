"""The rows and the optimizer steps of a client in one round, from the settings of training alone."""

from __future__ import annotations

import math


def local_work(rows: int, batch_size: int, local_steps: int, local_epochs: float) -> tuple[int, int]:
    """(rows, optimizer steps) in one round of a client that holds `rows`; a batch is never larger than that."""
    batch = min(batch_size, rows)
    if local_steps:
        return local_steps * batch, local_steps
    trained = max(1, round(local_epochs * rows))
    return trained, math.ceil(trained / batch)
