"""The promises of an engine of simulated clients (see `round.Engine`): the bits of plain training, whatever happens."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from shepherd.round import Engine
from shepherd.testing.promise import attempt
from shepherd.testing.replies import engine_promise, plain_training, replies, same_updates
from shepherd.types import ClientFailure, GlobalModel

if TYPE_CHECKING:  # torch is loaded by `check_engine`, not by an import of this module
    from shepherd.clients.training import TrainingHost
    from shepherd.testing.tiny_federation import TinyFederation


def check_engine(make_engine: Callable[[TrainingHost], Engine]) -> None:
    """Hold an engine, made for a host with four clients, to the promises of the protocol.

        check_engine(LocalEngine)
        check_engine(lambda host: Workers(1, tiny_worker, host.data, LocalEngine(host)))

    It has the methods of `round.Engine`; describes each client by its rows; replies once for each client of a task, in
    memory or as messages that pass the gate, with the bits of training in this process, whatever the deadline; reports
    the steps; goes on from the private state that was restored and from no other; reports a failure without its text;
    and measures the model that it is given. An engine that is a context manager is entered and left.

    Raises AssertionError, with the promise and the clients, for the first that is broken.
    """
    from shepherd.testing.tiny_federation import tiny_federation

    federation = tiny_federation()
    with ExitStack() as stack:
        made: Any = make_engine(federation.host)
        engine = stack.enter_context(made) if hasattr(made, "__enter__") else made
        for held in PROMISES:
            words = "3 clients and one that fails"
            attempt(partial(held, engine, federation), f"engine {type(engine).__name__}", words)


def has_the_methods_of_the_protocol(engine: Engine, _: TinyFederation) -> None:
    """Each method of `round.Engine`, with its arguments in order."""
    for name, promised in inspect.getmembers(Engine, inspect.isfunction):
        if not name.startswith("_"):
            own = getattr(type(engine), name, None)
            found = list(inspect.signature(own).parameters) if own else "nothing"
            asked = list(inspect.signature(promised).parameters)
            engine_promise(engine, found == asked, f"{name} takes {found}, not {asked}")


def describes_each_client(engine: Engine, federation: TinyFederation) -> None:
    """The number and the digest of each client's rows, by name."""
    from shepherd.clients.facts import facts_of

    facts, data = engine.describe(), federation.host.data
    engine_promise(engine, list(facts) == sorted(data), f"it describes {list(facts)}, not all clients in order")
    engine_promise(engine, facts == facts_of(data), "it describes a client by other rows than its own")


def gives_the_bits_of_plain_training(engine: Engine, federation: TinyFederation) -> None:
    """Those of training in this process, without and with a deadline that has passed."""
    engine.restore({})
    expected = plain_training(federation, federation.task, {})
    same_updates(engine, replies(engine, federation, federation.task), expected)
    engine.restore({})
    late = replies(engine, federation, federation.task, 0.0, lambda: True)
    same_updates(engine, late, expected, "a deadline that has passed")


def reports_the_steps(engine: Engine, federation: TinyFederation) -> None:
    """The last step of every client is observed."""
    engine.restore({})
    seen: dict[str, int] = {}
    observe = lambda report: seen.update({client: news.step for client, news in report.items()})  # noqa: E731
    replies(engine, federation, federation.task, observe=observe)
    asked = {client: work.steps for client, work in federation.task.work.items()}
    engine_promise(engine, seen == asked, f"the steps that it reports end at {seen}, not at {asked}")


def goes_on_from_the_private_state(engine: Engine, federation: TinyFederation) -> None:
    """And from no other: what a client kept of an update that did not count has no effect."""
    task = federation.task
    engine.restore({})
    fresh = same_updates(engine, replies(engine, federation, task), plain_training(federation, task, {}))
    engine_promise(
        engine, all(update.private for update in fresh.values()), "a client keeps no private state of SCAFFOLD"
    )
    same_updates(engine, replies(engine, federation, task), fresh, "what a client kept of an update that did not count")
    kept = {client: update.private for client, update in fresh.items()}
    engine.restore(kept)
    second = same_updates(
        engine, replies(engine, federation, task), plain_training(federation, task, kept), "a restored state"
    )
    moved = any(second[c].delta[n].tobytes() != fresh[c].delta[n].tobytes() for c in fresh for n in fresh[c].delta)
    engine_promise(engine, moved, "the private state has no effect")
    some = {min(kept): kept[min(kept)]}
    engine.restore(some)
    same_updates(
        engine, replies(engine, federation, task), plain_training(federation, task, some), "a state of one client"
    )
    engine.restore({})
    same_updates(engine, replies(engine, federation, task), fresh, "a state that was taken back")


def keeps_a_failure_to_its_client(engine: Engine, federation: TinyFederation) -> None:
    """A failure has a code, and no text of the exception; the others train as if it had not been there."""
    from shepherd.testing.tiny_federation import SPOILT

    engine.restore({})
    task, good = federation.task, min(federation.task.work)
    both = replace(
        task.part([good]),
        views={good: task.views[good], SPOILT: task.views[good]},
        work={good: task.work[good], SPOILT: replace(task.work[good], client=SPOILT)},
    )
    given = replies(engine, federation, both)
    failure = ClientFailure(SPOILT, task.round, "error:IndexError", "raised while training")
    engine_promise(
        engine, given[SPOILT] == failure, f"the client that fails is reported as {given[SPOILT]}, not as {failure}"
    )
    same_updates(engine, {good: given[good]}, plain_training(federation, task.part([good]), {}), "a failure beside it")


def measures_the_model_that_it_is_given(engine: Engine, federation: TinyFederation) -> None:
    """Losses of the clients' rows and of the server's, under the bare base, a model, and another model."""
    from shepherd.evaluation.losses import row_losses

    host, model = federation.host, federation.model
    cohort, budget = sorted(federation.task.work)[1:3], host.settings.tokens_measured
    factors = {name: pair._replace(B=pair.B + 0.5) for name, pair in model.adapter.factors.items()}
    moved, found = GlobalModel(replace(model.adapter, factors=factors)), []
    for given in (None, model, moved):
        lora = host.make_lora().load(given) if given is not None else None
        stats = engine.measure(given, cohort)
        expected = {c: row_losses(host.packed, host.data[c], lora, tokens_per_pass=budget)[0].stat for c in cohort}
        engine_promise(engine, stats == expected, "it measures other losses of the clients' rows than this process")
        finite = all(np.isfinite(stat.mean) and stat.weight > 0 for stat in stats.values())
        engine_promise(engine, finite, "the loss of a client's rows is not finite")
        ours, theirs = engine.evaluate(given, federation.held_out), row_losses(
            host.packed, federation.held_out, lora, tokens_per_pass=budget
        )[0]  # fmt: skip
        same = ours.nll.tobytes() == theirs.nll.tobytes() and ours.hits.tobytes() == theirs.hits.tobytes()
        engine_promise(engine, same, "it measures other losses of the server's rows than this process")
        found.append(stats)
    engine_promise(engine, found[0] != found[2], "a measure does not depend on the model")


PROMISES: tuple[Callable[[Engine, TinyFederation], None], ...] = (
    has_the_methods_of_the_protocol,
    describes_each_client,
    gives_the_bits_of_plain_training,
    reports_the_steps,
    goes_on_from_the_private_state,
    keeps_a_failure_to_its_client,
    measures_the_model_that_it_is_given,
)
