"""Failure isolation: exceptions and memory exhaustion cost one client, though many train as one batch.

A chunk of clients that raises is trained again one by one, so that the others' work is not lost. The class of an
exception travels, its text does not: it may quote the client's rows. It is logged at debug level, in the process that
raised it, and nowhere else.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator

import torch

from shepherd.clients.progress import Observe, StepReport, ignore
from shepherd.errors import ShepherdError
from shepherd.outcomes import code_of
from shepherd.types import ClientFailure, ClientId, ClientUpdate, TrainTask

SMALLER = 4
"""A client that ran out of memory alone is tried once more, with passes of a fourth of the tokens."""
Train = Callable[[TrainTask, int, Observe], Iterable[ClientUpdate | ClientFailure]]
"""(task, divisor of the tokens per pass, observe) -> a reply for every client of the task."""
_log = logging.getLogger(__name__)


def isolated(
    task: TrainTask, at_once: int, train: Train, observe: Observe = ignore
) -> Iterator[ClientUpdate | ClientFailure]:
    """The replies of all clients of the task, sorted by name, `at_once` trained together while all goes well.

    A ShepherdError that every client meets is about the run, not about them, and is raised at the end; what `observe`
    raises is raised at once.
    """
    names = sorted(task.work)
    errors: list[Exception] = []

    def watched(report: StepReport) -> None:
        try:
            observe(report)
        except Exception as error:
            raise _ObserverFailed from error

    try:
        for start in range(0, len(names), at_once):
            chunk = names[start : start + at_once]
            replies = _together(task.part(chunk), train, watched) if len(chunk) > 1 else None
            if replies is not None:
                yield from replies
                del replies  # they need not stay in memory while the next chunk is trained
                continue
            for client in chunk:
                replies, error = _alone(task.part([client]), train, watched)
                errors += [error] if error else []
                yield from replies
    except _ObserverFailed as failed:
        raise failed.__cause__ or failed from None
    if len(errors) == len(names) and all(isinstance(error, ShepherdError) for error in errors):
        raise errors[0]


def failure_of(error: Exception, client: ClientId, round_number: int) -> ClientFailure:
    """The part of an exception that may leave the client: that memory ran out, or the name of its class."""
    if out_of_memory(error):
        return ClientFailure(client, round_number, "out-of-memory", "even with smaller passes")
    return ClientFailure(client, round_number, code_of(error), "raised while training")


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch has a class for it on a GPU; on a CPU only the text of a RuntimeError shows it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "not enough memory" in str(error))
    )


class _ObserverFailed(Exception):
    """The observer raised, which is no client's failure."""


def _together(task: TrainTask, train: Train, observe: Observe) -> list[ClientUpdate | ClientFailure] | None:
    """All replies, or None when anything was raised: which client caused it shows when each is alone."""
    try:
        return list(train(task, 1, observe))
    except _ObserverFailed:
        raise
    except Exception as error:
        _log.debug("round %d: %s in a chunk of %d clients", task.round, type(error).__name__, len(task.work))
        exhausted = out_of_memory(error)
    if exhausted:
        _release()
    return None


def _alone(
    task: TrainTask, train: Train, observe: Observe
) -> tuple[list[ClientUpdate | ClientFailure], Exception | None]:
    """The reply of one client, and the exception that it stands for, if there was one."""
    (client,) = task.work
    for divisor in (1, SMALLER):
        try:
            return list(train(task, divisor, observe)), None
        except _ObserverFailed:
            raise
        except Exception as error:
            _log.debug("round %d: %s failed", task.round, client, exc_info=True)
            raised = error.with_traceback(None)  # which would hold on to the tensors of the failed pass
        if not out_of_memory(raised):
            break
        _release()
    return [failure_of(raised, client, task.round)], raised


def _release() -> None:
    """Free what a failed pass held. Its frames are gone by now, cycles of its young objects may not be."""
    gc.collect(1)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
